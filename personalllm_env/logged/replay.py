"""Logged episodes, played again in the environment's own steps.

A log has a row per interaction and, beside it, all that was said about it. Sequence formats
want what an environment returned: observations with what was said last, rewards when they came.
Episodes are a function of their seed and of what is shown, so these are computed anew and not
stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from personalllm_env.core import candidates
from personalllm_env.envs.lockstep import Obs, Rows
from personalllm_env.envs.vector import ChoosingRows
from personalllm_env.envs.writing import WritingRows
from personalllm_env.generation.problem import WritingTask
from personalllm_env.logged.log import Log, check_log
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.types import Feedback

_USERS_AT_ONCE = 128
_SAME = 1e-3  # how far a reward may be from the logged one: texts are scored anew


class Episode(NamedTuple):
    """What an environment returned to whoever acted as a log says, n interactions long.

    A single environment with ``row=user`` returns the same after ``reset(seed=log.seed)``.
    """

    user: int
    rows: slice  # of the log
    observations: dict[str, Any]  # n + 1 each: arrays with them in front, lists of words
    actions: Any  # n positions, or n texts
    rewards: Float[np.ndarray, "n"]
    terminated: Bool[np.ndarray, "n"]
    truncated: Bool[np.ndarray, "n"]


@runtime_checkable
class Stage(Protocol):
    """The environment in which a log is played again."""

    @property
    def task(self) -> Task:
        """The log's decision problem."""
        ...

    def shell(self, users: Int[np.ndarray, "B"]) -> Rows:
        """Returns the environment of some users."""
        ...

    def actions(self, log: Log) -> Any:
        """Returns, for every row of a log, what that environment calls the action: N."""
        ...

    def serve(self, shell: Rows, actions: list[Any]) -> Feedback:
        """Lets the users of a shell have one action each; returns what is heard."""
        ...


class SelectStage:
    """``PersonalLLM/Select-v0``, its observations with features.

    Args:
        task: The log's.
        texts: Whether observations have the words too, as with ``texts=True``.

    Raises:
        ValueError: If words are wanted of a bank without.
    """

    def __init__(self, task: Task, *, texts: bool = False) -> None:
        if texts and task.bank.texts is None:
            raise ValueError(f"texts=True needs a bank with texts; {task.bank.name!r} has none")
        self.task, self._texts = task, texts

    def shell(self, users: Int[np.ndarray, "B"]) -> Rows:
        """Returns the environment of some users."""
        session = Session(self.task, users)
        return _WordedRows(session) if self._texts else ChoosingRows(session, "features")

    def actions(self, log: Log) -> Int[np.ndarray, "N"]:
        """Returns the positions shown."""
        return log.action

    def serve(self, shell: Rows, actions: list[Any]) -> Feedback:
        """Shows one position to each user."""
        return shell.serve(np.array(actions, dtype=np.int64)[:, None], None)[0]


