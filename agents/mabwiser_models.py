"""Agents made of MABWiser: its LinUCB over the responders, and over a single arm.

MABWiser's arms have no features: every arm has a regression of its own on the context. Two
ways to use that here: the responders as arms, in the context of the prompt; or one arm,
"show", with the candidates' features as K contexts of which the best is served.

In MABWiser 2.7.4 an arm that has not been seen starts with the inverse l2_lambda I where it
should be I / l2_lambda, so that its bound is l2_lambda times too wide. Dividing contexts by the
root of the ridge and leaving l2_lambda at 1 gives the same regression, and no wrong inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.borrowed import CandidateAgent, ResponderAgent
from personalllm_env.agents.choosing import best
from personalllm_env.channels import check_range
from personalllm_env.extras import require
from personalllm_env.types import PriorKnowledge


class MabwiserCandidates(CandidateAgent):
    """MABWiser's LinUCB with one arm per user, whose K contexts are the candidates.

    Args:
        prior: What is known of the task.
        exploration: MABWiser's alpha.
        ridge: Weight of the prior at zero.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("mabwiser",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 100.0,
    ) -> None:
        make = _maker(1, prior.num_inputs, exploration, ridge)
        super().__init__(prior, worth, lambda seed: _OneArm(make(seed)))


class MabwiserResponders(ResponderAgent):
    """MABWiser's LinUCB per user: the arms are the responders, the context the prompt.

    Args:
        prior: What is known of the task.
        exploration: MABWiser's alpha.
        ridge: Weight of the prior at zero.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("mabwiser",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 300.0,
    ) -> None:
        make = _maker(prior.num_responses, prior.num_features + 1, exploration, ridge)
        super().__init__(prior, worth, make)


def _maker(
    num_arms: int, size: int, exploration: float, ridge: float
) -> Callable[[int], _Arms]:
    """Returns what makes a bandit over contexts of a size, from a seed."""
    check_range("exploration", exploration, 0)
    check_range("ridge", ridge, 0.001)
    module = require("mabwiser.mab", "bandits")
    policy = module.LearningPolicy.LinUCB(alpha=exploration)

    def make(seed: int) -> _Arms:
        bandit = module.MAB(list(range(num_arms)), policy, seed=seed)
        # It must have been fitted to be asked; a row of zeros teaches nothing.
        bandit.fit(np.zeros(1, dtype=int), np.zeros(1), np.zeros((1, size)))
        return _Arms(bandit, ridge**-0.5, np.random.default_rng(seed))

    return make


class _Arms:
    """A bandit of MABWiser's over numbered arms."""

    def __init__(self, bandit: Any, scale: float, rng: np.random.Generator) -> None:
        self._bandit, self._scale, self._rng = bandit, scale, rng  # the last for ties

    def learn(
        self,
        context: Float[np.ndarray, "n C"],
        arm: Int[np.ndarray, "n"],
        y: Float[np.ndarray, "n"],
    ) -> None:
        self._bandit.partial_fit(arm, y, context * self._scale)

    def bounds(self, context: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n A"]:
        found = self._bandit.predict_expectations(context * self._scale)
        rows = found if isinstance(found, list) else [found]  # a single one comes bare
        return np.array([list(row.values()) for row in rows])

    def choose(self, context: Float[np.ndarray, "C"], num: int) -> Int[np.ndarray, "num"]:
        return best(self.bounds(context[None]), num, self._rng)[0]


class _OneArm:
    """The only arm of a bandit of MABWiser's, in several contexts."""

    def __init__(self, arms: _Arms) -> None:
        self._arms = arms

    def learn(self, x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n"]) -> None:
        self._arms.learn(x, np.zeros(len(y), dtype=int), y)

    def bounds(self, x: Float[np.ndarray, "K I"]) -> Float[np.ndarray, "K"]:
        return self._arms.bounds(x)[:, 0]
