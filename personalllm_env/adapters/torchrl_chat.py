"""TorchRL's ChatEnv with simulated users: who asks is in the row, and the reward is theirs.

All texts that are sampled for a row are valued by the row's user, so that a group of GRPO
shares one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from personalllm_env.extras import require
from personalllm_env.generation.asking import Asked, draw_asked, reader_weights, value_texts
from personalllm_env.generation.problem import WritingTask

torch = require("torch", "torchrl")
require("torchrl.envs.llm", "torchrl")

import tensordict as td  # noqa: E402
from torchrl.data import Unbounded  # noqa: E402
from torchrl.envs import StepCounter, Transform  # noqa: E402
from torchrl.envs.llm import DatasetChatEnv  # noqa: E402


class AskedLoader:
    """Rows for TorchRL's ``DataLoadingPrimer``: one dict at a time, in order.

    A row has ``query`` (the chat that the model reads), ``question`` (the prompt's bare text),
    ``user`` (-1 for one met only once), ``weights`` (M,), ``seed``, and ``group``, a number of
    its own: ``MCAdvantage(prompt_key="group")`` compares texts for one user and prompt, where
    its default compares all that answer the same prompt, whoever asked.

    Args:
        problem: Whose bank.
        asked: Who asks what.
        tokens: Whether the system's turn holds the user's token.

    Raises:
        ValueError: If tokens are asked for and users do not recur.
    """

    batch_size = 0  # TorchRL's word for rows that come one by one

    def __init__(self, problem: WritingTask, asked: Asked, *, tokens: bool = False) -> None:
        self._texts, self._asked = problem.texts, asked
        self._chats = asked.chats(problem, tokens=tokens)

    def __len__(self) -> int:
        return len(self._chats)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        asked, seeds = self._asked, self._asked.seeds
        for i, chat in enumerate(self._chats):
            yield {
                "query": chat,
                "question": self._texts.prompts[int(asked.prompt[0, i])],
                "user": torch.tensor(int(asked.user[i])),
                "weights": torch.tensor(asked.weights[i], dtype=torch.float32),
                "seed": torch.tensor(int(seeds[i])),
                "group": torch.tensor(i),
            }


class PersonalReward(Transform):  # type: ignore[misc]
    """Values what was written as the row's user does, ``weights @ scores``.

    The reward equals ``info["utility"]`` of ``PersonalLLM/Generate-v0`` for the same user and
    text. It has the shape (B, 1, 1) that TorchRL's language-model losses spread over tokens;
    ``scores`` (B, M), one per reward model, come along for the report.

    Args:
        problem: What scores texts, and where they are cut.
        end: What ends a bare response: see ``written``.
        minus: Weights of a reader whose utility is taken off, such as the mean of all users:
            what everybody likes alike then earns nothing, and only what sets the user apart
            is learnt. None for the utility itself.

    Raises:
        ValueError: If ``minus`` has not one weight per reward model.
    """

    def __init__(
        self,
        problem: WritingTask,
        *,
        end: str | None = None,
        minus: Float[np.ndarray, "M"] | None = None,
    ) -> None:
        super().__init__(in_keys=[], out_keys=["reward", "scores"])
        self._problem, self._end = problem, end
        self._taken = reader_weights(problem, minus)

    def _step(self, tensordict: Any, next_tensordict: Any) -> Any:
        questions = list(tensordict["question"])
        weights = tensordict["weights"].numpy().astype(np.float64) - self._taken
        texts = written(tensordict, self._end)
        scores, utility = value_texts(self._problem, questions, texts, weights)
        next_tensordict["reward"] = torch.as_tensor(utility, dtype=torch.float32)[:, None, None]
        next_tensordict["scores"] = torch.as_tensor(scores, dtype=torch.float32)
        return next_tensordict

    def transform_reward_spec(self, reward_spec: Any) -> Any:
        """Returns the spec of the reward and of the scores."""
        num = len(self._problem.ensemble.reward_models)
        shape = reward_spec.shape
        reward_spec["reward"] = Unbounded((*shape, 1, 1))
        reward_spec["scores"] = Unbounded((*shape, num))
        return reward_spec


def written(tensordict: Any, end: str | None = None) -> list[str]:
    """Returns the B texts of a step: the last turns of histories, or the bare responses.

    TorchRL 0.14 finds no turn in a text that was cut off before its end, and leaves an empty
    one in the history; the bare response, where the policy gives it, has the words.

    Args:
        tensordict: What the policy made of the prompts.
        end: What ends a bare response and is not of it, such as a tokenizer's ``eos_token``.

    Raises:
        ValueError: If a history does not end with the assistant's turn, or there is no text.
    """
    text = tensordict.get("text", None)
    bare = None if text is None else text.response
    texts = None if bare is None else [x.partition(end)[0] if end else x for x in bare]
    history = tensordict.get("history", None)
    if history is None:
        if texts is None:
            raise ValueError(
                "there is no text to value: expected ('history', 'full') or ('text', "
                "'response'), as of a ChatEnv with input_mode='history' or 'text'"
            )
        return texts
    last = [full[..., -1] for full in history.full.unbind(0)]
    for row, turn in enumerate(last):
        if turn.role != "assistant":
            raise ValueError(
                f"row {row}: the last turn of ('history', 'full') must be the assistant's, it "
                f"is of {turn.role!r}"
            )
    turns = [turn.content for turn in last]
    return turns if texts is None else [turn or x for turn, x in zip(turns, texts, strict=True)]


def personal_chat_env(
    problem: WritingTask,
    num_rows: int,
    *,
    seed: int,
    num_envs: int,
    group: int = 1,
    tokens: bool = False,
    tokenizer: Any = None,
    minus: Float[np.ndarray, "M"] | None = None,
) -> DatasetChatEnv:
    """Returns a ChatEnv of single turns whose rows are asked by simulated users.

    Args:
        problem: Whose bank, users, past and reward models.
        num_rows: How many rows are drawn, before they come again.
        seed: Of the draw.
        num_envs: B, a multiple of ``group``.
        group: G, how many texts are written for a row; they stand next to each other.
        tokens: Whether the system's turn holds the user's token.
        tokenizer: Of the policy.
        minus: See ``PersonalReward``.

    Raises:
        ValueError: If ``num_envs`` is no multiple of ``group``, or there are no rows.
    """
    if num_envs < 1 or group < 1 or num_envs % group:
        raise ValueError(f"num_envs must be a multiple of group={group}, got {num_envs}")
    asked = draw_asked(problem, num_rows, seed=seed)
    with td.set_list_to_stack(True):
        env = DatasetChatEnv.from_dataloader(
            AskedLoader(problem, asked, tokens=tokens),
            repeats=group,
            batch_size=(num_envs,),
            tokenizer=tokenizer,
        )
    end = None if tokenizer is None else tokenizer.eos_token
    env.append_transform(StepCounter(max_steps=1))
    env.append_transform(PersonalReward(problem, end=end, minus=minus))
    return env
