"""Exact Bayes on the user's weights, for who sees the scores (white-box)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.particles import ParticleFilter
from personalllm_env.feedback import Served, mean_shown
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_CELLS = 2**18  # utilities held at a time: a block that stays in the cache


class ParticleBayes:
    """Weighs a sample of users from the true prior by how well they explain what was said.

    The likelihood is the feedback channels' own, so the posterior is exact up to the number of
    particles, with drift and with late feedback too (``particles.ParticleFilter``). It shows
    the best under the posterior mean (which is greedy, and optimal for the next interaction)
    or, with ``thompson``, under one draw.

    Args:
        prior: What is known of the task, with a sample of the population.
        thompson: Whether to draw users instead of averaging.
        exploration: In a duel the second response is the one with the highest upper bound on
            being better than the first: this many posterior sds, fewer as the end nears.
        num_particles: How many users of the sample are used, at most.
    """

    privileges: ClassVar[frozenset[str]] = frozenset({"scores", "population"})

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        thompson: bool = False,
        exploration: float = 1.0,
        num_particles: int = 2048,
    ) -> None:
        self._model = prior.feedback
        self._filter = ParticleFilter(
            prior, num_particles=num_particles, thompson=thompson, exploration=exploration
        )

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users, all particles equally likely."""
        self._filter.reset(num_users, rng)

    def posterior(self) -> Float[np.ndarray, "B J"]:
        """Returns the probability of each particle, per user."""
        return self._filter.posterior()

    def act(self, observation: Observation) -> Action:
        """Returns the best responses under the posterior."""
        assert observation.scores is not None, "granted by privileges"
        return self._filter.choose(observation.scores)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Multiplies the particles' probabilities by the likelihood of what was said."""
        assert observation.scores is not None, "granted by privileges"
        self._filter.update(observation.scores, action, feedback, self._log_likelihood)

    def _log_likelihood(
        self,
        said: Mapping[str, Float[np.ndarray, "b"]],
        scores: Float[np.ndarray, "b K M"],
        action: Int[np.ndarray, "b S"],
        particles: Float[np.ndarray, "J M"],
    ) -> Float[np.ndarray, "b J"]:
        model, total = self._model, np.empty((len(action), len(particles)))
        every = scores.shape[1] if model.needs_candidates else 1
        size = max(1, _CELLS // (every * len(particles)))
        for start in range(0, len(action), size):
            part = slice(start, start + size)
            seen, acted = scores[part], action[part]
            shown = np.take_along_axis(seen, acted[:, :, None], axis=1) @ particles.T
            candidates = seen @ particles.T if model.needs_candidates else None
            served = Served(shown, mean_shown(shown), candidates, acted)
            total[part] = sum(
                c.log_likelihood(said[c.name][part], served) for c in model.channels
            )
        return total
