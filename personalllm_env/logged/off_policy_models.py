"""Models of the reward for off-policy estimates, each fitted on other users than it predicts.

A model that has seen the reward it is to predict makes ``dr`` biased. Both models here predict
an interaction from other users' interactions (cross-fitting: Chernozhukov et al., The
Econometrics Journal 2018) and, the personal one, from the same user's past, which is as good:
given the past, the next exploration is still to be drawn.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.belief import Evidence, RidgeBelief
from personalllm_env.logged.log import Log, check_log
from personalllm_env.logged.off_policy import moments

FOLDS = 5
PERSONAL_RIDGE = 100.0
"""How slowly a user's own taste leaves the others': noise variance over that of tastes."""
_RIDGE = 1e-3  # as a share of the features' mean square


def fold_of(user: Int[np.ndarray, "N"], folds: int = FOLDS) -> Int[np.ndarray, "N"]:
    """Returns in which fold each interaction is; a user's are all in one.

    Raises:
        ValueError: If there are fewer users than folds, or than 2.
    """
    users, who = np.unique(user, return_inverse=True)
    if len(users) < 2:
        raise ValueError(
            f"a user's rewards are predicted from others': expected 2 users or more, got "
            f"{len(users)}"
        )
    if not 2 <= folds <= len(users):
        raise ValueError(
            f"expected folds= from 2 to the number of users, {len(users)}, got {folds}"
        )
    return np.asarray(who % folds)


def pooled_rewards(log: Log, *, folds: int = FOLDS) -> Float[np.ndarray, "N K"]:
    """Predicts the reward of each response by ridge regression on its features.

    One taste for everybody: the model knows what is popular, not who asks.

    Args:
        log: The interactions; a fold is predicted from the others.
        folds: How many.

    Raises:
        ValueError: If there are too few users for folds, or the log does not fit together.
    """
    check_log(log)
    fold = fold_of(log.user, folds)
    tastes = _tastes(log, fold, folds)
    predicted = np.empty((len(log), log.num_responses))
    for rows in log.blocks():
        mine = tastes[fold[rows]]
        values = np.matmul(log.candidates(rows).astype(np.float64), mine[:, :-1, None])
        predicted[rows] = values[:, :, 0] + mine[:, -1:]
    return predicted


def personal_rewards(
    log: Log, *, folds: int = FOLDS, ridge: float = PERSONAL_RIDGE
) -> Float[np.ndarray, "N K"]:
    """Predicts the reward of each response to a user from their past, starting at the others'.

    The pooled taste, and a ridge regression towards it on what the user said before.

    Args:
        log: The interactions; a fold starts at the taste of the others.
        folds: How many.
        ridge: How many interactions in the direction of a feature weigh as much as the others.

    Raises:
        ValueError: As for ``pooled_rewards``.
    """
    check_log(log)
    fold = fold_of(log.user, folds)
    tastes = _tastes(log, fold, folds)
    predicted = np.empty((len(log), log.num_responses))
    belief = None
    for moment in moments(log):
        mine = tastes[fold[moment.rows]]
        inputs = moment.observation.inputs
        if belief is None:
            belief = RidgeBelief(inputs.shape[2], ridge=ridge)
            belief.reset(len(mine))
        values = np.matmul(inputs.astype(np.float64), mine[:, :-1, None])[:, :, 0]
        values += mine[:, -1:]
        own = values + belief.values(inputs)
        predicted[moment.of_log] = own[moment.there]
        users, action = np.arange(len(mine)), log.action[moment.rows]
        known: Bool[np.ndarray, "U"] = moment.there & moment.feedback.heard
        error = moment.feedback.reward - values[users, action]
        belief.update(Evidence(inputs[users, action], error, known))
    return predicted


def _tastes(log: Log, fold: Int[np.ndarray, "N"], folds: int) -> Float[np.ndarray, "folds I1"]:
    """Fits a taste and an intercept per fold, on those who spoke in the others."""
    shown = log.inputs[log.prompt, log.shown].astype(np.float64)
    x = np.hstack([shown, np.ones((len(log), 1))]) * log.heard[:, None]
    grams = np.stack([x[fold == f].T @ x[fold == f] for f in range(folds)])
    sides = np.stack([x[fold == f].T @ log.reward[fold == f] for f in range(folds)])
    gram, side = grams.sum(axis=0) - grams, sides.sum(axis=0) - sides
    size = np.trace(gram, axis1=1, axis2=2) / x.shape[1]
    if not (size > 0).all():
        raise ValueError("expected users who speak outside every fold, got silence")
    return np.linalg.solve(
        gram + _RIDGE * size[:, None, None] * np.eye(x.shape[1]), side[:, :, None]
    )[:, :, 0]
