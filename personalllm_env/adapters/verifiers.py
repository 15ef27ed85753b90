"""A taskset for verifiers (version 1 of its interface): users who ask for a text, and value it.

verifiers finds tasksets by the name of a top-level module; ``examples/verifiers_personalllm``
is such a module, which holds these classes and nothing else.
"""

# ruff: noqa: E402 - what is missing is said before anything needs it
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from personalllm_env.extras import require

require("verifiers.v1", "verifiers")

import verifiers.v1 as vf

from personalllm_env.bank import Split
from personalllm_env.envs.writing_settings import writing_task_from_settings
from personalllm_env.generation.asking import draw_asked, value_texts
from personalllm_env.generation.problem import WritingTask


class PersonalLLMData(vf.TaskData):  # type: ignore[misc]
    """One row: a user asks.

    Attributes:
        question: The prompt's bare text, without the past.
        prompt_row: Its row in the bank.
        user_weights: Who asks; no part of what the model is shown.
    """

    question: str
    prompt_row: int
    user_weights: tuple[float, ...]


class PersonalLLMTaskConfig(vf.TaskConfig):  # type: ignore[misc]
    """What a task needs to value a text (``--env.taskset.task.*``).

    Attributes:
        bank: What ``load_bank`` takes; it has texts.
        ensemble: What ``load_ensemble`` takes; None for what scored the bank.
        max_characters: Where a text is cut.
    """

    bank: str = "text"
    ensemble: str | None = None
    max_characters: int = 4000


class PersonalLLMTask(vf.Task[PersonalLLMData, vf.State, PersonalLLMTaskConfig]):  # type: ignore[misc]
    """The user's utility is the reward, and every reward model's score a metric."""

    @vf.reward  # type: ignore[untyped-decorator]
    async def utility(self, trace: vf.Trace) -> float:
        """Returns what the last reply is worth to the user, as ``Generate-v0`` has it."""
        return _valued(self.config, self.data, trace.last_reply)[1]

    @vf.metric  # type: ignore[untyped-decorator]
    async def scores(self, trace: vf.Trace) -> dict[str, float]:
        """Returns the standardised score of each reward model."""
        return _valued(self.config, self.data, trace.last_reply)[0]


class PersonalLLMConfig(vf.TasksetConfig):  # type: ignore[misc]
    """Which rows there are (``--env.taskset.*``).

    Attributes:
        task: What values texts.
        num_tasks: How many rows; every prompt of the split comes before any comes again.
        concentration: Of the Dirichlet users, one per row.
        past: How many of the user's own comparisons the prompt tells first.
        words: How many words of each of their responses are told.
        split: Of the prompts.
        seed: Of users, prompts and past.
    """

    task: PersonalLLMTaskConfig = PersonalLLMTaskConfig()
    num_tasks: int = 100
    concentration: float = 0.05
    past: int = 0
    words: int = 40
    split: Split = "train"
    seed: int = 0


class PersonalLLMTaskset(vf.Taskset[PersonalLLMTask, PersonalLLMConfig]):  # type: ignore[misc]
    """Users of a Dirichlet population ask the prompts of a bank."""

    def load(self) -> Iterator[PersonalLLMTask]:
        """Yields the rows; all rollouts of a row are for the same user.

        Raises:
            ValueError: If a setting is out of range or does not fit the bank.
        """
        config = self.config
        if config.num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {config.num_tasks}")
        problem = writing_task_from_settings(
            bank=config.task.bank,
            ensemble=config.task.ensemble,
            concentration=config.concentration,
            past=config.past,
            max_characters=config.task.max_characters,
            horizon=1,
        )
        asked = draw_asked(problem, config.num_tasks, seed=config.seed, split=config.split)
        for i, [turn] in enumerate(asked.chats(problem, words=config.words)):
            row = int(asked.prompt[0, i])
            data = PersonalLLMData(
                name=f"{config.split} prompt {row}",
                prompt=turn["content"],
                question=problem.texts.prompts[row],
                prompt_row=row,
                user_weights=tuple(asked.weights[i].tolist()),
            )
            yield PersonalLLMTask(data, config.task)


def _valued(
    config: PersonalLLMTaskConfig, data: PersonalLLMData, text: str
) -> tuple[dict[str, float], float]:
    """Returns a text's scores by name, and what it is worth to the row's user."""
    task = config.bank, config.ensemble, config.max_characters
    names, scores, value = _scored(*task, data.question, data.user_weights, text)
    return dict(zip(names, scores, strict=True)), value


@lru_cache(maxsize=1024)  # reward and metrics ask for the same scores
def _scored(
    bank: str,
    ensemble: str | None,
    max_characters: int,
    question: str,
    user_weights: tuple[float, ...],
    text: str,
) -> tuple[tuple[str, ...], list[float], float]:
    problem = _problem(bank, ensemble, max_characters)
    weights = np.array([user_weights], np.float32)
    [scores], [value] = value_texts(problem, [question], [text], weights)
    return problem.ensemble.reward_models, scores.tolist(), float(value)


@lru_cache(maxsize=4)
def _problem(bank: str, ensemble: str | None, max_characters: int) -> WritingTask:
    return writing_task_from_settings(
        bank=bank, ensemble=ensemble, max_characters=max_characters
    )
