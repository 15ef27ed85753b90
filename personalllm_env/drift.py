"""How a user's weights change within an episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt64

from personalllm_env import streams
from personalllm_env.streams import Purpose


@dataclass(frozen=True)
class GradualDrift:
    """The weights move in a straight line towards another user's, over the episode.

    Attributes:
        share: How far they have moved at the last interaction, in (0, 1].
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")

    def schedule(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns how far each row has moved at each interaction, in [0, 1]."""
        line = np.linspace(0, self.share, horizon, dtype=np.float32)
        return np.repeat(line[:, None], len(keys), axis=1)


@dataclass(frozen=True)
class SuddenDrift:
    """The user becomes another one, once, before an interaction drawn uniformly from 1..T-1.

    The other is drawn from the same population, and may by chance be the same user again.

    Attributes:
        probability: That this happens at all in an episode.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be in (0, 1], got {self.probability}")

    def schedule(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns 0 before and 1 after the change."""
        chance, place = streams.uniform(keys, Purpose.DRIFT_TIME, 2)
        change = 1 + np.floor(place * (horizon - 1))
        change[chance >= self.probability] = horizon
        return (np.arange(horizon)[:, None] >= change).astype(np.float32)


Drift = GradualDrift | SuddenDrift
