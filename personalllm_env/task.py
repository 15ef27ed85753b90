"""The decision problem: bank, users, feedback and settings, without the seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.bank import ResponseBank, Split
from personalllm_env.drift import Drift
from personalllm_env.feedback import FeedbackModel, Reward
from personalllm_env.types import PriorKnowledge
from personalllm_env.users import DirichletUsers, Population

_PARTS = {
    "bank": (ResponseBank, "a ResponseBank: load_bank('synthetic')"),
    "population": (Population, "users: DirichletUsers(), or UserPopulation(weights)"),
    "feedback": (FeedbackModel, "a FeedbackModel: feedback_model('like')"),
}


@dataclass(frozen=True)
class Task:
    """Everything that defines the decision problem, apart from the seed.

    Attributes:
        bank: What can be asked and answered.
        population: Who asks.
        feedback: How they speak.
        horizon: T, interactions per user.
        num_shown: S, how many responses an action shows: 1 to select, 2 to duel.
        split: The prompts in play.
        user_split: The users in play, where the population has a split.
        prompts_per_episode: None for a fresh prompt at every interaction; a number for a pool
            of that many draws that recur within the episode, where exploration pays.
        shuffle: Whether the K responses come in a new order at each interaction.
        drift: How the user's weights change within an episode, or None.
        recognise: Whether agents see which user of a finite population they serve.
        white_box: Whether agents see the reward-model scores of the candidates.

    Raises:
        ValueError: If the parts do not fit together.
    """

    bank: ResponseBank
    population: Population = field(default_factory=DirichletUsers)
    feedback: FeedbackModel = field(default_factory=lambda: FeedbackModel((Reward(),)))
    horizon: int = 50
    num_shown: int = 1
    split: Split = "train"
    user_split: Split = "all"
    prompts_per_episode: int | None = None
    shuffle: bool = False
    drift: Drift | None = None
    recognise: bool = False
    white_box: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        if self.user_split != "all" and not self._splits_users:
            raise ValueError(
                f"user_split {self.user_split!r} needs a population with a split (is_test)"
            )
        if self.population.num_reward_models != self.bank.num_reward_models:
            raise ValueError(
                f"users weigh {self.population.num_reward_models} reward models, the bank has "
                f"{self.bank.num_reward_models}: {', '.join(self.bank.reward_models)}"
            )
        if self.prompts_per_episode is not None and self.prompts_per_episode < 1:
            raise ValueError(
                f"prompts_per_episode must be at least 1, got {self.prompts_per_episode}"
            )
        if not 1 <= self.num_shown <= self.bank.num_responses:
            raise ValueError(
                f"num_shown must be in 1..{self.bank.num_responses}, got {self.num_shown}"
            )
        for channel in self.feedback.channels:
            if channel.num_shown not in (None, self.num_shown):
                raise ValueError(
                    f"feedback {channel.name!r} needs {channel.num_shown} shown responses; "
                    f"this task shows {self.num_shown}"
                )

    @property
    def _splits_users(self) -> bool:
        return getattr(self.population, "is_test", None) is not None

    def side(self, split: Literal["train", "test"]) -> Task:
        """Returns this task on one side: its prompts, and its users where they are split."""
        return replace(self, split=split, user_split=split if self._splits_users else "all")

    @cached_property
    def prompts(self) -> Int[np.ndarray, "p"]:
        """Bank rows of the prompts in play."""
        return self.bank.prompts(self.split)

    @cached_property
    def flat_scores(self) -> Float[np.ndarray, "PK M"]:
        """The bank's scores with one row per response."""
        return self.bank.scores.reshape(-1, self.bank.num_reward_models)

    @cached_property
    def flat_features(self) -> Float[np.ndarray, "PK D"]:
        """The bank's response features with one row per response."""
        return self.bank.response_features.reshape(-1, self.bank.num_features)

    def prior_knowledge(self) -> PriorKnowledge:
        """Returns what an honest agent may know."""
        return PriorKnowledge(
            num_responses=self.bank.num_responses,
            num_shown=self.num_shown,
            num_features=self.bank.num_features,
            num_reward_models=self.bank.num_reward_models,
            horizon=self.horizon,
            feedback=self.feedback,
            responders=self.bank.responders,
            shuffled=self.shuffle,
            white_box=self.white_box,
            drift=self.drift,
        )


def _check_kinds(task: Task) -> None:
    """Raises ValueError for the first part that is not of its kind."""
    for name, (kind, wanted) in _PARTS.items():
        part = getattr(task, name)
        if isinstance(part, type) or not isinstance(part, kind):
            raise ValueError(f"{name} must be {wanted}; got {part!r:.60}")
    for name in ("split", "user_split"):
        if (split := getattr(task, name)) not in get_args(Split):
            raise ValueError(f"{name} must be 'train', 'test' or 'all', got {split!r}")
    for name in ("horizon", "num_shown", "prompts_per_episode"):
        number = getattr(task, name)
        if number is not None and not isinstance(number, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {number!r}")
