"""Estimates of many agents at once, paired over users, and honest about clusters of users.

Users are resampled within their seed, with the same weights for all agents and all statistics,
so everything stays paired and a resample of a whole track is a matrix product. Users of a seed
share a history (and perhaps a population), which resampling within seeds cannot see. What it
adds is the *design effect* (Kish, "Survey Sampling", 1965, 5.4), by which variances are
multiplied. Why so, and what was measured: ``docs/statistics.md``.

Axis letters beside those of ``types``: A agents (or other statistics, such as pairs of
agents), N users of all seeds, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from personalllm_env.streams import derived_seed

CONFIDENCE = 0.95
RESAMPLES = 2000
NOTHING = 1e-9
"""Utilities are of order 1; what is below this is rounding."""
WORST = 0.1
"""The share of the users who are called worst served."""
_CERTAIN = 1.25  # the design effect from which on its own degrees of freedom count alone


@dataclass(frozen=True)
class Design:
    """How many users each seed has; users are in the order of the seeds.

    One user per seed is as good as one seed: all are then independent.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"every seed needs a user, got {self.sizes} users")
        if max(self.sizes) == 1:
            object.__setattr__(self, "sizes", (sum(self.sizes),))

    @property
    def num_users(self) -> int:
        """N, of all seeds."""
        return sum(self.sizes)

    @property
    def within(self) -> int:
        """Degrees of freedom within seeds."""
        return self.num_users - len(self.sizes)

    @property
    def between(self) -> int:
        """Degrees of freedom between seeds."""
        return len(self.sizes) - 1

    @cached_property
    def weights(self) -> Float[np.ndarray, "N R"]:
        """How often each resample holds each user."""
        return _weights(self.sizes)

    def means(self, values: Float[np.ndarray, "A N"]) -> Float[np.ndarray, "A seeds"]:
        """Returns the mean of each seed's users."""
        starts = np.cumsum((0, *self.sizes[:-1]))
        return np.asarray(np.add.reduceat(values, starts, axis=1) / np.asarray(self.sizes))


@lru_cache(maxsize=2)  # tracks of a benchmark have the same users per seed
def _weights(sizes: tuple[int, ...]) -> Float[np.ndarray, "N R"]:
    rng = np.random.default_rng(derived_seed(0, "bootstrap"))
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).T for n in sizes]
    weights = np.concatenate(drawn).astype(np.float64)
    weights.setflags(write=False)
    return weights


class Statistics(NamedTuple):
    """One statistic per agent, and what its interval is made of."""

    value: Float[np.ndarray, "A"]
    replicates: Float[np.ndarray, "A R"]  # the value in each resample
    linear: Float[np.ndarray, "A N"]  # each user's influence on it; their mean is 0


