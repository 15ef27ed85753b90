"""Tabular memory: each single response to each prompt of a user, for prompts that recur."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.agents.choosing import (
    best,
    best_of_each,
    by_upper_bound,
    linear_sd,
    only_best,
)
from personalllm_env.agents.linear import average_taste, history_evidence
from personalllm_env.belief import Evidence, evidence
from personalllm_env.channels import Reward, check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_EXPLORE = ("greedy", "ucb", "thompson")
_LEAST = 1e-4  # variance: where feedback is exact, an sd of .01 stands in
_JITTER = 1e-12  # keeps a posterior that is all but certain positive definite
_ENOUGH = 100  # degrees of freedom at which repeated answers tell the noise


class Spread(NamedTuple):
    """How what users say about a response varies around what the average user would say."""

    item: float  # variance between items: of a user's value for a response
    noise: float  # variance within an item: of one report


def unfitted(noise: float | None) -> Spread:
    """Returns what holds without a history: scores have unit variance within prompts."""
    return Spread(1.0, max(1.0 if noise is None else noise, _LEAST))


def estimate_spread(
    seen: Evidence,
    residual: Float[np.ndarray, "N"],
    same: Int[np.ndarray, "N n"],
    noise: float | None = None,
) -> Spread:
    """Estimates the two variances by moments: residual^2 = |features|^2 item + noise.

    Unless the noise is known, it is the variance among a user's answers to the same prompt
    and action, where prompts recur. Where they do not nothing tells the two apart, and each
    gets half of the residual variance.

    Args:
        seen: What was said, as evidence on items: ``features`` says how much of each of the
            K responses to the prompt was spoken of.
        residual: What was said less what the average user would say.
        same: Rows that are equal are answers of one user to the same; (N, 0) if nobody
            answers the same twice in an informative way.
        noise: The variance of the noise, if known.
    """
    if not seen.known.any():
        return unfitted(noise)
    known = seen.known
    target = seen.target[known].astype(np.float64)
    total = float((residual[known].astype(np.float64) ** 2).mean())
    size = float((seen.features[known].astype(np.float64) ** 2).sum(axis=1).mean())
    if noise is None:
        again = _variance_within(same[known], target)
        noise = 0.5 * total if again is None else again
    return Spread(max((total - noise) / size, _LEAST), max(noise, _LEAST))


def _variance_within(
    same: Int[np.ndarray, "N n"], target: Float[np.ndarray, "N"]
) -> float | None:
    """Returns the variance of the target among equal rows; None where too few are equal."""
    if not same.shape[1]:
        return None
    groups, group = np.unique(same, axis=0, return_inverse=True)
    freedom = len(target) - len(groups)
    if freedom < _ENOUGH:
        return None
    mean = np.bincount(group, target) / np.bincount(group)
    return float(((target - mean[group]) ** 2).sum()) / freedom


class ItemBelief:
    """Gaussian beliefs about how far items differ from their expected values.

    There is a block of K items per (user, slot); a slot is a prompt. deviation ~ N(0, item I),
    target ~ N(features @ deviation, noise). Blocks are made as slots are needed.

    Attributes:
        mean: (B, n, K) posterior means.
        covariance: (B, n, K, K) posterior covariances.
    """

    def __init__(self, num_users: int, num_items: int, spread: Spread) -> None:
        self._spread = spread
        self._prompt = np.full((num_users, 0), -1)
        self._rows = np.arange(num_users)
        self._used = np.zeros(num_users, np.int64)
        self.mean = np.zeros((num_users, 0, num_items))
        self.covariance = np.zeros((num_users, 0, num_items, num_items))

    def slots(
        self, prompt: Int[np.ndarray, "B"]
    ) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        """Returns each user's slot of the prompt, and whether it has come up before."""
        old = (self._prompt == prompt[:, None]).any(axis=1)
        if not old.all() and self._used[~old].max() == self._prompt.shape[1]:
            self._grow(max(self._prompt.shape[1], 1))
        slot = (self._prompt == prompt[:, None]).argmax(axis=1)
        slot = np.where(old, slot, self._used)
        self._prompt[self._rows, slot] = prompt
        self._used += ~old
        return slot, old

    def _grow(self, num: int) -> None:
        b, _, k = self.mean.shape
        prior = np.broadcast_to(self._spread.item * np.eye(k), (b, num, k, k))
        self._prompt = np.hstack([self._prompt, np.full((b, num), -1)])
        self.mean = np.concatenate([self.mean, np.zeros((b, num, k))], axis=1)
        self.covariance = np.concatenate([self.covariance, prior], axis=1)

    def update(self, slot: Int[np.ndarray, "B"], seen: Evidence) -> None:
        """Adds one observation per user to a slot each; silence changes nothing."""
        a, at = seen.features.astype(np.float64), (self._rows, slot)
        v = np.matmul(self.covariance[at], a[:, :, None])[:, :, 0]
        gain = v * (seen.known / (self._spread.noise + np.vecdot(a, v)))[:, None]
        error = seen.target - np.vecdot(a, self.mean[at])
        self.mean[at] += gain * error[:, None]
        self.covariance[at] -= gain[:, :, None] * v[:, None, :]


