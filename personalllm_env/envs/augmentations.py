"""What an observation can carry besides: the history so far, a belief about the user.

State has one row per user; wrappers for single and vector environments share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

from personalllm_env.belief import RidgeBelief, evidence
from personalllm_env.types import Feedback, PriorKnowledge

Obs = dict[str, Any]


@runtime_checkable
class Augmentation(Protocol):
    """Something that an observation can carry besides; state has one row per user.

    It knows of the task what an agent may know.
    """

    def spaces(self, prior: PriorKnowledge) -> dict[str, spaces.Space[Any]]:
        """Returns one row's additional observation spaces."""
        ...

    def begin(self, prior: PriorKnowledge, num_rows: int) -> None:
        """Starts B rows anew."""
        ...

    def clear(self, rows: Bool[np.ndarray, "B"]) -> None:
        """Starts some rows anew."""
        ...

    def push(self, before: Obs, action: Int[np.ndarray, "B S"], after: Obs) -> None:
        """Takes in one interaction: what was seen, what was shown, what is seen now."""
        ...

    def view(self, now: Obs) -> Obs:
        """Returns the additional entries, fresh, for the present observation."""
        ...


Parts: TypeAlias = Augmentation | Sequence[Augmentation]
"""What observations carry besides: one or several."""


def several(parts: Parts) -> tuple[Augmentation, ...]:
    """Returns the parts, of which there may be one.

    Raises:
        ValueError: If something among them is no augmentation.
    """
    found = tuple(parts) if isinstance(parts, Sequence) else (parts,)
    for part in found:
        if isinstance(part, type) or not isinstance(part, Augmentation):
            raise ValueError(
                "parts must be Belief(), History() or your own Augmentation, or a list of "
                f"these; got {parts!r:.60}"
            )
    return found


class History:
    """The last H interactions, oldest first, zero where there was none.

    Adds ``history_features`` (H, S, D) of what was shown, ``history_feedback`` (H, W) and
    ``history_heard`` (H,). Late feedback stands beside the interaction it is about.

    Args:
        length: H, more than the feedback's delay.
    """

    def __init__(self, length: int = 8) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self._length = length

    def spaces(self, prior: PriorKnowledge) -> dict[str, spaces.Space[Any]]:
        """Returns the three boxes."""
        if prior.feedback.delay >= self._length:
            raise ValueError(
                f"a history of {self._length} never holds feedback that is "
                f"{prior.feedback.delay} interactions late; make it longer"
            )
        h, s, d = self._length, prior.num_shown, prior.num_features
        w = prior.feedback.width(prior.num_responses)
        return {
            "history_features": _box(h, s, d),
            "history_feedback": _box(h, w),
            "history_heard": spaces.Box(0, 1, (h,), np.float32),
        }

    def begin(self, prior: PriorKnowledge, num_rows: int) -> None:
        """Starts B rows with nothing remembered."""
        self._slot = -1 - prior.feedback.delay
        self._kept = {
            name: np.zeros((num_rows, *space.shape), np.float32)  # type: ignore[misc]
            for name, space in self.spaces(prior).items()
        }

    def clear(self, rows: Bool[np.ndarray, "B"]) -> None:
        """Forgets some rows' interactions."""
        for array in self._kept.values():
            array[rows] = 0

    def push(self, before: Obs, action: Int[np.ndarray, "B S"], after: Obs) -> None:
        """Shifts everything by one and writes the newest."""
        for array in self._kept.values():
            array[:, :-1] = array[:, 1:].copy()
            array[:, -1] = 0
        shown = np.take_along_axis(before["response_features"], action[:, :, None], axis=1)
        self._kept["history_features"][:, -1] = shown
        self._kept["history_feedback"][:, self._slot] = after["feedback"]
        self._kept["history_heard"][:, self._slot] = after["heard"][:, 0]

    def view(self, now: Obs) -> Obs:
        """Returns copies."""
        return {name: array.copy() for name, array in self._kept.items()}


class Belief:
    """A ridge belief about the user's linear taste, and what it says of the candidates.

    Adds ``belief_mean`` (D,), and per candidate ``belief_value`` (K,) and ``belief_width``
    (K,), the posterior mean and sd (in units of the noise) of its value.

    Args:
        ridge: The prior's weight in interactions.
        centre: (D,) the prior mean, such as the population's taste; 0 by default.
    """

    def __init__(
        self, ridge: float = 10.0, centre: Float[np.ndarray, "D"] | None = None
    ) -> None:
        self._ridge, self._centre = ridge, centre

    def spaces(self, prior: PriorKnowledge) -> dict[str, spaces.Space[Any]]:
        """Returns the three boxes."""
        k, d = prior.num_responses, prior.num_features
        return {
            "belief_mean": _box(d),
            "belief_value": _box(k),
            "belief_width": spaces.Box(0, np.finfo(np.float32).max, (k,), np.float32),
        }

    def begin(self, prior: PriorKnowledge, num_rows: int) -> None:
        """Starts B rows at the prior."""
        self._prior = prior
        self._belief = RidgeBelief(prior.num_features, ridge=self._ridge, centre=self._centre)
        self._belief.reset(num_rows)
        self._waiting: deque[tuple[Any, Any]] = deque(maxlen=prior.feedback.delay + 1)

    def clear(self, rows: Bool[np.ndarray, "B"]) -> None:
        """Returns some rows to the prior; what they still wait for arrives as silence."""
        self._belief.forget(rows)

    def push(self, before: Obs, action: Int[np.ndarray, "B S"], after: Obs) -> None:
        """Updates with what was said, beside the interaction it is about."""
        self._waiting.append((before["response_features"], action))
        features, did = self._waiting[0]
        spoken = self._prior.feedback
        said = spoken.decode(after["feedback"], self._prior.num_responses)
        heard = after["heard"][:, 0] > 0.5
        silent = np.zeros(len(heard), np.float32)
        told = Feedback(silent, heard, said, ~heard)
        self._belief.update(evidence(features, did, told, spoken.num_stars))

    def view(self, now: Obs) -> Obs:
        """Returns the belief and its view of the present candidates."""
        x = now["response_features"]
        return {
            "belief_mean": self._belief.mean.astype(np.float32),
            "belief_value": self._belief.values(x).astype(np.float32),
            "belief_width": self._belief.widths(x).astype(np.float32),
        }


def _box(*shape: int) -> spaces.Box:
    limit = np.finfo(np.float32).max
    return spaces.Box(-limit, limit, shape, np.float32)
