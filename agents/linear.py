"""Linear agents: a taste learnt from other users, and a ridge belief about each own user.

All regress what users say on the features of what was shown (``belief.evidence``). After a
history, each user's belief starts at the population's taste with a ridge chosen by evidence;
without one it starts at zero.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from personalllm_env.agents.choosing import best, only_best
from personalllm_env.belief import Evidence, RidgeBelief, evidence
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_RIDGES = np.geomspace(1.0, 1000.0, 13)
_MOST_USERS = 300  # whose evidence chooses the ridge


class Taste(NamedTuple):
    """What a history says about users in general."""

    centre: Float[np.ndarray, "D"]  # the average user's linear taste
    ridge: float  # how close to it others are: noise variance over taste variance


def population_taste(database: Database, num_stars: int = 5) -> Taste:
    """Fits the average taste by least squares and the spread around it by evidence.

    The marginal likelihood of a user's targets y given features X is that of
    N(X centre, s^2 (I + X X^T / ridge)) with the noise variance s^2 profiled out (MacKay,
    "Bayesian interpolation", Neural Computation 1992, for one hyper-parameter).
    """
    seen = _history_evidence(database, num_stars)
    if not seen.known.any():
        return Taste(np.zeros(seen.features.shape[1]), 10.0)
    x, y = seen.features[seen.known].astype(np.float64), seen.target[seen.known]
    gram = x.T @ x + 1e-3 * len(x) / x.shape[1] * np.eye(x.shape[1])
    centre = np.linalg.solve(gram, x.T @ y)
    user, residual = database.user[seen.known], y - x @ centre
    few = user < _MOST_USERS
    scores = _log_evidence(x[few], residual[few], user[few])
    return Taste(centre, float(_RIDGES[scores.argmax()]))


def _history_evidence(database: Database, num_stars: int) -> Evidence:
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
        self._centre = population_taste(database, self._prior.feedback.num_stars).centre

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng

    def act(self, observation: Observation) -> Action:
        """Returns the response the average user likes best."""
        values = observation.inputs @ self._centre
        return only_best(values, self._prior.num_shown, self._rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns nothing from its own users."""


class _Learner:
    """The belief that the agents below share by composition."""

    def __init__(self, prior: PriorKnowledge, ridge: float | None) -> None:
        self.num_shown, self._inputs, self._ridge = prior.num_shown, prior.num_inputs, ridge
        self._num_stars = prior.feedback.num_stars
        self.belief = RidgeBelief(prior.num_inputs, ridge=10.0 if ridge is None else ridge)

    def fit(self, database: Database) -> None:
        taste = population_taste(database, self._num_stars)
        ridge = taste.ridge if self._ridge is None else self._ridge
        self.belief = RidgeBelief(self._inputs, ridge=ridge, centre=taste.centre)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.belief.reset(num_users)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        x = observation.inputs
        self.belief.update(evidence(x, action, feedback, self._num_stars))


class EpsilonGreedy:
    """Shows the best by the posterior mean, and with probability ``epsilon`` anything.

    Args:
        prior: What is known of the task.
        epsilon: Share of random actions; 0 is greedy.
        ridge: Prior precision over noise precision; None for the history's.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, *, epsilon: float = 0.05, ridge: float | None = None
    ) -> None:
        check_range("epsilon", epsilon, 0, 1)
        self._learner, self._epsilon = _Learner(prior, ridge), epsilon
        self.fit, self.reset = self._learner.fit, self._learner.reset
        self.update = self._learner.update

    def act(self, observation: Observation) -> Action:
        """Returns the greedy responses, or random ones."""
        learner = self._learner
        values = learner.belief.values(observation.inputs)
        explore = learner.rng.random(len(values)) < self._epsilon
        values[explore] = 0.0
        return best(values, learner.num_shown, learner.rng)


class LinUCB:
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

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, *, exploration: float = 0.2, ridge: float | None = None
    ) -> None:
        check_range("exploration", exploration, 0)
        self._learner, self._exploration = _Learner(prior, ridge), exploration
        self.fit, self.reset = self._learner.fit, self._learner.reset
        self.update = self._learner.update

    def act(self, observation: Observation) -> Action:
        """Returns the responses with the highest bounds."""
        learner, x = self._learner, observation.inputs.astype(np.float64)
        values = learner.belief.values(x)
        if learner.num_shown == 1:
            values += self._exploration * learner.belief.widths(x)
            return best(values, 1, learner.rng)
        first = best(values, 1, learner.rng)
        ahead = x - np.take_along_axis(x, first[:, :, None], axis=1)
        values += self._exploration * learner.belief.widths(ahead)
        return np.hstack([first, best(values, learner.num_shown - 1, learner.rng)])


class LinearThompson:
    """Shows the best under a taste drawn from the posterior (Agrawal & Goyal, ICML 2013).

    To duel, each of the two is the best under a draw of its own, so that they may coincide
    (double Thompson sampling, Wu & Liu, NeurIPS 2016, without its elimination step).

    Args:
        prior: What is known of the task.
        scale: The noise sd that scales the posterior (the paper's v).
        ridge: Prior precision over noise precision; None for the history's.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, *, scale: float = 0.5, ridge: float | None = None
    ) -> None:
        check_range("scale", scale, 0)
        self._learner, self._scale = _Learner(prior, ridge), scale
        self.fit, self.reset = self._learner.fit, self._learner.reset
        self.update = self._learner.update

    def act(self, observation: Observation) -> Action:
        """Returns the best responses under independent draws."""
        learner, x = self._learner, observation.inputs
        tastes = learner.belief.sample(self._scale, learner.rng, learner.num_shown)
        values = np.einsum("bkd,bsd->bsk", x, tastes)
        return np.hstack([best(values[:, s], 1, learner.rng) for s in range(values.shape[1])])