class Tabular:
    """Remembers what each single response was worth, for prompts that recur.

    The value of a response to a user is what ``popular`` expects plus a deviation that is
    independent among responses, prompts and users, with Gaussian noise on top. So the
    posterior is exact for reported rewards; stars, likes, choices and clicks are read as
    Gaussian numbers (``belief.evidence``), which keeps their order and not their law. A prompt
    that comes up for the first time is answered as ``popular`` does: nothing says that it
    will come again, so there is nothing to explore for. Nor is there where users click on the
    best of all: what is shown does not change what they say.

    To duel, the second is the one with the highest upper bound on being better ("ucb"), an
    independent draw ("thompson") or the second best ("greedy").

    Responses are told apart by their place, or by their features where they are shuffled;
    then responses of equal features are interchangeable.

    Args:
        prior: What is known of the task.
        explore: "greedy", "ucb" or "thompson".
        exploration: Posterior standard deviations added by "ucb"; scales the draws of
            "thompson". Within 50 interactions less than 1, the posterior itself, does best.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, *, explore: str = "ucb", exploration: float = 0.7
    ) -> None:
        if explore not in _EXPLORE:
            raise ValueError(f"explore must be one of {', '.join(_EXPLORE)}, got {explore!r}")
        check_range("exploration", exploration, 0)
        self._prior, self._explore, self._exploration = prior, explore, exploration
        self._centre = np.zeros(prior.num_inputs)
        reward = [c for c in prior.feedback.channels if isinstance(c, Reward)]
        self._noise = reward[0].noise_sd ** 2 if reward else None
        names = [channel.name for channel in prior.feedback.channels]
        self._clicks = "click" in names and not reward
        if self._clicks:
            self._explore = "greedy"
        self.spread = unfitted(self._noise)

    def fit(self, database: Database) -> None:
        """Learns what the average user likes, and how far users and reports differ from it."""
        history = history_evidence(database, self._prior.feedback.num_stars)
        self._centre = average_taste(history)
        seen = self._evidence(database.action, database.feedback())
        expected = [
            np.vecdot(
                seen.features[rows], database.inputs[database.prompt[rows]] @ self._centre
            )
            for rows in database.blocks()
        ]
        same = np.column_stack([database.user, database.prompt, database.action])
        if self._clicks:  # all are read as the number 1: what is said is in the features
            same = same[:, :0]
        residual = seen.target - np.concatenate(expected)
        self.spread = estimate_spread(seen, residual, same, self._noise)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng
        self.belief = ItemBelief(num_users, self._prior.num_responses, self.spread)

    def act(self, observation: Observation) -> Action:
        """Returns the responses of highest value, bound or drawn value."""
        popular = observation.inputs @ self._centre
        slot, old = self.belief.slots(observation.prompt)
        item = self._items(observation.inputs).argsort(axis=1)  # of each candidate
        rows = np.arange(len(item))
        mean = popular + np.take_along_axis(self.belief.mean[rows, slot], item, axis=1)
        covariance = self._exploration**2 * self.belief.covariance[rows, slot]
        covariance = covariance[rows[:, None, None], item[:, :, None], item[:, None, :]]
        chosen = self._choose(mean, covariance)
        unseen = only_best(popular, self._prior.num_shown, self._rng)
        return np.where(old[:, None], chosen, unseen)

    def _choose(
        self, mean: Float[np.ndarray, "B K"], covariance: Float[np.ndarray, "B K K"]
    ) -> Int[np.ndarray, "B S"]:
        num, rng = self._prior.num_shown, self._rng
        if self._explore == "greedy":
            return best(mean, num, rng)
        if self._explore == "thompson":
            root = np.linalg.cholesky(covariance + _JITTER * np.eye(mean.shape[1]))
            z = rng.standard_normal((*mean.shape, num))
            values = mean[:, :, None] + np.matmul(root, z)
            return best_of_each(np.moveaxis(values, 2, 0), rng)
        alone = np.broadcast_to(np.eye(mean.shape[1]), covariance.shape)
        return by_upper_bound(mean, alone, lambda some: linear_sd(some, covariance), num, rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Adds what was said to the memory of the prompt it is about."""
        slot, _ = self.belief.slots(observation.prompt)
        seen = self._evidence(action, feedback)
        expected = np.vecdot(seen.features, observation.inputs @ self._centre)
        order = self._items(observation.inputs)
        features = np.take_along_axis(seen.features, order, axis=1)
        self.belief.update(slot, Evidence(features, seen.target - expected, seen.known))

    def _evidence(self, action: Int[np.ndarray, "n S"], feedback: Feedback) -> Evidence:
        """Returns which of the candidates were spoken of, and what was said."""
        k = self._prior.num_responses
        candidates = np.broadcast_to(np.eye(k, dtype=np.float32), (len(action), k, k))
        return evidence(candidates, action, feedback, self._prior.feedback.num_stars)

    def _items(self, inputs: Float[np.ndarray, "B K I"]) -> Int[np.ndarray, "B K"]:
        """Returns the candidate that is each item: in the bank's order or that of features."""
        if self._prior.shuffled:
            return np.lexsort(np.moveaxis(inputs, 2, 0)[::-1], axis=1)
        return np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape[:2])
