"""Linear agents: a taste learnt from other users, and a ridge belief about each own user.

All regress what users say on the features of what was shown (``belief.evidence``). After a
history, each user's belief starts at the population's taste with a ridge chosen by evidence;
without one it starts at zero.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.choosing import best, best_of_each, by_upper_bound, only_best
from personalllm_env.belief import Evidence, RidgeBelief, evidence
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_RIDGE = 10.0  # where nothing is known
_RIDGES = np.geomspace(1.0, 1000.0, 13)
_MOST_USERS = 300  # whose evidence chooses the ridge


def history_evidence(database: Database, num_stars: int = 5) -> Evidence:
    """Reads a history as regression pairs, one per interaction, silences among them."""
    parts = [
        evidence(
            database.inputs[database.prompt[rows]],
            database.action[rows],
            database.feedback(rows),
            num_stars,
        )
        for rows in database.blocks()
    ]
    return Evidence(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def average_taste(seen: Evidence) -> Float[np.ndarray, "I"]:
    """Fits the average user's linear taste by least squares; zeros if nobody spoke."""
    if not seen.known.any():
        return np.zeros(seen.features.shape[1])
    x, y = seen.features[seen.known].astype(np.float64), seen.target[seen.known]
    gram = x.T @ x + 1e-3 * len(x) / x.shape[1] * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y)


def likely_ridge(
    seen: Evidence, user: Int[np.ndarray, "N"], centre: Float[np.ndarray, "I"]
) -> float:
    """Chooses how close to the average others are: noise variance over taste variance.

    The marginal likelihood of a user's targets y given features X is that of
    N(X centre, s^2 (I + X X^T / ridge)) with the noise variance s^2 profiled out (MacKay,
    "Bayesian interpolation", Neural Computation 1992, for one hyper-parameter).

    Args:
        seen: What users said.
        user: Who said it, in order.
        centre: The average user's taste.
    """
    known = seen.known & (user < _MOST_USERS)
    if not known.any():
        return _RIDGE
    x = seen.features[known].astype(np.float64)
    scores = _log_evidence(x, seen.target[known] - x @ centre, user[known])
    return float(_RIDGES[scores.argmax()])


def _log_evidence(
    x: Float[np.ndarray, "n D"], residual: Float[np.ndarray, "n"], user: np.ndarray
) -> Float[np.ndarray, "R"]:
    """Returns the profiled log evidence at each ridge of the grid."""
    fit, log_det, total = (
        np.zeros(len(_RIDGES)),
        np.zeros(len(_RIDGES)),
        float(residual @ residual),
    )
    for rows in np.split(np.arange(len(user)), np.flatnonzero(np.diff(user)) + 1):
        left, singular, _ = np.linalg.svd(x[rows], full_matrices=False)
        projected = singular * (left.T @ residual[rows])
        shrunk = _RIDGES[:, None] + singular**2
        fit += (projected**2 / shrunk).sum(axis=1)
        log_det += np.log(shrunk / _RIDGES[:, None]).sum(axis=1)
    return -0.5 * len(user) * np.log((total - fit) / len(user)) - 0.5 * log_det


class Popular:
    """Shows what the average user likes, learnt from others through features."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior: PriorKnowledge) -> None:
        self._prior, self._centre = prior, np.zeros(prior.num_inputs)

    def fit(self, database: Database) -> None:
        """Learns the average taste."""
        self._centre = average_taste(history_evidence(database, self._prior.feedback.num_stars))

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng

    def act(self, observation: Observation) -> Action:
        """Returns the response the average user likes best."""
        values = observation.inputs @ self._centre
        return only_best(values, self._prior.num_shown, self._rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns nothing from its own users."""


