"""Who is tied with whom: all pairs of agents compared at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.estimates import CONFIDENCE, NOTHING, RESAMPLES, Design, seed_effects
from personalllm_env.streams import derived_seed


class Verdict(NamedTuple):
    """All agents against each other.

    Attributes:
        better: Whether the first is significantly better than the second.
        critical: The studentised difference beyond which it is; NaN with nothing to compare.
    """

    better: Bool[np.ndarray, "A A"]
    critical: float

    def ranks(self, agent: int) -> tuple[int, int]:
        """Returns the best and the worst rank that the differences leave an agent."""
        ahead, behind = self.better[:, agent].sum(), self.better[agent].sum()
        return 1 + int(ahead), len(self.better) - int(behind)


def compare_all(design: Design, regret: Float[np.ndarray, "A N"]) -> Verdict:
    """Compares all pairs of agents, so that any false difference has a 5 % chance.

    The single-step max-|t| procedure (Westfall and Young, "Resampling-based multiple testing",
    1993, 2.3; Tukey's, with resampled correlations in place of equal ones): a difference
    counts if it exceeds, in its standard errors, what the largest of all would by chance.
    Standard errors hold the design effect of the differences.

    Args:
        design: Who belongs together.
        regret: What each agent cost each user; less is better.
    """
    num = len(regret)
    better = np.zeros((num, num), dtype=bool)
    if design.within < 1 or num < 2:
        return Verdict(better, float("nan"))
    first, second = np.triu_indices(num, k=1)
    spread = regret[first] - regret[second]
    mean = spread.mean(axis=1)
    spread -= mean[:, None]
    seeds = seed_effects(design, spread)
    moving = np.sqrt(seeds.variance) > NOTHING
    # Users alike in all seeds settle a difference; alike in each seed only, they tell nothing.
    settled = (np.abs(spread) <= NOTHING).all(axis=1) & (np.abs(mean) > NOTHING)
    size = np.where(settled, np.inf, 0.0)
    limit, critical = 0.0, float("nan")
    if moving.any():
        error = np.sqrt(seeds.variance[moving] / design.num_users)
        size[moving] = np.abs(mean[moving]) / (error * np.sqrt(seeds.inflation[moving]))
        pairs = zip(first[moving], second[moving], error, strict=True)
        limit = critical = _largest_by_chance(design, regret, pairs, seeds.freedom)
    found = size > limit
    better[first, second] = found & (mean < 0)
    better[second, first] = found & (mean > 0)
    return Verdict(better, critical)


def _largest_by_chance(
    design: Design,
    regret: Float[np.ndarray, "A N"],
    pairs: Iterable[tuple[int, int, float]],
    freedom: float,
) -> float:
    """Returns what the largest studentised difference of equal agents stays below.

    Resamples give the numerators, with the correlations of the pairs. Every pair has a design
    effect of its own, so the denominators err separately.
    """
    mean = regret.mean(axis=1, keepdims=True)
    moved = (regret - mean) @ design.weights / design.num_users
    rng = np.random.default_rng(derived_seed(0, "denominators"))
    largest = np.zeros(RESAMPLES)
    for i, j, error in pairs:
        shrunk = np.sqrt(rng.chisquare(freedom, RESAMPLES) / freedom)
        np.maximum(largest, np.abs(moved[i] - moved[j]) / (error * shrunk), out=largest)
    lacking = np.sqrt(design.num_users / design.within)  # what a resample of n users lacks
    return float(np.quantile(largest, CONFIDENCE) * lacking)
