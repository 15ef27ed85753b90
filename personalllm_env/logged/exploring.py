"""An agent whose responses are now and then replaced by random ones, and the law of that."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from personalllm_env.task import Task
from personalllm_env.types import Action, Agent, Feedback, Observation


@runtime_checkable
class SaysProbabilities(Protocol):
    """An agent that knows how likely it is to show each response."""

    def probabilities(self, observation: Observation) -> Float[np.ndarray, "B K"]:
        """Returns the law of what ``act`` will return for this observation.

        It is asked just before ``act``, of an agent that shows one response, and draws nothing.
        """
        ...


class Exploring:
    """An agent whose responses are now and then replaced; remembers what was shown."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, agent: Agent, task: Task, exploration: float, seed: int) -> None:
        self._agent, self._exploration = agent, exploration
        self._k, self._s = task.bank.num_responses, task.num_shown
        self._rng = np.random.default_rng(seed)  # not the agent's: its draws stay as they were
        self.shown: list[Action] = []
        self.probabilities: list[Float[np.ndarray, "B K"]] = []

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._num_users = num_users
        self._agent.reset(num_users, rng)

    def act(self, observation: Observation) -> Action:
        """Returns the agent's responses, or random ones."""
        law = None
        if self._s == 1 and isinstance(self._agent, SaysProbabilities):
            law = self._checked_law(self._agent.probabilities(observation))
        chosen, num = self._checked(self._agent.act(observation)), self._num_users
        explore = self._rng.random(num) < self._exploration
        anything = self._rng.random((num, self._k)).argsort(axis=1)[:, : self._s]
        if self._s == 1:
            law = np.eye(self._k)[chosen[:, 0]] if law is None else law
            self.probabilities.append(
                self._exploration / self._k + (1 - self._exploration) * law
            )
        shown = np.where(explore[:, None], anything, chosen)
        self.shown.append(shown)
        return shown

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Tells the agent what was shown and heard."""
        self._agent.update(observation, action, feedback)

    def _checked(self, action: object) -> Action:
        """Returns the agent's action, even where it is not what will be shown."""
        array, expected = np.asarray(action), (self._num_users, self._s)
        good = array.shape == expected and array.dtype.kind in "iu"
        if not good or (array < 0).any() or (array >= self._k).any():
            raise ValueError(
                f"act must return integers in 0..{self._k - 1} of shape {expected}, got "
                f"{array.dtype} {array.shape}"
            )
        return array.astype(np.int64)

    def _checked_law(self, law: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
        law, expected = np.asarray(law, dtype=np.float64), (self._num_users, self._k)
        if law.shape != expected or law.min() < 0:
            raise ValueError(
                f"probabilities must be {expected} and not negative, got shape {law.shape} and "
                f"at least {law.min(initial=0)}"
            )
        if (amiss := np.abs(law.sum(axis=1) - 1)).max() > 1e-6:
            row = int(amiss.argmax())
            raise ValueError(
                f"probabilities must add up to 1; those of row {row} to {law[row].sum()}"
            )
        return law


def explorer(agent: Agent, task: Task, exploration: float, seed: int) -> Exploring:
    """Returns the agent made to explore, which sees what the agent is privileged to."""

    class Allowed(Exploring):
        privileges = type(agent).privileges

    return Allowed(agent, task, exploration, seed)
