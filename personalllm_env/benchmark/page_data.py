"""What the page's charts draw, as plain JSON: curves, users, shares of the yardstick, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from personalllm_env.benchmark.leaderboard import Standing, TrackTable
from personalllm_env.curves import Curve, mean_curve, normalised_curve
from personalllm_env.report import Estimate
from personalllm_env.runner import Comparison

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of users' regret, in the strips."""

WORST = 0.1
"""The worst-served share of users, whose mean is marked."""

_POINTS = 200  # of a curve; longer ones are thinned
_Z = 1.96


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

    ``gain`` is the personalisation gain per interaction (0 popular, 1 the oracle), ``score``
    the normalised score (0 uniform), both smoothed as in the figures, and ``regret`` the
    cumulative regret per user. A kind whose floor took no part is absent.
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
    return found


def share_of_yardstick(table: TrackTable) -> dict[str, Estimate]:
    """Returns which share of the yardstick's gain each honest agent reaches.

    The ratio of means (agent - popular) / (yardstick - popular) over users, with a paired
    interval by the delta method, widened by the design effect as the table's are. Empty where
    the yardstick or ``popular`` took no part, or where the yardstick's gain is not clearly
    above 0 (its interval reaches it), so that a share of it would mean nothing.
    """
    runs, yardstick = table.runs, table.track.yardstick
    if yardstick not in runs.runs or "popular" not in runs.runs:
        return {}
    total = {name: stacked(runs, name, "utility").sum(axis=1) for name in runs.runs}
    widen = math.sqrt(max(table.design_effect, 1.0))
    room = total[yardstick] - total["popular"]
    if not _ratio(room, np.ones_like(room), widen).low > 0:
        return {}
    return {
        name: _ratio(total[name] - total["popular"], room, widen)
        for name in runs.runs
        if not runs.privileges[name]
    }


def user_spread(regret: Float[np.ndarray, "N T"]) -> list[float]:
    """Returns the quantiles of users' cumulative regret, the worst tenth's mean, the mean."""
    total = np.sort(regret.sum(axis=1))
    worst = total[-max(1, round(WORST * len(total))) :]
    return [*np.quantile(total, QUANTILES).tolist(), float(worst.mean()), float(total.mean())]


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


def _ratio(
    top: Float[np.ndarray, "N"], bottom: Float[np.ndarray, "N"], widen: float
) -> Estimate:
    scale = float(bottom.mean())
    value = float(top.mean()) / scale if scale else math.nan
    if len(top) < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    error = float((top - value * bottom).std(ddof=1)) / abs(scale) / math.sqrt(len(top))
    half = _Z * widen * error
    return Estimate(value, value - half, value + half)


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else -math.inf
