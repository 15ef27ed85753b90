"""Runs cells on whatever workers there are: claims, order, retries, what becomes of each."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.costs import Costs
from personalllm_env.benchmark.store import Store
from personalllm_env.benchmark.workers import Pool, Reply, stored

_POLL = 0.5  # seconds between looks at cells that another run has claimed

OnDone = Callable[[Reply], None]
"""Called in the calling process for every cell that is stored or has failed."""


class OtherCodeError(RuntimeError):
    """Workers run other code than this process, so their results would be other results."""


class Schedule:
    """Which cell is next: the dearest group first, and a worker stays with its group."""

    def __init__(self, cells: Iterable[Cell], costs: Costs) -> None:
        self._costs = costs
        self._groups: dict[str, list[Cell]] = {}
        self._left: dict[str, float] = defaultdict(float)  # expected seconds
        self._served: dict[str, int] = defaultdict(int)  # workers that were sent there
        for cell in cells:
            self.add(cell)
        for group in self._groups.values():
            group.sort(key=costs.seconds)  # popped from the end: the dearest first

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, cell: Cell) -> None:
        """Puts a cell in."""
        self._groups.setdefault(cell.group, []).append(cell)
        self._left[cell.group] += self._costs.seconds(cell)

    def next(self, group: str | None) -> Cell:
        """Takes a cell out: of ``group``, or of where most is left per worker."""
        if group not in self._groups:
            group = max(self._groups, key=lambda g: self._left[g] / (1 + self._served[g]))
            self._served[group] += 1
        cell = self._groups[group].pop()
        self._left[group] -= self._costs.seconds(cell)
        if not self._groups[group]:
            del self._groups[group]
        return cell


def drive(
    cells: Iterable[Cell],
    store: Store,
    pool: Pool,
    on_done: OnDone | None = None,
    costs: Costs | None = None,
) -> list[Reply]:
    """Runs cells on a pool; each is stored the moment it is finished.

    Args:
        cells: Those that are stored already are ``found``, not run.
        store: Where to.
        pool: Where they run: ``LocalPool`` or ``RayPool``. It is stopped at the end.
        on_done: See ``OnDone``.
        costs: Of the cells, for the order in which they are run.

    Returns:
        A reply per cell, in the order in which they ended.

    Raises:
        OtherCodeError: If a worker's code is not this process's: names its machine and module.
        RuntimeError: If no worker stays alive.
        KeyboardInterrupt: After the workers have ended.
    """
    loop = _Loop(store, pool, Schedule(cells, costs or Costs()), on_done or (lambda _: None))
    with contextlib.ExitStack() as ending:
        ending.callback(loop.give_up)
        ending.callback(pool.stop)  # first: claims are held until nobody is at a cell
        loop.run()
    return loop.replies


@dataclass
class _Loop:
    store: Store
    pool: Pool
    schedule: Schedule
    on_done: OnDone
    replies: list[Reply] = field(default_factory=list)
    claims: dict[str, contextlib.ExitStack] = field(default_factory=dict)
    elsewhere: list[Cell] = field(default_factory=list)  # claimed by another run
    again: list[Cell] = field(default_factory=list)  # whose worker died
    died: set[str] = field(default_factory=set)

    def run(self) -> None:
        looked = time.monotonic()
        while self.schedule or self.claims or self.elsewhere or self.again:
            while self.schedule and self.pool.free():
                self.start(self.schedule.next(self.pool.group()))
            if not self.schedule and not self.claims and not self.elsewhere and self.again:
                self.start(self.again.pop())  # alone: what was short may have been memory
            if self.claims:
                for reply in self.pool.wait(_POLL):
                    self.take(reply)
            elif self.elsewhere:
                time.sleep(_POLL / 5)
            if not self.schedule and time.monotonic() - looked > _POLL:
                looked = time.monotonic()
                while self.elsewhere:
                    self.schedule.add(self.elsewhere.pop())

    def start(self, cell: Cell) -> None:
        """Claims a cell and gives it to a worker, if it is neither claimed nor finished."""
        with contextlib.ExitStack() as claim:
            if not claim.enter_context(self.store.claim(cell)):
                self.elsewhere.append(cell)
            elif self.store.has(cell):  # read after the claim: nobody finishes it meanwhile
                self.report(Reply(cell, "found"))
            else:
                self.pool.start(cell)
                self.claims[cell.name] = claim.pop_all()

    def take(self, reply: Reply) -> None:
        """Deals with what has become of a cell."""
        if reply.status == "other code":
            raise OtherCodeError(
                f"{reply.cell.name}: the worker's code is not this process's "
                f"({reply.reason}); start again, with the same code everywhere"
            )
        reply = stored(reply, self.store)
        self.claims.pop(reply.cell.name).close()
        if reply.status == "died" and reply.cell.name not in self.died:
            self.died.add(reply.cell.name)
            self.again.append(reply.cell)
            self.check_alive(reply)
        elif reply.status == "died":
            self.report(reply._replace(status="failed", reason=f"twice: {reply.reason}"))
        else:
            self.report(reply)

    def check_alive(self, reply: Reply) -> None:
        """Raises RuntimeError if no worker gets anywhere: there is no use in going on."""
        if len(self.died) >= 5 and not self.replies:
            raise RuntimeError(
                f"no worker stays alive: {reply.reason}. A script that runs a benchmark must "
                "do so under `if __name__ == '__main__':`, since workers import it"
            )

    def report(self, reply: Reply) -> None:
        self.replies.append(reply)
        self.on_done(reply)

    def give_up(self) -> None:
        """Releases what is still claimed."""
        for claim in self.claims.values():
            claim.close()
        self.claims.clear()


def num_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
