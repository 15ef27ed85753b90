"""A log in one Parquet file, a row per interaction, and back, bit for bit.

The file's metadata says, as JSON under the key ``personalllm_env_log``, which bank the log is
about and how it was recorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from personalllm_env.bank import ResponseBank
from personalllm_env.data import load_bank
from personalllm_env.files import written_whole
from personalllm_env.fingerprints import bank_facts, check_bank
from personalllm_env.logged.log import Log, check_log

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
HUB_FILE = "data/train-00000-of-00001.parquet"
"""Where the log is in a folder that ``write_hub`` wrote."""
_KEY = b"personalllm_env_log"
_KINDS = {  # NumPy's letters for the types that a column may have
    "user": "iu",
    "t": "iu",
    "prompt": "iu",
    "order": "iu",
    "action": "iu",
    "propensity": "f",
    "probabilities": "f",
    "reward": "f",
    "heard": "b",
    "left": "b",
    "identity": "iu",
    "true_utility": "f",
}
_LISTS = ("order", "probabilities", "true_utility")  # K of each


def save_log(
    log: Log,
    path: str | os.PathLike[str],
    bank: ResponseBank,
    *,
    texts: bool = False,
    truth: bool = False,
) -> None:
    """Writes a log to a Parquet file, whole or not at all.

    Args:
        log: The interactions.
        path: The file.
        bank: The bank that they are about.
        texts: Whether what was asked and offered is written out, as ``prompt_text`` and
            ``response_texts`` (in the order shown), at every interaction.
        truth: Whether the simulator's utilities are written, as ``true_utility``.

    Raises:
        ValueError: If the log does not fit the bank, or the bank has no texts, or the log no
            truth, to write.
    """
    from pyarrow import parquet

    if texts and bank.texts is None:
        raise ValueError(f"texts=True needs a bank with texts; {bank.name!r} has none")
    if truth and log.truth is None:
        raise ValueError("truth=True needs a log with truth; this one has none")
    check_log(log, bank)
    about = {
        "format": FORMAT,
        "bank": bank_facts(bank),
        "channels": list(log.said),
        "num_users": log.num_users,
        "num_interactions": len(log),
        "seed": log.seed,
        "recognised": log.identity is not None,
        "white_box": log.scores is not None,
        "facts": dict(log.facts),
    }
    table = _table(log if truth else log.without_truth())
    table = table.replace_schema_metadata({_KEY: json.dumps(about)})
    words = _words(log.rows(slice(0, 0)), bank) if texts else None
    schema = table.schema if words is None else _beside(table.slice(0, 0), words).schema
    with (
        written_whole(path) as scratch,
        parquet.ParquetWriter(
            scratch, schema, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        # Texts are written out wherever they occur, so only some rows' at a time.
        for rows in log.blocks(1 << 13):
            part = table.slice(rows.start, rows.stop - rows.start)
            writer.write_table(_beside(part, _words(log.rows(rows), bank)) if texts else part)


def _table(log: Log) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, NDArray[Any] | None] = {
        "user": log.user,
        "t": log.t,
        "prompt": log.prompt,
        "order": log.order,
        "action": log.action,
        "propensity": log.propensity,
        "probabilities": log.probabilities,
        "reward": log.reward,
        "heard": log.heard,
        **{f"said_{name}": values for name, values in log.said.items()},
        "left": log.left,
        "identity": None if log.identity is None else log.identity[log.user],
        "true_utility": log.truth,
    }
    return pa.table(
        {
            name: _lists(column) if name in _LISTS else pa.array(column)
            for name, column in columns.items()
            if column is not None
        }
    )


def _lists(column: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(column).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _words(log: Log, bank: ResponseBank) -> dict[str, pa.Array]:
    """Returns what was asked and offered."""
    import pyarrow as pa

    assert bank.texts is not None, "the caller looks"
    responses = pa.array(
        [
            bank.texts.responses[p][k]
            for p, row in zip(log.prompt, log.order, strict=True)
            for k in row
        ],
        pa.string(),
    )
    return {
        "prompt_text": pa.array([bank.texts.prompts[p] for p in log.prompt], pa.string()),
        "response_texts": pa.FixedSizeListArray.from_arrays(responses, log.num_responses),
    }


def _beside(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def open_log(
    path: str | os.PathLike[str], bank: ResponseBank | str, *, same_bank: bool = True
) -> Log:
    """Reads a log that ``save_log`` wrote, bit for bit; features are the bank's.

    Args:
        path: The file, or the folder of ``write_hub`` and ``personalllm-env log``.
        bank: The bank that it is about, or its name: see ``load_bank``.
        same_bank: Whether the bank's content must be that of the writer's.

    Raises:
        ValueError: Naming file, column and row (from 1) of what does not fit: another bank, a
            version that is not known, columns that are missing or of other types, empty cells,
            rows out of order, indices or probabilities out of range, a damaged file.
        FileNotFoundError: If there is no such file, or no log in the folder.
    """
    import pyarrow as pa
    from pyarrow import parquet

    bank, path = load_bank(bank), _file_of(path)
    where = os.fspath(path)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            about = _about(file.schema_arrow.metadata or {}, where)
            if same_bank:
                check_bank(about["bank"], bank, where)
            columns = _columns(file.read(), about, where)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where}: not Parquet, or a damaged file: {error}") from error
    if len(columns["user"]) != about["num_interactions"]:
        raise ValueError(
            f"{where}: expected {about['num_interactions']} interactions, got "
            f"{len(columns['user'])}"
        )
    identity = columns.get("identity")
    log = Log(
        **{name: columns[name] for name in ("user", "t", "prompt", "order", "action")},
        **{name: columns[name] for name in ("propensity", "reward", "heard", "left")},
        said={name: columns[f"said_{name}"] for name in about["channels"]},
        prompt_features=bank.prompt_features,
        response_features=bank.response_features,
        probabilities=columns.get("probabilities"),
        scores=bank.scores if about["white_box"] else None,
        identity=None
        if identity is None
        else identity[np.unique(columns["user"], return_index=True)[1]],
        truth=columns.get("true_utility"),
        seed=about["seed"],
        facts=about["facts"],
    )
    check_log(log, bank, where)
    return log


def about_log(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a log's file says of itself: bank, channels, sizes, how recorded.

    Raises:
        ValueError: If the file is no log of a known version.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = _file_of(path)
    try:
        return _about(parquet.read_schema(path).metadata or {}, os.fspath(path))
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not Parquet, or a damaged file: {error}") from error


def _file_of(path: str | os.PathLike[str]) -> Path:
    """Returns the file of a log that is given as that, or as a folder for the hub."""
    file = Path(path)
    if not file.is_dir():
        return file
    if not (file / HUB_FILE).is_file():
        raise FileNotFoundError(f"{file}: expected a log's file, or a folder with {HUB_FILE}")
    return file / HUB_FILE


def _about(metadata: Mapping[bytes, bytes], where: str) -> dict[str, Any]:
    if _KEY not in metadata:
        raise ValueError(
            f"{where}: no metadata {_KEY.decode()!r}, so no log that save_log wrote; a history "
            "is for open_database"
        )
    about: dict[str, Any] = json.loads(metadata[_KEY])
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{where}: expected a log of format {FORMAT}, got {about.get('format')!r}"
        )
    return about


def _columns(table: pa.Table, about: Mapping[str, Any], where: str) -> dict[str, NDArray[Any]]:
    """Returns the columns that make a log, checked to be whole and of their types."""
    kinds = _KINDS | {f"said_{name}": "f" for name in about["channels"]}
    optional = {"probabilities", "true_utility"}
    if not about["recognised"]:
        optional.add("identity")
    if missing := [n for n in kinds if n not in optional and n not in table.column_names]:
        raise ValueError(f"{where}: missing columns {', '.join(missing)}")
    columns, k = {}, len(about["bank"]["responders"])
    for name in kinds:
        if name not in table.column_names:
            continue
        column = table[name]
        if column.null_count:
            row = column.is_null().index(True).as_py() + 1
            raise ValueError(f"{where}: column {name!r}, row {row}: no value (null)")
        if name in _LISTS:
            if getattr(column.type, "list_size", None) != k:
                raise ValueError(
                    f"{where}: column {name!r} must be lists of {k}, got {column.type}"
                )
            flat = column.combine_chunks().flatten()
            array = flat.to_numpy(zero_copy_only=False).reshape(-1, k)
        else:
            array = column.to_numpy()
        if array.dtype.kind not in kinds[name]:
            raise ValueError(f"{where}: column {name!r} cannot be of type {column.type}")
        columns[name] = array
    return columns