class _RidgeAgent:
    """What the agents below share: the belief, and how it learns."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior: PriorKnowledge, ridge: float | None) -> None:
        self._prior, self._ridge = prior, ridge
        self._belief = RidgeBelief(prior.num_inputs, ridge=_RIDGE if ridge is None else ridge)

    def fit(self, database: Database) -> None:
        """Learns the average taste and, unless it was given, the ridge."""
        seen = history_evidence(database, self._prior.feedback.num_stars)
        centre = average_taste(seen)
        ridge = self._ridge
        if ridge is None:
            ridge = likely_ridge(seen, database.user, centre)
        self._belief = RidgeBelief(self._prior.num_inputs, ridge=ridge, centre=centre)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng
        self._belief.reset(num_users)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Regresses what was said on what was shown."""
        num_stars = self._prior.feedback.num_stars
        self._belief.update(evidence(observation.inputs, action, feedback, num_stars))


class EpsilonGreedy(_RidgeAgent):
    """Shows the best by the posterior mean, and with probability ``epsilon`` anything.

    Args:
        prior: What is known of the task.
        epsilon: Share of random actions; 0 is greedy.
        ridge: Prior precision over noise precision; None for the history's.
    """

    def __init__(
        self, prior: PriorKnowledge, *, epsilon: float = 0.05, ridge: float | None = None
    ) -> None:
        check_range("epsilon", epsilon, 0, 1)
        super().__init__(prior, ridge)
        self._epsilon = epsilon

    def act(self, observation: Observation) -> Action:
        """Returns the greedy responses, or random ones."""
        values = self._belief.values(observation.inputs)
        explore = self._rng.random(len(values)) < self._epsilon
        values[explore] = 0.0
        return best(values, self._prior.num_shown, self._rng)

    def probabilities(self, observation: Observation) -> Float[np.ndarray, "B K"]:
        """Returns how likely each response is to be shown, when one is; ties share."""
        values = self._belief.values(observation.inputs)
        ties = values == values.max(axis=1, keepdims=True)
        greedy = ties / ties.sum(axis=1, keepdims=True)
        return self._epsilon / values.shape[1] + (1 - self._epsilon) * greedy


class LinUCB(_RidgeAgent):
    """Shows the highest upper confidence bound (Li et al., WWW 2010, algorithm 1).

    Value = posterior mean + exploration * posterior sd in units of the noise. One taste per
    user is shared by all candidates, which are told apart by their features. To duel, the
    first is the best by the mean and the second the one with the highest upper bound on how
    much better it is, which is the first itself once that is certain.

    Args:
        prior: What is known of the task.
        exploration: The paper's alpha.
        ridge: The prior's weight (the paper has 1); None for the history's.
    """

    def __init__(
        self, prior: PriorKnowledge, *, exploration: float = 0.2, ridge: float | None = None
    ) -> None:
        check_range("exploration", exploration, 0)
        super().__init__(prior, ridge)
        self._exploration = exploration

    def act(self, observation: Observation) -> Action:
        """Returns the responses with the highest bounds."""
        x = observation.inputs.astype(np.float64)
        return by_upper_bound(
            self._belief.values(x), x, self._bonus, self._prior.num_shown, self._rng
        )

    def _bonus(self, x: Float[np.ndarray, "B K I"]) -> Float[np.ndarray, "B K"]:
        return self._exploration * self._belief.widths(x)


class LinearThompson(_RidgeAgent):
    """Shows the best under a taste drawn from the posterior (Agrawal & Goyal, ICML 2013).

    To duel, each of the two is the best under a draw of its own, so that they may coincide
    (double Thompson sampling, Wu & Liu, NeurIPS 2016, without its elimination step).

    Args:
        prior: What is known of the task.
        scale: The noise sd that scales the posterior (the paper's v).
        ridge: Prior precision over noise precision; None for the history's.
    """

    def __init__(
        self, prior: PriorKnowledge, *, scale: float = 0.5, ridge: float | None = None
    ) -> None:
        check_range("scale", scale, 0)
        super().__init__(prior, ridge)
        self._scale = scale

    def act(self, observation: Observation) -> Action:
        """Returns the best responses under independent draws."""
        tastes = self._belief.sample(self._scale, self._rng, self._prior.num_shown)
        values = np.einsum("bkd,bsd->bsk", observation.inputs, tastes)
        return best_of_each(values.swapaxes(0, 1), self._rng)
