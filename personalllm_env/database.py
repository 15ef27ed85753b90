"""Interactions of other users: who saw what, and what they said. ``fit`` learns from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

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

    def blocks(self, size: int = 8192) -> Iterator[slice]:
        """Yields consecutive rows, so that candidates can be gathered a block at a time."""
        for start in range(0, len(self.user), size):
            yield slice(start, start + size)

    def feedback(self, rows: slice = slice(None)) -> Feedback:
        """Returns what was said at some of the interactions, as agents hear it."""
        said = {name: values[rows] for name, values in self.said.items()}
        heard = self.heard[rows]
        return Feedback(self.reward[rows], heard, said, np.zeros(len(heard), dtype=bool))


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
    has_split = getattr(task.population, "is_test", None) is not None
    undelayed = replace(task.feedback, delay=0)  # the record is kept after everything arrived
    task = replace(
        task,
        feedback=undelayed,
        split="train",
        user_split="train" if has_split else task.user_split,
    )
    session = Session(task, np.arange(num_users))
    known = None
    if task.recognise and isinstance(task.population, UserPopulation):
        known = np.resize(task.population.users(task.user_split), num_users)
    session.begin(derived_seed(seed, "history"), fixed=Fixed(user=known))
    rng = np.random.default_rng(derived_seed(seed, "history actions"))
    k, s = task.bank.num_responses, task.num_shown
    present = np.ones(num_users, bool)
    steps: dict[str, list[np.ndarray]] = defaultdict(list)
    shown_at: list[np.ndarray] = []
    for t in range(task.horizon):
        action = rng.random((num_users, k)).argsort(axis=1)[:, :s]
        rows = candidates(task, session.episodes, session.at) % k  # shown order -> bank order
        feedback, _ = session.step(action)
        said = dict(feedback.said)
        if "click" in said:
            clicked = said["click"].astype(np.int64)[:, None]
            in_bank = np.take_along_axis(rows, clicked, axis=1)[:, 0].astype(np.float32)
            said["click"] = np.where(feedback.heard, in_bank, np.float32(0))
        shown = np.take_along_axis(rows, action, axis=1)
        prompt = session.episodes.prompt[t]
        steps["prompt"].append(prompt)
        steps["reward"].append(feedback.reward)
        steps["heard"].append(feedback.heard)
        steps["present"].append(present)
        shown_at.append(shown)
        for name, value in said.items():
            steps[f"said {name}"].append(value)
        present = present & ~feedback.left
    by_user = {name: np.stack(values, axis=1).ravel() for name, values in steps.items()}
    keep = by_user["present"]
    names = [channel.name for channel in task.feedback.channels]
    return Database(
        user=np.repeat(np.arange(num_users), task.horizon)[keep],
        prompt=by_user["prompt"][keep],
        action=np.stack(shown_at, axis=1).reshape(-1, s)[keep],
        reward=by_user["reward"][keep],
        heard=by_user["heard"][keep],
        said={name: by_user[f"said {name}"][keep] for name in names},
        prompt_features=task.bank.prompt_features,
        response_features=task.bank.response_features,
        identity=known,
        scores=task.bank.scores if task.white_box else None,
    )
