"""A mixture of Gaussians over each user's taste, updated by ratings and picks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.agents.hearing import Heard
from personalllm_env.agents.taste import Conditioned, TastePrior, softmax_beside

_NEWTON = 6
_LARGEST_STEP = 4.0  # of a margin in one Newton step


class MixtureBelief:
    """Posteriors over tastes, one mixture of C Gaussians on R axes per user.

    Ratings update it exactly (each component by Bayesian linear regression, its weight by its
    predictive density). Picks update it by Laplace's approximation in the space of the J
    margins, component by component.

    Attributes:
        log_share: (B, C) unnormalised log weights.
        means: (B, C, R).
        covariances: (B, C, R, R).
    """

    def __init__(self, prior: TastePrior, memory: float | None = None) -> None:
        self.prior = prior
        self._keep = 1.0 if memory is None else 1.0 - 1.0 / memory
        inverse = np.linalg.inv(prior.covariances)
        self._precision = inverse
        self._linear = np.matmul(inverse, prior.centres[:, :, None])[:, :, 0]

    def reset(self, num_users: int) -> None:
        """Returns to the prior, for B users."""
        prior = self.prior
        self.log_share = np.tile(np.log(prior.weights), (num_users, 1))
        self.means = np.tile(prior.centres, (num_users, 1, 1))
        self.covariances = np.tile(prior.covariances, (num_users, 1, 1, 1))

    def remember(self, rows: Bool[np.ndarray, "B"], known: Conditioned) -> None:
        """Puts what was known of some users before in place of the prior."""
        self.log_share[rows] = np.log(np.maximum(known.share, 1e-300))
        self.means[rows], self.covariances[rows] = known.means, known.covariances

    def share(self) -> Float[np.ndarray, "B C"]:
        """Returns the components' probabilities."""
        mass = np.exp(self.log_share - self.log_share.max(axis=1, keepdims=True))
        return mass / mass.sum(axis=1, keepdims=True)

    def mean(self) -> Float[np.ndarray, "B R"]:
        """Returns the posterior mean of z."""
        return np.matmul(self.share()[:, None], self.means)[:, 0]

    def covariance(self) -> Float[np.ndarray, "B R R"]:
        """Returns the posterior covariance of z, over components too."""
        share, mean = self.share(), self.mean()
        off = self.means - mean[:, None]
        within = np.einsum("bc,bcrs->brs", share, self.covariances)
        return np.asarray(within + np.matmul((off * share[..., None]).swapaxes(1, 2), off))

    def sample(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "B num R"]:
        """Draws ``num`` z per user."""
        b, _, r = self.means.shape
        spot = rng.random((b, num, 1)) * (1 - 1e-12)
        which = (self.share().cumsum(axis=1)[:, None] < spot).sum(axis=2)
        which = np.minimum(which, self.means.shape[1] - 1)
        rows = np.arange(b)[:, None]
        root = np.linalg.cholesky(self.covariances)[rows, which]
        noise = rng.standard_normal((b, num, r, 1))
        return self.means[rows, which] + np.matmul(root, noise)[..., 0]

    def update(self, heard: Heard) -> None:
        """Learns from one interaction per user; silence changes nothing but the forgetting."""
        self._forget()
        offset = heard.lines @ self.prior.mean
        lines = heard.lines @ self.prior.axes
        prior_margin = np.matmul(lines[:, None], self.means[..., None])[..., 0]
        spread = np.matmul(lines[:, None], self.covariances)  # (B, C, J, R)
        width = np.matmul(spread, lines[:, None].swapaxes(2, 3))  # (B, C, J, J)
        if heard.target is not None:
            error = (heard.target - offset[:, 0])[:, None] - prior_margin[..., 0]
            variance = self.prior.noise + width[..., 0, 0]
            log_evidence = -0.5 * error**2 / variance - 0.5 * np.log(variance)
            pull = (error / variance)[..., None]
            shrink = (1 / variance)[..., None, None]
        else:
            pull, shrink, log_evidence = _explain_pick(prior_margin + offset[:, None], width)
        known = heard.known
        self.log_share += np.where(known[:, None], log_evidence, 0.0)
        across = spread.swapaxes(2, 3)
        self.means += np.matmul(across, (pull * known[:, None, None])[..., None])[..., 0]
        less = np.matmul(np.matmul(across, shrink * known[:, None, None, None]), spread)
        self.covariances -= less

    def _forget(self) -> None:
        """Raises the likelihood so far to a power below 1 (West & Harrison's discount)."""
        if self._keep == 1.0:
            return
        keep, lose = self._keep, 1.0 - self._keep
        inverse = np.linalg.inv(self.covariances)
        linear = np.matmul(inverse, self.means[..., None])[..., 0]
        self.covariances = np.linalg.inv(keep * inverse + lose * self._precision)
        linear = keep * linear + lose * self._linear
        self.means = np.matmul(self.covariances, linear[..., None])[..., 0]
        self.log_share = keep * self.log_share + lose * np.log(self.prior.weights)


def _explain_pick(
    margin: Float[np.ndarray, "B C J"], width: Float[np.ndarray, "B C J J"]
) -> tuple[Float[np.ndarray, "B C J"], Float[np.ndarray, "B C J J"], Float[np.ndarray, "B C"]]:
    """Finds the most likely margins s of a pick, given s ~ N(margin, width) beforehand.

    Returns the gradient of the log likelihood there, (curvature^-1 + width)^-1, and the log
    evidence by Laplace's approximation.
    """
    j = margin.shape[2]
    eye, s = np.eye(j), margin
    for _ in range(_NEWTON):
        chance = softmax_beside(s)
        curvature = chance[..., None] * eye - chance[..., None] * chance[..., None, :]
        off = s - margin + np.matmul(width, chance[..., None])[..., 0]
        step = np.linalg.solve(eye + np.matmul(width, curvature), off[..., None])[..., 0]
        s = s - np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    chance = softmax_beside(s)
    curvature = chance[..., None] * eye - chance[..., None] * chance[..., None, :]
    system = eye + np.matmul(width, curvature)
    # (curvature^-1 + width)^-1 = curvature (I + width curvature)^-1, symmetric.
    shrink = np.linalg.solve(system.swapaxes(2, 3), curvature)
    top = np.maximum(s.max(axis=-1), 0.0)
    likelihood = -(top + np.log(np.exp(-top) + np.exp(s - top[..., None]).sum(axis=-1)))
    cost = 0.5 * np.vecdot(chance, np.matmul(width, chance[..., None])[..., 0])
    log_evidence = likelihood - cost - 0.5 * np.linalg.slogdet(system)[1]
    return -chance, shrink, log_evidence