class _WordedRows(ChoosingRows):
    """Adds what the single environment adds with ``texts=True``."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, "features")

    def observe(self, said: Float[np.ndarray, "B W"], heard: Float[np.ndarray, "B"]) -> Obs:
        """Returns features and words."""
        obs, session = super().observe(said, heard), self.session
        bank, episodes = session.task.bank, session.episodes
        assert bank.texts is not None, "the stage looks"
        prompt = episodes.prompt[session.at].tolist()
        order = candidates(session.task, episodes, session.at) % bank.num_responses
        obs["prompt_text"] = [bank.texts.prompts[p] for p in prompt]
        obs["response_texts"] = [
            tuple(bank.texts.responses[p][k] for k in row)
            for p, row in zip(prompt, order.tolist(), strict=True)
        ]
        return obs


class GenerateStage:
    """``PersonalLLM/Generate-v0``: what was shown is taken to have been written.

    Users, prompts and noise are those of Select. Utilities agree as far as the ensemble gives
    the bank's responses the scores that the bank has.

    Args:
        problem: Of the log's task; its ensemble scores the texts.
        max_conversation: As for the environment.
        prompt_features: As for the environment.
    """

    def __init__(
        self,
        problem: WritingTask,
        *,
        max_conversation: int = 16_000,
        prompt_features: bool = False,
    ) -> None:
        self.problem, self.task = problem, problem.task
        self._limit, self._features = max_conversation, prompt_features

    def shell(self, users: Int[np.ndarray, "B"]) -> Rows:
        """Returns the environment of some users."""
        return WritingRows(self.problem, users, self._limit, prompt_features=self._features)

    def actions(self, log: Log) -> list[str]:
        """Returns the words of what was shown, cut where the environment cuts."""
        words, most = self.problem.texts.responses, self.problem.max_characters
        rows = zip(log.prompt.tolist(), log.shown.tolist(), strict=True)
        return [words[prompt][k][:most] for prompt, k in rows]

    def serve(self, shell: Rows, actions: list[Any]) -> Feedback:
        """Lets each user read a text."""
        return shell.serve([["" if text == 0 else text] for text in actions], None)[0]


def replay(log: Log, stage: Stage) -> Iterator[Episode]:
    """Plays logged episodes again; yields them by user.

    Args:
        log: Whole episodes that ``record_log`` recorded.
        stage: Of the same task.

    Raises:
        ValueError: If the log has no seed or lacks interactions, or if its task, bank or seed
            is another: users then say something else than they did.
    """
    task = stage.task
    check_log(log, task.bank)
    if log.seed is None:
        raise ValueError("only a log with the seed of its episodes can be played again")
    starts = _starts(log, task)
    acted = stage.actions(log)
    for first in range(0, log.num_users, _USERS_AT_ONCE):
        users = np.arange(first, min(first + _USERS_AT_ONCE, log.num_users))
        yield from _block(log, stage, users, starts[first : first + len(users) + 1], acted)


def _starts(log: Log, task: Task) -> Int[np.ndarray, "U1"]:
    """Returns the first row of each user, and N; raises ValueError unless all are whole."""
    present, starts = np.unique(log.user, return_index=True)
    starts = np.append(starts, len(log))
    last = starts[1:] - 1
    whole = (np.diff(starts) == task.horizon) | log.left[last]
    complete = len(present) == log.num_users and (log.t[last] == np.diff(starts) - 1).all()
    if not (complete and whole.all()):
        raise ValueError(
            "only whole episodes can be played again: expected every user's interactions from "
            f"0 to the last of {task.horizon}, or until they left; rows were left out"
        )
    return starts


def _block(
    log: Log,
    stage: Stage,
    users: Int[np.ndarray, "B"],
    starts: Int[np.ndarray, "B1"],
    acted: Any,
) -> Iterator[Episode]:
    task, shell = stage.task, stage.shell(users)
    k, lengths = task.bank.num_responses, np.diff(starts)
    shell.begin(log.seed)
    silent = np.zeros((len(users), task.feedback.width(k)), np.float32)
    seen, rewards = [shell.observe(silent, silent[:, 0].copy())], []
    for t in range(lengths.max()):
        rows = np.minimum(starts[:-1] + t, len(log) - 1)
        there = t < lengths
        _check(log, rows[there], {"prompt": shell.session.episodes.prompt[t][there]}, 0)
        feedback = stage.serve(
            shell, [acted[r] if b else 0 for r, b in zip(rows, there, strict=True)]
        )
        if t >= task.feedback.delay:
            about = rows[there] - task.feedback.delay
            _check(log, about, {"reward": feedback.reward[there]}, _SAME)
        rewards.append(feedback.reward)
        said = task.feedback.encode(feedback, k)
        seen.append(shell.observe(said, feedback.heard.astype(np.float32)))
    for i, user in enumerate(users.tolist()):
        n, rows_of_user = int(lengths[i]), slice(int(starts[i]), int(starts[i + 1]))
        yield Episode(
            user,
            rows_of_user,
            {name: _one(seen[: n + 1], name, i) for name in seen[0]},
            acted[rows_of_user],
            np.array([reward[i] for reward in rewards[:n]], dtype=np.float32),
            log.left[rows_of_user],
            log.t[rows_of_user] == task.horizon - 1,
        )


def _one(seen: list[Obs], name: str, i: int) -> Any:
    """Returns what one user saw under a name, in time."""
    values = [obs[name][i] for obs in seen]
    return np.stack(values) if isinstance(values[0], np.ndarray | np.generic) else values


def _check(
    log: Log, rows: Int[np.ndarray, "b"], found: dict[str, NDArray[Any]], tolerance: float
) -> None:
    """Raises ValueError unless what happens again is what is in the log."""
    for name, values in found.items():
        differs = np.abs(getattr(log, name)[rows] - values) > tolerance
        if differs.any():
            i = int(differs.argmax())
            raise ValueError(
                f"the log is of another task, bank or seed than it is played again with: "
                f"{name}, row {rows[i] + 1}: expected {getattr(log, name)[rows[i]]}, got "
                f"{values[i]}"
            )
