"""Cells on processes of this machine: one interpreter per worker, one cell at a time."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from personalllm_env.benchmark.cellfile import encode
from personalllm_env.benchmark.cells import Cell, prepare, run_cell
from personalllm_env.benchmark.fingerprint import (
    Fingerprint,
    difference,
    fingerprint,
    warm_up,
)
from personalllm_env.benchmark.store import Store

WORKER_ENVIRONMENT = {
    # One thread per worker: many threads on few cores are slow, and how a sum is cut among
    # threads changes its last bits.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # else the order of a set of strings differs between processes
}

_SCHEDULE = Path("/proc/self/schedstat")

Status = Literal["done", "found", "failed", "died", "other code"]


class Reply(NamedTuple):
    """What became of a cell.

    Attributes:
        cell: Which one.
        status: ``done``; ``found`` done by another run meanwhile; ``failed``: the agent raised;
            ``died``: the worker was killed; ``other code``: the worker's is not this run's.
        reason: Why not, in a line.
        details: The traceback.
        seconds: From start to end.
        encoded: The result, where the worker has not stored it.
    """

    cell: Cell
    status: Status
    reason: str = ""
    details: str = ""
    seconds: float = 0.0
    encoded: bytes | None = None


class Pool(Protocol):
    """Somewhere to run cells."""

    @property
    def size(self) -> int:
        """How many cells run at once."""
        ...

    def free(self) -> int:
        """Returns how many more cells can be started now."""
        ...

    def group(self) -> str | None:
        """Returns the group whose history the next free worker still holds, if any."""
        ...

    def start(self, cell: Cell) -> None:
        """Starts a cell; ``free`` must not be 0."""
        ...

    def wait(self, seconds: float) -> list[Reply]:
        """Returns what has ended, waiting for something to; empty when time is up."""
        ...

    def stop(self) -> None:
        """Ends all workers now; what they have stored stays."""
        ...


def produce(cell: Cell, expected: Fingerprint) -> Reply:
    """Runs a cell in this process; whatever the agent raises becomes part of the reply.

    Args:
        cell: What to run.
        expected: Of the run that asked: nothing is run by other code.
    """
    try:
        mine = fingerprint(cell)
        if mine.hex != expected.hex:
            what = difference(expected.parts, mine.parts)
            return Reply(cell, "other code", f"{platform.node() or 'a worker'}: {what}")
        warm_up(cell)
        prepare(cell)
        start, queued = time.perf_counter(), _queued_seconds()
        run = run_cell(cell)
        seconds, queued = time.perf_counter() - start, _queued_seconds() - queued
        encoded = encode(cell, run, seconds, queued)
        return Reply(cell, "done", seconds=seconds, encoded=encoded)
    except BaseException as error:  # an agent's sys.exit must not end the run either
        notes = "; ".join(("", *getattr(error, "__notes__", ())))
        reason = f"{type(error).__name__}: {error}{notes}"
        return Reply(cell, "failed", reason, "".join(traceback.format_exception(error)))


def _queued_seconds() -> float:
    """Returns for how long this process has been ready to run while others had the core."""
    try:  # Linux: nanoseconds on a core, nanoseconds in the queue, turns
        return int(_SCHEDULE.read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0


def _produce_and_store(cell: Cell, expected: Fingerprint, folder: str) -> Reply:
    return stored(produce(cell, expected), Store(folder))


def stored(reply: Reply, store: Store) -> Reply:
    """Stores what a reply brings; where that fails, on a full disk say, the cell has failed."""
    if reply.encoded is None:
        return reply
    try:
        store.write(reply.cell, reply.encoded)
    except OSError as error:
        return Reply(reply.cell, "failed", f"could not be stored: {error}")
    return reply._replace(encoded=None)


@dataclass(eq=False)
class _Worker:
    """A pool of one process, so that it is known which cell a dead process was at."""

    executor: ProcessPoolExecutor
    process: BaseProcess | None = None
    group: str | None = None
    cell: Cell | None = None
    future: Future[Reply] | None = None


@dataclass
class LocalPool:
    """Processes of this machine; each stores what it has finished by itself.

    Attributes:
        store: Where to.
        size: How many processes.
    """

    store: Store
    size: int
    _workers: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"workers must be at least 1, got {self.size}")

    def free(self) -> int:
        """Returns how many workers are idle, or not yet started."""
        return self.size - sum(worker.cell is not None for worker in self._workers)

    def group(self) -> str | None:
        """Returns the group of the next idle worker's last cell."""
        idle = self._idle()
        return None if idle is None else idle.group

    def start(self, cell: Cell) -> None:
        """Gives a cell to the next idle worker, starting one if there is none."""
        worker = self._idle()
        if worker is None:
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
            worker = _Worker(executor)
            self._workers.append(worker)
        with _spawning(worker):
            job = (cell, fingerprint(cell), str(self.store.folder))
            worker.cell, worker.group = cell, cell.group
            worker.future = worker.executor.submit(_produce_and_store, *job)

    def wait(self, seconds: float) -> list[Reply]:
        """Returns what has ended; a worker that was killed is replaced at the next start."""
        futures = [worker.future for worker in self._workers if worker.future is not None]
        wait_for(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        ended = [w for w in self._workers if w.future is not None and w.future.done()]
        return [self._collect(worker) for worker in ended]

    def stop(self) -> None:
        """Kills what is running: results are stored whole or not at all."""
        for worker in self._workers:
            if worker.process is not None and worker.cell is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.executor.shutdown(wait=True, cancel_futures=True)
        self._workers.clear()

    def _idle(self) -> _Worker | None:
        return next((worker for worker in self._workers if worker.cell is None), None)

    def _collect(self, worker: _Worker) -> Reply:
        cell, future = worker.cell, worker.future
        assert cell is not None, "it has ended"
        assert future is not None, "it has ended"
        worker.cell = worker.future = None
        try:
            return future.result()
        except BrokenProcessPool:
            self._workers.remove(worker)
            worker.executor.shutdown(wait=True)
            return Reply(cell, "died", _epitaph(worker.process))


def _epitaph(process: BaseProcess | None) -> str:
    if process is None:
        return "its process could not be started"
    process.join(5)
    code = process.exitcode
    if code == -9:
        return "its process was killed (signal 9), perhaps for want of memory"
    return f"its process ended unasked with status {code}"


@contextmanager
def _spawning(worker: _Worker) -> Iterator[None]:
    """Sees that a process started meanwhile has one thread, ignores Ctrl-C and is known."""
    if worker.process is not None:
        yield
        return
    before = {child.pid for child in multiprocessing.active_children()}
    kept = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    blocking = hasattr(signal, "pthread_sigmask")
    if blocking:  # inherited, so that Ctrl-C reaches this process only; here it is not lost
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
        new = [c for c in multiprocessing.active_children() if c.pid not in before]
        worker.process = new[0] if new else None
    finally:
        if blocking:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    """Runs first in every worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the run is gone, be it by SIGKILL; nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
