"""Agents whose prior over tastes is learnt from the histories of other users."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.choosing import best, best_of_each, by_upper_bound, linear_sd
from personalllm_env.agents.hearing import gather, make_lens, speakers
from personalllm_env.agents.mixture_belief import MixtureBelief
from personalllm_env.agents.taste import Quadratic, TastePrior, condition, fit_taste, quadratic
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_EXPLORE = ("greedy", "thompson", "ucb")
_USERS_AT_ONCE, _LOOKS = 500, 4  # whose histories are kept, and times they are looked at


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
            under mean + ``width`` sds of the difference to the first, which may be the first
            again; with ``thompson``, under a second draw.
        width: In posterior sds.
        rank: Axes of taste along which users may differ.
        memory: Interactions, at least 1, after which what was said counts 1/e, for users who
            drift; None never to forget, or, where the task says that users drift, for half the
            horizon.
        most_users: Of the history, the first who said anything, from whom the prior is learnt.

    Raises:
        ValueError: If a setting is out of range, or if users speak through no channel that
            says anything of a linear taste.
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
        check_range("width", width, 0)
        for name, number in (
            ("components", components),
            ("rank", rank),
            ("most_users", most_users),
        ):
            check_range(name, number, 1)
            if number % 1:
                raise ValueError(f"{name} must be whole, got {number}")
        if memory is None and prior.drift is not None:
            memory = max(prior.horizon / 2, 2.0)
        if memory is not None:
            check_range("memory", memory, 1)
        self._prior, self._explore, self._width = prior, explore, width
        self._components, self._rank = int(components), int(rank)
        self._most_users = int(most_users)
        self._memory = memory
        self._lens = make_lens(prior, None)
        a = self._lens.axes.shape[1] + self._lens.level
        one = np.ones(1), np.zeros((1, a)), np.eye(a)[None]
        self._belief = MixtureBelief(
            TastePrior(np.zeros(a), np.sqrt(0.1) * np.eye(a), *one, 1.0), memory
        )
        self._recall: Quadratic | None = None

    def fit(self, database: Database) -> None:
        """Learns the prior, and who the users are who may come back."""
        users = speakers(database)
        if not len(users):
            return
        self._lens = make_lens(self._prior, database)
        histories = gather(database, self._lens, users[: self._most_users])
        taste = fit_taste(histories, rank=self._rank, components=self._components)
        self._belief = MixtureBelief(taste, self._memory)
        self._recall = None
        if database.identity is not None:
            self._recall = self._keep_histories(database, database.identity, users)

    def _keep_histories(
        self, database: Database, identity: Int[np.ndarray, "U"], users: Int[np.ndarray, "V"]
    ) -> Quadratic:
        """Returns what every identity said, as quadratics in z around their own taste."""
        taste = self._belief.prior
        num, r = int(identity.max()) + 1, taste.axes.shape[1]
        all_said = Quadratic(np.zeros((num, r, r)), np.zeros((num, r)))
        for start in range(0, len(users), _USERS_AT_ONCE):
            some = users[start : start + _USERS_AT_ONCE]
            histories = gather(database, self._lens, some)
            own = np.tile(taste.mean, (len(some), 1))
            for _ in range(_LOOKS if self._lens.picks else 1):
                said = quadratic(histories, own).onto(taste.mean, taste.axes, taste.noise)
                share, means, _ = condition(*taste[2:5], said)
                own = taste.mean + np.matmul(share[:, None], means)[:, 0] @ taste.axes.T
            np.add.at(all_said.precision, identity[some], said.precision)
            np.add.at(all_said.linear, identity[some], said.linear)
        return all_said

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng, self._met = rng, False
        self._belief.reset(num_users)

    def _meet(self, observation: Observation) -> None:
        """Recalls the users who were in the history, at the first sight of them."""
        if self._met or self._recall is None or observation.user is None:
            return
        self._met = True
        rows = observation.user < len(self._recall.linear)
        user = observation.user[rows]
        said = Quadratic(self._recall.precision[user], self._recall.linear[user])
        self._belief.remember(rows, condition(*self._belief.prior[2:5], said))

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
            return best_of_each(values.swapaxes(0, 1), self._rng)
        values = level + np.matmul(z, self._belief.mean()[:, :, None])[:, :, 0]
        if self._explore == "greedy" and num_shown == 1:
            return best(values, 1, self._rng)
        return by_upper_bound(values, z, self._bonus, num_shown, self._rng)

    def _bonus(self, z: Float[np.ndarray, "B K R"]) -> Float[np.ndarray, "B K"]:
        return self._width * linear_sd(z, self._belief.covariance())

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns from what was said."""
        self._meet(observation)
        heard = self._lens.hear(observation.inputs, action, feedback)
        self._belief.update(heard)
