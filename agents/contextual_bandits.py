"""Agents made of contextualbandits: its LinUCB over the responders, and its regression.

The policies of ``contextualbandits.online`` have arms without features; its
``linreg.LinearRegression``, which they are made of, has an upper bound of its own and is here
also used on the candidates' features.

The documentation asks for rewards of 0 and 1. LinUCB is least squares and takes any number,
with the settings used here: no beta prior, no smoothing, which count successes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.borrowed import CandidateAgent, ResponderAgent
from personalllm_env.agents.choosing import best
from personalllm_env.channels import check_range
from personalllm_env.extras import require
from personalllm_env.types import PriorKnowledge


class ContextualCandidates(CandidateAgent):
    """contextualbandits' LinearRegression of each user's taste in features, by upper bound.

    Args:
        prior: What is known of the task.
        exploration: Its alpha.
        ridge: Its lambda.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("contextualbandits",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 100.0,
    ) -> None:
        _check(exploration, ridge)
        learner = require("contextualbandits.linreg", "bandits").LinearRegression
        given = {"lambda_": float(ridge), "fit_intercept": False, "use_float": False}
        super().__init__(
            prior, worth, lambda seed: _Regression(learner(**given), float(exploration))
        )


class ContextualResponders(ResponderAgent):
    """contextualbandits' LinUCB per user: the arms are the responders, the context the prompt.

    Args:
        prior: What is known of the task.
        exploration: Its alpha.
        ridge: Its lambda.
        worth: As how many interactions of the user's own the history counts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("contextualbandits",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        exploration: float = 0.2,
        ridge: float = 1.0,
        worth: float = 300.0,
    ) -> None:
        _check(exploration, ridge)
        policy = require("contextualbandits.online", "bandits").LinUCB
        given = {
            "nchoices": prior.num_responses,
            "alpha": float(exploration),
            "lambda_": float(ridge),
            "fit_intercept": False,  # the context has a constant
            "use_float": False,
        }

        def make(seed: int) -> _Arms:
            # A generator of its own: without one it seeds itself, and runs do not repeat.
            rng = np.random.default_rng(seed)
            return _Arms(policy(**given, random_state=rng), rng)

        super().__init__(prior, worth, make)


def _check(exploration: float, ridge: float) -> None:
    check_range("exploration", exploration, 0.001)
    check_range("ridge", ridge, 0.001)


class _Regression:
    """The library's exact online ridge regression, in double precision."""

    def __init__(self, model: Any, exploration: float) -> None:
        self._model, self._exploration = model, exploration

    def learn(self, x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n"]) -> None:
        self._model.partial_fit(x, y)

    def bounds(self, x: Float[np.ndarray, "K I"]) -> Float[np.ndarray, "K"]:
        return np.asarray(self._model.predict_ucb(x, self._exploration), dtype=np.float64)


class _Arms:
    """A LinUCB of the library's over numbered arms."""

    def __init__(self, policy: Any, rng: np.random.Generator) -> None:
        self._policy, self._rng = policy, rng  # the latter for ties

    def learn(
        self,
        context: Float[np.ndarray, "n C"],
        arm: Int[np.ndarray, "n"],
        y: Float[np.ndarray, "n"],
    ) -> None:
        self._policy.partial_fit(context, arm, y)

    def choose(self, context: Float[np.ndarray, "C"], num: int) -> Int[np.ndarray, "num"]:
        return best(self._policy.decision_function(context[None]), num, self._rng)[0]
