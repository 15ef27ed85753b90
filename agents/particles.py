"""A sample of possible users and how likely each is: the filter that exact Bayes runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.choosing import best_of_each, by_upper_bound, only_best
from personalllm_env.channels import check_range
from personalllm_env.core import utilities
from personalllm_env.drift import GradualDrift, SuddenDrift
from personalllm_env.types import Action, Feedback, PriorKnowledge

Likelihood: TypeAlias = Callable[
    [
        Mapping[str, Float[np.ndarray, "b"]],
        Float[np.ndarray, "b K M"],
        Int[np.ndarray, "b S"],
        Float[np.ndarray, "J M"],
    ],
    Float[np.ndarray, "b J"],
]
"""Of what was said, values, action and particles: log p(said | particle) up to a constant."""


class ParticleFilter:
    """How likely each of J possible users is, per row; exact up to their number.

    Users who suddenly change are followed exactly. The change comes before interaction c with
    probability p / (T - 1) for c = 1..T-1, and the new user is an independent draw. So what
    was said up to now, with user j now, has the probability

        P(no change yet) L(j) + A(j),   A(j) = sum over c of P(c) mean(L before c) L(j, from c)

    up to a constant, where L is the likelihood; A has a recursion (Fearnhead & Liu, JRSS B
    2007, for change points in general), so nothing is summed twice. Of users who drift
    gradually a particle is a pair, where they come from and where they go, and its weights
    follow the line between the two.

    Late feedback is exact too, as long as ``update`` is called once per interaction, in
    order: it counts them, and ``posterior`` looks ahead from the last that was heard about to
    the one at hand.

    Args:
        prior: What is known of the task, with a sample of the population.
        num_particles: J, or the whole sample if that is smaller.
        thompson: Whether each response shown is the best under a draw of its own, instead of
            the first being the best under the posterior mean.
        exploration: Of users who compare what is shown, the others then have the highest upper
            bound on how much better than the first they are: mean + exploration * share of
            the episode that is left * sd of the difference. That is the first itself once it
            is certain, or too late to profit; and it is where users do not compare, since
            whatever is shown teaches as much.

    Raises:
        ValueError: If there is no sample, or a setting is out of range.
    """

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        num_particles: int,
        thompson: bool = False,
        exploration: float = 1.0,
    ) -> None:
        if prior.population is None:
            raise ValueError("exact Bayes needs prior.population, a sample of users")
        check_range("num_particles", num_particles, 1)
        check_range("exploration", exploration, 0)
        self._thompson, self._exploration = thompson, exploration
        self._start = prior.population[:num_particles].astype(np.float32)
        self._end = np.roll(self._start, 1, axis=0)
        self._last, self._num_shown = prior.horizon - 1, prior.num_shown
        channels = prior.feedback.channels
        self._compares = any(c.num_shown == 2 and not c.needs_candidates for c in channels)
        changes = 0.0
        if isinstance(prior.drift, SuddenDrift) and self._last > 0:
            changes = prior.drift.probability
        self._per_interaction = changes / max(self._last, 1)  # P(c), the same for all c
        self._share = prior.drift.share if isinstance(prior.drift, GradualDrift) else 0.0

    @property
    def size(self) -> int:
        """J."""
        return len(self._start)

    @property
    def moves(self) -> bool:
        """Whether particles move, as gradual drift has it."""
        return bool(self._share > 0)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users, all particles equally likely."""
        self._rng = rng
        self._log_weight = np.zeros((num_users, self.size))  # log L(j), without any change
        self._log_changed = np.full((num_users, self.size), -np.inf)  # log A(j)
        self.acted = 0  # interactions begun
        self.heard = 0  # interactions that feedback, or silence, has come about

    @property
    def now(self) -> int:
        """The interaction at hand, from 0."""
        return max(self.acted, self.heard)

    def particles(self, interaction: int) -> Float[np.ndarray, "J M"]:
        """Returns the J users' weights at an interaction, float32."""
        if not self.moves or not self._last:
            return self._start
        by = np.float32(self._share * min(interaction, self._last) / self._last)
        return (1 - by) * self._start + by * self._end

    def update(
        self,
        values: Float[np.ndarray, "B K M"],
        action: Action,
        feedback: Feedback,
        likelihood: Likelihood,
    ) -> None:
        """Multiplies the particles' probabilities by the likelihood of what was said."""
        rows = np.flatnonzero(feedback.heard)
        if len(rows):
            said = {name: value[rows] for name, value in feedback.said.items()}
            particles = self.particles(self.heard)
            log_likelihood = likelihood(said, values[rows], action[rows], particles)
            self._log_weight[rows] += log_likelihood
            if self._per_interaction:
                self._log_changed[rows] += log_likelihood
        self.heard += 1
        if self._per_interaction and self.heard <= self._last:
            top = self._log_weight.max(axis=1, keepdims=True)
            mean = np.exp(self._log_weight - top).mean(axis=1, keepdims=True)
            new = np.log(self._per_interaction * mean) + top
            self._log_changed = np.logaddexp(self._log_changed, new)

    def posterior(self) -> Float[np.ndarray, "B J"]:
        """Returns the probability that each particle is the user at the interaction at hand."""
        top = self._log_weight.max(axis=1, keepdims=True)
        if self._per_interaction:
            top = np.maximum(top, self._log_changed.max(axis=1, keepdims=True))
        mass = np.exp(self._log_weight - top)
        if self._per_interaction:
            heard, now = (min(t, self._last) for t in (self.heard, self.now))
            unheard = (now - heard) * self._per_interaction * mass.mean(axis=1, keepdims=True)
            mass *= max(1 - now * self._per_interaction, 0.0)
            mass += np.exp(self._log_changed - top)
            mass += unheard
        mass /= mass.sum(axis=1, keepdims=True)
        return mass

    def choose(self, values: Float[np.ndarray, "B K M"]) -> Action:
        """Begins an interaction and returns what to show.

        Args:
            values: Of each response to each reward model.
        """
        now, rng = min(self.now, self._last), self._rng
        probability, particles = self.posterior(), self.particles(now)
        left = 1 - now / (self._last + 1)
        self.acted += 1
        if self._thompson:
            draws = (_draw(probability, particles, rng) for _ in range(self._num_shown))
            return best_of_each((utilities(values, draw) for draw in draws), rng)
        probability = probability.astype(np.float32)
        value = utilities(values, probability @ particles)
        if self._num_shown == 1 or not self._compares:
            return only_best(value, self._num_shown, rng)

        def bonus(ahead: Float[np.ndarray, "B K M"]) -> Float[np.ndarray, "B K"]:
            return self._exploration * left * _spread(ahead, probability, particles)

        return by_upper_bound(value, values, bonus, self._num_shown, rng)


def _spread(
    values: Float[np.ndarray, "B K M"],
    probability: Float[np.ndarray, "B J"],
    particles: Float[np.ndarray, "J M"],
) -> Float[np.ndarray, "B K"]:
    """Returns the posterior sd of utilities."""
    m = particles.shape[1]
    above = np.triu_indices(m)  # of a symmetric matrix half is enough
    moments = np.empty((len(values), m, m), np.float32)
    moments[:, *above] = probability @ (particles[:, above[0]] * particles[:, above[1]])
    moments[:, above[1], above[0]] = moments[:, *above]
    square = np.einsum("bkm,bmn,bkn->bk", values, moments, values, optimize=True)
    mean = utilities(values, probability @ particles)
    return np.sqrt(np.maximum(square - mean**2, 0))


def _draw(
    probability: Float[np.ndarray, "B J"],
    particles: Float[np.ndarray, "J M"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "B M"]:
    spot = rng.random((len(probability), 1))
    drawn = (probability.cumsum(axis=1) < spot).sum(axis=1)
    return particles[np.minimum(drawn, len(particles) - 1)]
