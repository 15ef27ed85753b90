"""From values to actions: the best candidates, ties broken uniformly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def best(
    values: Float[np.ndarray, "B K"], num_shown: int, rng: np.random.Generator
) -> Int[np.ndarray, "B S"]:
    """Returns the ``num_shown`` highest-valued candidates, all different, best first.

    Equal values are ordered by fair random draws: taking the first (or, as Open Bandit
    Pipeline's LinUCB does, always the last) makes a policy out of an index.
    """
    chosen = _argmax(values, rng)[:, None]
    for _ in range(num_shown - 1):
        values = values.astype(np.float64)  # a copy, which can hold -inf
        np.put_along_axis(values, chosen[:, -1:], -np.inf, axis=1)
        chosen = np.hstack([chosen, _argmax(values, rng)[:, None]])
    return chosen


def _argmax(values: Float[np.ndarray, "B K"], rng: np.random.Generator) -> Int[np.ndarray, "B"]:
    ties = values == values.max(axis=1, keepdims=True)
    if np.count_nonzero(ties) == len(values):  # the usual case: no ties
        return ties.argmax(axis=1)
    return (ties * (0.5 + rng.random(values.shape))).argmax(axis=1)


def only_best(
    values: Float[np.ndarray, "B K"], num_shown: int, rng: np.random.Generator
) -> Int[np.ndarray, "B S"]:
    """Returns the highest-valued candidate in every place: for who has nothing to learn."""
    return np.repeat(best(values, 1, rng), num_shown, axis=1)
