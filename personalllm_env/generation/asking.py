"""Who asks what, drawn for trainers that sample texts of their own, and what texts are worth.

An environment draws a user at every reset. A trainer that compares several texts for one
prompt (GRPO and its kin) would then compare what different users like; so here users and
prompts are drawn as rows of a data set, and every text that is sampled for a row is valued
by the row's user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from personalllm_env import core
from personalllm_env.bank import Split
from personalllm_env.generation.chats import chat_for, user_token
from personalllm_env.generation.contract import Past
from personalllm_env.generation.problem import WritingTask, draw_past
from personalllm_env.generation.reading import checked_texts
from personalllm_env.language.chat import Message
from personalllm_env.streams import Purpose, bits, derived_seed, stream_keys
from personalllm_env.users import UserPopulation


@dataclass(frozen=True, eq=False)
class Asked:
    """N rows: in each, one user asks T prompts, all different.

    Attributes:
        user: Rows in the population, -1 for users who are met only once.
        weights: Who they are.
        prompt: Bank rows; row 0 is what is asked first.
        past: What the users preferred before, of other prompts; None without a past.
        named: Whether a row may name its user by a token; the others are anybody's.
        keys: The rows' streams.
    """

    user: Int[np.ndarray, "N"]
    weights: Float[np.ndarray, "N M"]
    prompt: Int[np.ndarray, "T N"]
    past: Past | None
    named: Bool[np.ndarray, "N"]
    keys: UInt64[np.ndarray, "N"]

    @property
    def seeds(self) -> Int[np.ndarray, "N"]:
        """One integer below 2**31 per row, for environments that need one."""
        return (self.keys >> np.uint64(33)).astype(np.int64)

    def chats(
        self, problem: WritingTask, *, tokens: bool = False, words: int = 40
    ) -> list[list[Message]]:
        """Returns the chats that ask the first prompts, the past told before them.

        Args:
            problem: Whose bank.
            tokens: Whether the system's turn holds the user's token.
            words: How many of each response of the past are told.

        Raises:
            ValueError: If tokens are asked for and users do not recur, or nothing is told of
                responses.
        """
        if words < 1:
            raise ValueError(f"words must be at least 1, got {words}")
        if tokens and len(self.user) and self.user.min() < 0:
            raise ValueError("a token per user needs users who recur: a UserPopulation")
        names = np.where(self.named, self.user, -1).tolist()
        return [
            chat_for(
                problem.task.bank,
                row,
                token=user_token(names[i]) if tokens else "",
                past=self.past and Past(*(column[i] for column in self.past)),
                words=words,
            )
            for i, row in enumerate(self.prompt[0].tolist())
        ]


def draw_asked(
    problem: WritingTask,
    num_rows: int,
    *,
    seed: int,
    split: Split = "train",
    user_split: Split = "train",
    horizon: int = 1,
    anybody: float = 0.0,
) -> Asked:
    """Draws users and prompts; every prompt of the split comes before any comes again.

    Nobody is shown answers to what they are asked: the past is of other prompts.

    Args:
        problem: Whose bank, population and past.
        num_rows: N.
        seed: Of the draw.
        split: Of the prompts.
        user_split: Of the users.
        horizon: T.
        anybody: The share of rows that are not ``named``.

    Raises:
        ValueError: If there are no rows, or a row would ask more prompts than there are.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    bank = problem.task.bank
    rng = np.random.default_rng(derived_seed(seed, "prompts to train on"))
    keys = stream_keys(seed, np.arange(num_rows), np.zeros(num_rows, np.int64))
    drawn = problem.task.population.draw(keys, user_split)
    ids = bank.prompts(split)
    if horizon > len(ids):
        raise ValueError(
            f"a conversation of {horizon} different prompts needs as many; bank {bank.name!r} "
            f"has {len(ids)} in its {split} split"
        )
    rounds = [rng.permutation(ids) for _ in range(-(-num_rows // len(ids)))]
    first = np.concatenate(rounds)[:num_rows]
    named = rng.random(num_rows) >= anybody
    prompt = np.concatenate([first[None], _following(ids, first, horizon - 1, seed)])
    past = draw_past(problem, keys, drawn.weights, prompt) if problem.past else None
    return Asked(drawn.user, drawn.weights, prompt, past, named, keys)


def _following(
    ids: Int[np.ndarray, "p"], first: Int[np.ndarray, "N"], num: int, seed: int
) -> Int[np.ndarray, "num N"]:
    """Returns further prompts of each row, different from each other and from the first."""
    found = np.empty((num, len(first)), np.int64)
    if num:
        rng = np.random.default_rng(derived_seed(seed, "prompts that follow"))
        for i, row in enumerate(first):
            drawn = rng.choice(ids, num + 1, replace=False)
            found[:, i] = drawn[drawn != row][:num]
    return found


def draw_pairs(
    problem: WritingTask, asked: Asked, *, seed: int
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Draws two of the bank's responses to what each row asks first.

    Returns:
        Which of the K responses the row's user likes better, and which less. Users know what
        they prefer: no noise.
    """
    bank, n = problem.task.bank, len(asked.user)
    keys = stream_keys(derived_seed(seed, "pairs"), np.arange(n), np.zeros(n, np.int64))
    words = bits(keys, Purpose.PAST_PAIR, bank.num_responses)
    pair = words.argsort(axis=0)[:2]
    utility = core.utilities(bank.scores[asked.prompt[0]], asked.weights)
    one, other = np.take_along_axis(utility, pair.T, axis=1).T
    won = np.where(one >= other, pair[0], pair[1])
    return won, pair.sum(axis=0) - won


def finite_users(
    population: object, split: Split
) -> tuple[Int[np.ndarray, "u"], Float[np.ndarray, "u M"]]:
    """Returns the rows and weights of a finite population's users.

    Raises:
        ValueError: If users are always new.
    """
    if not isinstance(population, UserPopulation):
        raise ValueError(
            f"a token per user needs a UserPopulation, got {type(population).__name__}: its "
            "users are met only once"
        )
    users = population.users(split)
    return users, population.weights[users]


def value_texts(
    problem: WritingTask,
    prompts: Sequence[str],
    texts: Sequence[str],
    weights: Float[np.ndarray, "N M"],
) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N"]]:
    """Values N texts as ``PersonalLLM/Generate-v0`` does: the same cut, scores and weights.

    Args:
        problem: What scores texts, and where they are cut.
        prompts: What was asked.
        texts: What was written.
        weights: Of the users who asked.

    Returns:
        Standardised scores per reward model, and utilities.
    """
    read, _ = checked_texts([[text] for text in texts], len(prompts), 1, problem.max_characters)
    scores = problem.ensemble.scores(prompts, [text for [text] in read])
    return scores, core.utilities(scores[:, None], weights.astype(np.float32))[:, 0]


def reader_weights(
    problem: WritingTask, minus: Float[np.ndarray, "M"] | None
) -> Float[np.ndarray, "M"]:
    """Returns the weights of a reader whose utility is taken off a user's; None is nobody.

    What both like alike is then worth nothing, and only what sets the user apart is.

    Raises:
        ValueError: If there is not one weight per reward model.
    """
    num = len(problem.ensemble.reward_models)
    if minus is None:
        return np.zeros(num)
    if np.shape(minus) != (num,):
        raise ValueError(f"minus must be {num} weights, got shape {np.shape(minus)}")
    return minus
