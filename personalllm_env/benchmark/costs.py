"""What a run will cost, before it starts: from earlier results, else from a shipped table."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import median
from typing import Any, NamedTuple

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.store import Store
from personalllm_env.files import write_whole

_START_SECONDS = 2.0  # a worker's imports, and the bank
_WORKER_MB = 180.0  # the same: what a worker holds before its first cell
_BYTES_PER_DECISION = 7.5  # two float32 and a bit, compressed
_BYTES_PER_FILE = 5000  # settings and fingerprint


class Rate(NamedTuple):
    """What an agent takes, the environment's share included."""

    us_per_decision: float
    fit_us_per_interaction: float
    memory_mb: float  # NaN if not measured


UNKNOWN = Rate(50.0, 5.0, 50.0)
"""Of an agent that has never been measured: slower than most."""


@dataclass(frozen=True)
class CostEstimate:
    """What running some cells is expected to take.

    Attributes:
        num_cells: How many.
        core_seconds: Their seconds on one core.
        wall_seconds: With ``workers`` at once, from start to end.
        workers: Processes.
        memory_mb: Of all workers together, at most.
        disk_mb: Of the results.
        guessed: Agents that were never measured; their numbers are a guess.
    """

    num_cells: int
    core_seconds: float
    wall_seconds: float
    workers: int
    memory_mb: float
    disk_mb: float
    guessed: tuple[str, ...]


class _Measured(NamedTuple):
    track: str
    num_users: int
    rate: Rate


class Costs:
    """Rates per agent, from the headers of earlier results of any code and settings."""

    def __init__(self, headers: Iterable[dict[str, Any]] = ()) -> None:
        self._table = shipped_table()
        self._measured: dict[str, list[_Measured]] = defaultdict(list)
        for header in headers:
            if (found := _measured(header)) is not None:
                self._measured[header["agent"]].append(found)

    def rate(self, cell: Cell) -> Rate:
        """Returns the median of the most similar results: same track, then nearest size."""
        known = self._measured.get(cell.agent)
        if not known:
            # Settings after an at sign change an agent's numbers more often than its speed.
            table = self._table
            return table.get(cell.agent) or table.get(cell.agent.partition("@")[0], UNKNOWN)

        def distance(m: _Measured) -> tuple[bool, float]:
            return m.track != cell.track.name, abs(math.log(m.num_users / cell.num_users))

        nearest = min(map(distance, known))
        rates = [m.rate for m in known if distance(m) == nearest]
        memories = [r.memory_mb for r in rates if not math.isnan(r.memory_mb)]
        return Rate(
            median(r.us_per_decision for r in rates),
            median(r.fit_us_per_interaction for r in rates),
            max(memories, default=math.nan),
        )

    def guessed(self, cell: Cell) -> bool:
        """Says whether nothing is known of a cell's agent."""
        names = {cell.agent, cell.agent.partition("@")[0]}
        return cell.agent not in self._measured and not names & set(self._table)

    def seconds(self, cell: Cell) -> float:
        """Returns the expected seconds of a cell on one core."""
        rate = self.rate(cell)
        run = rate.us_per_decision * cell.decisions
        return 1e-6 * (run + rate.fit_us_per_interaction * cell.history_interactions)


def estimate(cells: Sequence[Cell], costs: Costs, workers: int) -> CostEstimate:
    """Returns what running ``cells`` is expected to take."""
    seconds = [costs.seconds(cell) for cell in cells]
    total, used = sum(seconds), max(1, min(workers, len(cells)))
    memories = [m for c in cells if not math.isnan(m := costs.rate(c).memory_mb)]
    size = sum(c.decisions * _BYTES_PER_DECISION + _BYTES_PER_FILE for c in cells)
    return CostEstimate(
        num_cells=len(cells),
        core_seconds=total,
        wall_seconds=max(total / used, *seconds) + _START_SECONDS if cells else 0.0,
        workers=used,
        memory_mb=used * (_WORKER_MB + max(memories, default=0.0)),
        disk_mb=size / 1e6,
        guessed=tuple(dict.fromkeys(c.agent for c in cells if costs.guessed(c))),
    )


def shipped_table() -> dict[str, Rate]:
    """Returns the rates that ``write_table`` wrote into this package; empty if none."""
    path = files("personalllm_env.benchmark").joinpath("costs.json")
    if not path.is_file():
        return {}
    return {name: _rate(*row) for name, row in json.loads(path.read_text("utf-8")).items()}


def write_table(store: Store, path: str | os.PathLike[str]) -> dict[str, Rate]:
    """Writes each agent's median rates over a store's results, as ``shipped_table`` reads."""
    rates: dict[str, list[Rate]] = defaultdict(list)
    for header in store.headers():
        if (found := _measured(header)) is not None:
            rates[header["agent"]].append(found.rate)
    table = {}
    for name, several in sorted(rates.items()):
        memories = [r.memory_mb for r in several if not math.isnan(r.memory_mb)]
        table[name] = Rate(
            round(median(r.us_per_decision for r in several), 2),
            round(median(r.fit_us_per_interaction for r in several), 2),
            round(max(memories, default=math.nan), 1),
        )
    lines = [
        f"  {json.dumps(name)}: {json.dumps([None if math.isnan(x) else x for x in rate])}"
        for name, rate in table.items()
    ]
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return table


def _rate(us: float, fit_us: float, memory: float | None) -> Rate:
    return Rate(us, fit_us, math.nan if memory is None else memory)


def _measured(header: dict[str, Any]) -> _Measured | None:
    try:
        decisions = header["num_users"] * header["horizon"]
        history, wall = header["history_interactions"], header["wall_seconds"]
        if wall is None:
            return None
        # On a busy machine as if it were idle: all parts waited in the same proportion.
        share = max(1 - header.get("queued_seconds", 0.0) / wall, 0.1)
        fit, wall = header["fit_seconds"] * share, wall * share
        rate = _rate(
            1e6 * max(wall - fit, 0.0) / decisions,
            1e6 * fit / history if history else 0.0,
            header["memory_mb"],
        )
        return _Measured(header["track"], header["num_users"], rate)
    except (KeyError, TypeError, ZeroDivisionError):  # of a format to come
        return None
