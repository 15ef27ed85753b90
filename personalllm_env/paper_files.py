"""PersonalLLM's interaction files: a row per user, a group of columns per interaction.

``prompt_j``, ``response_j_a``, ``response_j_b`` (texts) and ``chosen_j`` (``a`` or ``b``) for
j = 1, 2, ...; empty cells after a user's last. So the authors' script
``gen_pref_interaction_database.py`` writes the data set PersonalLLM_InteractionDatabase of
their paper (arXiv 2409.20296, section 4.2). It adds ``person_id`` and ``length``, as here, and
``person_weight``, the users' true tastes, which here are neither written nor read.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.bank import ResponseBank
from personalllm_env.database import Database, check_database
from personalllm_env.files import written_whole
from personalllm_env.text_index import TextIndex, flat_responses, texts_of

if TYPE_CHECKING:
    import pyarrow as pa

_USERS_AT_ONCE = 512
_CHOICES = {"a": 1.0, "b": -1.0, None: 0.0}


def write_paper_interactions(
    database: Database, bank: ResponseBank, path: str | os.PathLike[str]
) -> None:
    """Writes a history of duels in PersonalLLM's columns to Parquet, whole or not at all.

    Silent users leave ``chosen_j`` empty. A bank without texts is given some that read back:
    ``prompt 17`` and ``prompt 17, response 3``, both counted from 0.

    Args:
        database: Duels with a choice, and nothing else said.
        bank: The bank that they are about.
        path: The file.

    Raises:
        ValueError: If users spoke in another way, or the database does not fit the bank.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if set(database.said) != {"choice"} or database.action.shape[1] != 2:
        raise ValueError(
            "PersonalLLM's files hold choices between two and nothing else; expected a history "
            f"of duels with feedback 'choice', got {database.action.shape[1]} shown and "
            f"feedback {', '.join(map(repr, database.said))}"
        )
    check_database(database, bank)
    texts = texts_of(bank)
    words = pa.array(texts.prompts, pa.string()), pa.array(flat_responses(texts), pa.string())
    lengths = np.bincount(database.user)
    schema = _schema(int(lengths.max(initial=0)))
    with (
        written_whole(path) as scratch,
        parquet.ParquetWriter(scratch, schema, compression="zstd") as writer,
    ):
        # Each text is written out wherever it occurs, so some users at a time.
        for first in range(0, len(lengths), _USERS_AT_ONCE):
            users = np.arange(first, min(first + _USERS_AT_ONCE, len(lengths)))
            writer.write_table(_wide(database, users, lengths[users], schema, words))


def _schema(longest: int) -> pa.Schema:
    import pyarrow as pa

    fields = [("person_id", pa.int64()), ("length", pa.int64())]
    fields += [(name, pa.string()) for j in range(1, longest + 1) for name in _names(j)]
    return pa.schema(fields)


def _names(j: int) -> tuple[str, str, str, str]:
    return f"prompt_{j}", f"response_{j}_a", f"response_{j}_b", f"chosen_{j}"


