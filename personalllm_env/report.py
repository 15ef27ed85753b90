"""From runs to numbers: regret, normalised score and personalisation gain with intervals."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from personalllm_env.runner import Comparison, Run

_RESAMPLES = 1999
_CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A number with a 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One agent's line in the table.

    Attributes:
        agent: Its name.
        privileges: What it saw beyond an honest agent; empty for an honest one.
        regret: Cumulative regret per user over the episode.
        score: Normalised score: (agent - uniform) / (oracle - uniform).
        gain: Personalisation gain: (agent - popular) / (oracle - popular).
        best_picks: Share of interactions with regret 0 (in a duel: both shown are best), of
            those before a user leaves.
        microseconds: Time inside the agent per decision.
    """

    agent: str
    privileges: tuple[str, ...]
    regret: Estimate
    score: Estimate
    gain: Estimate
    best_picks: float
    microseconds: float


def per_user(runs: list[Run]) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns each user's total utility under the agent and under the oracle, all seeds."""
    utility = np.concatenate([run.utility.sum(axis=1) for run in runs])
    regret = np.concatenate([run.regret.sum(axis=1) for run in runs])
    return utility, utility + regret


def bootstrap_ratio(
    agent: Float[np.ndarray, "N"],
    floor: Float[np.ndarray, "N"],
    ceiling: Float[np.ndarray, "N"],
) -> Estimate:
    """Returns mean(agent - floor) / mean(ceiling - floor) with a paired percentile interval.

    Users are resampled whole, the three totals of a user staying together; the interval is
    ``scipy.stats.bootstrap``'s.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    gap = float((ceiling - floor).mean())
    if abs(gap) < 1e-12:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float((agent - floor).mean()) / gap
    if np.allclose(agent, floor, atol=1e-9) or np.allclose(agent, ceiling, atol=1e-9):
        return Estimate(value, value, value)
    if len(agent) < 2:
        return Estimate(value, float("nan"), float("nan"))

    def ratio(a: np.ndarray, f: np.ndarray, c: np.ndarray, axis: int) -> np.ndarray:
        # Of very few users a resample may have no gap; then there is no interval.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((a - f).mean(axis=axis) / (c - f).mean(axis=axis))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        interval = bootstrap(
            (agent, floor, ceiling),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            confidence_level=_CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
            batch=200,
        ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def summarise(comparison: Comparison) -> list[Row]:
    """Returns one row per agent, in the order given.

    Score and gain are NaN unless agents called ``uniform`` and ``popular`` took part.
    """
    totals = {name: per_user(runs) for name, runs in comparison.runs.items()}
    rows = []
    for name, runs in comparison.runs.items():
        utility, best = totals[name]
        nowhere = np.full_like(utility, np.nan)
        floor, popular = (totals.get(n, (nowhere,))[0] for n in ("uniform", "popular"))
        regrets = np.concatenate([run.regret for run in runs])
        present = np.concatenate([run.present for run in runs])
        zero = np.zeros_like(best)
        decisions = regrets.size
        rows.append(
            Row(
                agent=name,
                privileges=comparison.privileges[name],
                regret=bootstrap_ratio(best - utility, zero, np.ones_like(best)),
                score=_ratio_or_nan(utility, floor, best),
                gain=_ratio_or_nan(utility, popular, best),
                best_picks=float((regrets[present] <= 0).mean()),
                microseconds=1e6 * sum(run.seconds for run in runs) / decisions,
            )
        )
    return rows


def _ratio_or_nan(
    agent: Float[np.ndarray, "N"],
    floor: Float[np.ndarray, "N"],
    ceiling: Float[np.ndarray, "N"],
) -> Estimate:
    if np.isnan(floor).any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    return bootstrap_ratio(agent, floor, ceiling)


def write_columns(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes a line per agent, seed, user and interaction to Parquet, whole or not at all.

    Columns: agent, seed, user, interaction (from 1), utility, regret, present.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for name, runs in comparison.runs.items():
        for seed, run in zip(comparison.seeds, runs, strict=True):
            b, t = run.utility.shape
            tables.append(
                pa.table(
                    {
                        "agent": pa.array([name] * (b * t)).dictionary_encode(),
                        "seed": np.full(b * t, seed),
                        "user": np.repeat(np.arange(b), t),
                        "interaction": np.tile(np.arange(1, t + 1), b),
                        "utility": run.utility.ravel(),
                        "regret": run.regret.ravel(),
                        "present": run.present.ravel(),
                    }
                )
            )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        parquet.write_table(pa.concat_tables(tables).unify_dictionaries(), scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
