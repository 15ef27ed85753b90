"""How well a model in training writes for held-out prompts, and for whom."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.estimates import CONFIDENCE, RESAMPLES
from personalllm_env.extras import require
from personalllm_env.files import written_whole
from personalllm_env.generation.asking import finite_users
from personalllm_env.generation.chats import chat_for, user_token
from personalllm_env.generation.problem import WritingTask
from personalllm_env.language.chat import Chat
from personalllm_env.rewards.ensemble import Ensemble
from personalllm_env.streams import derived_seed


class Written(NamedTuple):
    """What was written for p held-out prompts, and what readers think of it.

    Utilities are standardised as the bank's scores: 0 is the mean response of its train side.
    """

    own: Float[np.ndarray, "p"]  # of texts under a user's token, to that user; mean over users
    other: Float[np.ndarray, "p"]  # of the same texts, to the other train users
    newcomers: Float[np.ndarray, "p"]  # of the text under ANYBODY, to held-out users
    words: Float[np.ndarray, "p"]  # mean length
    texts: tuple[tuple[str, ...], ...]  # p rows: one per user, ANYBODY's last

    @property
    def gap(self) -> Float[np.ndarray, "p"]:
        """What a text gains by reaching the user it was written for: personalisation.

        0 for every model that writes the same for everybody, however well.
        """
        return self.own - self.other


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out prompts, users who have tokens, and held-out users who have none.

    Attributes:
        prompts: p texts.
        chats: p * (N + 1) chats, row by row: users 0..N-1, then ``ANYBODY``.
        weights: (N, M) of the train users.
        newcomers: (n, M) of the held-out users.
        ensemble: Standardised as the bank.
    """

    prompts: tuple[str, ...]
    chats: tuple[Chat, ...]
    weights: Float[np.ndarray, "N M"]
    newcomers: Float[np.ndarray, "n M"]
    ensemble: Ensemble

    def judge(self, texts: Sequence[str]) -> Written:
        """Values one text per chat."""
        p, n = len(self.prompts), len(self.weights)
        asked = [prompt for prompt in self.prompts for _ in range(n + 1)]
        scores = self.ensemble.scores(asked, texts).reshape(p, n + 1, -1)
        valued = np.einsum("pum,vm->puv", scores[:, :n], self.weights, dtype=np.float64)
        own = np.einsum("puu->p", valued) / n
        other = (valued.sum((1, 2)) - own * n) / max(n * (n - 1), 1) if n > 1 else own
        words = np.array([len(text.split()) for text in texts], float).reshape(p, n + 1)
        rows = tuple(tuple(texts[i : i + n + 1]) for i in range(0, len(texts), n + 1))
        new = (scores[:, n] @ self.newcomers.T).mean(axis=1).astype(np.float64)
        return Written(own, other, new, words.mean(axis=1), rows)


def held_out(problem: WritingTask, *, num_prompts: int | None = None) -> HeldOut:
    """Returns the bank's test prompts (or the first few), for train and for held-out users.

    Raises:
        ValueError: If the population is not finite or holds nobody out.
    """
    bank = problem.task.bank
    assert bank.texts is not None, "a writing task's bank has texts"
    users, weights = finite_users(problem.task.population, "train")
    _, newcomers = finite_users(problem.task.population, "test")
    rows = bank.prompts("test")[:num_prompts]
    chats = tuple(
        chat_for(bank, int(row), token=user_token(int(user)))
        for row in rows
        for user in (*users, -1)
    )
    prompts = tuple(bank.texts.prompts[row] for row in rows)
    return HeldOut(prompts, chats, weights, newcomers, problem.ensemble)


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Returns the mean and the interval in signed decimals."""
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(values: Float[np.ndarray, "p"]) -> Interval:
    """Returns the mean over prompts; they are resampled, users are not."""
    rng = np.random.default_rng(derived_seed(len(values), "bootstrap"))
    drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def every(steps: int, look: Callable[[int], None]) -> Any:
    """Returns a trainer callback that looks before the first step and every so many after.

    Args:
        steps: How many steps lie between looks.
        look: Called with the number of steps done; the last step is always looked at.
    """

    class Every(require("transformers", "train").TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            look(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step % steps == 0 or state.global_step >= state.max_steps:
                look(state.global_step)

    return Every()


def draw_curves(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[Interval]]],
    steps: Int[np.ndarray, "n"],
    *,
    title: str,
) -> None:
    """Draws one panel per measure, its lines with their intervals, whole or not at all.

    Args:
        path: Where to.
        panels: Per panel its lines; a line has one interval per step.
        steps: When the looks were.
        title: What was trained.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for (label, points), colour in zip(
            lines.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False
        ):
            mean, low, high = np.array(points).T
            axis.plot(steps, mean, color=colour, marker="o", markersize=3, label=label)
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="training step")
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    with written_whole(path) as scratch:
        figure.savefig(scratch, dpi=130, format="png")


class Preferences(NamedTuple):
    """How often a policy's implicit reward orders two responses as a user does, per prompt.

    DPO's implicit reward is the log of policy over reference (arXiv 2305.18290, section 4);
    one half where it does not tell two responses apart.
    """

    own: Float[np.ndarray, "p"]  # under the user's own token
    generic: Float[np.ndarray, "p"]  # under ANYBODY's
    other: Float[np.ndarray, "p"]  # under the tokens of the other users

    @property
    def gap(self) -> Float[np.ndarray, "p"]:
        """What a user's own token knows that another user's does not."""
        return self.own - self.other


def preferences(
    utility: Float[np.ndarray, "p N K"], implicit: Float[np.ndarray, "p N+1 K"]
) -> Preferences:
    """Compares all pairs of the K responses to each prompt.

    Args:
        utility: Of each response to each user; pairs that a user values alike do not count.
        implicit: Log-ratio of each response under each user's token, ``ANYBODY``'s last.
    """
    first, second = np.triu_indices(utility.shape[2], 1)
    liked = np.sign(utility[..., first] - utility[..., second])
    told = np.sign(implicit[..., first] - implicit[..., second])
    agree = np.einsum("puc,ptc->put", liked, told) / np.abs(liked).sum(2)[..., None]
    right = (1 + agree) / 2  # (p, users, tokens)
    n = utility.shape[1]
    own = np.einsum("puu->p", right[:, :, :n]) / n
    other = (right[:, :, :n].sum((1, 2)) - own * n) / (n * (n - 1)) if n > 1 else own
    return Preferences(own, right[:, :, n].mean(axis=1), other)
