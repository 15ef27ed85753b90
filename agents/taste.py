"""Empirical Bayes: how tastes are spread over users, learnt from the histories of others.

theta_u ~ sum_c pi_c N(mean_c, covariance_c) on a few axes, fitted by expectation maximisation
(Dempster, Laird & Rubin, JRSS B 1977): each user's statements enter as a quadratic in their
taste, exact for ratings and Laplace's approximation for picks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.hearing import Histories

_STEPS, _MIXTURE_STEPS, _LOOKS = 12, 12, 3  # further steps change gains by less than .005
_PSEUDO_USERS = 5.0  # with which a component's covariance is drawn to the pooled one


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


def softmax_beside(margins: Float[np.ndarray, "*B J"]) -> Float[np.ndarray, "*B J"]:
    """Returns each other alternative's probability; the pick's own margin is 0."""
    top = np.maximum(margins.max(axis=-1, keepdims=True), 0.0)
    mass = np.exp(margins - top)
    return mass / (mass.sum(axis=-1, keepdims=True) + np.exp(-top))


def quadratic(histories: Histories, at: Float[np.ndarray, "U A"]) -> Quadratic:
    """Expands every user's log likelihood around a taste of theirs."""
    u, n, j, a = histories.lines.shape
    flat = histories.lines.reshape(u, n * j, a)
    if histories.target is not None:
        transposed = flat.swapaxes(1, 2)
        linear = np.matmul(transposed, histories.target.reshape(u, n * j, 1))[:, :, 0]
        return Quadratic(np.matmul(transposed, flat), linear)
    chance = softmax_beside(np.matmul(flat, at[:, :, None]).reshape(u, n, j))
    chance *= histories.known[:, :, None]
    weighted = flat * chance.reshape(u, n * j, 1)
    means = weighted.reshape(u, n, j, a).sum(axis=2)
    precision = np.matmul(weighted.swapaxes(1, 2), flat)
    precision -= np.matmul(means.swapaxes(1, 2), means)
    return Quadratic(
        precision, np.matmul(precision, at[:, :, None])[:, :, 0] - means.sum(axis=1)
    )


def fit_taste(histories: Histories, *, rank: int, components: int) -> TastePrior:
    """Fits the prior: one Gaussian in all coordinates, then a mixture on its leading axes.

    Args:
        histories: What other users said.
        rank: R, how many axes of the Gaussian's covariance are kept.
        components: C; 1 for a single Gaussian.
    """
    mean, covariance, noise, said = _gaussian(histories)
    values, vectors = np.linalg.eigh(covariance)
    kept = np.argsort(values)[::-1][: min(rank, len(values))]
    axes = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 1e-12))
    low = Quadratic(
        axes.T @ said.precision @ axes, (said.linear - said.precision @ mean) @ axes
    )
    r = len(kept)
    if components == 1:
        one = np.ones(1), np.zeros((1, r)), np.eye(r)[None]
        return TastePrior(mean, axes, *one, noise)
    mixture = _mixture(low, noise, components)
    return TastePrior(mean, axes, *mixture, noise)


def _gaussian(
    histories: Histories,
) -> tuple[Float[np.ndarray, "A"], Float[np.ndarray, "A A"], float, Quadratic]:
    """Returns mean, covariance, noise and the statements as they look at the end."""
    ratings = histories.target is not None
    u, _, _, a = histories.lines.shape
    count = max(int(histories.known.sum()), 1)
    mean, noise = np.zeros(a), 1.0
    said = quadratic(histories, np.tile(mean, (u, 1)))
    for _ in range(1 if ratings else 5):  # everybody's taste, by Newton's method
        said = quadratic(histories, np.tile(mean, (u, 1)))
        pooled = said.precision.sum(axis=0)
        small = 1e-3 * np.trace(pooled) / a * np.eye(a)
        mean = np.linalg.solve(pooled + small, said.linear.sum(axis=0))
    square = 0.0 if histories.target is None else float((histories.target**2).sum())
    if ratings:
        noise = _noise(said, mean[None], np.zeros((1, a, a)), square, count)
    per_statement = np.trace(said.precision.sum(axis=0)) / a / count
    covariance = np.eye(a) * noise / (30.0 * max(per_statement, 1e-9))
    own = np.tile(mean, (u, 1))
    for look in range(1 if ratings else _LOOKS):
        if look:
            said = quadratic(histories, own)
        for _ in range(_STEPS if ratings else _STEPS // 2):
            inverse = np.linalg.inv(covariance)
            spread = np.linalg.inv(inverse + said.precision / noise)
            own = np.matmul(spread, (said.linear / noise + inverse @ mean)[:, :, None])[:, :, 0]
            mean = own.mean(axis=0)
            covariance = spread.mean(axis=0) + (own - mean).T @ (own - mean) / u
            if ratings:
                noise = _noise(said, own, spread, square, count)
    return mean, covariance, noise, said


def _noise(
    said: Quadratic,
    means: Float[np.ndarray, "#U A"],
    spread: Float[np.ndarray, "#U A A"],
    square: float,
    count: int,
) -> float:
    """Returns the expected squared error of the ratings."""
    second = spread + means[:, :, None] * means[:, None]
    total = square - 2 * (said.linear * means).sum() + (said.precision * second).sum()
    return max(float(total) / count, 1e-6)


def _mixture(
    said: Quadratic, noise: float, num: int
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "C R"], Float[np.ndarray, "C R R"]]:
    """Fits a mixture to tastes whose single Gaussian is N(0, 1) on every axis."""
    u, r = said.linear.shape
    precision, linear = said.precision / noise, said.linear / noise
    own = np.linalg.solve(np.eye(r) + precision, linear[:, :, None])[:, :, 0]
    centres = own[_apart(own, min(num, u))]
    weights = np.full(len(centres), 1 / len(centres))
    covariances = np.tile(0.3 * np.eye(r), (len(centres), 1, 1))
    for _ in range(_MIXTURE_STEPS):
        posterior = condition(weights, centres, covariances, precision, linear)
        share = posterior.share
        total = share.sum(axis=0)
        weights = (total + 1) / (total + 1).sum()
        centres = np.einsum("uc,ucr->cr", share, posterior.means) / (total[:, None] + 1e-9)
        off = posterior.means - centres
        within = np.einsum("uc,ucrs->crs", share, posterior.covariances)
        within += np.einsum("uc,ucr,ucs->crs", share, off, off)
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
    precision: Float[np.ndarray, "U R R"],
    linear: Float[np.ndarray, "U R"],
) -> Conditioned:
    """Conditions a mixture of Gaussians on a quadratic log likelihood per user."""
    inverse = np.linalg.inv(covariances)
    pull = np.matmul(inverse, centres[:, :, None])[:, :, 0]
    after = np.linalg.inv(inverse + precision[:, None])
    total = pull + linear[:, None]
    means = np.matmul(after, total[..., None])[..., 0]
    log_share = np.log(weights) - 0.5 * np.vecdot(pull, centres) + 0.5 * np.vecdot(total, means)
    log_share += 0.5 * (np.linalg.slogdet(after)[1] - np.linalg.slogdet(covariances)[1])
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    return Conditioned(share / share.sum(axis=1, keepdims=True), means, after)
