"""A user as OpenEnv's rubrics: the weighted sum of one rubric per reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from openenv.core.rubrics import Rubric, WeightedSum

from personalllm_env.adapters.openenv.models import GenerateAction, SelectAction
from personalllm_env.generation.problem import WritingTask
from personalllm_env.generation.reading import checked_texts


class Question(Protocol):
    """What was asked in the interaction just over (after a reset: what is asked now)."""

    def scores(self, action: Any) -> Float[np.ndarray, "M"]:
        """Scores what an action shows on the reward models, standardised."""
        ...


class Candidates:
    """A prompt's K candidates with their scores.

    Attributes:
        table: (K, M) scores in the order shown.
    """

    def __init__(self, table: Float[np.ndarray, "K M"]) -> None:
        self.table = table

    def scores(self, action: SelectAction) -> Float[np.ndarray, "M"]:
        """Returns the row of the candidate that an action shows."""
        return self.table[action.response]


class OpenQuestion:
    """A prompt that texts are written for.

    Args:
        problem: Whose ensemble scores them.
        prompt: What is asked.
    """

    def __init__(self, problem: WritingTask, prompt: str) -> None:
        self._problem, self._prompt = problem, prompt
        self._known: dict[tuple[str, ...], Float[np.ndarray, "M"]] = {}

    def remember(self, texts: tuple[str, ...], scores: Float[np.ndarray, "M"]) -> None:
        """Keeps scores that are known, in place of others: each rubric asks for them."""
        self._known = {texts: scores}

    def scores(self, action: GenerateAction) -> Float[np.ndarray, "M"]:
        """Scores what was written, the mean of two texts, as the environment does."""
        texts, problem = written(action), self._problem
        if texts not in self._known:
            s = problem.task.num_shown
            [read], _ = checked_texts([texts], 1, s, problem.max_characters)
            self.remember(texts, problem.ensemble.scores([self._prompt] * s, read).mean(axis=0))
        return self._known[texts]


def written(action: GenerateAction) -> tuple[str, ...]:
    """Returns the texts of an action."""
    return (action.text,) if action.other is None else (action.text, action.other)


class RewardModelRubric(Rubric):
    """One reward model's standardised score of what an action shows.

    Args:
        question: What is asked.
        column: Which reward model.
    """

    def __init__(self, question: Question, column: int) -> None:
        super().__init__()
        self._question, self._column = question, column

    def forward(self, action: Any, observation: Any) -> float:
        """Scores an action; the observation after it is about the next prompt and not used."""
        return float(self._question.scores(action)[self._column])


class UserRubric(WeightedSum):
    """A user: what an action shows is worth ``weights @ scores`` to them.

    ``named_rubrics`` names the children after the reward models.

    Args:
        reward_models: The M names.
        weights: Of the user over them, on the simplex.
        question: What is asked.
    """

    def __init__(
        self,
        reward_models: Sequence[str],
        weights: Float[np.ndarray, "M"],
        question: Question,
    ) -> None:
        rubrics = [RewardModelRubric(question, m) for m in range(len(reward_models))]
        # In single precision weights may sum to 1 less closely than a WeightedSum demands.
        exact = np.asarray(weights, np.float64)
        super().__init__(rubrics, (exact / exact.sum()).tolist())
        self._names = tuple(reward_models)

    def named_children(self) -> Iterator[tuple[str, Rubric]]:
        """Yields the reward models with their names."""
        yield from zip(self._names, self.children(), strict=True)

    def named_rubrics(self, prefix: str = "") -> Iterator[tuple[str, Rubric]]:
        """Yields the reward models with their names, behind a prefix and a dot if given."""
        for name, rubric in self.named_children():
            yield (f"{prefix}.{name}" if prefix else name), rubric