def _wide(
    database: Database,
    users: Int[np.ndarray, "u"],
    lengths: Int[np.ndarray, "u"],
    schema: pa.Schema,
    words: tuple[pa.Array, pa.Array],
) -> pa.Table:
    """Returns the rows of some users."""
    import pyarrow as pa

    prompts, responses = words
    k = len(responses) // len(prompts)
    start = np.searchsorted(database.user, users)
    columns = [pa.array(users), pa.array(lengths)]
    for j in range(len(schema) // 4):
        absent = j >= lengths
        row = np.where(absent, 0, start + j)
        prompt, shown = database.prompt[row], database.action[row]
        second = (database.said["choice"][row] < 0).astype(np.int64)
        silent = absent | ~database.heard[row]
        columns.append(prompts.take(pa.array(prompt, mask=absent)))
        for side in range(2):
            columns.append(responses.take(pa.array(prompt * k + shown[:, side], mask=absent)))
        columns.append(pa.array(["a", "b"]).take(pa.array(second, mask=silent)))
    return pa.table(columns, schema=schema)


def read_paper_interactions(
    source: str | os.PathLike[str],
    bank: ResponseBank,
    *,
    unmatched: Literal["error", "skip"] = "error",
) -> Database:
    """Reads a history in PersonalLLM's columns; texts become rows of the bank.

    A text must be the bank's to the letter. Where the bank has a prompt twice, the first whose
    responses fit is taken, and of two equal responses the first (for ``response_j_b`` beside
    an equal ``response_j_a``, the last).

    Args:
        source: A Parquet file, a folder of such files (or with them in ``data/``), read in the
            order of their names, or a hub id.
        bank: What the interactions are about.
        unmatched: What becomes of an interaction whose texts are not in the bank: ``"skip"``
            leaves it out and warns once with the number.

    Returns:
        Duels with choices; user u is the u-th row. Empty cells of ``chosen_j`` are silence.

    Raises:
        ValueError: Naming file, column and row (from 1) of what does not fit.
    """
    if unmatched not in ("error", "skip"):
        raise ValueError(f"unmatched must be 'error' or 'skip', got {unmatched!r}")
    index, parts, num_users = TextIndex(bank), [], 0
    for table in _tables(source):
        for part in _read(table, index, strict=unmatched == "error"):
            parts.append(part._replace(user=part.user + num_users))
        num_users += table.num_rows
    every = _Interactions(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    found = every.prompt >= 0
    if not found.any():
        raise ValueError(
            f"{source}: none of its {len(found)} interactions is with the bank {bank.name!r}"
        )
    if not found.all():
        warnings.warn(
            f"{source}: left out {int((~found).sum())} of {len(found)} interactions, whose "
            f"texts are not in the bank {bank.name!r}",
            stacklevel=2,
        )
    order = np.argsort(every.user, kind="stable")  # the parts come by time
    kept = _Interactions(*(column[order[found[order]]] for column in every))
    return Database(
        user=kept.user,
        prompt=kept.prompt,
        action=kept.action,
        reward=kept.choice,
        heard=kept.choice != 0,
        said={"choice": kept.choice.copy()},
        prompt_features=bank.prompt_features,
        response_features=bank.response_features,
    )


class _Table(NamedTuple):
    """A table whose columns are read a few at a time: whole, they hold gigabytes of text."""

    where: str
    names: Sequence[str]
    num_rows: int
    read: Callable[[list[str]], pa.Table]


class _Interactions(NamedTuple):
    """The j-th interactions of those users who have one."""

    user: Int[np.ndarray, "n"]
    prompt: Int[np.ndarray, "n"]  # -1 where a text is not in the bank
    action: Int[np.ndarray, "n 2"]
    choice: Float[np.ndarray, "n"]  # 0 where silent


def _tables(source: str | os.PathLike[str]) -> Iterator[_Table]:
    import pyarrow as pa
    from pyarrow import parquet

    from personalllm_env.data.sources import HUB_ID, read_hub

    path = Path(source)
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    files = files or sorted(path.glob("data/*.parquet"))
    if not files:
        if path.exists() or not HUB_ID.fullmatch(str(source)):
            raise ValueError(
                f"{source}: expected a Parquet file, a folder of them, or a hub id such as "
                "namkoong-lab/PersonalLLM_InteractionDatabase"
            )
        for part in read_hub(str(source)):
            table = part.table
            yield _Table(part.where, table.column_names, table.num_rows, table.select)
    for name in files:
        try:
            with parquet.ParquetFile(name) as file:
                num_rows, names = file.metadata.num_rows, file.schema_arrow.names
                yield _Table(str(name), names, num_rows, file.read)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{name}: not Parquet, or a damaged file: {error}") from error


def _read(table: _Table, index: TextIndex, *, strict: bool) -> Iterator[_Interactions]:
    numbers = {int(m[1]) for name in table.names if (m := re.fullmatch(r"prompt_(\d+)", name))}
    wanted = [name for j in range(1, max(numbers, default=1) + 1) for name in _names(j)]
    if missing := [name for name in wanted if name not in table.names]:
        raise ValueError(f"{table.where}: missing columns {', '.join(missing[:8])}")
    before = np.ones(table.num_rows, dtype=bool)
    for j in range(1, max(numbers) + 1):
        names = _names(j)
        cells = table.read(list(names))
        texts = [cells[name].to_pylist() for name in names]
        there = np.array([text is not None for text in texts[0]], dtype=bool)
        if (there & ~before).any():
            row = int(np.argmax(there & ~before)) + 1
            raise ValueError(f"{table.where}: row {row} has {names[0]} but no prompt_{j - 1}")
        before, user = there, np.flatnonzero(there)
        prompts, first, second, said = ([text[u] for u in user] for text in texts)
        prompt, action, amiss = index.find(prompts, first, second)
        if strict and (amiss >= 0).any():
            row = int(np.argmax(amiss >= 0))
            column = int(amiss[row])
            text = texts[column][user[row]]
            raise ValueError(
                f"{table.where}: column {names[column]!r}, row {user[row] + 1}: "
                f"{_short(text)} is not in the bank {index.name!r}; unmatched='skip' leaves "
                "such interactions out"
            )
        for u, choice in zip(user, said, strict=True):
            if choice not in _CHOICES:
                raise ValueError(
                    f"{table.where}: column {names[3]!r}, row {u + 1}: expected 'a' or 'b', or "
                    f"nothing for silence; got {_short(choice)}"
                )
        chosen = np.array([_CHOICES[choice] for choice in said], dtype=np.float32)
        yield _Interactions(user, prompt, action, chosen)


def _short(text: object) -> str:
    return "no value (null)" if text is None else f"{text!r:.80}"
