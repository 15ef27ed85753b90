"""The benchmark from end to end: what is missing is run and stored, wherever it runs."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from personalllm_env.benchmark.cells import Cell, Size, make_cells
from personalllm_env.benchmark.costs import CostEstimate, Costs, estimate
from personalllm_env.benchmark.execute import drive, num_cores
from personalllm_env.benchmark.fingerprint import forget
from personalllm_env.benchmark.store import Scan, Store
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.workers import LocalPool, Pool, Reply
from personalllm_env.registry import find_agent

_PRIOR_SECONDS = 5.0  # for how long the estimate of costs outweighs the clock


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: Cells that are stored, those of earlier runs included.
        total: Of the whole benchmark.
        failed: Cells without a result.
        cell: The name of the one that ended last; empty at the start.
        elapsed: Seconds since the start.
        seconds_left: Expected, from what the missing cells cost rather than from their number.
    """

    done: int
    total: int
    failed: int
    cell: str
    elapsed: float
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """What a run has left behind.

    Attributes:
        cells: All that were wanted.
        store: Where the results are; ``load_comparisons(store, cells)`` reads them.
        kept: How many were finished before.
        replies: What became of the others, in the order in which they ended.
        stale: Per cell's name, how an older result differed; it was not used.
        damaged: Per unreadable file, what is wrong with it; its cell was run again.
        seconds: From start to end.
        interrupted: Whether Ctrl-C ended it.
    """

    cells: list[Cell]
    store: Store
    kept: int
    replies: list[Reply]
    stale: dict[str, str]
    damaged: dict[str, str]
    seconds: float
    interrupted: bool

    @property
    def failed(self) -> list[Reply]:
        """Cells without a result, and why."""
        return [reply for reply in self.replies if reply.status == "failed"]

    @property
    def finished(self) -> int:
        """How many cells have a result."""
        return self.kept + len(self.replies) - len(self.failed)

    def summary(self) -> str:
        """Returns in a few lines what was done, what was not, and how to go on."""
        run = sum(reply.status == "done" for reply in self.replies)
        lines = [
            f"{self.finished} of {len(self.cells)} cells are finished: {self.kept} from "
            f"before, {run} run now, in {self.seconds:.1f} s."
        ]
        if others := sum(reply.status == "found" for reply in self.replies):
            lines.append(f"{others} were done by another run meanwhile.")
        for why, count in Counter(self.stale.values()).most_common():
            lines.append(f"{count} older results were not used ({why}).")
        lines += [f"Unreadable and not used: {why}" for why in self.damaged.values()]
        for reply in self.failed:
            lines.append(f"Failed: {reply.cell.name}: {reply.reason}")
        if self.interrupted:
            lines.append("Interrupted. What is finished is kept; the same command goes on.")
        elif self.failed:
            lines.append("The same command tries the failed cells again, and only those.")
        return "\n".join(lines)


def plan(
    tracks: Iterable[Track],
    agents: Iterable[str],
    size: Size,
    folder: str | os.PathLike[str],
    *,
    bank: str = "synthetic",
    workers: int | None = None,
) -> tuple[Scan, CostEstimate]:
    """Returns what is finished and missing in a folder, and what the missing will cost.

    Raises:
        UnknownAgentError: If there is no such agent.
        ValueError: If a track or an agent is named twice.
    """
    store, cells = Store(folder), _cells(tracks, agents, size, bank)
    scan = store.scan(cells)
    workers = workers or num_cores()
    return scan, estimate(scan.missing, Costs(store.headers()), workers)


def run_benchmark(
    tracks: Iterable[Track],
    agents: Iterable[str],
    size: Size,
    folder: str | os.PathLike[str],
    *,
    bank: str = "synthetic",
    workers: int | None = None,
    ray: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs every agent on every track and seed, as far as a folder does not have it already.

    Args:
        tracks: The questions.
        agents: As for ``registry.find_agent``.
        size: Users, seeds and history.
        folder: For the results; other runs may use it at the same time.
        bank: As for ``data.load_bank``.
        workers: Processes of this machine; by default one per core.
        ray: The address of a Ray cluster to run on instead, ``"auto"`` or ``"local"``.
        on_progress: Called once at the start and after every cell.

    Returns:
        What there is now. After Ctrl-C too; then it says ``interrupted``.

    Raises:
        UnknownAgentError: If there is no such agent.
        ValueError: If a track or an agent is named twice, or ``workers`` is below 1.
        ImportError: If ``ray`` is asked for and missing: names the extra to install.
        OtherCodeError: If a worker's code is not this process's.
    """
    start = time.monotonic()
    forget()
    store, cells = Store(folder), _cells(tracks, agents, size, bank)
    store.clean()
    scan = store.scan(cells)
    costs, replies = Costs(store.headers()), list[Reply]()
    meter = _Meter(scan, costs, start, on_progress)
    interrupted = False
    try:
        if scan.missing:
            pool = _pool(store, workers, ray)
            meter.size = pool.size
            meter.tell()

            def on_done(reply: Reply) -> None:
                replies.append(reply)
                meter.take(reply)

            drive(scan.missing, store, pool, on_done, costs)
    except KeyboardInterrupt:
        interrupted = True
    return Outcome(
        cells=cells,
        store=store,
        kept=len(scan.finished),
        replies=replies,
        stale=scan.stale,
        damaged=scan.damaged,
        seconds=time.monotonic() - start,
        interrupted=interrupted,
    )


def _cells(tracks: Iterable[Track], agents: Iterable[str], size: Size, bank: str) -> list[Cell]:
    agents = list(agents)
    for agent in agents:
        find_agent(agent)  # a name that is wrong is wrong before anything is run
    return make_cells(tracks, agents, size, bank)


def _pool(store: Store, workers: int | None, address: str | None) -> Pool:
    if address is None:
        return LocalPool(store, num_cores() if workers is None else workers)
    from personalllm_env.benchmark.cluster import RayPool

    return RayPool(address)


class _Meter:
    """Turns replies into progress."""

    def __init__(
        self,
        scan: Scan,
        costs: Costs,
        start: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._expected = {cell.name: costs.seconds(cell) for cell in scan.missing}
        self._left = sum(self._expected.values())
        self._total = len(scan.finished) + len(scan.missing)
        self._done, self._failed = len(scan.finished), 0
        self._ended = 0.0  # expected seconds of what has ended
        self._start, self._on_progress = start, on_progress
        self.size = 1

    def take(self, reply: Reply) -> None:
        seconds = self._expected[reply.cell.name]
        self._left -= seconds
        self._ended += seconds
        self._failed += reply.status == "failed"
        self._done += reply.status != "failed"
        self.tell(reply.cell.name)

    def tell(self, name: str = "") -> None:
        elapsed = time.monotonic() - self._start
        slower = (elapsed + _PRIOR_SECONDS) / (self._ended / self.size + _PRIOR_SECONDS)
        left = max(self._left, 0.0) / self.size * slower
        if self._on_progress is not None:
            numbers = (self._done, self._total, self._failed, name, elapsed, left)
            self._on_progress(Progress(*numbers))
