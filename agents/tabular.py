"""Tabular memory: each single response to each prompt of a user, for prompts that recur."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.agents.choosing import best, only_best
from personalllm_env.agents.linear import population_taste
from personalllm_env.belief import Evidence, evidence
from personalllm_env.channels import Reward, check_range
from personalllm_env.database import Database
from personalllm_env.feedback import FeedbackModel
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_EXPLORE = ("greedy", "ucb", "thompson")
_LEAST = 1e-4  # variance: where feedback is exact, an sd of .01 stands in
_ENOUGH = 100  # degrees of freedom at which repeated answers tell the noise


class Spread(NamedTuple):
    """How what users say about a response varies around what the average user would say."""

    item: float  # variance between items: of a user's value for a response
    noise: float  # variance within an item: of one report


def spread(
    model: FeedbackModel,
    seen: Evidence,
    residual: Float[np.ndarray, "N"],
    item: Int[np.ndarray, "N n"],
) -> Spread:
    """Estimates the two variances by moments: residual^2 = |features|^2 item + noise.

    The noise is the channel's where users report a reward with a known noise. Otherwise it is
    the variance among a user's answers to the same prompt and action, if prompts recur in the
    history; if they do not, or users click, nothing tells the two apart and each gets half.

    Args:
        model: How users speak.
        seen: What was said, as evidence on items: ``features`` says how much of each of the
            K responses to the prompt was spoken of.
        residual: What was said less what the average user would say.
        item: What makes two answers answers to the same: user, prompt, action.
    """
    if not seen.known.any():
        return Spread(1.0, 1.0)  # scores have unit variance within prompts
    known = seen.known
    total = float((residual[known].astype(np.float64) ** 2).mean())
    size = float((seen.features[known].astype(np.float64) ** 2).sum(axis=1).mean())
    noise = 0.5 * total
    reports = [c for c in model.channels if isinstance(c, Reward)]
    if reports:
        noise = reports[0].noise_sd ** 2
    elif "click" not in [c.name for c in model.channels]:
        groups, group = np.unique(item[known], axis=0, return_inverse=True)
        freedom = int(known.sum()) - len(groups)
        if freedom >= _ENOUGH:
            count = np.bincount(group)
            mean = np.bincount(group, seen.target[known]) / count
            noise = float(((seen.target[known] - mean[group]) ** 2).sum()) / freedom
    return Spread(max((total - noise) / size, _LEAST), max(noise, _LEAST))


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
        match = self._prompt == prompt[:, None]
        old = match.any(axis=1)
        if not old.all() and self._used.max() == self._prompt.shape[1]:
            self._grow(max(self._prompt.shape[1], 1))
        slot = self._used.copy()
        slot[old] = match[old].argmax(axis=1)
        self._prompt[self._rows, np.minimum(slot, self._prompt.shape[1] - 1)] = prompt
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
