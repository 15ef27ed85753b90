"""What the page's charts draw, as plain JSON: curves, users, shares of the yardstick, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from personalllm_env import report
from personalllm_env.benchmark.leaderboard import Standing, TrackTable
from personalllm_env.curves import Curve, mean_curve, normalised_curve
from personalllm_env.estimates import ratio, seed_effects, tail_mean
from personalllm_env.report import Estimate
from personalllm_env.runner import Comparison

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of users' regret, in the strips."""

_POINTS = 200  # of a curve; longer ones are thinned


def agents_of(tables: Iterable[TrackTable]) -> dict[str, tuple[str, ...]]:
    """Returns all agents of the tables and their privileges, the best on average first."""
    gains: dict[str, list[float]] = {}
    privileges: dict[str, tuple[str, ...]] = {}
    for table in tables:
        for standing in table.standings:
            value = headline(table, standing).value
            gains.setdefault(standing.agent, []).append(value)
            privileges[standing.agent] = standing.privileges
    means = {name: _mean(values) for name, values in gains.items()}
    order = sorted(means, key=lambda name: (-means[name], name))
    return {name: privileges[name] for name in order}


def headline(table: TrackTable, standing: Standing) -> Estimate:
    """Returns an agent's first metric, the personalisation gain; NaN where it has none."""
    nowhere = Estimate(math.nan, math.nan, math.nan)
    return standing.estimates.get(table.metrics[0].key, nowhere) if table.metrics else nowhere


def stacked(runs: Comparison, name: str, column: str) -> Float[np.ndarray, "N T"]:
    """Returns ``utility`` or ``regret`` of all of an agent's users, seed after seed."""
    return np.concatenate([getattr(run, column) for run in runs.runs[name]])


def learning_curves(runs: Comparison) -> dict[str, dict[str, Curve]]:
    """Returns curves per kind and agent.

    ``gain`` is the personalisation gain per interaction (0 popular, 1 the best response and
    nobody gone), ``score`` the normalised score (0 uniform), both smoothed as in the figures,
    and ``regret`` the cumulative regret per user. A kind whose floor took no part is absent.
    Bands are widened by the root of the agent's design effect over the whole episode, as the
    table's intervals of that number are; at single interactions, where users differ more, it
    is rather smaller.
    """
    utility = {name: stacked(runs, name, "utility") for name in runs.runs}
    regret = {name: stacked(runs, name, "regret") for name in runs.runs}
    found: dict[str, dict[str, Curve]] = {}
    for kind, floor in (("gain", "popular"), ("score", "uniform")):
        if floor in utility:
            found[kind] = {
                name: normalised_curve(
                    utility[name], utility[floor], utility[name] + regret[name]
                )
                for name in utility
            }
    found["regret"] = {name: mean_curve(regret[name].cumsum(axis=1)) for name in regret}
    return _widened(runs, found)


def _widened(
    runs: Comparison, curves: dict[str, dict[str, Curve]]
) -> dict[str, dict[str, Curve]]:
    paired = report.pair(runs)
    whole = {
        "gain": lambda: report.share_of_regret(paired, "popular"),
        "score": lambda: report.share_of_regret(paired, "uniform"),
        "regret": lambda: report.regret_per_user(paired),
    }
    found = {}
    for kind, of_kind in curves.items():
        effects = seed_effects(paired.design, whole[kind]().linear).inflation
        widen = dict(zip(paired.names, np.sqrt(effects), strict=True))
        found[kind] = {n: Curve(c.middle, widen[n] * c.half) for n, c in of_kind.items()}
    return found


def share_of_yardstick(table: TrackTable) -> dict[str, Estimate]:
    """Returns which share of the yardstick's gain each honest agent reaches.

    The ratio of means (popular's regret - agent's) / (popular's - yardstick's) over users,
    with intervals as in the table. Empty where the yardstick or ``popular`` took no part, or
    where the yardstick's gain is not clearly above 0 (its interval reaches it), so that a
    share of it would mean nothing.
    """
    paired, yardstick = report.pair(table.runs), table.track.yardstick
    if not {yardstick, "popular"} <= set(paired.names):
        return {}
    at = paired.names.index(yardstick)
    if not report.one_minus(paired, report.share_of_regret(paired, "popular"))[at].low > 0:
        return {}
    regret = paired.regret.sum(axis=2)
    gained = regret[paired.names.index("popular")] - regret
    shares = report.estimates(paired, ratio(paired.design, gained, gained[[at]]))
    return {
        name: share
        for name, share in zip(paired.names, shares, strict=True)
        if not table.runs.privileges[name]
    }


def user_spread(regret: Float[np.ndarray, "N T"]) -> list[float]:
    """Returns the quantiles of users' cumulative regret, the worst tenth's mean, the mean."""
    total = regret.sum(axis=1)
    return [*np.quantile(total, QUANTILES).tolist(), tail_mean(total), float(total.mean())]


def track_data(table: TrackTable, ids: dict[str, int]) -> dict[str, Any]:
    """Returns what the charts of one track draw, as JSON without NaN.

    Args:
        table: The track's.
        ids: Every agent's number on the page.
    """
    runs = table.runs
    curves = learning_curves(runs)
    horizon = len(next(iter(curves["regret"].values())).middle)
    kept = np.unique(np.linspace(0, horizon - 1, min(horizon, _POINTS)).round().astype(int))
    order = [s.agent for s in table.standings if s.agent in runs.runs]
    shares = share_of_yardstick(table)
    return {
        "name": table.track.name,
        "order": [ids[name] for name in order],
        "tied": [ids[s.agent] for s in table.standings if s.tied],
        "t": (kept + 1).tolist(),
        "curves": {
            kind: {
                ids[name]: [numbers(part[kept], 4) for part in of_kind[name]] for name in order
            }
            for kind, of_kind in curves.items()
        },
        "yardstick": table.track.yardstick,
        "shares": {ids[name]: numbers(shares[name], 4) for name in order if name in shares},
        "users": {
            ids[name]: numbers(user_spread(stacked(runs, name, "regret")), 3) for name in order
        },
        "cost": {
            ids[s.agent]: numbers((s.microseconds, s.fit_seconds, s.memory_mb), 4)
            for s in table.standings
        },
    }


def numbers(values: Sequence[float] | np.ndarray, digits: int) -> list[float | None]:
    """Returns rounded numbers, and None for what is not finite, as JSON has it."""
    return [round(float(v), digits) + 0.0 if math.isfinite(v) else None for v in values]


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else -math.inf
