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
    rows = np.arange(len(values))
    left = values.astype(np.float64)
    chosen = np.empty((len(values), num_shown), dtype=np.int64)
    for s in range(num_shown):
        ties = left == left.max(axis=1, keepdims=True)
        chosen[:, s] = (ties * (0.5 + rng.random(left.shape))).argmax(axis=1)
        if s + 1 < num_shown:
            left[rows, chosen[:, s]] = -np.inf
    return chosen


def only_best(
    values: Float[np.ndarray, "B K"], num_shown: int, rng: np.random.Generator
) -> Int[np.ndarray, "B S"]:
    """Returns the highest-valued candidate in every place: for who has nothing to learn."""
    return np.repeat(best(values, 1, rng), num_shown, axis=1)
