"""From runs to numbers: regret, normalised score and personalisation gain with intervals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from personalllm_env.estimates import Design, Statistics, intervals, ratio
from personalllm_env.files import written_whole
from personalllm_env.runner import Comparison, Run

_SAME = 1e-4  # between best utilities; results are stored in single precision


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
        score: Normalised score: 1 - regret / that of ``uniform``. 0 is choosing at random, 1
            the best response at every interaction and nobody gone.
        gain: Personalisation gain: 1 - regret / that of ``popular``. 0 is the best
            non-personal choice learnt from others through features, 1 as for the score.
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


@dataclass(frozen=True)
class Paired:
    """A comparison as arrays in which all agents have the same users, in the same order.

    Attributes:
        names: The agents'.
        regret: Best utility minus that of what was shown.
        present: Whether the user was still there.
        design: Which users belong together.
    """

    names: tuple[str, ...]
    regret: Float[np.ndarray, "A N T"]
    present: Bool[np.ndarray, "A N T"]
    design: Design

    def reference(self, name: str) -> Float[np.ndarray, "N T"]:
        """Returns the regret of an agent that others are measured against; 0 without it."""
        if name not in self.names:
            return np.zeros(self.regret.shape[1:])
        return np.asarray(self.regret[self.names.index(name)])


def pair(comparison: Comparison) -> Paired:
    """Lays the seeds' users in a row, for all agents.

    Raises:
        ValueError: If there is no agent or no seed, or not the same users for everybody: as
            many, and with the same best utilities while they are there.
    """
    shapes = {name: [r.regret.shape for r in runs] for name, runs in comparison.runs.items()}
    if not shapes or not comparison.seeds:
        raise ValueError("estimates need one agent and one seed or more, got none")
    (first, expected), *others = shapes.items()
    for name, found in others:
        if found != expected:
            raise ValueError(
                f"agents must have met the same users: {first!r} has (users, interactions) "
                f"{expected}, one per seed, {name!r} {found}"
            )
    names = tuple(shapes)
    regret, present = _stacked(comparison, "regret"), _stacked(comparison, "present")
    _check_best(names, _stacked(comparison, "utility") + regret, present)
    return Paired(names, regret, present, Design(tuple(shape[0] for shape in expected)))


def _stacked(comparison: Comparison, column: str) -> Shaped[np.ndarray, "A N T"]:
    every = comparison.runs.values()
    return np.stack([np.concatenate([getattr(run, column) for run in runs]) for runs in every])


def _check_best(
    names: tuple[str, ...], best: Float[np.ndarray, "A N T"], present: Bool[np.ndarray, "A N T"]
) -> None:
    """Raises ValueError where agents differ in the best utility of a user who is there."""
    first = present.argmax(axis=0)
    known = np.take_along_axis(best, first[None], axis=0)[0]
    off = present & (np.abs(best - known) > _SAME)
    if off.any():
        agent, user, time = map(int, np.argwhere(off)[0])
        raise ValueError(
            f"agents must have met the same users: the best utility of user {user} (of all "
            f"seeds, from 0) at interaction {time + 1} is {known[user, time]:.6g} with "
            f"{names[first[user, time]]!r}, {best[agent, user, time]:.6g} with {names[agent]!r}"
        )


def regret_per_user(paired: Paired) -> Statistics:
    """Returns cumulative regret over the episode, per agent."""
    ones = np.ones((1, paired.design.num_users))
    return ratio(paired.design, paired.regret.sum(axis=2), ones)


def share_of_regret(
    paired: Paired, reference: str, interactions: slice = slice(None)
) -> Statistics:
    """Returns each agent's regret as a share of the reference's, over some interactions.

    Normalised score and personalisation gain are 1 minus this, with ``uniform`` and with
    ``popular`` as the reference. No regret, and so 1, is the best response at every
    interaction and nobody gone: where users may leave, the oracle loses some and is below 1.
    Where they stay it is (agent - reference) / (oracle - reference) in utilities.
    """
    window = paired.regret[:, :, interactions].sum(axis=2)
    against = paired.reference(reference)[:, interactions].sum(axis=1)
    return ratio(paired.design, window, against[None])


def best_picks(paired: Paired) -> Statistics:
    """Returns the share of interactions with regret 0, of those before a user leaves."""
    picked = (paired.regret <= 0) & paired.present
    number = paired.present.sum(axis=2).astype(np.float64)
    return ratio(paired.design, picked.sum(axis=2).astype(np.float64), number)


def estimates(paired: Paired, statistics: Statistics) -> list[Estimate]:
    """Returns a statistic per agent with its 95 % interval."""
    return [Estimate(*map(float, row)) for row in intervals(paired.design, statistics)]


def one_minus(paired: Paired, statistics: Statistics) -> list[Estimate]:
    """Returns 1 minus a share per agent, with its 95 % interval."""
    found = estimates(paired, statistics)
    return [Estimate(1 - value, 1 - high, 1 - low) for value, low, high in found]


def microseconds(runs: list[Run]) -> float:
    """Returns the time inside the agent per decision."""
    return 1e6 * sum(run.seconds for run in runs) / sum(run.regret.size for run in runs)


def summarise(comparison: Comparison) -> list[Row]:
    """Returns one row per agent, in the order given.

    Score and gain are NaN unless agents called ``uniform`` and ``popular`` took part.
    """
    paired = pair(comparison)
    columns = zip(
        paired.names,
        estimates(paired, regret_per_user(paired)),
        one_minus(paired, share_of_regret(paired, "uniform")),
        one_minus(paired, share_of_regret(paired, "popular")),
        best_picks(paired).value,
        strict=True,
    )
    return [
        Row(
            agent=name,
            privileges=comparison.privileges[name],
            regret=regret,
            score=score,
            gain=gain,
            best_picks=float(best),
            microseconds=microseconds(comparison.runs[name]),
        )
        for name, regret, score, gain, best in columns
    ]


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
    with written_whole(path) as scratch:
        parquet.write_table(pa.concat_tables(tables).unify_dictionaries(), scratch)
