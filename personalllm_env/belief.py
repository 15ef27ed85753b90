"""A Gaussian belief about each user's linear taste; shared by agents and the belief wrapper."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg.blas import dger

from personalllm_env.feedback import mean_shown
from personalllm_env.types import Feedback


class Evidence(NamedTuple):
    """What one interaction says about a linear taste: target ~ features @ taste."""

    features: Float[np.ndarray, "B D"]
    target: Float[np.ndarray, "B"]
    known: Bool[np.ndarray, "B"]  # False in silence


def evidence(
    response_features: Float[np.ndarray, "B K D"],
    action: Int[np.ndarray, "B S"],
    feedback: Feedback,
    num_stars: int = 5,
) -> Evidence:
    """Turns what was said into one linear regression pair per user.

    The most informative channel is used. A reward, like or number of stars regresses (centred
    and scaled to about unit size) on the mean features of what was shown; a choice (+1 or -1)
    on the difference of the two; a click (1) on the clicked minus the mean candidate, as in
    the least-squares form of a linear contextual duel.

    Raises:
        ValueError: If users speak through none of these channels.
    """
    rows = np.arange(len(action))
    shown = response_features[rows[:, None], action]
    said = feedback.said
    if "reward" in said:
        pair = mean_shown(shown), said["reward"]
    elif "click" in said:
        clicked = response_features[rows, said["click"].astype(np.int64)]
        pair = clicked - response_features.mean(axis=1), np.ones(len(action))
    elif "choice" in said:
        pair = shown[:, 0] - shown[:, 1], said["choice"]
    elif "stars" in said:
        sd = ((num_stars**2 - 1) / 12) ** 0.5  # of a uniform number of stars
        pair = mean_shown(shown), (said["stars"] - (num_stars + 1) / 2) / sd
    elif "like" not in said:
        raise ValueError(f"no linear reading of what is said through {', '.join(said)}")
    else:
        pair = mean_shown(shown), 2.0 * said["like"] - 1.0
    return Evidence(pair[0], pair[1], feedback.heard)


class RidgeBelief:
    """Posteriors of Bayesian linear regression, one per user, updated in closed form.

    taste ~ N(centre, noise_sd^2 / ridge I), target ~ N(features @ taste, noise_sd^2). The
    posterior mean is ridge regression towards ``centre``; it does not depend on noise_sd.

    Attributes:
        mean: (B, D) posterior means.
        covariance: (B, D, D) posterior covariances in units of noise_sd^2: the inverse of
            ridge I + sum x x^T.
    """

    def __init__(
        self, num_features: int, *, ridge: float, centre: Float[np.ndarray, "D"] | None = None
    ) -> None:
        if not isinstance(ridge, int | float) or not ridge > 0:
            raise ValueError(f"ridge must be a positive number, got {ridge!r}")
        self.ridge = ridge
        self._centre = np.zeros(num_features) if centre is None else centre

    def reset(self, num_users: int) -> None:
        """Returns to the prior, for B users."""
        d = len(self._centre)
        self.mean = np.tile(self._centre, (num_users, 1))
        self.covariance = np.tile(np.eye(d) / self.ridge, (num_users, 1, 1))

    def update(self, seen: Evidence) -> None:
        """Adds one observation per user (Sherman & Morrison 1950); silence changes nothing."""
        x = seen.features.astype(np.float64)
        v = np.matmul(self.covariance, x[:, :, None])[:, :, 0]
        gain = v * (seen.known / (1.0 + np.vecdot(x, v)))[:, None]
        error = seen.target - np.vecdot(x, self.mean)
        self.mean += gain * error[:, None]
        # A BLAS rank-one update in place, user by user, stays in the cache: half the time of
        # a batched outer product and a subtraction. Symmetric, so its transpose will do.
        for covariance, g, w in zip(self.covariance, gain, v, strict=True):
            dger(-1.0, w, g, a=covariance.T, overwrite_a=True)

    def forget(self, rows: Bool[np.ndarray, "B"]) -> None:
        """Returns some users to the prior."""
        self.mean[rows] = self._centre
        self.covariance[rows] = np.eye(len(self._centre)) / self.ridge

    def values(self, features: Float[np.ndarray, "B K D"]) -> Float[np.ndarray, "B K"]:
        """Returns the posterior mean value of each candidate."""
        x = features.astype(np.float64, copy=False)
        return np.matmul(x, self.mean[:, :, None])[:, :, 0]

    def widths(self, features: Float[np.ndarray, "B K D"]) -> Float[np.ndarray, "B K"]:
        """Returns the posterior sd of each candidate's value in units of noise_sd."""
        x = features.astype(np.float64, copy=False)
        return np.sqrt(np.vecdot(np.matmul(x, self.covariance), x))

    def sample(
        self, scale: float, rng: np.random.Generator, num: int = 1
    ) -> Float[np.ndarray, "B num D"]:
        """Draws tastes from the posterior, for noise_sd = ``scale``."""
        root = np.linalg.cholesky(self.covariance)
        z = rng.standard_normal((*self.mean.shape[:1], num, self.mean.shape[1]))
        return self.mean[:, None] + scale * np.matmul(z, root.swapaxes(1, 2))
