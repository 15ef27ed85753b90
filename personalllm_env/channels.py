"""Channels: the ways in which a user can speak, each with its law and its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64

from personalllm_env import streams
from personalllm_env.streams import Purpose


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


def column(said: Float[np.ndarray, "B"], num_responses: int) -> Float[np.ndarray, "B 1"]:
    """Encodes one number as one column."""
    return said[:, None]


def only(encoded: Float[np.ndarray, "B 1"]) -> Float[np.ndarray, "B"]:
    """Decodes the only column."""
    return encoded[:, 0]


def log_sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns log(1 / (1 + exp(-x))); np.logaddexp says the same, more slowly."""
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
        check_range("reward: noise_sd", self.noise_sd, 0)

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

    encode = staticmethod(column)
    decode = staticmethod(only)

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
        check_range("like: threshold", self.threshold)
        check_range("like: temperature", self.temperature, 0)

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
        return answers_yes(margin, self.temperature, noise).astype(np.float32)

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns 1 for a like, else 0."""
        return said

    encode = staticmethod(column)
    decode = staticmethod(only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Logistic; at temperature 0, .01 stands in."""
        margin = (served.utility - self.threshold) / max(self.temperature, 0.01)
        return log_sigmoid(np.where(said[:, None] > 0.5, margin, -margin))


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
        check_range("stars: noise_sd", self.noise_sd, 0)

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

    encode = staticmethod(column)
    decode = staticmethod(only)

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


def mean_shown(shown: Float[np.ndarray, "B S *J"]) -> Float[np.ndarray, "B *J"]:
    """Returns the mean over what was shown; of one, that one (without the cost of a mean)."""
    return shown[:, 0] if shown.shape[1] == 1 else shown.mean(axis=1)


def answers_yes(
    margin: Float[np.ndarray, "B"], temperature: float, noise: Float[np.ndarray, "B"]
) -> Shaped[np.ndarray, "B"]:
    """Says whether a uniform number is below sigmoid(margin / temperature)."""
    if temperature == 0:
        return (margin > 0) | ((margin == 0) & (noise < 0.5))
    # The noise is turned into a logistic threshold, so that no exponential overflows.
    return np.asarray(margin) > temperature * (np.log(noise) - np.log1p(-noise))


def check_range(what: str, value: float, low: float = -np.inf, high: float = np.inf) -> None:
    """Raises ValueError, naming ``what``, unless the value is finite and in [low, high]."""
    if not isinstance(value, int | float | np.number):
        raise ValueError(f"{what} must be a number, got {value!r}")
    if not low <= value <= high or not np.isfinite(value):
        above = f" and at least {low}" if np.isfinite(low) else ""
        limit = f"in [{low}, {high}]" if np.isfinite(high) else f"finite{above}"
        raise ValueError(f"{what} must be {limit}, got {value}")
