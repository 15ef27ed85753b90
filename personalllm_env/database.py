"""Interactions of other users: who saw what, and what they said. ``fit`` learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from personalllm_env.bank import ResponseBank
from personalllm_env.core import Fixed, candidates
from personalllm_env.session import Session
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.types import Feedback
from personalllm_env.users import UserPopulation


@dataclass(frozen=True, eq=False)
class Database:
    """N interactions, sorted by user and then by time; features are looked up by bank row.

    Attributes:
        user: (N,) which historical user, from 0.
        prompt: (N,) bank row of the prompt.
        action: (N, S) which of the bank's K responses were shown (in the bank's order).
        reward: (N,) what the user reported; 0 where silent.
        heard: (N,) whether they said anything.
        said: Per channel (N,); a click is in the bank's order.
        prompt_features: (P, D) the bank's table.
        response_features: (P, K, D) the bank's table.
        identity: (U,) row of each historical user in the population, where users can be
            recognised when they come back; else None.
        scores: (P, K, M) the bank's table, in a white-box task; else None.
    """

    user: Int[np.ndarray, "N"]
    prompt: Int[np.ndarray, "N"]
    action: Int[np.ndarray, "N S"]
    reward: Float[np.ndarray, "N"]
    heard: Bool[np.ndarray, "N"]
    said: Mapping[str, Float[np.ndarray, "N"]]
    prompt_features: Float[np.ndarray, "P D"]
    response_features: Float[np.ndarray, "P K D"]
    identity: Int[np.ndarray, "U"] | None = None
    scores: Float[np.ndarray, "P K M"] | None = None

    def __post_init__(self) -> None:
        for column in (self.user, self.prompt, self.action, self.reward, self.heard):
            column.setflags(write=False)  # agents share it
        for column in self.said.values():
            column.setflags(write=False)
        if self.identity is not None:
            self.identity.setflags(write=False)

    @property
    def num_users(self) -> int:
        """How many users the history is of."""
        return int(self.user[-1]) + 1 if len(self.user) else 0

    @property
    def inputs(self) -> Float[np.ndarray, "P K I"]:
        """What agents judge candidates by: scores in a white-box task, else features."""
        return self.response_features if self.scores is None else self.scores

    def spoken(self) -> Database:
        """Returns the interactions at which something was said."""
        if self.heard.all():
            return self
        rows = self.heard
        said = {name: values[rows] for name, values in self.said.items()}
        columns = ("user", "prompt", "action", "reward", "heard")
        kept = {name: getattr(self, name)[rows] for name in columns}
        return replace(self, said=said, **kept)

    def blocks(self, size: int = 8192) -> Iterator[slice]:
        """Yields consecutive rows, so that candidates can be gathered a block at a time."""
        for start in range(0, len(self.user), size):
            yield slice(start, start + size)

    def feedback(self, rows: slice = slice(None)) -> Feedback:
        """Returns what was said at some of the interactions, as agents hear it."""
        said = {name: values[rows] for name, values in self.said.items()}
        heard = self.heard[rows]
        return Feedback(self.reward[rows], heard, said, np.zeros(len(heard), dtype=bool))


def check_database(database: Database, bank: ResponseBank, where: str = "database") -> None:
    """Checks that interactions fit together and that what they are about is in a bank.

    Args:
        database: The interactions.
        bank: What they are about.
        where: What an error calls the database.

    Raises:
        ValueError: Naming the column and the row (from 1) of what does not fit.
    """
    n, k = len(database.user), bank.num_responses
    said = {f"said {name}": values for name, values in database.said.items()}
    numbers = {"reward": database.reward, **said}
    columns = {"prompt": database.prompt, "action": database.action, "heard": database.heard}
    for name, column in {**columns, **numbers}.items():
        if len(column) != n:
            raise ValueError(f"{where}: {name} has {len(column)} rows beside {n} of user")
    falls = np.diff(database.user, prepend=0) < 0
    _all_rows(~falls, where, "user", database.user, "sorted and not negative")
    for name, column, high in (
        ("prompt", database.prompt, bank.num_prompts),
        ("action", database.action, k),
        *((f"said {c}", v, k) for c, v in database.said.items() if c == "click"),
    ):
        good = (column >= 0) & (column < high) & (column == np.floor(column))
        good = good if good.ndim == 1 else good.all(axis=1)
        _all_rows(good, where, name, column, f"in 0..{high - 1}")
    for name, column in numbers.items():
        _all_rows(np.isfinite(column), where, name, column, "finite")
    if database.identity is not None:
        present = np.unique(database.user)
        if not len(present) == database.num_users == len(database.identity):
            raise ValueError(
                f"{where}: identities of {len(database.identity)} users, but interactions of "
                f"{len(present)} among 0..{database.num_users - 1}"
            )


def _all_rows(
    good: Bool[np.ndarray, "N"],
    where: str,
    name: str,
    column: Shaped[np.ndarray, "N *S"],
    wanted: str,
) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"{where}: {name}, row {row + 1}: expected {wanted}, got {column[row].tolist()}"
        )


def record_history(task: Task, *, num_users: int, seed: int) -> Database:
    """Lets uniformly random responses be shown to users of the task's train side.

    Args:
        task: Its train prompts and train users are used, whatever its own splits are.
        num_users: How many users, each with a full episode. Interactions after a user has
            left are not recorded; late feedback is attributed to what it is about. Where users
            can be recognised they are the population's, in order, as often as it takes.
        seed: Of the history alone.

    Returns:
        The interactions.
    """
    # The record is kept after all feedback has arrived.
    task = replace(task.side("train"), feedback=replace(task.feedback, delay=0))
    known = None
    if task.recognise and isinstance(task.population, UserPopulation):
        known = np.resize(task.population.users(task.user_split), num_users)
    session = Session(task, np.arange(num_users))
    session.begin(derived_seed(seed, "history"), fixed=Fixed(user=known))
    log = _record(session, np.random.default_rng(derived_seed(seed, "history actions")))
    present = log.pop("present").ravel()
    rows = slice(None) if present.all() else present
    # A user's interactions are side by side, so that rows come by user and then by time.
    flat = {name: values.reshape(-1, *values.shape[2:])[rows] for name, values in log.items()}
    channels = [channel.name for channel in task.feedback.channels]
    return Database(
        user=np.repeat(np.arange(num_users), task.horizon)[rows],
        prompt=flat["prompt"],
        action=flat["action"],
        reward=flat["reward"],
        heard=flat["heard"],
        said={name: flat[f"said {name}"] for name in channels},
        prompt_features=task.bank.prompt_features,
        response_features=task.bank.response_features,
        identity=known,
        scores=task.bank.scores if task.white_box else None,
    )


def clicks_in_bank(
    click: Float[np.ndarray, "B"], order: Int[np.ndarray, "B K"], heard: Bool[np.ndarray, "B"]
) -> Float[np.ndarray, "B"]:
    """Returns which of the bank's responses were clicked on; 0 in silence.

    Args:
        click: The position clicked on.
        order: Which of the bank's responses stood at each position.
        heard: Whether the user spoke.
    """
    found = np.take_along_axis(order, click.astype(np.int64)[:, None], axis=1)[:, 0]
    return np.where(heard, found, 0).astype(np.float32)


def recorded_once(task: Task, *, num_users: int, seed: int) -> Callable[[], Database | None]:
    """Returns a function that records a history when first called, and then returns that.

    Arguments are those of ``record_history``; for no users it returns None, not a history.
    """

    @cache
    def history() -> Database | None:
        return record_history(task, num_users=num_users, seed=seed) if num_users else None

    return history


def _record(
    session: Session, rng: np.random.Generator
) -> dict[str, Shaped[np.ndarray, "U T *S"]]:
    """Plays the session's episodes with random actions; returns what happened, in columns.

    Responses are recorded in the bank's order, whatever the order shown.
    """
    task, num_users = session.task, len(session.rows)
    k, s = task.bank.num_responses, task.num_shown
    log: dict[str, np.ndarray] = {}
    present = np.ones(num_users, dtype=bool)
    for t in range(task.horizon):
        action = rng.random((num_users, k)).argsort(axis=1)[:, :s]
        in_bank = candidates(task, session.episodes, session.at) % k
        prompt = session.episodes.prompt[t]
        feedback, _ = session.step(action)
        now = {
            "prompt": prompt,
            "action": np.take_along_axis(in_bank, action, axis=1),
            "reward": feedback.reward,
            "heard": feedback.heard,
            "present": present,
            **{f"said {name}": values for name, values in feedback.said.items()},
        }
        if "click" in feedback.said:
            now["said click"] = clicks_in_bank(feedback.said["click"], in_bank, feedback.heard)
        for name, values in now.items():
            if t == 0:
                shape = (num_users, task.horizon, *values.shape[1:])
                log[name] = np.empty(shape, dtype=values.dtype)
            log[name][:, t] = values
        present = present & ~feedback.left
    return log
