"""Empirical Bayes: how tastes are spread over users, learnt from the histories of others.

theta_u ~ sum_c pi_c N(mean_c, covariance_c) on a few axes, fitted by expectation maximisation
(Dempster, Laird & Rubin, JRSS B 1977): each user's statements enter as a quadratic in their
taste, exact for ratings and Laplace's approximation for picks. The latter draws tastes towards
0 (as Breslow & Lin, Biometrika 1995): of 20 choices per user .6 of their variance is found, of
20 clicks of eight .85; tests hold it to that. The EM is stopped early, which keeps it from
explaining sparse histories by tastes: at its end their likelihood is over-fitted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.hearing import Histories

_STEPS, _MIXTURE_STEPS, _LOOKS = 12, 12, 4  # further steps change gains by less than .005
_PSEUDO_USERS = 5.0  # with which a component's covariance is drawn to the pooled one
_LEAST_FACTOR = 0.1  # so that a spread of 0 is approached, and its inverse exists
_CHUNK = 64  # users whose statements are expanded at once, so that they stay in the cache


class TastePrior(NamedTuple):
    """Tastes are ``mean + axes @ z``; z has a mixture of C Gaussians on R axes."""

    mean: Float[np.ndarray, "A"]
    axes: Float[np.ndarray, "A R"]
    weights: Float[np.ndarray, "C"]
    centres: Float[np.ndarray, "C R"]
    covariances: Float[np.ndarray, "C R R"]
    noise: float  # variance of a rating around the taste; 1 for picks


class Quadratic(NamedTuple):
    """A log likelihood up to a constant: linear @ theta - theta @ precision @ theta / 2.

    For ratings both are in units of the noise variance.
    """

    precision: Float[np.ndarray, "U A A"]
    linear: Float[np.ndarray, "U A"]

    def onto(
        self, mean: Float[np.ndarray, "A"], axes: Float[np.ndarray, "A R"], noise: float
    ) -> Quadratic:
        """Returns it as a function of z, for tastes mean + axes @ z."""
        linear = (self.linear - self.precision @ mean) @ axes
        return Quadratic(axes.T @ self.precision @ axes / noise, linear / noise)


class Gaussian(NamedTuple):
    """Tastes are N(mean, covariance); ratings have this noise variance around them."""

    mean: Float[np.ndarray, "A"]
    covariance: Float[np.ndarray, "A A"]
    noise: float


def softmax_beside(margins: Float[np.ndarray, "*B J"]) -> Float[np.ndarray, "*B J"]:
    """Returns each other alternative's probability; the pick's own margin is 0."""
    top = np.maximum(margins.max(axis=-1, keepdims=True), 0.0)
    mass = np.exp(margins - top)
    return mass / (mass.sum(axis=-1, keepdims=True) + np.exp(-top))


def quadratic(histories: Histories, at: Float[np.ndarray, "U A"]) -> Quadratic:
    """Expands every user's log likelihood around a taste of theirs."""
    precision = np.empty((*at.shape, at.shape[1]))
    linear = np.empty_like(at)
    for start in range(0, len(at), _CHUNK):
        rows = slice(start, start + _CHUNK)
        lines, here = histories.lines[rows], at[rows, :, None]
        u, n, j, a = lines.shape
        flat = lines.reshape(u, n * j, a)
        if histories.target is not None:
            across = flat.swapaxes(1, 2)
            precision[rows] = np.matmul(across, flat)
            linear[rows] = np.matmul(across, histories.target[rows, :, None])[:, :, 0]
            continue
        # Of padding, the lines are 0, and so is all that follows.
        chance = softmax_beside(np.matmul(flat, here).reshape(u, n, j))
        weighted = lines * chance[..., None]
        means = weighted.sum(axis=2)
        hessian = np.matmul(weighted.reshape(flat.shape).swapaxes(1, 2), flat)
        hessian -= np.matmul(means.swapaxes(1, 2), means)
        precision[rows] = hessian
        linear[rows] = np.matmul(hessian, here)[:, :, 0] - means.sum(axis=1)
    return Quadratic(precision, linear)


