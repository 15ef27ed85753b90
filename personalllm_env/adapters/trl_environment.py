"""A conversation with one user, in the shape that TRL's ``environment_factory`` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from personalllm_env.core import Fixed
from personalllm_env.envs.writing import WritingRows
from personalllm_env.generation.problem import WritingTask
from personalllm_env.generation.words import Turn, reactions, verb
from personalllm_env.users import check_weights

HOW = (
    "\n\n(Answer by calling the tool `respond` with your text. The user reacts and goes on; "
    "there are {turns} messages in all.)"
)


class WritingConversation:
    """T prompts of one user, answered one after the other by calls of the tool ``respond``.

    TRL keeps instances and resets them with a row of the data set, so that all rollouts of a
    group meet the same user, prompts and noise. Every public method but ``reset`` and
    ``get_reward`` is a tool: do not add one.

    Args:
        problem: Its horizon is T.
    """

    def __init__(self, problem: WritingTask) -> None:
        self._problem = problem
        self._rows = WritingRows(problem, np.zeros(1, np.int64), 0, prompt_features=False)
        self._utilities: list[float] = []
        self._scores: list[Float[np.ndarray, "M"]] = []
        self._open: bool | None = None  # before the first reset

    def reset(
        self,
        *,
        user_weights: Sequence[float],
        prompt_rows: Sequence[int],
        seed: int,
        **columns: object,
    ) -> str:
        """Begins a row's conversation, and returns what is added to the user's message.

        Args:
            user_weights: Who the user is.
            prompt_rows: The T bank rows that are asked; the first is in the prompt already.
            seed: Of the user's noise.
            columns: The row's others.
        """
        weights = check_weights(np.asarray([user_weights]))
        fixed = Fixed(weights=weights, prompts=np.asarray(prompt_rows))
        self._rows.begin(seed, None, fixed)
        self._utilities, self._scores, self._open = [], [], True
        return HOW.format(turns=self._problem.task.horizon)

    def respond(self, text: str) -> str:
        """Sends your answer to the user, and returns what they say and ask next.

        Args:
            text: Your answer to the user's last message.

        Returns:
            The user's reaction, and their next message if there is one.
        """
        if self._open is None:
            raise ValueError(
                "no conversation has begun: call reset(**row) with a data set's row"
            )
        if not self._open:
            raise ValueError("the conversation is over: the user reads no more answers")
        _, known = self._rows.serve([[text]], None)
        self._utilities.append(float(known["utility"][0]))
        self._scores.append(known["scores"][0])
        assert self._rows.last is not None, "an answer was just read"
        [turn] = self._rows.last.turns
        over = bool(self._rows.session.over()[0]) or turn.left
        self._open = not over
        following = "That was the last message." if over else f"The user asks:\n{self._asked()}"
        return f"{_told(turn, self._problem.task.feedback.delay)}\n\n{following}"

    def get_reward(self) -> float:
        """Returns the mean utility of the T answers; a prompt without one has an empty text."""
        session, horizon = self._rows.session, self._problem.task.horizon
        rows = session.episodes.prompt[len(self._utilities) : horizon, 0]
        missing = 0.0
        if len(rows):
            asked = [self._problem.texts.prompts[row] for row in rows.tolist()]
            scores = self._problem.ensemble.scores(asked, [""] * len(asked))
            missing = float((scores @ session.episodes.weights[0]).sum())
        return (sum(self._utilities) + missing) / horizon

    @property
    def utilities(self) -> tuple[float, ...]:
        """The utility of each answer so far."""
        return tuple(self._utilities)

    @property
    def scores(self) -> Float[np.ndarray, "t M"]:
        """The standardised scores of each answer so far."""
        empty = np.zeros((0, self._problem.task.bank.num_reward_models), np.float32)
        return np.concatenate([empty, *(each[None] for each in self._scores)])

    def _asked(self) -> str:
        session = self._rows.session
        return self._problem.texts.prompts[session.episodes.prompt[session.at][0]]


def _told(turn: Turn, delay: int) -> str:
    sentences = reactions(
        turn.said,
        t=turn.t,
        delay=delay,
        left=turn.left,
        say=lambda channel, value: verb(channel, value, plural=False),
    )
    return " ".join(f"{sentence}." for _, sentence in sentences)
