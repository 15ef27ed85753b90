"""What every action would bring to one user, computed in blocks and then looked up."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from personalllm_env import core
from personalllm_env.session import Session

_BLOCK = 4096  # outcomes computed at once


class Outcomes:
    """The outcomes of each action at a block of interactions of one row's episode.

    ``core.step`` costs some thirty NumPy calls whatever the number of rows. For a single user
    it is therefore evaluated once for many (interaction, action) pairs, which exogenous
    randomness makes possible, and a step is a look-up. The numbers are the vector env's, by
    construction.

    Attributes:
        first: The first interaction in the block.
        last: The interaction after the block.
    """

    def __init__(self, session: Session, first: int, actions: Int[np.ndarray, "A S"]) -> None:
        task, num = session.task, len(actions)
        self.first = first
        self.last = min(task.horizon, first + max(1, _BLOCK // num))
        t = np.repeat(np.arange(first, self.last), num)
        at = (t, np.zeros(len(t), dtype=np.int64))
        tiled = np.tile(actions, (self.last - first, 1))
        feedback, diagnostics = core.step(
            task, session.episodes, at, tiled, regret=session.regret
        )
        self._num = num
        self.said = task.feedback.encode(feedback, task.bank.num_responses)
        self.reward: list[float] = feedback.reward.tolist()
        self.heard: list[bool] = feedback.heard.tolist()
        self.left: list[bool] = feedback.left.tolist()
        self.utility: list[float] = diagnostics.utility.tolist()
        self.regret: list[float] | None = (
            None if diagnostics.regret is None else diagnostics.regret.tolist()
        )

    def row(self, t: int, action: int) -> int:
        """Returns where the outcome of an action, by its number, stands."""
        return (t - self.first) * self._num + action