def fit_taste(histories: Histories, *, rank: int, components: int) -> TastePrior:
    """Fits the prior: one Gaussian in all coordinates, then a mixture on its leading axes.

    Args:
        histories: What other users said.
        rank: R, how many axes are kept: those along which users differ most in what they say.
        components: C; 1 for a single Gaussian.
    """
    (mean, covariance, noise), said = _gaussian(histories)
    # Axes on which tastes are N(0, I), by how much of what is said they explain.
    root = np.linalg.cholesky(covariance)
    turn = np.linalg.eigh(root.T @ said.precision.sum(axis=0) @ root).eigenvectors
    axes = root @ turn[:, : -min(rank, len(turn)) - 1 : -1]
    r = axes.shape[1]
    mixture = np.ones(1), np.zeros((1, r)), np.eye(r)[None]
    if components > 1:
        mixture = _mixture(said.onto(mean, axes, noise), components)
    return TastePrior(mean, axes, *mixture, noise)


def _gaussian(histories: Histories) -> tuple[Gaussian, Quadratic]:
    """Returns the spread of tastes, and what was said as it looks at the end."""
    u, count = len(histories.lines), int(histories.known.sum())
    own = np.zeros((u, histories.lines.shape[-1]))
    said, ratings = quadratic(histories, own), None
    if histories.target is not None:
        ratings = float((histories.target**2).sum()), count
    prior = start = _start(said, ratings, count)
    for look in range(1 if ratings else _LOOKS):
        if look:
            said = quadratic(histories, own)
        for _ in range(_STEPS if ratings else _STEPS // 2):
            (mean, covariance, noise), own = improve(prior, said, ratings)
            # The start has the weight of one user and of one statement: of hardly any, the
            # likelihood has no maximum.
            covariance = (u * covariance + start.covariance) / (u + 1)
            noise = (count * noise + start.noise) / (count + 1)
            prior = Gaussian(mean, covariance, noise)
    return prior, said


def _start(said: Quadratic, ratings: tuple[float, int] | None, count: int) -> Gaussian:
    """Returns the taste of everybody together, and a spread that explains .3 of the rest."""
    a = said.linear.shape[1]
    pooled, linear = said.precision.sum(axis=0), said.linear.sum(axis=0)
    ridge = 1e-3 * np.trace(pooled) / a + 1e-9
    mean = np.linalg.solve(pooled + ridge * np.eye(a), linear)
    noise = 1.0
    if ratings is not None:
        square = ratings[0]
        rest = square - 2 * linear @ mean + mean @ pooled @ mean
        noise = max((rest + square / count) / (count + 1), 1e-6)
    covariance = 0.3 * noise * count / max(np.trace(pooled), 1e-9) * np.eye(a)
    return Gaussian(mean, covariance, noise)


def improve(
    prior: Gaussian, said: Quadratic, ratings: tuple[float, int] | None
) -> tuple[Gaussian, Float[np.ndarray, "U A"]]:
    """Takes one step of parameter-expanded EM (Liu, Rubin & Wu, Biometrika 1998).

    The expansion is a common factor on how far users are from the mean: plain EM needs
    hundreds of steps to move variance between tastes and noise.

    Args:
        prior: Where to start.
        said: By U users.
        ratings: Their sum of squares and their number; None for picks, which have no noise.

    Returns:
        A prior under which what was said is at least as likely, and the users' posterior means
        under the one given.
    """
    mean, covariance, noise = prior
    u, a = said.linear.shape
    inverse = np.linalg.inv(covariance)
    spread = np.linalg.inv(inverse + said.precision / noise)
    seen = said.linear - said.precision @ mean
    off = np.matmul(spread, seen[:, :, None])[:, :, 0] / noise
    within = spread.sum(axis=0)
    centre = off.mean(axis=0)
    scatter = within + (off - centre).T @ (off - centre)
    explained = (seen * off).sum()
    # tr(precision spread) = noise (A - tr(inverse spread)), user by user.
    second = np.vecdot(off, np.matmul(said.precision, off[:, :, None])[:, :, 0]).sum()
    second += noise * (u * a - (inverse * within).sum())
    factor = max(explained / second, _LEAST_FACTOR) if second > 0 else 1.0
    if ratings is not None:
        square, count = ratings
        pooled = said.precision.sum(axis=0)
        square += (mean @ pooled - 2 * said.linear.sum(axis=0)) @ mean
        noise = max((square - 2 * factor * explained + factor**2 * second) / count, 1e-6)
    covariance = factor**2 * scatter / u
    return Gaussian(mean + factor * centre, covariance, noise), mean + off


def _mixture(
    said: Quadratic, num: int
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C R"], Float[np.ndarray, "C R R"]]:
    """Fits a mixture to tastes whose single Gaussian is N(0, 1) on every axis."""
    u, r = said.linear.shape
    own = np.linalg.solve(np.eye(r) + said.precision, said.linear[:, :, None])[:, :, 0]
    centres = own[_apart(own, min(num, u))]
    weights = np.full(len(centres), 1 / len(centres))
    covariances = np.tile(0.3 * np.eye(r), (len(centres), 1, 1))
    for _ in range(_MIXTURE_STEPS):
        share, means, spread = condition(weights, centres, covariances, said)
        total = share.sum(axis=0)
        weights = (total + 1) / (total + 1).sum()
        centres = np.einsum("uc,ucr->cr", share, means) / (total[:, None] + 1e-9)
        off = means - centres
        within = np.einsum("uc,ucrs->crs", share, spread)
        weighted = (off * share[:, :, None]).transpose(1, 2, 0)
        within += np.matmul(weighted, off.swapaxes(0, 1))
        pooled = within.sum(axis=0) / u
        covariances = (within + _PSEUDO_USERS * pooled) / (total[:, None, None] + _PSEUDO_USERS)
    return weights, centres, covariances


def _apart(points: Float[np.ndarray, "U R"], num: int) -> Int[np.ndarray, "n"]:
    """Chooses points far from each other (Gonzalez, TCS 1985), the first near the middle.

    Starting an EM from them needs no luck, and gives every kind of user a component.
    """
    chosen = [int(np.argmin((points**2).sum(axis=1)))]
    distance = np.full(len(points), np.inf)
    for _ in range(num - 1):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(np.argmax(distance)))
    return np.array(chosen)


class Conditioned(NamedTuple):
    """Posteriors of U users under each of C components, and each component's share."""

    share: Float[np.ndarray, "U C"]
    means: Float[np.ndarray, "U C R"]
    covariances: Float[np.ndarray, "U C R R"]


def condition(
    weights: Float[np.ndarray, "C"],
    centres: Float[np.ndarray, "C R"],
    covariances: Float[np.ndarray, "C R R"],
    said: Quadratic,
) -> Conditioned:
    """Conditions a mixture of Gaussians on a quadratic log likelihood per user."""
    inverse = np.linalg.inv(covariances)
    pull = np.matmul(inverse, centres[:, :, None])[:, :, 0]
    after = np.linalg.inv(inverse + said.precision[:, None])
    total = pull + said.linear[:, None]
    means = np.matmul(after, total[..., None])[..., 0]
    log_share = np.log(weights) - 0.5 * np.vecdot(pull, centres) + 0.5 * np.vecdot(total, means)
    log_share += 0.5 * (np.linalg.slogdet(after)[1] - np.linalg.slogdet(covariances)[1])
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    return Conditioned(share / share.sum(axis=1, keepdims=True), means, after)
