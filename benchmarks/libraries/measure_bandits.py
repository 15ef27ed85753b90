"""Agents of other libraries: decisions per second against our LinUCB, and what they gain."""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
from rows import Row

from personalllm_env import load_bank
from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.database import Database, recorded_once
from personalllm_env.registry import find_agent, library_agent_names
from personalllm_env.runner import Run, measure, prior_for
from personalllm_env.task import Task

_TRACK, _USERS, _SEEDS = "cold-start-v0", 50, 2
_PEER = "linucb"


def rows() -> list[Row]:
    """Measures every agent on one track; speed is the best of two runs of 50 users.

    The gain is over both runs' users (another seed each), with a 95 % interval over users.
    How long a history takes is that of the last run, with the start of its 50 users.
    """
    names = ["popular", _PEER, *library_agent_names()]
    found: dict[str, list[Run]] = {name: [] for name in names}
    for seed in range(_SEEDS):
        sides = TRACKS[_TRACK].sides(load_bank(), seed)
        history = recorded_once(sides.history, num_users=1000, seed=seed)
        for name in names:
            run = measure(find_agent(name), sides.test, history, num_users=_USERS, seed=seed)
            found[name].append(run)
    database = history()
    assert database is not None
    return [
        _row(name, found, _begin(name, sides.test, database)) for name in library_agent_names()
    ]


def _begin(name: str, task: Task, database: Database) -> str:
    """Says how long it takes from a history to users who can be served."""
    entrant = find_agent(name)
    agent = entrant.agent_class(prior_for(entrant.agent_class, task), **entrant.settings)
    start = time.perf_counter()
    agent.fit(database)
    agent.reset(_USERS, np.random.default_rng(0))
    seconds = time.perf_counter() - start
    return f"a history of {len(database.user):,} in {seconds:.1f} s"


def _row(name: str, found: dict[str, list[Run]], begin: str) -> Row:
    [library] = find_agent(name).agent_class.libraries  # type: ignore[attr-defined]
    fastest = _speed(found[name])
    return Row(
        library=library,
        version=version(library),
        ran=f"agent `{name}` for {_USERS} users at once",
        steps_per_second=fastest,
        against=f"{fastest / _speed(found[_PEER]):.3f} of our {_PEER}; {begin}",
        learnt=_gain(found[name], found["popular"]),
    )


def _speed(runs: list[Run]) -> float:
    return max(run.regret.size / run.seconds for run in runs)


def _gain(runs: list[Run], popular: list[Run]) -> str:
    mine, theirs = (
        np.concatenate([run.regret.mean(axis=1) for run in some]) for some in (runs, popular)
    )
    share = mine.mean() / theirs.mean()
    half = 1.96 * (mine - share * theirs).std() / theirs.mean() / len(mine) ** 0.5
    return (
        f"gain {1 - share:.2f} ±{half:.2f} over {len(mine)} users of {_TRACK} (0 is popular, "
        "1 the best response)"
    )
