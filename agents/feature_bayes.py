"""Exact Bayes on the user's weights, for who sees features: the limit of feature agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.particles import ParticleFilter
from personalllm_env.agents.residual import (
    Rule,
    blunted,
    click_slopes,
    difference,
    enough_nodes,
    gauss_rule,
    mean_of,
)
from personalllm_env.channels import Channel, Served, check_range, mean_shown
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_CELLS = 2**20  # of a likelihood held at a time
_MOST_RESIDUALS = 500  # for nodes that are found anew at every interaction


class FeatureBayes:
    """Bayes over the user's weights, by one who sees features and knows all laws but the user.

    It knows a sample of the true prior, the best linear map from features to scores, and the
    law of what that map leaves, the residual. The likelihood of what was said is the
    channels' own, averaged over the unknown residuals of the responses it is about; the best
    decoded utility under the posterior mean is shown (or, with ``thompson``, under a draw).

    Which averages are exact, up to the number of particles and nodes:

    - reward, like and stars: one residual (for two responses, their mean's), by Gauss
      quadrature per particle (``residual.gauss_rule``). Several of them at once share it.
    - a choice between two: the difference of two independent residuals, likewise.
    - a click on one of K: approximate, a softmax of fitted slope (``residual.click_slopes``).
    - choices or clicks besides the others: approximate, their residuals taken as independent.

    Residuals are taken to be independent of features and of each other. In the synthetic bank
    they nearly are: their variance runs from .60 among the worst fifth of responses, as
    decoded, to .46 among the best. But it is no limit where a prompt recurs
    (``prompts_per_episode``): there the residual stays, and what was said about a response
    tells of that response beyond its features. In a white-box task scores are seen, there is
    no residual, and this is ``ParticleBayes`` with fewer particles.

    Args:
        prior: What is known of the task, with population, decoder and residual.
        thompson: Whether to draw users instead of averaging.
        exploration: In a duel the second response is the one with the highest upper bound on
            being better than the first: this many posterior sds, fewer as the end nears.
        num_particles: How many of the sample of users are used (at most all of it).
        num_nodes: Of the quadrature; None for 8, and up to 16 for channels much sharper than
            the residual. What is sharper still is heard as if it were as noisy as that.
    """

    privileges: ClassVar[frozenset[str]] = frozenset({"population", "decoder"})

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        thompson: bool = False,
        exploration: float = 1.0,
        num_particles: int = 1024,
        num_nodes: int | None = None,
    ) -> None:
        if num_nodes is not None:
            check_range("num_nodes", num_nodes, 1)
        if prior.population is None or prior.decoder is None or prior.residual is None:
            raise ValueError("feature Bayes needs prior.population, .decoder and .residual")
        self._filter = ParticleFilter(
            prior, num_particles=num_particles, thompson=thompson, exploration=exploration
        )
        self._decoder = prior.decoder.astype(np.float32)
        self._likelihood = ResidualLikelihood(
            prior, self._filter.particles(0), num_nodes, moves=self._filter.moves
        )

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users, all particles equally likely."""
        self._filter.reset(num_users, rng)

    def posterior(self) -> Float[np.ndarray, "B J"]:
        """Returns the probability of each particle, per user."""
        return self._filter.posterior()

    def act(self, observation: Observation) -> Action:
        """Returns the responses of highest decoded utility under the posterior."""
        return self._filter.choose(self._decode(observation))

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Multiplies the particles' probabilities by the likelihood of what was said."""
        self._filter.update(self._decode(observation), action, feedback, self._likelihood)

    def _decode(self, observation: Observation) -> Float[np.ndarray, "B K M"]:
        if observation.scores is not None:
            return observation.scores
        return observation.response_features @ self._decoder


class ResidualLikelihood:
    """The probability of what was said given decoded scores, per particle.

    Args:
        prior: What is known of the task. In a white-box task its residual counts as 0.
        particles: The users to begin with.
        num_nodes: Of the quadrature, or None for enough.
        moves: Whether particles will move, so that nodes have to be found often.

    Raises:
        ValueError: If users compare all candidates in a way that has no ``temperature``.
    """

    def __init__(
        self,
        prior: PriorKnowledge,
        particles: Float[np.ndarray, "J M"],
        num_nodes: int | None,
        *,
        moves: bool,
    ) -> None:
        assert prior.residual is not None, "the caller checks"
        self._num_shown, self._num_nodes = prior.num_shown, num_nodes
        self._residual = prior.residual.astype(np.float64)
        if moves:
            self._residual = self._residual[:_MOST_RESIDUALS]
        if prior.white_box:
            self._residual = np.zeros((1, self._residual.shape[1]))
        channels = prior.feedback.channels
        self._clicks = [c for c in channels if c.needs_candidates]
        self._choices = [c for c in channels if c.num_shown == 2 and not c.needs_candidates]
        self._levels = [c for c in channels if c not in (*self._clicks, *self._choices)]
        # Slopes hardly differ between users, so those of the first particles do for good.
        self._slopes = [
            click_slopes(self._residual, particles, prior.num_responses, _temperature(channel))
            for channel in self._clicks
        ]
        self._prepare(particles)

    def __call__(
        self,
        said: Mapping[str, Float[np.ndarray, "b"]],
        decoded: Float[np.ndarray, "b K M"],
        action: Int[np.ndarray, "b S"],
        particles: Float[np.ndarray, "J M"],
    ) -> Float[np.ndarray, "b J"]:
        """Returns log p(said | particle) up to a constant, residuals averaged out."""
        if self._seen is not particles:
            self._prepare(particles)
        total = np.empty((len(action), len(particles)), np.float32)
        alone = (action == action[:, :1]).all(axis=1)
        size = max(1, _CELLS // (len(particles) * (self._num_nodes or 8)))
        for same in (True, False):
            rows = np.flatnonzero(alone == same)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                heard = {name: value[part] for name, value in said.items()}
                shown = np.take_along_axis(decoded[part], action[part, :, None], axis=1)
                shown = shown @ particles.T
                served = Served(shown, mean_shown(shown), None, action[part])
                if self._clicks:
                    served = served._replace(candidates=decoded[part] @ particles.T)
                total[part] = self._block(heard, served, same)
        return total

    def _block(
        self, said: Mapping[str, Float[np.ndarray, "b"]], served: Served, same: bool
    ) -> Float[np.ndarray, "b J"]:
        """Adds up what the groups of channels say; ``same`` if one response was all shown."""
        total = np.zeros_like(served.utility)
        if self._levels:
            total += averaged(self._levels, said, served, self._one if same else self._mean)
        if self._choices and not same:  # between a response and itself a coin decides
            total += averaged(self._choices, said, served, self._difference)
        for channel, slope in zip(self._clicks, self._slopes, strict=True):
            assert served.candidates is not None, "the caller honours needs_candidates"
            softened = served._replace(candidates=served.candidates * slope)
            total += channel.log_likelihood(said[channel.name], softened)
        return total

    def _prepare(self, particles: Float[np.ndarray, "J M"]) -> None:
        """Finds nodes; where particles move, again at every interaction."""
        self._seen, residual = particles, self._residual
        if self._levels:
            self._one = self._mean = self._rule(self._levels, residual, particles)
            if (num := self._num_shown) > 1:
                self._mean = self._rule(self._levels, mean_of(residual, num), particles)
        if self._choices:
            self._difference = self._rule(self._choices, difference(residual), particles)

    def _rule(
        self,
        channels: Sequence[Channel],
        sample: Float[np.ndarray, "n M"],
        particles: Float[np.ndarray, "J M"],
    ) -> Rule:
        num = self._num_nodes or enough_nodes(channels, sample, particles)
        return gauss_rule(sample, particles, num)


def _temperature(channel: Channel) -> float:
    found = getattr(channel, "temperature", None)
    if found is None:
        raise ValueError(
            "feature Bayes takes what compares all responses for a softmax with a temperature; "
            f"channel {channel.name!r} has none"
        )
    return float(found)


def averaged(
    channels: Sequence[Channel],
    said: Mapping[str, Float[np.ndarray, "b"]],
    served: Served,
    rule: Rule,
) -> Float[np.ndarray, "b J"]:
    """Returns the logarithm of the channels' joint likelihood, averaged over a rule's nodes.

    A node moves the first response shown, and the mean utility, by the same: what depends on
    one of these two, or on the difference of two responses, sees it rightly.
    """
    channels = [blunted(channel, rule) for channel in channels]
    logs = np.empty((len(rule.nodes), *served.utility.shape), np.float32)
    shown = served.shown.copy()
    for g, node in enumerate(rule.nodes):
        np.add(served.shown[:, 0], node, out=shown[:, 0])
        moved = Served(shown, served.utility + node, None, served.action)
        logs[g] = sum(c.log_likelihood(said[c.name], moved) for c in channels)
    top = logs.max(axis=0)
    np.exp(np.subtract(logs, top, out=logs), out=logs)
    # A node of no weight may be the only one that explains what was said.
    mass = np.maximum(np.einsum("gbj,gj->bj", logs, rule.weights), np.float32(1e-30))
    return top + np.log(mass)
