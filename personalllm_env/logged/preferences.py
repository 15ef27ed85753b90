"""What users preferred, as pairs for preference optimisation (DPO).

The columns are those of TRL's ``DPOTrainer``, and of ``personalllm_env.adapters.trl_rows``:
``prompt``, ``chosen`` and ``rejected`` as chats, and ``question``, ``prompt_row`` and ``user``.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from personalllm_env.bank import ResponseBank
from personalllm_env.database import Database
from personalllm_env.files import written_whole
from personalllm_env.generation.chats import answers, chat_for, user_token
from personalllm_env.logged.log import Log, check_log

_ROWS_AT_ONCE = 4096


class Pairs(NamedTuple):
    """n comparisons of two of a prompt's responses, by user and then by time."""

    user: Int[np.ndarray, "n"]
    prompt: Int[np.ndarray, "n"]  # bank rows
    chosen: Int[np.ndarray, "n"]  # which of the bank's responses
    rejected: Int[np.ndarray, "n"]


def duel_pairs(duels: Database) -> Pairs:
    """Returns what users chose between two: a pair per duel of different responses.

    Args:
        duels: From ``record_duels`` or ``record_history``.

    Raises:
        ValueError: If nobody was asked to choose, or nobody did, or if this is a log.
    """
    if not isinstance(duels, Database):
        raise ValueError(
            "expected a Database, which record_duels and record_history return, got a "
            f"{type(duels).__name__}; pairs of a Log's ratings are reward_pairs"
        )
    if "choice" not in duels.said or duels.action.shape[1] != 2:
        raise ValueError(
            "choices are said in duels, with feedback 'choice'; here "
            f"{duels.action.shape[1]} shown and feedback {', '.join(duels.said)}"
        )
    said, (first, second) = duels.said["choice"], duels.action.T
    rows = duels.heard & (said != 0) & (first != second)
    won = np.where(said > 0, first, second)
    lost = np.where(said > 0, second, first)
    return _some(Pairs(duels.user[rows], duels.prompt[rows], won[rows], lost[rows]))


def reward_pairs(log: Log, *, margin: float = 0.0) -> Pairs:
    """Returns pairs of responses to one prompt that one user rated differently.

    A response's rating is the mean reward of the times the user was shown it and said
    something. Users rate several responses to a prompt only where prompts recur
    (``prompts_per_episode``).

    Args:
        log: The interactions.
        margin: By how much the ratings differ at least; equal ones are no pair.

    Raises:
        ValueError: If there is no such pair, if the log does not fit together, or if these are
            duels.
    """
    check_log(log)
    rows = np.flatnonzero(log.heard)
    rated = np.stack([log.user[rows], log.prompt[rows], log.shown[rows]], axis=1)
    different, group = np.unique(rated, axis=0, return_inverse=True)
    total = np.bincount(group.ravel(), log.reward[rows], minlength=len(different))
    rating = total / np.bincount(group.ravel(), minlength=len(different))
    found = []
    for apart in range(1, log.num_responses):  # a user's ratings of a prompt are side by side
        one, other = different[:-apart], different[apart:]
        gap = rating[apart:] - rating[:-apart]
        good = (one[:, :2] == other[:, :2]).all(axis=1) & (np.abs(gap) >= margin) & (gap != 0)
        won = np.where(gap > 0, other[:, 2], one[:, 2])
        lost = np.where(gap > 0, one[:, 2], other[:, 2])
        found.append(np.stack([*one[:, :2].T, won, lost], axis=1)[good])
    pairs = np.concatenate([*found, np.empty((0, 4), np.int64)])
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    return _some(Pairs(*pairs.T))


def _some(pairs: Pairs) -> Pairs:
    if not len(pairs.user):
        raise ValueError(
            "there are no pairs: nobody compared two different responses, or rated several to "
            "one prompt (prompts recur with prompts_per_episode)"
        )
    return pairs


def pair_columns(
    pairs: Pairs, bank: ResponseBank, *, user_tokens: bool = False
) -> dict[str, list[Any]]:
    """Returns the columns of a data set for DPO; ``datasets.Dataset.from_dict`` takes them.

    Args:
        pairs: The comparisons.
        bank: Has the texts.
        user_tokens: Whether the system's turn holds the user's token, as in P-DPO.

    Raises:
        ValueError: If the bank has no texts.
    """
    if bank.texts is None:
        raise ValueError(f"pairs are of texts, and the bank {bank.name!r} has none")
    prompts, users = pairs.prompt.tolist(), pairs.user.tolist()
    tokens = [user_token(u) if user_tokens else "" for u in users]
    return {
        "prompt": [chat_for(bank, p, token=t) for p, t in zip(prompts, tokens, strict=True)],
        "chosen": answers(bank, pairs.prompt, pairs.chosen),
        "rejected": answers(bank, pairs.prompt, pairs.rejected),
        "question": [bank.texts.prompts[p] for p in prompts],
        "prompt_row": prompts,
        "user": users,
    }


def write_pairs(
    pairs: Pairs, bank: ResponseBank, path: str | os.PathLike[str], *, user_tokens: bool = False
) -> None:
    """Writes the columns to a Parquet file, whole or not at all.

    ``load_dataset("parquet", data_files=path)`` reads what ``DPOTrainer`` takes.

    Args:
        pairs: The comparisons.
        bank: Has the texts.
        path: The file.
        user_tokens: As for ``pair_columns``.

    Raises:
        ValueError: If the bank has no texts.
    """
    import pyarrow as pa
    from pyarrow import parquet

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {"prompt": turns, "chosen": turns, "rejected": turns, "question": pa.string()}
    schema = pa.schema([*types.items(), ("prompt_row", pa.int64()), ("user", pa.int64())])
    if bank.texts is None:
        raise ValueError(f"pairs are of texts, and the bank {bank.name!r} has none")
    with (
        written_whole(path) as scratch,
        parquet.ParquetWriter(scratch, schema, compression="zstd") as writer,
    ):
        # Each text is written out wherever it occurs, so some rows at a time.
        for start in range(0, len(pairs.user), _ROWS_AT_ONCE):
            part = Pairs(*(column[start : start + _ROWS_AT_ONCE] for column in pairs))
            columns = pair_columns(part, bank, user_tokens=user_tokens)
            writer.write_table(pa.table(columns, schema=schema))
