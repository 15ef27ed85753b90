"""What a log says of another agent: off-policy estimates as pure functions over arrays.

A log holds N interactions of U users. At each the logging agent showed one of K responses, each
with a probability it wrote down; the probability of the one it showed is the *propensity*. An
evaluated agent, the *target*, would have shown them with other probabilities. All functions
estimate the mean reward per interaction had the target chosen where the logger did, and differ
in what they believe: propensities, a model of the reward, or both.

With w = target / propensity at what was shown, r the reward, q the model's predictions and
q(target) their mean under the target's probabilities:

  ips    mean(w r)                              unbiased where the logger shows all that the
                                                target does; noisy where w varies
  snips  sum(w r) / sum(w)                      biased by O(1/N); the same, shifted, if rewards
                                                are shifted, and never outside their range
  dm     mean(q(target))                        as good as the model, and no better; its
                                                interval knows of users, not of the model
  dr     mean(q(target) + w (r - q))            unbiased like ips, with the model's errors in
                                                place of the rewards
  sndr   mean(q(target)) + sum(w (r - q)) / sum(w)

Interactions of one user depend on each other, so every estimate keeps sums per user, and its
interval resamples users (``estimates.intervals``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.estimates import Design, Statistics, intervals, ratio

NEAR_ONE = 1e-6
"""How far probabilities may add up beside 1."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate as sums over each user's interactions.

    It is sum(direct) / sum(count) + sum(correction) / sum(scale), over users.

    Attributes:
        direct: (U,) what a model of the reward expects of the target; 0 without a model.
        correction: (U,) weighted rewards, or weighted errors of the model.
        scale: (U,) what the correction is a share of: interactions, or weights.
        count: (U,) interactions.
    """

    direct: Float[np.ndarray, "U"]
    correction: Float[np.ndarray, "U"]
    scale: Float[np.ndarray, "U"]
    count: Float[np.ndarray, "U"]

    @property
    def value(self) -> float:
        """The estimated mean reward per interaction; NaN where it is a share of nothing."""
        return float(statistics([self]).value[0])

    @cached_property
    def users(self) -> Float[np.ndarray, "U"]:
        """What each user adds to the estimate, linearised: its mean over users is the value."""
        found = statistics([self])
        return np.asarray(found.value[0] + found.linear[0])

    def interval(self) -> Float[np.ndarray, "3"]:
        """Returns the estimate and the ends of its 95 % interval; NaN for a single user."""
        return np.asarray(confidence([self])[0])


def statistics(estimates: list[Estimate]) -> Statistics:
    """Returns estimates of one log with their resamples, which are the same for all."""
    design = Design((len(estimates[0].count),))
    stacked = [
        np.stack([getattr(estimate, name) for estimate in estimates])
        for name in ("direct", "count", "correction", "scale")
    ]
    direct = ratio(design, stacked[0], stacked[1])
    correction = ratio(design, stacked[2], stacked[3])
    return Statistics(*(a + b for a, b in zip(direct, correction, strict=True)))


def confidence(estimates: list[Estimate]) -> Float[np.ndarray, "A 3"]:
    """Returns estimates of one log and the ends of their 95 % intervals over users."""
    return intervals(Design((len(estimates[0].count),)), statistics(estimates))


# --- the estimators ---------------------------------------------------------------------------


def ips(
    reward: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"], user: Int[np.ndarray, "N"]
) -> Estimate:
    """Inverse propensity scoring (Horvitz and Thompson, JASA 1952).

    Args:
        reward: What users reported.
        weights: ``importance_weights``, perhaps ``clipped``.
        user: Whose interaction it is, from 0.
    """
    count = _sums(np.ones(len(user)), user)
    return Estimate(np.zeros_like(count), _sums(weights * reward, user), count, count)


def snips(
    reward: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"], user: Int[np.ndarray, "N"]
) -> Estimate:
    """Self-normalised inverse propensity scoring (Swaminathan and Joachims, NeurIPS 2015, 4).

    Arguments as for ``ips``.
    """
    count = _sums(np.ones(len(user)), user)
    scale = _sums(weights, user)
    return Estimate(np.zeros_like(count), _sums(weights * reward, user), scale, count)


def dm(
    target: Float[np.ndarray, "N K"],
    predicted: Float[np.ndarray, "N K"],
    user: Int[np.ndarray, "N"],
) -> Estimate:
    """The direct method: what a model of the reward expects of the target.

    Args:
        target: The target's probability of showing each response.
        predicted: The reward the model predicts for each.
        user: Whose interaction it is, from 0.
    """
    count = _sums(np.ones(len(user)), user)
    direct = _sums(np.vecdot(target, predicted), user)
    return Estimate(direct, np.zeros_like(count), count, count)


def dr(
    reward: Float[np.ndarray, "N"],
    action: Int[np.ndarray, "N"],
    weights: Float[np.ndarray, "N"],
    target: Float[np.ndarray, "N K"],
    predicted: Float[np.ndarray, "N K"],
    user: Int[np.ndarray, "N"],
) -> Estimate:
    """Doubly robust: the direct method, its errors corrected where they were seen.

    Unbiased if the propensities are right or the model is, where the model has not seen the
    interaction it predicts (Dudik, Langford and Li, ICML 2011; with Erhan, Statistical Science
    2014).

    Args:
        reward: What users reported.
        action: Which response was shown.
        weights: ``importance_weights``, perhaps ``clipped`` or ``switched``.
        target: The target's probability of showing each response.
        predicted: The reward a model predicts for each.
        user: Whose interaction it is, from 0.
    """
    error = _sums(weights * (reward - _at(predicted, action)), user)
    direct = dm(target, predicted, user)
    return Estimate(direct.direct, error, direct.count, direct.count)


def sndr(
    reward: Float[np.ndarray, "N"],
    action: Int[np.ndarray, "N"],
    weights: Float[np.ndarray, "N"],
    target: Float[np.ndarray, "N K"],
    predicted: Float[np.ndarray, "N K"],
    user: Int[np.ndarray, "N"],
) -> Estimate:
    """Doubly robust, its correction normalised by its weights (Thomas & Brunskill, ICML 2016).

    Arguments as for ``dr``.
    """
    plain = dr(reward, action, weights, target, predicted, user)
    return Estimate(plain.direct, plain.correction, _sums(weights, user), plain.count)


# --- weights ----------------------------------------------------------------------------------


def importance_weights(
    target: Float[np.ndarray, "N K"],
    action: Int[np.ndarray, "N"],
    propensity: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "N"]:
    """Returns how much likelier the target was to show what was shown.

    Args:
        target: The target's probability of showing each response; rows add up to 1.
        action: Which response was shown, in 0..K-1.
        propensity: How probable that was to the logger, in (0, 1].

    Raises:
        ValueError: Naming the first row that is not a probability, or has none.
    """
    _check_rows(
        (propensity > 0) & (propensity <= 1 + NEAR_ONE), "propensity", "in (0, 1]", propensity
    )
    total = target.sum(axis=1)
    good = (np.abs(total - 1) <= NEAR_ONE * target.shape[1]) & (target >= 0).all(axis=1)
    _check_rows(good, "target", "probabilities that add up to 1", target)
    inside = (action >= 0) & (action < target.shape[1])
    _check_rows(inside, "action", f"in 0..{target.shape[1] - 1}", action)
    return np.asarray(_at(target, action) / propensity)


def clipped(weights: Float[np.ndarray, "N"], most: float) -> Float[np.ndarray, "N"]:
    """Returns weights of at most ``most``: less noise, and a bias towards 0 (or the model).

    With ``ips`` this is truncated importance sampling (Ionides, JCGS 2008).
    """
    return np.asarray(np.minimum(weights, most))


def switched(weights: Float[np.ndarray, "N"], most: float) -> Float[np.ndarray, "N"]:
    """Returns weights, 0 for those above ``most``: there the model alone is believed.

    With ``dr`` this is SWITCH-DR (Wang, Agarwal and Dudik, ICML 2017).
    """
    return np.where(weights <= most, weights, 0.0)


def effective_size(weights: Float[np.ndarray, "N"]) -> float:
    """Returns how many interactions of equal weight would tell as much (Kish 1965, 11.7)."""
    total = float((weights**2).sum())
    return float(weights.sum()) ** 2 / total if total else 0.0


def unsupported(
    target: Float[np.ndarray, "N K"], probabilities: Float[np.ndarray, "N K"]
) -> float:
    """Returns which share of the target's choices the logger would never have made.

    Where it is above 0, ``ips`` is biased: of those choices the log says nothing.
    """
    never: Bool[np.ndarray, "N K"] = probabilities <= 0
    return float(np.where(never, target, 0.0).sum() / len(target))


def _at(values: Float[np.ndarray, "N K"], action: Int[np.ndarray, "N"]) -> np.ndarray:
    return np.asarray(np.take_along_axis(values, action[:, None], axis=1)[:, 0])


def _sums(values: Float[np.ndarray, "N"], user: Int[np.ndarray, "N"]) -> np.ndarray:
    """Returns sums per user; users without an interaction do not count."""
    return np.asarray(np.bincount(user, weights=values)[np.bincount(user) > 0])


def _check_rows(good: Bool[np.ndarray, "N"], what: str, wanted: str, found: np.ndarray) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{what}, row {row}: expected {wanted}, got {found[row].tolist()}")
