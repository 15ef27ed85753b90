"""References that see what no system could: they bound what an agent can reach.

Having nothing to learn, they show their best in every place, so that in a duel too the
oracle's regret is 0.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from personalllm_env.agents.choosing import only_best
from personalllm_env.core import utilities
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class _Reference:
    """What the references share: they act on values and learn nothing."""

    def __init__(self, prior: PriorKnowledge) -> None:
        self.prior = prior

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self.rng = rng

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns nothing."""


class Oracle(_Reference):
    """Knows the user and the scores: regret 0."""

    privileges: ClassVar[frozenset[str]] = frozenset({"scores", "weights"})

    def act(self, observation: Observation) -> Action:
        """Returns the responses of highest utility."""
        assert observation.scores is not None, "granted by privileges"
        assert observation.weights is not None, "granted by privileges"
        values = utilities(observation.scores, observation.weights)
        return only_best(values, self.prior.num_shown, self.rng)


class DecoderOracle(_Reference):
    """Knows the user, and of the scores what features tell: the ceiling of feature agents.

    It decodes scores with the best linear map from features, fitted on the train prompts.
    """

    privileges: ClassVar[frozenset[str]] = frozenset({"weights", "decoder"})

    def act(self, observation: Observation) -> Action:
        """Returns the responses of highest decoded utility."""
        assert observation.weights is not None, "granted by privileges"
        assert self.prior.decoder is not None, "granted by privileges"
        taste = observation.weights @ self.prior.decoder.T
        values = np.einsum("bkd,bd->bk", observation.response_features, taste)
        return only_best(values, self.prior.num_shown, self.rng)


class PopularFromScores(_Reference):
    """Knows the scores and the population, not the user: the best that is not personal."""

    privileges: ClassVar[frozenset[str]] = frozenset({"scores", "population"})

    def act(self, observation: Observation) -> Action:
        """Returns the responses of highest utility to the average user."""
        assert observation.scores is not None, "granted by privileges"
        assert self.prior.population is not None, "granted by privileges"
        values = observation.scores @ self.prior.population.mean(axis=0)
        return only_best(values, self.prior.num_shown, self.rng)
