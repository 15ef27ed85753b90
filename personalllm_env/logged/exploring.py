"""An agent whose responses are now and then replaced by random ones, and the law of that."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from personalllm_env.laws import ask
from personalllm_env.task import Task
from personalllm_env.types import Action, Agent, Feedback, Observation


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
        self._agent.reset(num_users, rng)

    def act(self, observation: Observation) -> Action:
        """Returns the agent's responses, or random ones."""
        chosen, law = ask(self._agent, observation, self._s)
        num = len(chosen)
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


def check_built(agent: object) -> None:
    """Checks that this is an agent, built, and not its class or its name.

    Raises:
        ValueError: Saying how one is built.
    """
    if isinstance(agent, type) or not isinstance(agent, Agent):
        raise ValueError(
            "expected an agent that is built, with privileges, reset, act and update, such as "
            "Mine(task.prior_knowledge()) or build_agent(find_agent('linucb'), task), got "
            f"{agent!r:.60}"
        )


def explorer(agent: Agent, task: Task, exploration: float, seed: int) -> Exploring:
    """Returns the agent made to explore, which sees what the agent is privileged to.

    Raises:
        ValueError: If it is not built.
    """
    check_built(agent)

    class Allowed(Exploring):
        privileges = type(agent).privileges

    return Allowed(agent, task, exploration, seed)
