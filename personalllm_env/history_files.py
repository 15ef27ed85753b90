"""A history in one Parquet file, a row per interaction, and back, bit for bit.

What a row holds is in ``docs/histories.md``. The file's metadata says, as JSON under the key
``personalllm_env``, which bank the history is about and how it was recorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Shaped

from personalllm_env.bank import ResponseBank
from personalllm_env.database import Database, check_database
from personalllm_env.files import written_whole
from personalllm_env.fingerprints import bank_facts, check_bank

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

FORMAT = 1
_KEY = b"personalllm_env"
_KINDS = {  # NumPy's letters for the types that a column may have
    "user": "iu",
    "interaction": "iu",
    "prompt": "iu",
    "shown": "iu",
    "reward": "f",
    "heard": "b",
    "identity": "iu",
}


def save_database(
    database: Database,
    path: str | os.PathLike[str],
    bank: ResponseBank,
    *,
    facts: Mapping[str, Any] | None = None,
    texts: bool = False,
) -> None:
    """Writes a history to a Parquet file, whole or not at all.

    Args:
        database: The interactions.
        path: The file.
        bank: The bank that they are about.
        facts: JSON-able notes on how they came about, for the metadata and the data card.
        texts: Whether what was asked and shown is written out too, at every interaction, as
            ``prompt_text`` and ``shown_text``.

    Raises:
        ValueError: If the database does not fit the bank, or the bank has no texts to write.
    """
    from pyarrow import parquet

    if texts and bank.texts is None:
        raise ValueError(f"texts=True needs a bank with texts; {bank.name!r} has none")
    check_database(database, bank)
    metadata = {
        "format": FORMAT,
        "bank": bank_facts(bank),
        "channels": list(database.said),
        "num_shown": database.action.shape[1],
        "num_users": database.num_users,
        "num_interactions": len(database.user),
        "recognised": database.identity is not None,
        "white_box": database.scores is not None,
        "facts": dict(facts or {}),
    }
    table = _table(database).replace_schema_metadata({_KEY: json.dumps(metadata)})
    words = _Words(bank) if texts else None
    schema = table.schema if words is None else words.widen(table.slice(0, 0)).schema
    with (
        written_whole(path) as scratch,
        parquet.ParquetWriter(
            scratch, schema, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        # Texts are written out wherever they occur, so only some rows' at a time.
        for rows in database.blocks(1 << 20 if words is None else 1 << 13):
            part = table.slice(rows.start, rows.stop - rows.start)
            writer.write_table(part if words is None else words.widen(part))


def _table(database: Database) -> pa.Table:
    import pyarrow as pa

    shown = pa.array(np.ascontiguousarray(database.action).ravel())
    columns = {
        "user": database.user,
        "interaction": _positions(database.user),
        "prompt": database.prompt,
        "shown": pa.FixedSizeListArray.from_arrays(shown, database.action.shape[1]),
        "reward": database.reward,
        "heard": database.heard,
        **{f"said_{name}": values for name, values in database.said.items()},
    }
    if database.identity is not None:
        columns["identity"] = database.identity[database.user]
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _positions(user: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Returns which of its user's interactions each row is, from 1."""
    first = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(first, append=len(user))
    return np.arange(len(user)) - np.repeat(first, lengths) + 1


class _Words:
    """The texts of a bank, to be put beside rows of a history."""

    def __init__(self, bank: ResponseBank) -> None:
        import pyarrow as pa

        assert bank.texts is not None, "the caller looks"
        self._num_responses = bank.num_responses
        self._prompts = pa.array(bank.texts.prompts, pa.string())
        self._responses = pa.array(
            [text for row in bank.texts.responses for text in row], pa.string()
        )

    def widen(self, table: pa.Table) -> pa.Table:
        """Returns the table with the texts that its rows are about."""
        import pyarrow as pa

        prompt = table["prompt"].to_numpy()
        shown = _two_axes(table["shown"])
        rows = (prompt[:, None] * self._num_responses + shown).ravel()
        texts = pa.FixedSizeListArray.from_arrays(self._responses.take(rows), shown.shape[1])
        table = table.append_column("prompt_text", self._prompts.take(prompt))
        return table.append_column("shown_text", texts)


