"""What a user asks, as a chat for a language model: with a token of theirs, or their past."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from personalllm_env.bank import ResponseBank
from personalllm_env.generation.contract import Past
from personalllm_env.language.chat import Message

ANYBODY = "<|user_any|>"
"""The token of users who have none of their own: P-RLHF's generic user (arXiv 2402.05133)."""

TIMES = 8
"""How often a user's token stands in the system's turn: attention to a single one is weak.

P-RLHF has ten different soft tokens per user.
"""


def user_token(user: int) -> str:
    """Returns the special token of a user; negative for users without one."""
    return ANYBODY if user < 0 else f"<|user_{user}|>"


def chat_for(
    bank: ResponseBank, row: int, *, token: str = "", past: Past | None = None, words: int = 40
) -> list[Message]:
    """Returns the chat that asks for a text.

    Args:
        bank: Has the texts.
        row: The prompt's row in the bank.
        token: Fills the system's turn, ``TIMES`` over; "" for no such turn.
        past: One user's (H,) past over the train prompts, told before the question.
        words: How many of each response of the past are told.
    """
    assert bank.texts is not None, "a writing task's bank has texts"
    told = "" if past is None else _told(bank, past, words)
    chat: list[Message] = [{"role": "system", "content": token * TIMES}] if token else []
    return [*chat, {"role": "user", "content": told + bank.texts.prompts[row]}]


def answers(
    bank: ResponseBank, rows: Int[np.ndarray, "n"], which: Int[np.ndarray, "n"]
) -> list[list[Message]]:
    """Returns some of the bank's responses as chats of one turn, as trainers for DPO read them.

    Args:
        bank: Has the texts.
        rows: Of the prompts, in the bank.
        which: Of each prompt's responses.
    """
    assert bank.texts is not None, "a writing task's bank has texts"
    return [
        [{"role": "assistant", "content": bank.texts.responses[row][k]}]
        for row, k in zip(rows.tolist(), which.tolist(), strict=True)
    ]


def _told(bank: ResponseBank, past: Past, words: int) -> str:
    assert bank.texts is not None, "a writing task's bank has texts"
    parts = []
    for row, won, lost in zip(bank.prompts("train")[past.prompt], *past[1:], strict=True):
        better, worse = (
            " ".join(bank.texts.responses[row][k].split(" ")[:words]) for k in (won, lost)
        )
        parts.append(
            f"I once asked: {bank.texts.prompts[row]}\nI liked this answer: {better}\n"
            f"I did not like this one: {worse}\n\n"
        )
    return "".join(parts)
