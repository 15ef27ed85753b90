"""A cell: one agent on one track under one seed. The unit that is run, stored and resumed."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from personalllm_env.bank import ResponseBank
from personalllm_env.benchmark.track import Sides, Track
from personalllm_env.data import load_bank
from personalllm_env.database import Database, recorded_once
from personalllm_env.registry import find_agent
from personalllm_env.runner import Run, measure, prior_for
from personalllm_env.session import Session
from personalllm_env.task import Task

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        name: What the command line calls it.
        num_users: Users per cell.
        num_seeds: Repetitions, with seeds from 0.
        most_history_users: A track's own ``history_users`` is cut to this, except where users
            are recognised: those who come back are the history's, so all of them are in it.
    """

    name: str
    num_users: int
    num_seeds: int
    most_history_users: int

    def __post_init__(self) -> None:
        for name, least in (("num_users", 1), ("num_seeds", 1), ("most_history_users", 0)):
            if (number := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")


SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("smoke", num_users=12, num_seeds=2, most_history_users=40),
        Size("default", num_users=200, num_seeds=3, most_history_users=1000),
        Size("paper", num_users=1000, num_seeds=10, most_history_users=1000),
    )
}


@dataclass(frozen=True)
class Cell:
    """What one result is of.

    Attributes:
        track: The question.
        agent: As for ``registry.find_agent``.
        seed: Of the repetition.
        num_users: B.
        history_users: Other users that agents with ``fit`` learn from.
        bank: As for ``data.load_bank``.
    """

    track: Track
    agent: str
    seed: int
    num_users: int
    history_users: int
    bank: str = "synthetic"

    @property
    def name(self) -> str:
        """Track, agent and seed, for messages; different for every cell of a run."""
        return f"{self.track.name} / {self.agent} / seed {self.seed}"

    @property
    def group(self) -> str:
        """The same for cells that share both tasks and the history."""
        return _json(self.track, [self.seed, self.history_users, self.bank])

    @property
    def decisions(self) -> int:
        """B * T: interactions of all users."""
        return self.num_users * int(self.track.environment.get("horizon", Task.horizon))

    @property
    def history_interactions(self) -> int:
        """N: interactions of the history, if nobody leaves."""
        settings = dict(self.track.environment) | dict(self.track.history)
        return self.history_users * int(settings.get("horizon", Task.horizon))


def make_cells(
    tracks: Iterable[Track], agents: Iterable[str], size: Size, bank: str = "synthetic"
) -> list[Cell]:
    """Returns all tracks x seeds x agents, in that order.

    Raises:
        ValueError: If a track or an agent is named twice, or a track is not plain JSON.
    """
    tracks, agents = list(tracks), list(agents)
    for what, names in (("track", [t.name for t in tracks]), ("agent", agents)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"every {what} once, got twice: {', '.join(twice)}")
    for track in tracks:
        _json(track, [])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", track.name):
            raise ValueError(
                f"a track's name is made of letters, digits, '.', '_' and '-', "
                f"got {track.name!r}"
            )
    return [
        Cell(
            track=track,
            agent=agent,
            seed=seed,
            num_users=size.num_users,
            history_users=track.history_users
            if track.environment.get("recognise", False)
            else min(track.history_users, size.most_history_users),
            bank=bank,
        )
        for track in tracks
        for seed in range(size.num_seeds)
        for agent in agents
    ]


def _json(track: Track, rest: list[object]) -> str:
    try:
        return json.dumps([track.definition(), rest])
    except (TypeError, ValueError) as error:
        raise ValueError(f"track {track.name!r} must be plain JSON: {error}") from error


def run_cell(cell: Cell) -> Run:
    """Measures a cell; the numbers are a function of the cell and the code alone.

    Returns:
        The run, in single precision (about seven digits), with the peak memory above what the
        process held before the agent was built, in MB (Linux; else NaN). Working out what the
        agent is told at the start is not part of it.

    Raises:
        Exception: The agent's own.
    """
    entrant = find_agent(cell.agent)
    place = prepare(cell)
    prior = prior_for(entrant.agent_class, place.sides.test, cell.seed)
    before = _reset_peak()
    done = measure(
        entrant,
        place.sides.test,
        place.history,
        num_users=cell.num_users,
        seed=cell.seed,
        prior=prior,
    )
    peak = _memory_mb("VmHWM") - before
    return done._replace(
        utility=done.utility.astype(np.float32),
        regret=done.regret.astype(np.float32),
        memory_mb=peak,
    )


class Place(NamedTuple):
    """What the cells of a group share."""

    sides: Sides
    history: Callable[[], Database | None]


_LAST: dict[str, Place] = {}  # of the last group only: histories are large


def prepare(cell: Cell) -> Place:
    """Builds both tasks, the history, and the tables that tasks make when first used.

    Consecutive cells of a group share them. All of it is there before any agent is, so that
    its time and memory are nobody's, whoever is first and whether or not they learn from it.
    """
    if cell.group not in _LAST:
        sides = cell.track.sides(bank_of(cell.bank), cell.seed)
        history = recorded_once(sides.history, num_users=cell.history_users, seed=cell.seed)
        history()
        _try_out(sides.test)
        _LAST.clear()
        _LAST[cell.group] = Place(sides, history)
    return _LAST[cell.group]


def _try_out(task: Task) -> None:
    """Lets one user have one interaction, of which nothing is kept but the task's tables."""
    session = Session(task, np.arange(1), regret=True)
    session.begin(0)
    session.observe(scores=True, weights=True)
    session.step(np.arange(task.num_shown)[None])


@lru_cache(maxsize=1)
def bank_of(source: str) -> ResponseBank:
    """Loads a bank once per process."""
    return load_bank(source)


def forget() -> None:
    """Drops banks and histories, so that changed files are read again."""
    _LAST.clear()
    bank_of.cache_clear()


def _reset_peak() -> float:
    """Starts a new peak of the process's memory; returns what it holds now, in MB, or NaN."""
    with suppress(
        OSError, AttributeError, TypeError
    ):  # else an agent is lent what the last one freed
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:  # another system, or not allowed
        return float("nan")
    return _memory_mb("VmRSS")


def _memory_mb(key: str) -> float:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return float("nan")
    return int(found[1]) / 1024 if found else float("nan")
