"""Agents that look at no features."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from personalllm_env.agents.choosing import best, only_best
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class Uniform:
    """Chooses uniformly at random: the floor."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior: PriorKnowledge) -> None:
        self._prior = prior

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng, self._num_users = rng, num_users

    def act(self, observation: Observation) -> Action:
        """Returns S different responses per row."""
        level = np.zeros((self._num_users, self._prior.num_responses))
        return best(level, self._prior.num_shown, self._rng)

    def probabilities(self, observation: Observation) -> Float[np.ndarray, "B K"]:
        """Returns how likely each response is to be shown: 1 / K."""
        k = self._prior.num_responses
        return np.full((self._num_users, k), 1 / k)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns nothing."""


class BestResponder:
    """Always shows the responder whom other users liked best: "everybody uses model X".

    Without a history all are alike, and it chooses at random. Where the order of the responses
    is shuffled an honest agent cannot tell who wrote which, and this one is no better than
    uniform.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior: PriorKnowledge) -> None:
        self._prior = prior
        self._liking = np.zeros(prior.num_responses)

    def fit(self, database: Database) -> None:
        """Averages the reported reward (or wins, where users choose or click) per responder."""
        k, heard = self._prior.num_responses, database.heard
        total, count = np.zeros(k), np.zeros(k)
        shown, signs = database.action[heard], np.ones(self._prior.num_shown)
        liking = database.reward
        if "choice" in database.said:
            liking = database.said["choice"]
            signs = np.array([1.0, -1.0])  # a choice of the first speaks against the second
        for s, sign in enumerate(signs):
            np.add.at(total, shown[:, s], sign * liking[heard])
            np.add.at(count, shown[:, s], 1)
        self._liking = total / np.maximum(count, 1)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng, self._num_users = rng, num_users

    def act(self, observation: Observation) -> Action:
        """Returns the best-liked responder's position."""
        values = np.tile(self._liking, (self._num_users, 1))
        return only_best(values, self._prior.num_shown, self._rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns nothing from its own users."""
