"""Cells on a Ray cluster: the same functions on the same cells, so the same bits.

Workers need the same installation and nothing else: results travel to the driver, which alone
writes. A worker or node that dies costs the cells it was at, which the driver runs again.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.fingerprint import Fingerprint, fingerprint
from personalllm_env.benchmark.workers import WORKER_ENVIRONMENT, Reply


@dataclass(eq=False)
class _Worker:
    """A process of the cluster's, kept from cell to cell since it holds its group's history."""

    actor: Any
    group: str | None = None
    cell: Cell | None = None
    task: Any = None


class RayPool:
    """A Ray cluster as a place to run cells.

    Args:
        address: As for ``ray.init``: ``"auto"``, ``"local"`` or the address of a cluster. A
            connection that this process already has is used, and kept at the end.

    Raises:
        ImportError: If ray is missing: names the extra to install.
        ConnectionError: If there is no cluster at ``address``.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "running on a cluster needs ray: pip install 'personalllm-env[ray]'"
            ) from error
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)

        # Defined in here it travels by value, so that a machine without this package says so
        # in its reply to a cell. Nothing is tried again by Ray: that is the driver's to do.
        class Process:
            def produce(self, cell: Cell, expected: Fingerprint) -> Reply:
                from personalllm_env.benchmark.workers import produce

                return produce(cell, expected)

        self._process = ray.remote(
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )(Process)
        self._workers: list[_Worker] = []

    @property
    def size(self) -> int:
        """How many cores the cluster has now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def free(self) -> int:
        """Returns how many cores have no cell."""
        return max(0, self.size - sum(worker.cell is not None for worker in self._workers))

    def group(self) -> str | None:
        """Returns the group of the next idle worker's last cell."""
        idle = self._idle()
        return None if idle is None else idle.group

    def start(self, cell: Cell) -> None:
        """Gives a cell to the next idle worker, or to a new one, which waits for a core."""
        worker = self._idle()
        if worker is None:
            worker = _Worker(self._process.remote())
            self._workers.append(worker)
        worker.cell, worker.group = cell, cell.group
        worker.task = worker.actor.produce.remote(cell, fingerprint(cell))

    def wait(self, seconds: float) -> list[Reply]:
        """Returns what has ended."""
        while (idle := self._idle()) is not None:
            # There is nothing for it to do, and somebody else may be waiting for its core: a
            # worker of ours that was started for a node that is gone, or another's.
            self._let_go(idle)
        running = {worker.task: worker for worker in self._workers}
        ended, _ = self._ray.wait(list(running), num_returns=1, timeout=seconds)
        return [self._collect(running[task]) for task in ended]

    def stop(self) -> None:
        """Ends all workers now, and leaves the cluster if it was joined here."""
        while self._workers:
            self._let_go(self._workers[0])
        if self._mine:
            self._ray.shutdown()

    def _idle(self) -> _Worker | None:
        return next((worker for worker in self._workers if worker.cell is None), None)

    def _let_go(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._ray.kill(worker.actor)

    def _collect(self, worker: _Worker) -> Reply:
        cell, task = worker.cell, worker.task
        assert cell is not None, "it has ended"
        worker.cell = worker.task = None
        try:
            reply: Reply = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # before the cell began
            reason = f"the cluster's worker cannot run it: {error.cause!r}"
            return Reply(cell, "failed", reason, str(error))
        except self._ray.exceptions.RayError as error:  # lost with its worker
            self._let_go(worker)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Reply(cell, "died", reason, str(error))
        return reply
