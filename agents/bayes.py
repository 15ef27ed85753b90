"""Exact Bayes on the user's weights, for who sees the scores (white-box)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from personalllm_env.agents.choosing import best
from personalllm_env.core import utilities
from personalllm_env.feedback import Served, mean_shown
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class ParticleBayes:
    """Weighs a sample of users from the true prior by how well they explain what was said.

    The likelihood is the feedback channels' own, so the posterior is exact up to the number of
    particles. It shows the best under the posterior mean (which is greedy, and optimal for
    the next interaction) or, with ``thompson``, under one draw. To duel, the second is always
    the best under a draw, so that the two coincide once the user is known.

    Args:
        prior: What is known of the task, with a sample of the population.
        thompson: Whether to draw a user instead of averaging.
    """

    privileges: ClassVar[frozenset[str]] = frozenset({"scores", "population"})

    def __init__(self, prior: PriorKnowledge, *, thompson: bool = False) -> None:
        if prior.population is None:
            raise ValueError("exact Bayes needs prior.population, a sample of users")
        self._prior, self._thompson = prior, thompson
        self._particles = prior.population.astype(np.float32)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users, all particles equally likely."""
        self._rng = rng
        self._log_weight = np.zeros((num_users, len(self._particles)))

    def posterior(self) -> Float[np.ndarray, "B J"]:
        """Returns the probability of each particle, per user."""
        mass = np.exp(self._log_weight - self._log_weight.max(axis=1, keepdims=True))
        return mass / mass.sum(axis=1, keepdims=True)

    def act(self, observation: Observation) -> Action:
        """Returns the best responses under the posterior."""
        assert observation.scores is not None, "granted by privileges"
        probability = self.posterior()
        shown = []
        for s in range(self._prior.num_shown):
            draw = self._thompson or s > 0
            weights = self._draw(probability) if draw else probability @ self._particles
            values = utilities(observation.scores, weights.astype(np.float32))
            shown.append(best(values, 1, self._rng))
        return np.hstack(shown)

    def _draw(self, probability: Float[np.ndarray, "B J"]) -> Float[np.ndarray, "B M"]:
        spot = self._rng.random((len(probability), 1))
        drawn = (probability.cumsum(axis=1) < spot).sum(axis=1)
        return self._particles[np.minimum(drawn, len(self._particles) - 1)]

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Multiplies the particles' probabilities by the likelihood of what was said."""
        if observation.scores is None or not feedback.heard.any():
            return
        rows = np.flatnonzero(feedback.heard)
        scores, acted = observation.scores[rows], action[rows]
        shown_scores = np.take_along_axis(scores, acted[:, :, None], axis=1)
        model = self._prior.feedback
        shown = shown_scores @ self._particles.T
        served = Served(
            shown,
            mean_shown(shown),
            scores @ self._particles.T if model.needs_candidates else None,
            acted,
        )
        for channel in model.channels:
            said = feedback.said[channel.name][rows]
            self._log_weight[rows] += channel.log_likelihood(said, served)
