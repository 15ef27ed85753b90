"""How users speak: one or more channels, and the silence, delay and leaving around them.

Channels are plain data: their settings are their constructor's arguments, so that an
environment's specification survives JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from personalllm_env.channels import (
    Channel,
    Like,
    Reward,
    Served,
    Stars,
    check_range,
    mean_shown,
)
from personalllm_env.comparisons import Choice, Click
from personalllm_env.types import Feedback

Part = TypeVar("Part")

__all__ = [
    "CHANNELS",
    "Channel",
    "Choice",
    "Click",
    "Delay",
    "FeedbackModel",
    "FeedbackSpec",
    "Leave",
    "Like",
    "Reward",
    "Served",
    "Silence",
    "Stars",
    "built",
    "feedback_model",
    "mean_shown",
]


@dataclass(frozen=True)
class Silence:
    """The user says nothing with this probability, independently at each interaction."""

    probability: float = 0.9

    def __post_init__(self) -> None:
        check_range("silence: probability", self.probability, 0, 1)


@dataclass(frozen=True)
class Delay:
    """What the user says arrives this many interactions late; the last ones never do."""

    interactions: int = 1

    def __post_init__(self) -> None:
        check_range("delay: interactions", self.interactions, 0)
        if self.interactions % 1:
            raise ValueError(f"delay: interactions must be whole, got {self.interactions}")
        object.__setattr__(self, "interactions", int(self.interactions))


@dataclass(frozen=True)
class Leave:
    """Served worse than ``threshold``, the user leaves for good with this probability."""

    threshold: float = 0.0
    probability: float = 0.1

    def __post_init__(self) -> None:
        check_range("leave: threshold", self.threshold)
        check_range("leave: probability", self.probability, 0, 1)


@dataclass(frozen=True)
class FeedbackModel:
    """How a user speaks: channels in order of precedence, and silence, delay, leaving.

    Gymnasium's reward is that of the first channel.
    """

    channels: tuple[Channel, ...]
    silence: Silence | None = None
    delay: int = 0
    leave: Leave | None = None

    def __post_init__(self) -> None:
        names = [channel.name for channel in self.channels]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"feedback needs one or more different channels, got {names}")
        check_range("delay", self.delay, 0)
        if self.delay != int(self.delay):
            raise ValueError(f"delay must be an integer, got {self.delay}")

    @cached_property
    def num_stars(self) -> int:
        """How many stars a user can give; 5 where they give none."""
        stars = [c for c in self.channels if isinstance(c, Stars)]
        return len(stars[0].cuts) + 1 if stars else 5

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
    return built(f"feedback {name!r}", known[name], settings)


def built(what: str, kind: Callable[..., Part], settings: Any) -> Part:
    """Builds something from settings that may come from JSON.

    Args:
        what: What errors call it.
        kind: Its class, whose constructor names the settings.
        settings: A mapping of their names.

    Raises:
        ValueError: If they are no mapping, one is unknown, or of a type that does not fit.
    """
    known = signature(kind).parameters
    if not isinstance(settings, Mapping) or not set(settings) <= set(known):
        raise ValueError(f"{what} takes a dict of {', '.join(known)}; got {settings!r:.60}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from None
