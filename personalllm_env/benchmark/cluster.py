"""Cells on a Ray cluster: the same functions on the same cells, so the same bits.

Workers need the same installation and nothing else: results travel to the driver, which alone
writes. A worker or node that dies costs the cells it was at, which Ray runs again elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.costs import Costs
from personalllm_env.benchmark.execute import OnDone, drive
from personalllm_env.benchmark.fingerprint import fingerprint
from personalllm_env.benchmark.store import Store
from personalllm_env.benchmark.workers import WORKER_ENVIRONMENT, Reply, produce

_RETRIES = 3  # of a cell whose worker or node died
_AHEAD = 2  # cells that wait at the cluster, beyond one per core, so that no core waits


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
        self._task = ray.remote(
            num_cpus=1,
            max_retries=_RETRIES,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )(produce)
        self._running: dict[Any, Cell] = {}

    @property
    def size(self) -> int:
        """How many cores the cluster has now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def free(self) -> int:
        """Returns how many more cells can be sent without piling up."""
        return max(0, self.size + _AHEAD - len(self._running))

    def group(self) -> str | None:
        """Returns None: Ray decides which worker takes a cell."""
        return None

    def start(self, cell: Cell) -> None:
        """Sends a cell to the cluster."""
        self._running[self._task.remote(cell, fingerprint(cell))] = cell

    def wait(self, seconds: float) -> list[Reply]:
        """Returns what has ended."""
        ended, _ = self._ray.wait(
            list(self._running), num_returns=1, timeout=seconds, fetch_local=True
        )
        return [self._collect(task) for task in ended]

    def stop(self) -> None:
        """Cancels what is running, and leaves the cluster if it was joined here."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        if self._mine:
            self._ray.shutdown()

    def _collect(self, task: Any) -> Reply:
        cell = self._running.pop(task)
        try:
            reply: Reply = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # before the cell began
            reason = f"the cluster's worker cannot run it: {error.cause!r}"
            return Reply(cell, "failed", reason, str(error))
        except self._ray.exceptions.RayError as error:  # lost with its worker, time and again
            return Reply(cell, "died", f"{type(error).__name__}: {error}".partition("\n")[0])
        return reply


def run_cells_on_ray(
    cells: Iterable[Cell],
    store: Store,
    address: str,
    on_done: OnDone | None = None,
    costs: Costs | None = None,
) -> list[Reply]:
    """Runs cells on a Ray cluster; each is stored here the moment it arrives.

    Args:
        cells: Those that are stored already are ``found``, not run.
        store: Where to; only this process writes there.
        address: As for ``RayPool``.
        on_done: As for ``execute.run_cells``.
        costs: As for ``execute.run_cells``.

    Returns:
        A reply per cell, in the order in which they ended.

    Raises:
        ImportError: If ray is missing: names the extra to install.
        OtherCodeError: If a worker's code is not this process's: names its machine and module.
    """
    return drive(cells, store, RayPool(address), on_done, costs)
