"""The file of a finished cell: a Parquet table with the cell's settings in its metadata."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.fingerprint import fingerprint
from personalllm_env.registry import find_agent
from personalllm_env.runner import Run

_FORMAT = 1
_HEADER = b"personalllm-env cell"
_ARRAYS = {"utility": np.dtype("<f4"), "regret": np.dtype("<f4"), "present": np.dtype("?")}


class DamagedFileError(ValueError):
    """A file in the store is not, or no longer, a cell's result: names it and says why."""


def encode(cell: Cell, run: Run, wall_seconds: float, queued_seconds: float = 0.0) -> bytes:
    """Returns a result as a Parquet file: a line per user and interaction, users in order.

    Columns: utility, regret (float32), present. The settings, the fingerprint and the times
    are JSON in the schema's metadata, under "personalllm-env cell".

    Args:
        cell: What was run.
        run: What came of it.
        wall_seconds: From start to end, for the estimate of costs; NaN if not measured.
        queued_seconds: Of these, how long other processes had the core.
    """
    import pyarrow as pa
    from pyarrow import parquet

    mine = fingerprint(cell)
    columns = {
        name: np.ascontiguousarray(getattr(run, name), dtype) for name, dtype in _ARRAYS.items()
    }
    header = {
        "format": _FORMAT,
        "track": cell.track.name,
        "agent": cell.agent,
        "seed": cell.seed,
        "num_users": run.utility.shape[0],
        "horizon": run.utility.shape[1],
        "history_users": cell.history_users,
        "history_interactions": cell.history_interactions,
        "bank": cell.bank,
        "privileges": privileges_of(cell.agent),
        "seconds": run.seconds,
        "fit_seconds": run.fit_seconds,
        "wall_seconds": None if math.isnan(wall_seconds) else wall_seconds,
        "queued_seconds": queued_seconds,
        "memory_mb": None if math.isnan(run.memory_mb) else run.memory_mb,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "fingerprint": mine.hex,
        "parts": mine.parts,
    }
    header["digest"] = _digest(header, columns)
    table = pa.table({name: column.ravel() for name, column in columns.items()})
    table = table.replace_schema_metadata({_HEADER: json.dumps(header)})
    out = io.BytesIO()
    parquet.write_table(
        table,
        out,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=["utility", "regret"],
        write_statistics=False,
        write_page_checksum=True,
    )
    return out.getvalue()


def decode(encoded: bytes, where: str) -> tuple[dict[str, Any], Run]:
    """Reads what ``encode`` made.

    Raises:
        DamagedFileError: Naming ``where``, if it is anything else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(encoded), page_checksum_verification=True)
        header = _header(table.schema, where)
        shape = (header["num_users"], header["horizon"])
        columns = {
            name: table.column(name).to_numpy().astype(dtype, copy=False).reshape(shape)
            for name, dtype in _ARRAYS.items()
        }
        if header.pop("digest") != _digest(header, columns):
            raise DamagedFileError(f"{where}: the numbers are not those that were written")
        seconds = {key: header[key] for key in ("seconds", "fit_seconds")}
        memory = header["memory_mb"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"{where}: not a cell's result: {error}") from error
    return header, Run(**columns, **seconds, memory_mb=math.nan if memory is None else memory)


def read_header(path: Path) -> dict[str, Any]:
    """Reads the settings and times of a result, without its numbers.

    Raises:
        DamagedFileError: If it is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _header(parquet.read_schema(path), str(path))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DamagedFileError | FileNotFoundError):
            raise
        raise DamagedFileError(f"{path}: not a cell's result: {error}") from error


def _header(schema: Any, where: str) -> dict[str, Any]:
    header = json.loads((schema.metadata or {}).get(_HEADER, b"null"))
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise DamagedFileError(f"{where}: not a cell's result, or of another format")
    return header


def _digest(header: dict[str, Any], columns: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for column in columns.values():
        found.update(column.data)
    return found.hexdigest()[:16]


def privileges_of(agent: str) -> tuple[str, ...]:
    """Returns what an agent sees beyond an honest one, sorted."""
    return tuple(sorted(find_agent(agent).agent_class.privileges))  # type: ignore[attr-defined]
