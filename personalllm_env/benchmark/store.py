"""Finished cells in a folder: one small Parquet file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from personalllm_env.benchmark.cellfile import (
    DamagedFileError,
    decode,
    privileges_of,
    read_header,
)
from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.fingerprint import difference, fingerprint
from personalllm_env.files import written_whole
from personalllm_env.runner import Comparison, Run

_LOCKS = ".claims"
_OLD = 3600.0  # seconds after which a scratch file is a killed run's


class Loaded(NamedTuple):
    """Results per track, and the agents without a result for every seed."""

    comparisons: dict[str, Comparison]
    missing: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Scan:
    """What a store has of the wanted cells.

    Attributes:
        finished: Cells with a readable result of this code and these settings.
        missing: The others.
        stale: Per missing cell's name that has a result by other code, settings or versions,
            in what the nearest differs. It is never used.
        damaged: Per unreadable file, what is wrong.
    """

    finished: list[Cell]
    missing: list[Cell]
    stale: dict[str, str]
    damaged: dict[str, str]


class Store:
    """A folder of results. Any number of runs may share it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; expected a folder for results")

    def path(self, cell: Cell) -> Path:
        """Returns where a cell's result is, or would be; another for other code."""
        name = f"{cell.seed}-{fingerprint(cell).hex[:12]}.parquet"
        return self.folder / cell.track.name / slug(cell.agent) / name

    def has(self, cell: Cell) -> bool:
        """Says whether a cell is finished and its result can be read."""
        try:
            self.load(cell)
        except (FileNotFoundError, DamagedFileError):
            return False
        return True

    def load(self, cell: Cell) -> Run:
        """Reads a cell's result.

        Raises:
            FileNotFoundError: If it is not finished.
            DamagedFileError: If the file is truncated, changed or something else.
        """
        path = self.path(cell)
        header, run = decode(path.read_bytes(), str(path))
        if header["fingerprint"] != fingerprint(cell).hex:
            raise DamagedFileError(f"{path}: holds another cell's result")
        return run

    def write(self, cell: Cell, encoded: bytes) -> None:
        """Stores what ``encode`` made, whole or not at all; on return it is on the disk."""
        with written_whole(self.path(cell), durable=True) as scratch:
            scratch.write_bytes(encoded)

    @contextlib.contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Yields whether nobody else is at this cell; then nobody else gets it meanwhile.

        The claim is a lock of the kernel's, which goes with the process, however it ends.
        """
        lock = FileLock(self._lock(cell))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            _remove(lock)

    def _lock(self, cell: Cell) -> Path:
        path = self.path(cell)
        locks = self.folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return locks / "~".join((*path.parts[-3:-1], f"{path.stem}.lock"))

    def scan(self, cells: Iterable[Cell]) -> Scan:
        """Looks for every cell, reading what it finds in full."""
        finished, missing, stale, damaged = [], [], {}, {}
        for cell in cells:
            try:
                self.load(cell)
            except FileNotFoundError:
                missing.append(cell)
            except DamagedFileError as error:
                missing.append(cell)
                damaged[str(self.path(cell))] = str(error)
            else:
                finished.append(cell)
                continue
            if (why := self._why_stale(cell, damaged)) is not None:
                stale[cell.name] = why
        return Scan(finished, missing, stale, damaged)

    def _why_stale(self, cell: Cell, damaged: dict[str, str]) -> str | None:
        """Returns how the most similar result for this seed differs, or None for no result."""
        target, mine = self.path(cell), fingerprint(cell).parts
        reasons = []
        for path in sorted(target.parent.glob(f"{cell.seed}-*.parquet")):
            if path == target:
                continue
            try:
                reasons.append(difference(read_header(path).get("parts", {}), mine))
            except DamagedFileError as error:
                damaged[str(path)] = str(error)
        return min(reasons, key=lambda r: (r.count(";"), len(r)), default=None)

    def headers(self) -> Iterator[dict[str, Any]]:
        """Yields the header of every readable result, of whatever code and settings."""
        for path in sorted(self.folder.glob("*/*/*.parquet")):
            with contextlib.suppress(DamagedFileError, FileNotFoundError):
                yield read_header(path)

    def machines(self, cells: Iterable[Cell]) -> dict[str, int]:
        """Returns which machines ran some cells, and how many cells each; the most first.

        Cells without a readable result are left out. Times and memory are these machines'.
        """
        found: Counter[str] = Counter()
        for cell in cells:
            with contextlib.suppress(DamagedFileError, FileNotFoundError):
                found[read_header(self.path(cell)).get("machine", "not known")] += 1
        return dict(found.most_common())

    def clean(self, older_than: float = _OLD) -> int:
        """Removes what killed runs left; returns how many files.

        Args:
            older_than: Seconds. A scratch file lives for milliseconds unless its run was
                killed; a claim is removed only if nobody holds it.
        """
        before, removed = time.time() - older_than, 0
        for path in [*self.folder.glob("*/*/.*.tmp"), *self.folder.glob(f"{_LOCKS}/*.lock")]:
            with contextlib.suppress(OSError, Timeout):
                if path.stat().st_mtime >= before:
                    continue
                if path.suffix == ".lock":
                    lock = FileLock(path)
                    lock.acquire(blocking=False)
                    _remove(lock)
                else:
                    path.unlink()
                removed += 1
        return removed


def load_comparisons(store: Store, cells: Iterable[Cell]) -> Loaded:
    """Reads results into one comparison per track; unfinished agents are named, not mixed in.

    At the paper's size a track takes some 200 MB: give the cells of one track at a time.
    """
    runs: dict[str, dict[str, dict[int, Run | None]]] = {}
    for cell in cells:
        try:
            done = store.load(cell)
        except (FileNotFoundError, DamagedFileError):
            done = None
        runs.setdefault(cell.track.name, {}).setdefault(cell.agent, {})[cell.seed] = done
    comparisons, missing = {}, {}
    for track, agents in runs.items():
        seeds = tuple(sorted({seed for found in agents.values() for seed in found}))
        whole: dict[str, list[Run]] = {}
        for agent, found in agents.items():
            in_order = [run for seed in seeds if (run := found.get(seed)) is not None]
            if len(in_order) == len(seeds):
                whole[agent] = in_order
        missing[track] = tuple(agent for agent in agents if agent not in whole)
        privileges = {agent: privileges_of(agent) for agent in whole}
        comparisons[track] = Comparison(whole, privileges, seeds)
    return Loaded(comparisons, missing)


def slug(agent: str) -> str:
    """Returns a folder's name for an agent; different for different agents."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,59}", agent):
        return agent
    kept = re.sub(r"[^a-z0-9.-]+", "_", agent.lower()).strip("._")[:50]
    return f"{kept}_{hashlib.sha256(agent.encode()).hexdigest()[:8]}"


def _remove(lock: BaseFileLock) -> None:
    """Releases a claim. Its file goes first, while it is held: a result is stored by then."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()
