"""From values to actions: the best candidates, ties broken uniformly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        # A copy, in which only what is chosen is -inf: the worst of the others may still come.
        values = np.maximum(values.astype(np.float64), np.finfo(np.float64).min)
        np.put_along_axis(values, chosen, -np.inf, axis=1)
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


def best_of_each(
    draws: Iterable[Float[np.ndarray, "B K"]], rng: np.random.Generator
) -> Int[np.ndarray, "B S"]:
    """Returns the best candidate under each of S draws of values, which may coincide."""
    return np.hstack([best(values, 1, rng) for values in draws])


def by_upper_bound(
    means: Float[np.ndarray, "B K"],
    inputs: Float[np.ndarray, "B K I"],
    width: Callable[[Float[np.ndarray, "B K I"]], Float[np.ndarray, "B K"]],
    num_shown: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "B S"]:
    """Returns candidates of highest upper bound.

    One alone has the highest bound on its value. Of several the first has the highest mean and
    the others the highest bounds on how much better than it they are, which is the first again
    once it is certain.

    Args:
        means: Of the candidates' values.
        inputs: What values are linear in.
        width: How far the bound on the value of inputs, or of their differences, lies above
            the mean.
        num_shown: S.
        rng: For ties.
    """
    if num_shown == 1:
        return best(means + width(inputs), 1, rng)
    first = best(means, 1, rng)
    ahead = inputs - np.take_along_axis(inputs, first[:, :, None], axis=1)
    return np.hstack([first, best(means + width(ahead), num_shown - 1, rng)])


def linear_sd(
    inputs: Float[np.ndarray, "B K I"], covariance: Float[np.ndarray, "B I I"]
) -> Float[np.ndarray, "B K"]:
    """Returns the sd of values that are linear in inputs, with coefficients so uncertain."""
    variance = np.vecdot(np.matmul(inputs, covariance), inputs)
    return np.sqrt(np.maximum(variance, 0.0))
