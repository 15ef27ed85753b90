"""Files written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yields a scratch file beside ``path`` that takes its place if nothing is raised.

    Folders on the way are made. After an error the scratch file is gone and what was at
    ``path`` before is as it was. Writers that meet at one path do not disturb each other: the
    last one's file stays.

    Args:
        path: The file.
        durable: Whether it is on the disk on return, and so outlives a loss of power.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may share a folder and a number, hence the random part.
    scratch = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield scratch
        if durable:  # before it has its name: a name without content would be believed
            with scratch.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    if durable:
        _sync_folder(target.parent)


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a text file in UTF-8, whole or not at all, and returns where it is."""
    with written_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


@contextmanager
def folder_written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields where to make a folder of this name, which goes to ``path`` if nothing is raised.

    After an error, or an interrupt, nothing is there. Folders on the way are made.

    Raises:
        FileExistsError: If there is something at ``path`` already.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's own folder is for its owner alone, hence another in it.
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch / target.name
        (scratch / target.name).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
