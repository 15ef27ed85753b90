"""What a track is: a question as data, from which both of its tasks are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from personalllm_env.bank import ResponseBank
from personalllm_env.envs.translate import task_from_settings
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.users import UserPopulation, clustered_population, dirichlet_population


class Sides(NamedTuple):
    """The two tasks of a track under one seed."""

    history: Task  # train prompts, whose users agents with ``fit`` learn from
    test: Task  # test prompts, whose users everybody is measured on


@dataclass(frozen=True)
class Track:
    """A question of the benchmark. All but the words is plain JSON and part of every result.

    Attributes:
        name: With a version, which changes whenever what is measured does: ``cold-start-v0``.
        question: In one sentence.
        environment: Keywords of the environment (``envs.translate.task_from_settings``)
            without bank, split and population.
        population: A finite population: ``{"dirichlet": {...}}`` or ``{"communities": {...}}``
            with keywords of ``users.dirichlet_population`` or ``users.clustered_population``.
            Without a ``seed`` of its own it is drawn anew in every repetition. None for
            Dirichlet users who never recur.
        history: Keywords that differ on the train side, where the history is recorded.
        history_users: How many other users there are to learn from.
        yardstick: The agent whose answer is the limit, besides the oracle: exact Bayes where
            it is defined.
        reported: Interactions after which the gain is reported.
    """

    name: str
    question: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    population: Mapping[str, Mapping[str, Any]] | None = None
    history: Mapping[str, Any] = field(default_factory=dict)
    history_users: int = 1000
    yardstick: str = "feature-bayes"
    reported: tuple[int, ...] = (1, 5, 20)

    def definition(self) -> dict[str, Any]:
        """Returns what results depend on, as JSON."""
        return {
            "name": self.name,
            "environment": dict(self.environment),
            "population": None
            if self.population is None
            else {kind: dict(given) for kind, given in self.population.items()},
            "history": dict(self.history),
        }

    def sides(self, bank: ResponseBank, seed: int) -> Sides:
        """Builds both tasks.

        Args:
            bank: Its train prompts are the history's, its test prompts the measured ones.
            seed: Of the repetition; a finite population is drawn from it.

        Raises:
            ValueError: If the track's settings do not fit together or the bank.
        """
        people = self._population(bank.num_reward_models, seed)
        test, train = dict(self.environment), {**self.environment, **self.history}
        for name in ("bank", "population", "split", "user_split"):
            if name in train:
                raise ValueError(f"{name} cannot be an environment's keyword here")
        return Sides(
            history=task_from_settings(bank=bank, population=people, **train).side("train"),
            test=task_from_settings(bank=bank, population=people, **test).side("test"),
        )

    def _population(self, num_reward_models: int, seed: int) -> UserPopulation | None:
        if self.population is None:
            return None
        [(kind, given)] = self.population.items()
        makers: dict[str, Callable[..., UserPopulation]]
        makers = {"dirichlet": dirichlet_population, "communities": clustered_population}
        settings = {
            "seed": derived_seed(seed, "population"),
            **given,
            "num_reward_models": num_reward_models,
        }
        if kind not in makers:
            known = ", ".join(makers)
            raise ValueError(f"population must be one of {known}, got {kind!r}")
        return makers[kind](**settings)
