"""Finding texts in a bank, to the letter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from personalllm_env.bank import ResponseBank, Texts


def texts_of(bank: ResponseBank) -> Texts:
    """Returns a bank's texts, or some that name rows and responses, both counted from 0."""
    if bank.texts is not None:
        return bank.texts
    p, k = bank.num_prompts, bank.num_responses
    return Texts(
        tuple(f"prompt {row}" for row in range(p)),
        tuple(tuple(f"prompt {row}, response {i}" for i in range(k)) for row in range(p)),
    )


def flat_responses(texts: Texts) -> list[str]:
    """Returns the responses' texts, P times K."""
    return [text for responses in texts.responses for text in responses]


class TextIndex:
    """Where in a bank a text is.

    Attributes:
        name: The bank's.
    """

    def __init__(self, bank: ResponseBank) -> None:
        texts = texts_of(bank)
        self.name = bank.name
        self._first: dict[object, int] = {}  # the first row with a prompt
        self._next = np.full(bank.num_prompts, -1)  # the next row with the same prompt
        last: dict[str, int] = {}
        for row, prompt in enumerate(texts.prompts):
            if prompt in last:
                self._next[last[prompt]] = row
            self._first.setdefault(prompt, row)
            last[prompt] = row
        # Equal texts have equal numbers; a text that no response has is -1.
        self._number: dict[object, int] = {}
        numbers = [
            self._number.setdefault(text, len(self._number)) for text in flat_responses(texts)
        ]
        self._numbers = np.array(numbers).reshape(bank.num_prompts, -1)

    def find(
        self, prompts: Sequence[object], first: Sequence[object], second: Sequence[object]
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n 2"], Int[np.ndarray, "n"]]:
        """Returns rows of the bank, response indices, and which text is amiss.

        The row is -1 where something is amiss: 0 the prompt, 1 the first response, 2 the
        second, of the last row tried; -1 for nothing.
        """
        row = np.array([self._first.get(text, -1) for text in prompts], dtype=np.int64)
        pair = np.array(
            [[self._number.get(text, -1) for text in side] for side in (first, second)],
            dtype=np.int64,
        ).T.reshape(-1, 2)
        prompt, action = np.full(len(row), -1), np.zeros((len(row), 2), dtype=np.int64)
        amiss = np.zeros(len(row), dtype=np.int64)
        todo = np.flatnonzero(row >= 0)
        while len(todo):
            same = self._numbers[row[todo], :, None] == pair[todo, None, :]
            fits = same.any(axis=1)
            amiss[todo] = np.where(fits.all(axis=1), -1, np.where(fits[:, 0], 2, 1))
            good = todo[fits.all(axis=1)]
            prompt[good] = row[good]
            slots = same[fits.all(axis=1)]
            action[good] = slots.argmax(axis=1)
            # Equal texts of one prompt: the pair is the first and the last of them.
            twins = pair[good, 0] == pair[good, 1]
            backwards = slots.shape[1] - 1 - slots[:, ::-1, 1].argmax(axis=1)
            action[good[twins], 1] = backwards[twins]
            todo = todo[~fits.all(axis=1)]
            row[todo] = self._next[row[todo]]
            todo = todo[row[todo] >= 0]
        return prompt, action, amiss
