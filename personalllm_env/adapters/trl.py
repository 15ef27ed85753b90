"""One object that owns what TRL's trainers ask for: data, rewards and conversations.

``PersonalLLMSpec`` follows TRL's own ``OpenRewardSpec`` and ``HarborSpec``
(``trl.experimental``): settings in, and properties that go into a trainer's arguments of the
same names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from personalllm_env.adapters.trl_environment import WritingConversation
from personalllm_env.adapters.trl_rewards import answered_share, personal_reward
from personalllm_env.adapters.trl_rows import as_text, asked_rows, pair_rows
from personalllm_env.bank import ResponseBank, Split
from personalllm_env.envs.writing_settings import writing_task_from_settings
from personalllm_env.extras import require
from personalllm_env.feedback import FeedbackSpec
from personalllm_env.generation.asking import Asked, draw_asked
from personalllm_env.generation.chats import user_token
from personalllm_env.generation.problem import WritingTask
from personalllm_env.rewards.ensemble import Ensemble
from personalllm_env.streams import derived_seed
from personalllm_env.users import Population, UserPopulation

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False, kw_only=True)
class PersonalLLMSpec:
    """A task of writing for users, for TRL's GRPO, RLOO and DPO trainers.

    Attributes:
        bank: A ``ResponseBank`` with texts or what ``load_bank`` takes.
        ensemble: What scores texts, or what ``load_ensemble`` takes; by default what scored
            the bank's responses.
        population: Who the users are; None for Dirichlet users who are always new.
        concentration: Of these.
        num_rows: Rows of ``train_dataset`` and ``preference_dataset``.
        num_eval_rows: Rows of ``eval_dataset``.
        past: How many of the user's own comparisons are told in the prompt.
        words: How many words of each of their responses are told.
        user_tokens: Whether the system's turn holds the user's token. Needs a finite
            population and a tokenizer that knows the tokens
            (``personalllm_env.writing.trainable.add_user_tokens``).
        anybody: With tokens, the share of training rows that hold everybody's token instead.
        conversational: Whether prompts are chats, or plain strings for base models.
        horizon: None where the model's completion is the text that the user reads. A number T
            for conversations of T prompts, in which texts are sent by a tool call.
        feedback: How users speak in conversations, as in ``PersonalLLM/Generate-v0``.
        max_characters: Where a text is cut.
        seed: Of all draws.

    Raises:
        ValueError: If a setting is out of range or does not fit the bank.
    """

    bank: ResponseBank | str = "text"
    ensemble: Ensemble | str | None = None
    population: Population | None = None
    concentration: float | tuple[float, ...] | None = None
    num_rows: int = 1000
    num_eval_rows: int = 100
    past: int = 0
    words: int = 40
    user_tokens: bool = False
    anybody: float = 0.0
    conversational: bool = True
    horizon: int | None = None
    feedback: FeedbackSpec = "reward"
    max_characters: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_rows", "num_eval_rows", "words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.anybody <= 1:
            raise ValueError(f"anybody is a share, from 0 to 1; got {self.anybody}")
        if self.anybody and not self.user_tokens:
            raise ValueError("anybody is a share of the rows with tokens: set user_tokens=True")
        if self.horizon is not None and not self.conversational:
            raise ValueError(
                "a conversation (horizon) needs chats, in which tools can be called: leave "
                "conversational=True"
            )
        population = self.problem.task.population  # whatever is wrong with it is said now
        if self.user_tokens and not isinstance(population, UserPopulation):
            raise ValueError("a token per user needs users who recur: a UserPopulation")

    @cached_property
    def problem(self) -> WritingTask:
        """The decision problem that the settings describe."""
        return writing_task_from_settings(
            bank=self.bank,
            ensemble=self.ensemble,
            population=self.population,
            concentration=self.concentration,
            past=self.past,
            feedback=self.feedback,
            horizon=1 if self.horizon is None else self.horizon,
            max_characters=self.max_characters,
        )

    @cached_property
    def train_dataset(self) -> Dataset:
        """Train prompts of train users; see ``trl_rows.asked_rows`` for the columns."""
        asked = self._asked(self.seed, self.num_rows, "train", "train", self.anybody)
        return asked_rows(self.problem, asked, self._prompts(asked))

    @cached_property
    def eval_dataset(self) -> Dataset:
        """Test prompts; of held-out users where there are any and they need no token."""
        users = self.problem.task.population
        held = isinstance(users, UserPopulation) and users.is_test is not None
        split: Split = "test" if held and not self.user_tokens else "train"
        seed = derived_seed(self.seed, "rows to evaluate on")
        asked = self._asked(seed, self.num_eval_rows, "test", split, 0.0)
        return asked_rows(self.problem, asked, self._prompts(asked))

    @cached_property
    def preference_dataset(self) -> Dataset:
        """Pairs of the bank's responses for DPO, under the prompts of ``train_dataset``."""
        asked = self._asked(self.seed, self.num_rows, "train", "train", self.anybody)
        return pair_rows(self.problem, asked, self._prompts(asked), seed=self.seed)

    @cached_property
    def reward_funcs(self) -> list[Callable[..., list[float]]]:
        """The user's utility; in conversations, which own that, the share of answers."""
        if self.horizon is None:
            return [personal_reward(self.problem)]
        return [answered_share(self.problem)]

    @property
    def reward_weights(self) -> list[float]:
        """What ``GRPOConfig(reward_weights=)`` takes: one number per reward function."""
        return [1.0] if self.horizon is None else [0.0]

    @cached_property
    def environment_factory(self) -> Callable[[], WritingConversation] | None:
        """Makes conversations; None without a horizon, as TRL takes it."""
        if self.horizon is None:
            return None
        return partial(WritingConversation, replace(self.problem, past=0))

    def check(self, tokenizer: Any) -> None:
        """Says before any training whether a tokenizer can be used with these settings.

        Args:
            tokenizer: Of transformers'; it is not changed.

        Raises:
            ValueError: In one sentence, with what to do.
            ImportError: If TRL is missing or too old.
        """
        require("trl", "train")
        if self.conversational and tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template: give it one, or take "
                "PersonalLLMSpec(conversational=False)"
            )
        if self.horizon is not None:
            _check_tools(tokenizer)
        if not self.user_tokens:
            return
        known = tokenizer.get_vocab()
        wanted = {*self.train_dataset["user"], *self.eval_dataset["user"]}
        for user in [*sorted(wanted), *([-1] if self.anybody else [])]:
            if user_token(user) not in known:
                raise ValueError(
                    f"the tokenizer does not know {user_token(user)!r}: call "
                    "personalllm_env.writing.trainable.add_user_tokens first"
                )

    def _asked(
        self, seed: int, num_rows: int, split: Split, user_split: Split, anybody: float
    ) -> Asked:
        return draw_asked(
            self.problem,
            num_rows,
            seed=seed,
            split=split,
            user_split=user_split,
            horizon=self.problem.task.horizon,
            anybody=anybody,
        )

    def _prompts(self, asked: Asked) -> list[Any]:
        chats = asked.chats(self.problem, tokens=self.user_tokens, words=self.words)
        return chats if self.conversational else [as_text(chat) for chat in chats]


def _check_tools(tokenizer: Any) -> None:
    """Raises ValueError unless TRL can show tools to a model and read its calls of them."""
    templates = require("trl.chat_template_utils", "train")
    what_to_do = (
        "a model that was trained to call tools brings one that does; otherwise set "
        "tokenizer.chat_template to one of TRL's, such as "
        "trl.chat_template_utils.qwen2_5_chat_template (ChatML), or train without "
        "conversations (horizon=None)"
    )
    if not templates.supports_tool_calling(tokenizer):
        raise ValueError(
            "conversations need tool calls, and the tokenizer's chat template cannot write "
            f"them: {what_to_do}"
        )
    readers = ("response_template", "response_schema")
    if all(getattr(tokenizer, name, None) is None for name in readers):
        try:
            templates.add_response_schema(copy.copy(tokenizer))
        except ValueError:
            raise ValueError(
                "TRL does not know how tool calls are to be read under the tokenizer's chat "
                "template: set tokenizer.response_template (see transformers' response "
                f"parsing); {what_to_do}"
            ) from None
