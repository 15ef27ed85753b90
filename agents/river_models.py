"""Agents made of river: its Bayesian linear regression, and its disjoint LinUCB.

river learns from one dictionary of features at a time. Two of its traps are kept clear of
(version 0.26.1). ``LinUCBDisjoint`` passes its ``burn_in`` on in the place of the reward
scaler, so any but 0 fails at the first update: it is not given. ``BayesianLinearRegression``
starts its covariance right, at I / alpha, but its precision at I / alpha too instead of at
alpha I: ``learn_many``, which inverts the latter, is wrong unless alpha is 1, so only
``learn_one`` is used.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.borrowed import CandidateAgent, ResponderAgent
from personalllm_env.channels import check_range
from personalllm_env.extras import require
from personalllm_env.types import PriorKnowledge


class RiverCandidates(CandidateAgent):
    """river's BayesianLinearRegression of each user's taste in features, by upper bound.

    Args:
        prior: What is known of the task.
        exploration: The noise sd that the regression is told of. Bound = mean + exploration *
            sqrt(1 + width^2), as river's LinUCB has it: the predictive sd of an answer.
        ridge: Prior precision over noise precision.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("river",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 100.0,
    ) -> None:
        learner = require("river.linear_model", "bandits").BayesianLinearRegression
        given = _precisions(exploration, ridge)
        super().__init__(prior, worth, lambda seed: _Regression(learner(**given)))


class RiverResponders(ResponderAgent):
    """river's LinUCBDisjoint per user: the arms are the responders, the context the prompt.

    Args:
        prior: What is known of the task.
        exploration: The noise sd that its regressions are told of; they add one sd.
        ridge: Prior precision over noise precision.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("river",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 300.0,
    ) -> None:
        policy = require("river.bandit", "bandits").LinUCBDisjoint
        given, arms = _precisions(exploration, ridge), list(range(prior.num_responses))
        super().__init__(prior, worth, lambda seed: _Disjoint(policy(**given, seed=seed), arms))


def _precisions(exploration: float, ridge: float) -> dict[str, float]:
    """Returns river's alpha (of the prior) and beta (of the noise), as precisions."""
    check_range("exploration", exploration, 0.001)
    check_range("ridge", ridge, 0.001)
    return {"alpha": ridge / exploration**2, "beta": exploration**-2}


def _named(row: Float[np.ndarray, "I"]) -> dict[int, float]:
    return dict(enumerate(row.tolist()))


class _Regression:
    """A regression of river's, fed row by row."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def learn(self, x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n"]) -> None:
        for row, target in zip(x, y.tolist(), strict=True):
            self._model.learn_one(_named(row), target)

    def bounds(self, x: Float[np.ndarray, "K I"]) -> Float[np.ndarray, "K"]:
        laws = [self._model.predict_one(_named(row), with_dist=True) for row in x]
        return np.array([law.mu + law.sigma for law in laws])


class _Disjoint:
    """A policy of river's; its arms are pulled without the first where two are shown."""

    def __init__(self, policy: Any, arms: list[int]) -> None:
        self._policy, self._arms = policy, arms

    def learn(
        self,
        context: Float[np.ndarray, "n C"],
        arm: Int[np.ndarray, "n"],
        y: Float[np.ndarray, "n"],
    ) -> None:
        for row, name, target in zip(context, arm.tolist(), y.tolist(), strict=True):
            self._policy.update(name, _named(row), target)

    def choose(self, context: Float[np.ndarray, "C"], num: int) -> Int[np.ndarray, "num"]:
        left, chosen, named = self._arms.copy(), list[int](), _named(context)
        for _ in range(num):
            chosen.append(self._policy.pull(left, named))
            left.remove(chosen[-1])
        return np.array(chosen)