def _two_axes(column: pa.ChunkedArray) -> Shaped[np.ndarray, "N S"]:
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def open_database(
    path: str | os.PathLike[str], bank: ResponseBank, *, same_bank: bool = True
) -> Database:
    """Reads a history that ``save_database`` wrote, bit for bit.

    Args:
        path: The file.
        bank: The bank that it is about; features are the bank's.
        same_bank: Whether the bank's content must be that of the writer's. Without, every
            prompt and response must exist; for a bank whose scores were computed anew.

    Raises:
        ValueError: Naming file, column and row (from 1) of what does not fit: another bank,
            a version that is not known, columns that are missing or of other types, empty
            cells, rows out of order or missing, indices out of range, a damaged file.
    """
    where = os.fspath(path)
    with _opened(path) as file:
        about = _metadata(file, path)
        if same_bank:
            check_bank(about["bank"], bank, where)
        columns = _columns(file, about, where)
    _check_rows(columns, about, where)
    user = columns["user"]
    database = Database(
        user=user,
        prompt=columns["prompt"],
        action=columns["shown"],
        reward=columns["reward"],
        heard=columns["heard"],
        said={name: columns[f"said_{name}"] for name in about["channels"]},
        prompt_features=bank.prompt_features,
        response_features=bank.response_features,
        identity=columns["identity"][np.unique(user, return_index=True)[1]]
        if about["recognised"]
        else None,
        scores=bank.scores if about["white_box"] else None,
    )
    check_database(database, bank, where)
    return database


def about_history(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a history's file says of itself: bank, channels, sizes, how recorded.

    Raises:
        ValueError: If the file is no history of a known version.
    """
    with _opened(path) as file:
        return _metadata(file, path)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[parquet.ParquetFile]:
    """Opens a Parquet file; whatever is wrong with its bytes is a ValueError with its name."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet, or a damaged file: {error}") from error


def _metadata(file: parquet.ParquetFile, path: str | os.PathLike[str]) -> dict[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(_KEY)
    if text is None:
        raise ValueError(
            f"{path}: no metadata {_KEY.decode()!r}, so no history that save_database wrote; "
            "a file in PersonalLLM's columns is for read_paper_interactions"
        )
    about: dict[str, Any] = json.loads(text)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected a history of format {FORMAT}, got {about.get('format')!r}"
        )
    return about


def _columns(
    file: parquet.ParquetFile, about: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
    """Reads the columns that make a database, checked to be whole and of their types."""
    kinds = {name: kind for name, kind in _KINDS.items() if name != "identity"}
    kinds |= {f"said_{name}": "f" for name in about["channels"]}
    if about["recognised"]:
        kinds["identity"] = _KINDS["identity"]
    if missing := [name for name in kinds if name not in file.schema_arrow.names]:
        raise ValueError(f"{where}: missing columns {', '.join(missing)}")
    table, columns = file.read(columns=list(kinds)), {}
    for name, kind in kinds.items():
        column = table[name]
        if name == "shown":
            expected = about["num_shown"]
            if getattr(column.type, "list_size", None) != expected:
                raise ValueError(
                    f"{where}: column 'shown' must be lists of {expected}, got {column.type}"
                )
        if column.null_count:
            row = column.is_null().index(True).as_py() + 1
            raise ValueError(f"{where}: column {name!r}, row {row}: no value (null)")
        array = _two_axes(column) if name == "shown" else column.to_numpy()
        if array.dtype.kind not in kind:
            raise ValueError(f"{where}: column {name!r} cannot be of type {column.type}")
        columns[name] = array
    return columns


def _check_rows(
    columns: Mapping[str, np.ndarray], about: Mapping[str, Any], where: str
) -> None:
    """Raises ValueError unless the rows are all there, by user and then by time."""
    user, interaction = columns["user"], columns["interaction"]
    if len(user) != about["num_interactions"]:
        raise ValueError(
            f"{where}: expected {about['num_interactions']} interactions, got {len(user)}"
        )
    steps = np.diff(user, prepend=-1)
    expected = np.where(steps == 0, np.append(0, interaction[:-1]) + 1, 1)
    late = (steps < 0) | (interaction != expected)
    if late.any():
        row = int(np.argmax(late))
        raise ValueError(
            f"{where}, row {row + 1}: expected rows by user and then by interaction, from 1 "
            f"without gaps; user {user[row]}, interaction {interaction[row]} is out of order"
        )
