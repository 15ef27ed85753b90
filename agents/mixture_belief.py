"""A mixture of Gaussians over each user's taste, updated by ratings and picks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.agents.hearing import Heard
from personalllm_env.agents.taste import Conditioned, TastePrior, softmax_beside

_AT_ONCE = 100  # users, so that what is worked on stays in the cache
_MOST_NEWTON = 100  # steps; 3 or 4 are usual
_MOST_HALVINGS = 60
_CLOSE = 1e-5  # of a margin: Newton's method squares it in the step that it stops with


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
        self._keep = 1.0 if memory is None else float(np.exp(-1.0 / memory))
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
        self.log_share[rows] = np.log(np.maximum(known.share, 1e-300))  # it may underflow to 0
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
        share = self.share()
        (b, c), r = share.shape, self.means.shape[2]
        off = self.means - np.matmul(share[:, None], self.means)
        within = np.matmul(share[:, None], self.covariances.reshape(b, c, r * r))
        between = np.matmul((off * share[:, :, None]).swapaxes(1, 2), off)
        return within.reshape(b, r, r) + between

    def sample(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "B num R"]:
        """Draws ``num`` z per user."""
        b, c, r = self.means.shape
        passed = self.share().cumsum(axis=1)[:, None] < rng.random((b, num, 1))
        which = np.minimum(passed.sum(axis=2), c - 1)  # the shares' sum may round to below 1
        rows = np.arange(b)[:, None]
        root = np.linalg.cholesky(self.covariances[rows, which])
        noise = rng.standard_normal((b, num, r, 1))
        return self.means[rows, which] + np.matmul(root, noise)[..., 0]

    def update(self, heard: Heard) -> None:
        """Learns from one interaction per user; silence changes nothing but the forgetting."""
        self._forget()
        known = np.flatnonzero(heard.known)
        for start in range(0, len(known), _AT_ONCE):
            rows = known[start : start + _AT_ONCE]
            target = None if heard.target is None else heard.target[rows]
            self._learn(rows, heard.lines[rows], target)

    def _learn(
        self,
        rows: Int[np.ndarray, "b"],
        lines: Float[np.ndarray, "b J A"],
        target: Float[np.ndarray, "b"] | None,
    ) -> None:
        means, covariances = self.means[rows], self.covariances[rows]
        offset, lines = lines @ self.prior.mean, lines @ self.prior.axes
        margin = offset[:, None] + np.matmul(lines[:, None], means[..., None])[..., 0]
        across = np.matmul(lines[:, None], covariances)  # (b, C, J, R)
        width = np.matmul(across, lines[:, None].swapaxes(2, 3))  # (b, C, J, J)
        if target is not None:
            error = target[:, None] - margin[..., 0]
            variance = self.prior.noise + width[..., 0, 0]
            log_evidence = -0.5 * error**2 / variance - 0.5 * np.log(variance)
            pull = (error / variance)[..., None]
            removed = across / np.sqrt(variance)[..., None, None]
        else:
            lost, root, lower, log_evidence = _explain_pick(margin, width)
            pull = -lost
            removed = _solve_lower(lower, np.matmul(root.swapaxes(2, 3), across))
        self.log_share[rows] += log_evidence
        self.means[rows] += np.matmul(pull[..., None, :], across)[..., 0, :]
        self.covariances[rows] -= np.matmul(removed.swapaxes(2, 3), removed)

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


class _Explained(NamedTuple):
    """A pick, given margins s ~ N(margin, width) beforehand; L rows are users x components."""

    chance: Float[np.ndarray, "*L J"]  # minus the gradient of the log likelihood at the mode
    root: Float[np.ndarray, "*L J J"]  # E with E E' the curvature of the log likelihood there
    lower: Float[np.ndarray, "*L J J"]  # Cholesky's factor of I + E' width E
    log_evidence: Float[np.ndarray, "*L"]  # by Laplace's approximation


def _explain_pick(
    margin: Float[np.ndarray, "*L J"], width: Float[np.ndarray, "*L J J"]
) -> _Explained:
    """Finds the most likely margins of a pick and the curvature around them.

    diag(p) - p p' = E E' with E = diag(r) (I - r r' / (1 + sqrt(p of the pick))), r = sqrt(p),
    so that the posterior covariance needs no inverse of what may be singular (as Rasmussen &
    Williams, "Gaussian processes for machine learning", 2006, section 3.4, for one margin).
    """
    j = margin.shape[-1]
    lost = _most_likely(margin.reshape(-1, j), width.reshape(-1, j, j)).reshape(margin.shape)
    pulled = np.matmul(width, lost[..., None])[..., 0]
    s = margin - pulled
    chance, likelihood = softmax_beside(s), -_log_total(s)
    r = np.sqrt(chance)
    beside = np.exp(0.5 * likelihood)[..., None, None]  # root of the pick's own probability
    eye = np.eye(j)
    root = r[..., None] * (eye - r[..., None] * r[..., None, :] / (1.0 + beside))
    system = eye + np.matmul(root.swapaxes(-1, -2), np.matmul(width, root))
    lower = np.linalg.cholesky(system)
    log_det = 2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)
    log_evidence = likelihood - 0.5 * (np.vecdot(lost, pulled) + log_det)
    return _Explained(chance, root, lower, log_evidence)


def _most_likely(
    margin: Float[np.ndarray, "L J"], width: Float[np.ndarray, "L J J"]
) -> Float[np.ndarray, "L J"]:
    """Returns the others' chances q at the mode, s = margin - width q with q = softmax(s).

    Newton's method on the convex q width q / 2 + log(1 + sum exp(margin - width q)), which
    stays finite where width is singular; steps that are long are halved until it falls.
    """
    q, todo = np.zeros_like(margin), np.arange(len(margin))
    for _ in range(_MOST_NEWTON):
        m, w, here = margin[todo], width[todo], q[todo]
        s = m - np.matmul(w, here[..., None])[..., 0]
        p = softmax_beside(s)
        curvature = p[..., None] * np.eye(m.shape[1]) - p[..., None] * p[:, None]
        system = np.eye(m.shape[1]) + np.matmul(curvature, w)
        step = np.linalg.solve(system, (p - here)[..., None])[..., 0]
        moved = np.matmul(w, step[..., None])[..., 0]
        size = np.abs(moved).max(axis=1)
        if (far := size > 1.0).any():
            share = _shorten(s[far], here[far], moved[far], step[far])[:, None]
            step[far] *= share
            size[far] *= share[:, 0]
        q[todo] = here + step
        todo = todo[size > _CLOSE]
        if not len(todo):
            break
    return q


def _shorten(
    s: Float[np.ndarray, "L J"],
    q: Float[np.ndarray, "L J"],
    moved: Float[np.ndarray, "L J"],
    step: Float[np.ndarray, "L J"],
) -> Float[np.ndarray, "L"]:
    """Returns the share of each Newton step that lowers the cost enough (Armijo's rule)."""
    share = np.ones(len(s))
    linear, square = np.vecdot(moved, q), 0.5 * np.vecdot(moved, step)
    slope = linear - np.vecdot(moved, softmax_beside(s))  # negative
    before = _log_total(s)
    for _ in range(_MOST_HALVINGS):
        rise = _log_total(s - share[:, None] * moved) - before
        rise += share * linear + share**2 * square
        if not (bad := rise > 1e-3 * share * slope).any():
            break
        share[bad] *= 0.5
    return share


def _log_total(s: Float[np.ndarray, "*L J"]) -> Float[np.ndarray, "*L"]:
    """Returns log(1 + sum exp(s))."""
    top = np.maximum(s.max(axis=-1), 0.0)
    return top + np.log(np.exp(-top) + np.exp(s - top[..., None]).sum(axis=-1))


def _solve_lower(
    lower: Float[np.ndarray, "*L J J"], right: Float[np.ndarray, "*L J R"]
) -> Float[np.ndarray, "*L J R"]:
    """Solves lower @ x = right by forward substitution, for a great many small systems."""
    x = right.copy()
    for j in range(x.shape[-2]):
        if j:
            x[..., j, :] -= np.matmul(lower[..., j : j + 1, :j], x[..., :j, :])[..., 0, :]
        x[..., j, :] /= lower[..., j, j, None]
    return x
