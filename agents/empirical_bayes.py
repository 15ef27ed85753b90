"""Agents whose prior over tastes is learnt from the histories of other users."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from personalllm_env.agents.choosing import best
from personalllm_env.agents.hearing import gather, make_lens
from personalllm_env.agents.mixture_belief import MixtureBelief
from personalllm_env.agents.taste import TastePrior, condition, fit_taste, quadratic
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_EXPLORE = ("greedy", "thompson", "ucb")


class EmpiricalBayes:
    """Bayes with a prior over users' linear tastes that was fitted on other users.

    The prior is a Gaussian or a mixture of them (``taste.fit_taste``); each user's posterior
    is exact for rewards and stars, Laplace's for choices, clicks and likes. Users who can be
    recognised and were in the history start from what they said then.

    Args:
        prior: What is known of the task.
        components: How many Gaussians the prior has.
        explore: ``greedy`` shows the best under the posterior mean, ``thompson`` under a draw,
            ``ucb`` under mean + ``width`` posterior sds. To duel, the second shown is the best
            of the others under mean + ``width`` sds of the difference to the first, which may
            be the first itself; with ``thompson``, under a second draw.
        width: In posterior sds.
        rank: Axes of taste along which users may differ.
        memory: Interactions after which what was said counts 1/e, for users who drift; None
            for all of them, or half the horizon where the task says that users drift.
        most_users: Of the history, from whom the prior is learnt.

    Raises:
        ValueError: If a setting is out of range.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        components: int = 10,
        explore: str = "greedy",
        width: float = 0.5,
        rank: int = 10,
        memory: float | None = None,
        most_users: int = 2000,
    ) -> None:
        if explore not in _EXPLORE:
            raise ValueError(f"explore must be one of {', '.join(_EXPLORE)}, got {explore!r}")
        check_range("components", components, 1)
        check_range("rank", rank, 1)
        check_range("width", width, 0)
        check_range("most_users", most_users, 1)
        if memory is None and prior.drift is not None:
            memory = max(prior.horizon / 2, 2.0)
        if memory is not None:
            check_range("memory", memory, 1)
        self._prior, self._explore, self._width = prior, explore, width
        self._components, self._rank, self._most_users = components, rank, most_users
        self._memory = memory
        self._lens = make_lens(prior, None)
        a = self._lens.axes.shape[1] + self._lens.level
        one = np.ones(1), np.zeros((1, a)), np.eye(a)[None]
        self._belief = MixtureBelief(
            TastePrior(np.zeros(a), np.sqrt(0.1) * np.eye(a), *one, 1.0), memory
        )
        self._known: np.ndarray | None = None

    def fit(self, database: Database) -> None:
        """Learns the prior, and who the users are who may come back."""
        if not database.heard.any():
            return
        self._lens = make_lens(self._prior, database)
        histories = gather(database, self._lens, self._most_users)
        taste = fit_taste(histories, rank=self._rank, components=self._components)
        self._belief = MixtureBelief(taste, self._memory)
        if database.identity is not None:
            self._keep_histories(database, taste)

    def _keep_histories(self, database: Database, taste: TastePrior) -> None:
        """Remembers the quadratic of every identity, at the average taste."""
        assert database.identity is not None, "the caller has looked"
        histories = gather(database, self._lens, database.num_users)
        u = len(histories.known)
        said = quadratic(histories, np.tile(taste.mean, (u, 1)))
        precision = taste.axes.T @ said.precision @ taste.axes / taste.noise
        linear = (said.linear - said.precision @ taste.mean) @ taste.axes / taste.noise
        num = int(database.identity.max()) + 1
        r = linear.shape[1]
        self._precision, self._linear = np.zeros((num, r, r)), np.zeros((num, r))
        np.add.at(self._precision, database.identity[:u], precision)
        np.add.at(self._linear, database.identity[:u], linear)
        self._known = np.zeros(num, dtype=bool)
        self._known[database.identity[:u]] = True

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng, self._met = rng, False
        self._belief.reset(num_users)

    def _meet(self, observation: Observation) -> None:
        """Recalls the users who were in the history, at the first sight of them."""
        if self._met or self._known is None or observation.user is None:
            return
        self._met = True
        user = np.minimum(observation.user, len(self._known) - 1)
        rows = (observation.user == user) & self._known[user]
        taste = self._belief.prior
        known = condition(
            taste.weights,
            taste.centres,
            taste.covariances,
            self._precision[user[rows]],
            self._linear[user[rows]],
        )
        self._belief.remember(rows, known)

    def act(self, observation: Observation) -> Action:
        """Returns the best responses, by the chosen way of exploring."""
        self._meet(observation)
        taste = self._belief.prior
        seen = self._lens.see(observation.inputs.astype(np.float64))
        level, z = seen @ taste.mean, seen @ taste.axes
        num_shown = self._prior.num_shown
        if self._explore == "thompson":
            draws = self._belief.sample(self._rng, num_shown)
            values = level[:, None] + np.matmul(draws, z.swapaxes(1, 2))
            return np.hstack([best(values[:, s], 1, self._rng) for s in range(num_shown)])
        values = level + np.matmul(z, self._belief.mean()[:, :, None])[:, :, 0]
        if num_shown == 1:
            if self._explore == "ucb":
                values = values + self._width * self._sd(z)
            return best(values, 1, self._rng)
        first = best(values, 1, self._rng)
        ahead = z - np.take_along_axis(z, first[:, :, None], axis=1)
        values = values + self._width * self._sd(ahead)
        return np.hstack([first, best(values, num_shown - 1, self._rng)])

    def _sd(self, z: Float[np.ndarray, "B K R"]) -> Float[np.ndarray, "B K"]:
        variance = np.vecdot(np.matmul(z, self._belief.covariance()), z)
        return np.sqrt(np.maximum(variance, 0.0))

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns from what was said."""
        self._meet(observation)
        heard = self._lens.hear(observation.inputs, action, feedback)
        self._belief.update(heard)
