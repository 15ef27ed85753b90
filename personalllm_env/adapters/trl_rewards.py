"""What TRL's trainers call with their rollouts: the row's user values what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from personalllm_env.adapters.trl_environment import WritingConversation
from personalllm_env.generation.asking import reader_weights, value_texts
from personalllm_env.generation.problem import WritingTask
from personalllm_env.language.chat import Message

Turns: TypeAlias = Sequence[Message] | str
"""A completion as TRL gives it: the assistant's turns, or bare text."""

LogMetric: TypeAlias = Callable[[str, float], None]


@runtime_checkable
class RewardFunction(Protocol):
    """What TRL calls with the rollouts and all columns of their rows."""

    def __call__(
        self,
        prompts: Sequence[Turns],
        completions: Sequence[Turns],
        *,
        question: Sequence[str],
        user_weights: Sequence[Sequence[float]],
        log_metric: LogMetric | None = None,
        **columns: object,
    ) -> list[float]:
        """Returns one utility per rollout."""
        ...


def personal_reward(
    problem: WritingTask, *, minus: Float[np.ndarray, "M"] | None = None
) -> RewardFunction:
    """Returns a TRL reward function: each rollout's utility to its row's user.

    TRL's ``reward_weights`` are per function and the same for every row, so users' weights
    have to act inside of it. Each reward model's mean score is logged as ``scores/<name>``:
    all are scored once, where a function per reward model would score everything anew.

    Args:
        problem: What scores texts.
        minus: Weights of a reader whose utility is taken off, such as the mean of all users:
            what everybody likes alike then earns nothing, and only what sets the user apart
            is learnt. None for the utility itself.

    Raises:
        ValueError: If ``minus`` has not one weight per reward model.
    """
    taken = reader_weights(problem, minus)

    def personal_reward(
        prompts: Sequence[Turns],
        completions: Sequence[Turns],
        *,
        question: Sequence[str],
        user_weights: Sequence[Sequence[float]],
        log_metric: LogMetric | None = None,
        **columns: object,
    ) -> list[float]:
        texts = [completion_text(turns) for turns in completions]
        weights = np.asarray(user_weights, np.float64) - taken
        scores, utility = value_texts(problem, question, texts, weights)
        _log_scores(problem, scores, log_metric)
        return [float(value) for value in utility]

    return personal_reward


def answered_share(problem: WritingTask) -> Callable[..., list[float]]:
    """Returns a TRL reward function for conversations, which own their reward: weight 0.

    Its value is the share of the user's prompts that were answered; the mean scores of what
    was written are logged as ``scores/<name>``.
    """

    def answered(
        prompts: Sequence[Turns],
        completions: Sequence[Turns],
        *,
        environments: Sequence[WritingConversation],
        log_metric: LogMetric | None = None,
        **columns: object,
    ) -> list[float]:
        written = [each.scores for each in environments]
        _log_scores(problem, np.concatenate(written), log_metric)
        return [len(scores) / problem.task.horizon for scores in written]

    return answered


def completion_text(completion: Turns) -> str:
    """Returns the words of a completion, conversational or not."""
    if isinstance(completion, str):
        return completion
    return "".join(turn["content"] for turn in completion if turn["role"] == "assistant")


def _log_scores(
    problem: WritingTask, scores: Float[np.ndarray, "N M"], log_metric: LogMetric | None
) -> None:
    if log_metric is None or not len(scores):
        return
    for name, mean in zip(problem.ensemble.reward_models, scores.mean(axis=0), strict=True):
        log_metric(f"scores/{name}", float(mean))
