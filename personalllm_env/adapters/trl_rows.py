"""Data sets in the columns of TRL's trainers: GRPO and RLOO, and DPO.

A row holds its user: all rollouts of a group then face the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from personalllm_env.bank import ResponseBank, Split
from personalllm_env.extras import require
from personalllm_env.generation.asking import Asked, draw_asked, draw_pairs, finite_users
from personalllm_env.generation.chats import answers, chat_for, user_token
from personalllm_env.generation.problem import WritingTask, draw_past
from personalllm_env.language.chat import Message
from personalllm_env.streams import derived_seed, stream_keys

if TYPE_CHECKING:
    from datasets import Dataset


def grpo_rows(
    problem: WritingTask,
    *,
    num_rows: int,
    seed: int,
    user_tokens: bool = False,
    anybody: float = 0.0,
) -> Dataset:
    """Draws train prompts and train users for a trainer that samples its own texts.

    Every train prompt comes before any comes again. What users compared in the past
    (``problem.past``) is told in the prompt.

    Args:
        problem: Whose bank, population and past.
        num_rows: How many; each becomes one group of rollouts.
        seed: Of the draw.
        user_tokens: Whether the system's turn holds the user's token. Needs a finite
            population.
        anybody: With tokens, the share of rows that hold ``ANYBODY``'s instead.

    Returns:
        See ``asked_rows``.

    Raises:
        ValueError: If tokens are asked for and users do not recur.
    """
    asked = draw_asked(problem, num_rows, seed=seed, anybody=anybody)
    return asked_rows(problem, asked, asked.chats(problem, tokens=user_tokens))


def asked_rows(problem: WritingTask, asked: Asked, prompts: list[Any]) -> Dataset:
    """Returns rows for trainers that sample texts of their own.

    Args:
        problem: Whose bank.
        asked: Who asks what.
        prompts: What the model reads: a chat or a string per row.

    Returns:
        Columns ``prompt``, ``question`` (the prompt's bare text), ``prompt_row``, ``user`` (-1
        for one met only once), ``user_weights`` (M numbers), and for conversations ``seed``
        (the group's) and ``prompt_rows`` (all T that are asked, in order).
    """
    columns = {
        "prompt": prompts,
        "user": asked.user.tolist(),
        "user_weights": asked.weights.tolist(),
        "seed": asked.seeds.tolist(),
        "prompt_rows": asked.prompt.T.tolist(),
    }
    return _data_set(problem.task.bank, asked.prompt[0], columns)


def pair_rows(problem: WritingTask, asked: Asked, prompts: list[Any], *, seed: int) -> Dataset:
    """Returns preferences for DPO: which of two of the bank's responses the row's user likes.

    Args:
        problem: Whose bank.
        asked: Who asks what.
        prompts: What the model reads: a chat or a string per row; answers are of the same kind.
        seed: Of the pairs.

    Returns:
        Columns ``prompt``, ``chosen``, ``rejected``, ``question``, ``prompt_row``, ``user``.
    """
    bank, rows = problem.task.bank, asked.prompt[0]
    won, lost = draw_pairs(problem, asked, seed=seed)
    chosen, rejected = answers(bank, rows, won), answers(bank, rows, lost)
    columns = {"prompt": prompts, "chosen": chosen, "rejected": rejected}
    if prompts and isinstance(prompts[0], str):
        for side in ("chosen", "rejected"):
            columns[side] = [turn["content"] for [turn] in columns[side]]
    return _data_set(bank, rows, columns | {"user": asked.user.tolist()})


def dpo_rows(
    problem: WritingTask,
    *,
    seed: int,
    split: Split = "train",
    anybody: float = 0.0,
) -> Dataset:
    """Exports all that a finite population preferred before, each pair under a user's token.

    Each user's past (``problem.past`` comparisons of two responses) is over train prompts.
    P-DPO weighs a generic user's loss by 1 - alpha beside the user's own; here a share of the
    rows holds ``ANYBODY``'s token, which is the same in expectation and half the work.

    Args:
        problem: Its population is finite; ``past`` says how many pairs per user.
        seed: Of the pairs.
        split: Whose past.
        anybody: The share of rows that hold ``ANYBODY``'s token.

    Returns:
        Columns ``prompt``, ``chosen``, ``rejected`` (chats), ``question``, ``prompt_row``,
        ``user``; a permutation, so that any stretch of rows holds all users.

    Raises:
        ValueError: If there is no past to export, or the population is not finite.
    """
    bank, population = problem.task.bank, problem.task.population
    if not problem.past:
        raise ValueError("there are no pairs to export: the writing task has past=0")
    users, weights = finite_users(population, split)
    keys = stream_keys(seed, users, np.zeros(len(users), np.int64))
    past = draw_past(problem, keys, weights)
    user = np.repeat(users, past.prompt.shape[1])
    rng = np.random.default_rng(derived_seed(seed, "order of pairs"))
    order = rng.permutation(len(user))
    user = user[order]
    row, won, lost = (column.ravel()[order] for column in past)
    row = bank.prompts("train")[row]
    named = np.where(rng.random(len(user)) < anybody, -1, user)
    chats = [
        chat_for(bank, int(r), token=user_token(int(u)))
        for r, u in zip(row, named, strict=True)
    ]
    columns = {
        "prompt": chats,
        "chosen": answers(bank, row, won),
        "rejected": answers(bank, row, lost),
        "user": user.tolist(),
    }
    return _data_set(bank, row, columns)


def as_text(chat: list[Message]) -> str:
    """Returns a chat as a plain string, for models without a chat template."""
    return "\n\n".join(turn["content"] for turn in chat) + "\n\n"


def _data_set(
    bank: ResponseBank, rows: Int[np.ndarray, "n"], columns: dict[str, Any]
) -> Dataset:
    assert bank.texts is not None, "a writing task's bank has texts"
    asked = {
        "question": [bank.texts.prompts[row] for row in rows.tolist()],
        "prompt_row": rows.tolist(),
    }
    return require("datasets", "train").Dataset.from_dict(columns | asked)