def linearised(
    top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."], users: int = -1
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Returns mean(top) / mean(bottom), NaN where the latter is 0, and users' influence on it.

    Args:
        top: What there is a share of.
        bottom: What it is a share of; as many axes, or fewer at the front.
        users: The axis of the users, over which means are taken, counted from the back.
    """
    under = bottom.mean(axis=users, keepdims=True)
    under = np.where(np.abs(under) > NOTHING, under, np.nan)
    value = top.mean(axis=users, keepdims=True) / under
    return value.squeeze(users), (top - value * bottom) / under


def ratio(
    design: Design, top: Float[np.ndarray, "A N"], bottom: Float[np.ndarray, "#A N"]
) -> Statistics:
    """Returns mean(top) / mean(bottom) over users, NaN where the latter is 0."""
    value, linear = linearised(top, bottom)
    again = bottom @ design.weights
    # Of very few users a resample may hold nothing to be a share of.
    again = np.where(np.abs(again) > NOTHING * design.num_users, again, np.nan)
    return Statistics(value, (top @ design.weights) / again, linear)


def mean_ratio(
    design: Design, top: Float[np.ndarray, "A N T"], bottom: Float[np.ndarray, "N T"]
) -> Statistics:
    """Returns the mean over interactions of the ratio at each, where that is defined.

    Replicates are linearised: the ratios at single interactions are noisy, their mean is not.
    """
    defined = bottom.mean(axis=0) > NOTHING
    if not defined.any():
        nowhere = np.full((len(top), design.num_users), np.nan)
        return Statistics(nowhere[:, 0], np.full((len(top), RESAMPLES), np.nan), nowhere)
    ratios, influence = linearised(top[..., defined], bottom[:, defined], users=-2)
    value, linear = ratios.mean(axis=1), influence.mean(axis=2)
    return Statistics(
        value, value[:, None] + linear @ design.weights / design.num_users, linear
    )


def worst_mean(
    design: Design, values: Float[np.ndarray, "A N"], share: float = WORST
) -> Statistics:
    """Returns the mean among the ``share`` of the users with the largest values.

    Also called expected shortfall. Its linearisation is that of Rockafellar and Uryasev
    ("Optimization of conditional value-at-risk", 2000): the excess over the quantile.
    """
    count = share * design.num_users
    ones = np.ones((design.num_users, 1))
    value, linear = np.empty(len(values)), np.empty(values.shape)
    replicates = np.empty((len(values), RESAMPLES))
    for a, given in enumerate(values):
        order = np.argsort(-given, kind="stable")
        value[a] = _tail_mean(given, order, ones, count)[0]
        replicates[a] = _tail_mean(given, order, design.weights, count)
        edge = given[order[min(int(np.ceil(count)), design.num_users) - 1]]
        linear[a] = edge - value[a] + np.maximum(given - edge, 0) / share
    return Statistics(value, replicates, linear - linear.mean(axis=1, keepdims=True))


def tail_mean(values: Float[np.ndarray, "N"], share: float = WORST) -> float:
    """Returns ``worst_mean``'s number; of the last user who is in it a part may count."""
    order, ones = np.argsort(-values, kind="stable"), np.ones((len(values), 1))
    return float(_tail_mean(values, order, ones, share * len(values))[0])


def _tail_mean(
    values: Float[np.ndarray, "N"],
    order: np.ndarray,
    weights: Float[np.ndarray, "N R"],
    count: float,
) -> Float[np.ndarray, "R"]:
    enough = min(int(2 * count) + 30, len(order))
    while True:  # the tail of every resample lies well within the first of the order
        mine = weights[order[:enough]]
        before = mine.cumsum(axis=0) - mine
        if enough == len(order) or (before[-1] >= count).all():
            taken = np.clip(count - before, 0, mine)
            return np.asarray(values[order[:enough]] @ taken / count)
        enough = min(2 * enough, len(order))


# --- what seeds add ---------------------------------------------------------------------------


class SeedEffects(NamedTuple):
    """How the spread of the seeds changes the variance of each statistic.

    Attributes:
        variance: Mean square within seeds of its linearised values.
        inflation: Its design effect, moderated, at least 1.
        freedom: Degrees of freedom of the design effects.
        pooled: The design effect that the statistics have in common, at least 1.
    """

    variance: Float[np.ndarray, "A"]
    inflation: Float[np.ndarray, "A"]
    freedom: float
    pooled: float


def seed_effects(design: Design, linear: Float[np.ndarray, "A N"]) -> SeedEffects:
    """Returns the design effects: mean square between seeds over that within.

    Of a few seeds one statistic's ratio is hardly known, so each is drawn towards their
    mean, the more the less they differ beyond chance: the moderated variances of Smyth
    ("Linear models and empirical Bayes methods for assessing differential expression",
    2004), here of ratios. Their mean is uncertain too, and statistics that say the same of
    the users count as one in it; relative variances, 2 / freedom, add.
    """
    means = design.means(linear)
    rest = linear - np.repeat(means, design.sizes, axis=1)
    variance = (rest**2).sum(axis=1) / max(design.within, 1)
    inflation = np.ones(len(linear))
    moving = np.sqrt(variance) > NOTHING  # False for NaN too
    if design.between < 1 or not moving.any():
        return SeedEffects(variance, inflation, float(design.within), 1.0)
    centred = means[moving] - linear[moving].mean(axis=1, keepdims=True)
    between = (np.asarray(design.sizes) * centred**2).sum(axis=1) / design.between
    ratios = between / variance[moving]
    prior = _prior_freedom(ratios, design.between)
    own = design.between / (prior + design.between)  # 0 where all are alike
    moderated = own * ratios + (1 - own) * ratios.mean()
    pool = design.between * _effective_number(rest[moving])
    doubt = 1 / (prior + design.between) + (1 - own) ** 2 / pool
    freedom = float(min(1 / doubt, design.within))
    inflation[moving] = np.maximum(moderated, 1)
    pooled = max(float(ratios.mean()), 1.0)
    return SeedEffects(variance, inflation, freedom, pooled)


def _effective_number(values: Float[np.ndarray, "A N"]) -> float:
    """Returns how many independent statistics tell as much of a common variance."""
    unit = values / np.sqrt((values**2).sum(axis=1, keepdims=True))
    return float(len(unit) ** 2 / ((unit @ unit.T) ** 2).sum())


def _prior_freedom(ratios: Float[np.ndarray, "A"], freedom: int) -> float:
    """Returns how many degrees of freedom the common ratio is worth to each (Smyth, 6.2)."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    if len(ratios) < 2:
        return 0.0
    excess = np.log(np.maximum(ratios, 1e-6)).var(ddof=1) - polygamma(1, freedom / 2)
    low, high = 1e-2, 1e4
    if excess <= polygamma(1, high):
        return float("inf")
    return 2 * brentq(lambda half: polygamma(1, half) - min(excess, 1 / low**2), low, high)


def intervals(design: Design, statistics: Statistics) -> Float[np.ndarray, "A 3"]:
    """Returns each statistic with the ends of its 95 % interval, NaN where there is none.

    Percentile intervals, stretched about the estimate: by what a resample of n users lacks
    and a t quantile adds (Hesterberg, "What teachers should know about the bootstrap", 2015,
    3.3), and by the root of the design effect. Where that is 1, the variance is the one
    within seeds, with its many degrees of freedom; what is known of design effects counts
    the more the further it is above, so that statistics that are nearly one have nearly one
    interval. A statistic that every user agrees on has an interval of width 0.
    """
    from scipy.stats import norm, t

    value = statistics.value
    if design.within < 1:
        nothing = np.full_like(value, np.nan)
        return np.stack([value, nothing, nothing], axis=1)
    seeds = seed_effects(design, statistics.linear)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(statistics.replicates, (tail, 1 - tail), axis=1)
    stretch = t.isf(tail, _freedom(design, seeds)) / norm.isf(tail)
    stretch *= np.sqrt(seeds.inflation * design.num_users / design.within)
    low, high = value + (ends - value) * stretch
    # Of very few users some resamples may be undefined (``ends`` NaN): then nothing is exact.
    exact = (np.abs(statistics.linear) <= NOTHING).all(axis=1) & ~np.isnan(ends).any(axis=0)
    # Users alike within every seed, but not between seeds: nothing there to stretch.
    unknown = ~exact & (np.sqrt(seeds.variance) <= NOTHING)
    low, high = (np.where(exact, value, np.where(unknown, np.nan, x)) for x in (low, high))
    return np.stack([value, low, high], axis=1)


def _freedom(design: Design, seeds: SeedEffects) -> Float[np.ndarray, "A"]:
    """Returns degrees of freedom that go over from those within seeds to the design effects'.

    Satterthwaite's formula, for a sum of two independent variances, would take the part that
    seeds add to be known better than it is, and covers less (``docs/statistics.md``).
    """
    between = np.minimum((seeds.inflation - 1) / (_CERTAIN - 1), 1)
    return np.asarray(1 / ((1 - between) / design.within + between / seeds.freedom))
