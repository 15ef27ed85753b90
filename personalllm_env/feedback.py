"""From utility to what the user says: channels, and the silence around them.

A channel is one way of speaking (a number, a like, stars, a choice, a click). A
``FeedbackModel`` is one or more channels with what applies to all of them: silence, delay, and
whether the user stays. Channels are plain data: their settings are their constructor's
arguments, so that an environment's specification survives JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64

from personalllm_env import streams
from personalllm_env.streams import Purpose
from personalllm_env.types import Feedback


class Served(NamedTuple):
    """What the user has before them when they speak. J is 1, or a number of hypotheses."""

    shown: Float[np.ndarray, "B S *J"]  # utilities of what was shown
    utility: Float[np.ndarray, "B *J"]  # their mean over S
    candidates: Float[np.ndarray, "B K *J"] | None  # of all K, where a channel needs them
    action: Int[np.ndarray, "B S"]


@runtime_checkable
class Channel(Protocol):
    """One way of speaking. ``say`` is deterministic given noise drawn with the episode."""

    name: ClassVar[str]
    needs_candidates: ClassVar[bool]  # whether the user compares all K
    num_shown: ClassVar[int | None]  # how many responses must be shown, or None for any

    def width(self, num_responses: int) -> int:
        """Returns how many numbers an observation needs for what is said."""
        ...

    def bounds(self, limit: float) -> tuple[float, float]:
        """Returns the least and the largest encoded value, for utilities within +-limit."""
        ...

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Draws an episode's worth of noise."""
        ...

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns what the user says, one float32 per row."""
        ...

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns the number that Gymnasium calls the reward."""
        ...

    def encode(
        self, said: Float[np.ndarray, "B"], num_responses: int
    ) -> Float[np.ndarray, "B W"]:
        """Returns what was said as ``width`` numbers for an observation."""
        ...

    def decode(self, encoded: Float[np.ndarray, "B W"]) -> Float[np.ndarray, "B"]:
        """Returns what was said; the inverse of ``encode``."""
        ...

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Returns log p(said | utilities) up to a constant, for J hypotheses about the user."""
        ...


def _column(said: Float[np.ndarray, "B"], num_responses: int) -> Float[np.ndarray, "B 1"]:
    return said[:, None]


def _only(encoded: Float[np.ndarray, "B 1"]) -> Float[np.ndarray, "B"]:
    return encoded[:, 0]


def _log_sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # np.logaddexp says the same, ten times slower.
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


@dataclass(frozen=True)
class Reward:
    """The user reports the utility plus N(0, noise_sd**2); of two shown, their mean utility.

    Attributes:
        noise_sd: In units of utility, whose within-prompt spread is about 1.
    """

    noise_sd: float = 0.5

    name: ClassVar[str] = "reward"
    needs_candidates: ClassVar[bool] = False
    num_shown: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_range("reward: noise_sd", self.noise_sd, 0)

    def width(self, num_responses: int) -> int:
        """One number."""
        return 1

    def bounds(self, limit: float) -> tuple[float, float]:
        """Utility plus the largest noise there is."""
        limit += streams.MAX_NORMAL * self.noise_sd
        return -limit, limit

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns normal noise of sd ``noise_sd``."""
        draws = streams.normal(keys, Purpose.REWARD, horizon)
        draws *= np.float32(self.noise_sd)
        return draws

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns utility + noise."""
        return served.utility + noise

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns what is said."""
        return said

    encode = staticmethod(_column)
    decode = staticmethod(_only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Gaussian; at ``noise_sd`` 0 a sd of .01 stands in, so that hypotheses survive."""
        error = said[:, None] - served.utility
        return -0.5 * (error / max(self.noise_sd, 0.01)) ** 2


@dataclass(frozen=True)
class Like:
    """The user says yes (1) or no (0): P(yes) = sigmoid((utility - threshold) / temperature).

    Attributes:
        threshold: The utility at which yes and no are equally likely.
        temperature: 0 for a sharp threshold.
    """

    threshold: float = 0.5
    temperature: float = 0.25

    name: ClassVar[str] = "like"
    needs_candidates: ClassVar[bool] = False
    num_shown: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_range("like: temperature", self.temperature, 0)

    def width(self, num_responses: int) -> int:
        """One number."""
        return 1

    def bounds(self, limit: float) -> tuple[float, float]:
        """0 to 1."""
        return 0.0, 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns uniform numbers."""
        return streams.uniform(keys, Purpose.LIKE, horizon)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns 1 for a like, 0 for none."""
        margin = served.utility - np.float32(self.threshold)
        return _answers_yes(margin, self.temperature, noise).astype(np.float32)

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns 1 for a like, else 0."""
        return said

    encode = staticmethod(_column)
    decode = staticmethod(_only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Logistic; at temperature 0, .01 stands in."""
        margin = (served.utility - self.threshold) / max(self.temperature, 0.01)
        return _log_sigmoid(np.where(said[:, None] > 0.5, margin, -margin))


@dataclass(frozen=True)
class Stars:
    """The user gives 1 to len(cuts) + 1 stars: one more for every cut below a noisy utility.

    Attributes:
        cuts: Increasing; by default the quintiles of N(0, 1), so a random response earns each
            number of stars about equally often.
        noise_sd: Of the normal noise added before cutting.
    """

    cuts: Sequence[float] = (-0.8416, -0.2533, 0.2533, 0.8416)
    noise_sd: float = 0.25

    name: ClassVar[str] = "stars"
    needs_candidates: ClassVar[bool] = False
    num_shown: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(float(c) for c in self.cuts))
        if len(self.cuts) == 0 or not np.all(np.diff(self.cuts, prepend=-np.inf) > 0):
            raise ValueError(f"stars: cuts must be numbers that increase, got {self.cuts}")
        _check_range("stars: noise_sd", self.noise_sd, 0)

    def width(self, num_responses: int) -> int:
        """One number."""
        return 1

    def bounds(self, limit: float) -> tuple[float, float]:
        """0 (silent) to the number of stars."""
        return 0.0, len(self.cuts) + 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns normal noise of sd ``noise_sd``."""
        return streams.normal(keys, Purpose.STARS, horizon) * np.float32(self.noise_sd)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns the number of stars."""
        felt = served.utility + noise
        return (1 + np.searchsorted(np.array(self.cuts), felt)).astype(np.float32)

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns the stars scaled to [0, 1]."""
        return (said - 1) / np.float32(len(self.cuts))

    encode = staticmethod(_column)
    decode = staticmethod(_only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Ordered probit: the normal mass between the two cuts around what was said."""
        from scipy.special import ndtr  # here, to keep `import personalllm_env` quick

        edges = np.array([-np.inf, *self.cuts, np.inf])
        star = np.clip(said, 1, len(self.cuts) + 1).astype(np.int64)
        mean, sd = served.utility, max(self.noise_sd, 0.01)
        upper = ndtr((edges[star][:, None] - mean) / sd)
        lower = ndtr((edges[star - 1][:, None] - mean) / sd)
        return np.log(np.maximum(upper - lower, 1e-12))


@dataclass(frozen=True)
class Choice:
    """Of two shown responses the user says which they prefer: +1 the first, -1 the second.

    P(first) = sigmoid((u_1 - u_2) / temperature) (Bradley & Terry, Biometrika 1952); exact at
    temperature 0, where equal utilities are decided by a fair coin. The reward is what is
    said. It informs and is no objective: it is largest for a good response shown beside a
    bad one. Train on utility (``UtilityReward``) or add a ``Reward`` channel before it.
    """

    temperature: float = 0.25

    name: ClassVar[str] = "choice"
    needs_candidates: ClassVar[bool] = False
    num_shown: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        _check_range("choice: temperature", self.temperature, 0)

    def width(self, num_responses: int) -> int:
        """One number."""
        return 1

    def bounds(self, limit: float) -> tuple[float, float]:
        """-1 to 1."""
        return -1.0, 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns uniform numbers."""
        return streams.uniform(keys, Purpose.CHOICE, horizon)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns +1 for the first, -1 for the second."""
        margin = served.shown[:, 0] - served.shown[:, 1]
        first = _answers_yes(margin, self.temperature, noise)
        return np.where(first, np.float32(1), np.float32(-1))

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns what is said."""
        return said

    encode = staticmethod(_column)
    decode = staticmethod(_only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Bradley-Terry; at temperature 0, .01 stands in."""
        margin = (served.shown[:, 0] - served.shown[:, 1]) / max(self.temperature, 0.01)
        return _log_sigmoid(said[:, None] * margin)


@dataclass(frozen=True)
class Click:
    """The user sees all K responses and clicks on one: its index in the order shown.

    P(k) is proportional to exp(u_k / temperature) (Luce 1959); at temperature 0 the best is
    clicked. The reward is 1 if what the agent put forward is clicked.
    """

    temperature: float = 0.25

    name: ClassVar[str] = "click"
    needs_candidates: ClassVar[bool] = True
    num_shown: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_range("click: temperature", self.temperature, 0)

    def width(self, num_responses: int) -> int:
        """One number per response."""
        return num_responses

    def bounds(self, limit: float) -> tuple[float, float]:
        """0 to 1."""
        return 0.0, 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns uniform numbers."""
        return streams.uniform(keys, Purpose.CLICK, horizon)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns the index clicked, by inversion of the cumulative probabilities."""
        utility = _candidates(served)
        if self.temperature == 0:
            return utility.argmax(axis=1).astype(np.float32)
        logits = (utility - utility.max(axis=1, keepdims=True)) / self.temperature
        mass = np.cumsum(np.exp(logits, dtype=np.float64), axis=1)
        clicked = (mass < noise[:, None] * mass[:, -1:]).sum(axis=1)
        return clicked.astype(np.float32)

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns 1 where a shown response was clicked."""
        return (action == said[:, None]).any(axis=1).astype(np.float32)

    def encode(
        self, said: Float[np.ndarray, "B"], num_responses: int
    ) -> Float[np.ndarray, "B K"]:
        """One-hot."""
        return (said[:, None] == np.arange(num_responses)).astype(np.float32)

    def decode(self, encoded: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B"]:
        """Returns the index."""
        return encoded.argmax(axis=1).astype(np.float32)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Softmax; at temperature 0, .01 stands in."""
        logits = _candidates(served) / max(self.temperature, 0.01)
        top = logits.max(axis=1)
        log_total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return logits[np.arange(len(said)), said.astype(np.int64)] - log_total


@dataclass(frozen=True)
class Silence:
    """The user says nothing with this probability, independently at each interaction."""

    probability: float = 0.9

    def __post_init__(self) -> None:
        _check_range("silence: probability", self.probability, 0, 1)


@dataclass(frozen=True)
class Delay:
    """What the user says arrives this many interactions late; the last ones never do."""

    interactions: int = 1

    def __post_init__(self) -> None:
        _check_range("delay: interactions", self.interactions, 0)
        if self.interactions % 1:
            raise ValueError(f"delay: interactions must be whole, got {self.interactions}")
        object.__setattr__(self, "interactions", int(self.interactions))


@dataclass(frozen=True)
class Leave:
    """Served worse than ``threshold``, the user leaves for good with this probability."""

    threshold: float = 0.0
    probability: float = 0.1

    def __post_init__(self) -> None:
        _check_range("leave: probability", self.probability, 0, 1)


@dataclass(frozen=True)
class FeedbackModel:
    """How a user speaks: channels in order of precedence, and silence, delay, leaving.

    Gymnasium's reward is that of the first channel.
    """

    channels: tuple[Channel, ...]
    silence: Silence | None = None
    delay: int = 0
    leave: Leave | None = None

    @cached_property
    def needs_candidates(self) -> bool:
        """Whether any channel compares all K responses."""
        return any(channel.needs_candidates for channel in self.channels)

    def width(self, num_responses: int) -> int:
        """Returns how many numbers an observation of what was said has."""
        return sum(channel.width(num_responses) for channel in self.channels)

    def encode(self, feedback: Feedback, num_responses: int) -> Float[np.ndarray, "B W"]:
        """Returns what was said as one float32 row per user, channel after channel.

        Silence is 0 throughout.
        """
        parts = [c.encode(feedback.said[c.name], num_responses) for c in self.channels]
        encoded = parts[0].copy() if len(parts) == 1 else np.concatenate(parts, axis=1)
        if self.silence is not None or self.delay:
            encoded *= feedback.heard[:, None]  # a click's one-hot of a silent 0 is not zero
        return encoded

    def decode(
        self, encoded: Float[np.ndarray, "B W"], num_responses: int
    ) -> dict[str, Float[np.ndarray, "B"]]:
        """Returns what encoded numbers say, per channel; the inverse of ``encode``."""
        widths = [channel.width(num_responses) for channel in self.channels]
        parts = np.split(encoded, np.cumsum(widths)[:-1], axis=1)
        return {
            channel.name: channel.decode(part)
            for channel, part in zip(self.channels, parts, strict=True)
        }


CHANNELS: dict[str, Callable[..., Channel]] = {
    "reward": Reward,
    "like": Like,
    "stars": Stars,
    "choice": Choice,
    "click": Click,
}
_MODIFIERS: dict[str, Callable[..., Silence | Delay | Leave]] = {
    "silence": Silence,
    "delay": Delay,
    "leave": Leave,
}

FeedbackSpec = (
    str
    | Channel
    | Silence
    | Delay
    | Leave
    | FeedbackModel
    | Mapping[str, Mapping[str, Any] | None]
    | Sequence[Any]
)
"""A name, an object, ``{"name": {settings}}``, or a sequence of these."""


def feedback_model(spec: FeedbackSpec) -> FeedbackModel:
    """Reads what a caller says about feedback.

    Args:
        spec: For example ``"like"``, ``Reward(noise_sd=1)``,
            ``{"reward": {"noise_sd": 1.0}, "silence": {"probability": 0.9}}`` or
            ``[Like(), Click(), Silence(0.9), Delay(2)]``.

    Raises:
        ValueError: If a name is unknown, a part occurs twice or is of no known kind, or no
            channel is given.
    """
    if isinstance(spec, FeedbackModel):
        return spec
    channels: list[Channel] = []
    modifiers: dict[type, Any] = {}
    for part in _parts(spec):
        if isinstance(part, Silence | Delay | Leave):
            if type(part) in modifiers:
                raise ValueError(f"feedback names {type(part).__name__} twice")
            modifiers[type(part)] = part
        elif isinstance(part, Channel) and not isinstance(part, type):
            channels.append(part)
        else:
            raise ValueError(
                "feedback must be names, {name: settings}, or objects such as Like(), "
                f"got {part!r}"
            )
    names = [channel.name for channel in channels]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"feedback needs one or more different channels, got {names}")
    delay = modifiers[Delay].interactions if Delay in modifiers else 0
    return FeedbackModel(tuple(channels), modifiers.get(Silence), delay, modifiers.get(Leave))


def _parts(spec: Any) -> list[Any]:
    if isinstance(spec, str):
        return [_named(spec, {})]
    if isinstance(spec, Mapping):
        return [_named(name, settings or {}) for name, settings in spec.items()]
    if isinstance(spec, Sequence):
        return [part for item in spec for part in _parts(item)]
    return [spec]


def _named(name: str, settings: Mapping[str, Any]) -> Any:
    known = {**CHANNELS, **_MODIFIERS}
    if name not in known:
        raise ValueError(f"unknown feedback {name!r}; known: {', '.join(known)}")
    try:
        return known[name](**settings)
    except TypeError as error:
        raise ValueError(f"feedback {name!r}: {error}") from None


def mean_shown(shown: Float[np.ndarray, "B S *J"]) -> Float[np.ndarray, "B *J"]:
    """Returns the mean over what was shown; of one, that one (and ten times faster)."""
    return shown[:, 0] if shown.shape[1] == 1 else shown.mean(axis=1)


def _candidates(served: Served) -> Float[np.ndarray, "B K *J"]:
    assert served.candidates is not None, "the caller honours needs_candidates"
    return served.candidates


def _answers_yes(
    margin: Float[np.ndarray, "B"], temperature: float, noise: Float[np.ndarray, "B"]
) -> Shaped[np.ndarray, "B"]:
    """Says whether a uniform number is below sigmoid(margin / temperature)."""
    if temperature == 0:
        return (margin > 0) | ((margin == 0) & (noise < 0.5))
    # The noise is turned into a logistic threshold, so that no exponential overflows.
    return np.asarray(margin) > temperature * (np.log(noise) - np.log1p(-noise))


def _check_range(what: str, value: float, low: float, high: float = np.inf) -> None:
    if not low <= value <= high or not np.isfinite(value):
        limit = f"in [{low}, {high}]" if np.isfinite(high) else f"finite and at least {low}"
        raise ValueError(f"{what} must be {limit}, got {value}")
