"""What an agent showed, how likely it was to show it, and what users said to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.bank import ResponseBank
from personalllm_env.database import Database, clicks_in_bank

_COLUMNS = ("user", "t", "prompt", "order", "action", "propensity", "reward", "heard", "left")
_SUMS_TO = 1e-6  # how far from 1 probabilities may add up


@dataclass(frozen=True, eq=False)
class Log:
    """N interactions at which one response was shown, sorted by user and then by time.

    Positions are those of the order in which the user was shown the K responses; they are the
    bank's own unless the task shuffles. What is said is beside the interaction that it is
    about, however late it came.

    Attributes:
        user: (N,) which episode, from 0; one user each.
        t: (N,) which of its interactions, from 0.
        prompt: (N,) bank row of the prompt.
        order: (N, K) which of the bank's responses stood at each position.
        action: (N,) the position that was shown.
        propensity: (N,) how likely the agent was to show it, given all that it knew; in
            (0, 1].
        reward: (N,) what the user reported; 0 where silent.
        heard: (N,) whether they said anything.
        said: Per channel (N,), in the order of the task's channels, the first of which is the
            reward's; a click is a position.
        left: (N,) whether the user left for good then.
        prompt_features: (P, D) the bank's table.
        response_features: (P, K, D) the bank's table.
        probabilities: (N, K) how likely the agent was to show each position, where that is
            known; else None.
        scores: (P, K, M) the bank's table, in a white-box task; else None.
        identity: (U,) row of each episode's user in the population, where users can be
            recognised when they come back; else None.
        truth: (N, K) the noise-free utility of each position to the user. It is the
            simulator's and for measuring estimates: no agent and no estimator sees it, and a
            format holds it only where that is asked for. None where nobody knows.
        seed: The root seed of the episodes, with which they can be played again; None for
            interactions that come from elsewhere.
        facts: JSON-able notes on how the log came about.
    """

    user: Int[np.ndarray, "N"]
    t: Int[np.ndarray, "N"]
    prompt: Int[np.ndarray, "N"]
    order: Int[np.ndarray, "N K"]
    action: Int[np.ndarray, "N"]
    propensity: Float[np.ndarray, "N"]
    reward: Float[np.ndarray, "N"]
    heard: Bool[np.ndarray, "N"]
    said: Mapping[str, Float[np.ndarray, "N"]]
    left: Bool[np.ndarray, "N"]
    prompt_features: Float[np.ndarray, "P D"]
    response_features: Float[np.ndarray, "P K D"]
    probabilities: Float[np.ndarray, "N K"] | None = None
    scores: Float[np.ndarray, "P K M"] | None = None
    identity: Int[np.ndarray, "U"] | None = None
    truth: Float[np.ndarray, "N K"] | None = None
    seed: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = [getattr(self, f.name) for f in fields(self)]
        for column in (*columns, *self.said.values()):
            if isinstance(column, np.ndarray):
                column.setflags(write=False)  # estimators and formats share it

    def __len__(self) -> int:
        """N."""
        return len(self.user)

    @property
    def num_users(self) -> int:
        """How many episodes there are."""
        return int(self.user[-1]) + 1 if len(self.user) else 0

    @property
    def num_responses(self) -> int:
        """K."""
        return int(self.order.shape[1])

    @property
    def shown(self) -> Int[np.ndarray, "N"]:
        """Which of the bank's K responses were shown."""
        return np.take_along_axis(self.order, self.action[:, None], axis=1)[:, 0]

    @property
    def inputs(self) -> Float[np.ndarray, "P K I"]:
        """What agents judge candidates by: scores in a white-box task, else features."""
        return self.response_features if self.scores is None else self.scores

    @property
    def ends(self) -> Bool[np.ndarray, "N"]:
        """Which interactions are the last of their user."""
        return np.append(np.diff(self.user) != 0, np.ones(min(len(self), 1), dtype=bool))

    def candidates(self, rows: slice = slice(None)) -> Float[np.ndarray, "n K I"]:
        """Returns the inputs of the K responses of some interactions, in the order shown.

        All rows at once take N * K * I numbers; see ``blocks``.
        """
        return self.inputs[self.prompt[rows, None], self.order[rows]]

    def blocks(self, size: int = 8192) -> Iterator[slice]:
        """Yields consecutive rows, so that candidates can be gathered a block at a time."""
        for start in range(0, len(self.user), size):
            yield slice(start, start + size)

    def rows(self, chosen: slice | Int[np.ndarray, "n"] | Bool[np.ndarray, "N"]) -> Log:
        """Returns some of the interactions, in their order; users keep their numbers."""
        columns: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _COLUMNS}
        columns["said"] = {name: values[chosen] for name, values in self.said.items()}
        for name in ("probabilities", "truth"):
            if (column := getattr(self, name)) is not None:
                columns[name] = column[chosen]
        return replace(self, **columns)

    def spoken(self) -> Log:
        """Returns the interactions at which something was said."""
        return self if self.heard.all() else self.rows(self.heard)

    def without_truth(self) -> Log:
        """Returns the log as its agent could have kept it."""
        return replace(self, truth=None)

    def database(self) -> Database:
        """Returns what users saw and said, for agents' ``fit``; propensities are dropped."""
        said = dict(self.said)
        if "click" in said:
            said["click"] = clicks_in_bank(said["click"], self.order, self.heard)
        return Database(
            user=self.user,
            prompt=self.prompt,
            action=self.shown[:, None],
            reward=self.reward,
            heard=self.heard,
            said=said,
            prompt_features=self.prompt_features,
            response_features=self.response_features,
            identity=self.identity,
            scores=self.scores,
        )


def check_log(log: Log, bank: ResponseBank | None = None, where: str = "log") -> None:
    """Checks that a log fits together and, where one is given, that it is about a bank.

    Args:
        log: The interactions.
        bank: What they are about.
        where: What an error calls the log.

    Raises:
        ValueError: Naming the column and the row (from 1) of what does not fit, or what else
            than a log it is.
    """
    if not isinstance(log, Log):
        raise ValueError(
            f"{where}: expected a Log, which record_log and open_log return, got a "
            f"{type(log).__name__}"
        )
    n, k = len(log), log.num_responses
    for name in _COLUMNS[1:]:
        if len(column := getattr(log, name)) != n:
            raise ValueError(f"{where}: {name} has {len(column)} rows beside {n} of user")
    num_prompts, offered = log.response_features.shape[:2]
    if k != offered or (bank is not None and (num_prompts, k) != bank.scores.shape[:2]):
        of_bank = (num_prompts, offered) if bank is None else bank.scores.shape[:2]
        raise ValueError(
            f"{where}: expected orders of {of_bank[1]} responses to {of_bank[0]} prompts, got "
            f"{k} to {num_prompts}"
        )
    same = np.diff(log.user, prepend=-1) == 0
    good = {
        "user, sorted and not negative": np.diff(log.user, prepend=0) >= 0,
        "t, rising within each user and not negative": (log.t >= 0)
        & (~same | (np.diff(log.t, prepend=-1) > 0)),
        f"prompt, in 0..{num_prompts - 1}": (log.prompt >= 0) & (log.prompt < num_prompts),
        f"order, a permutation of 0..{k - 1}": (np.sort(log.order) == np.arange(k)).all(axis=1),
        f"action, in 0..{k - 1}": (log.action >= 0) & (log.action < k),
        "propensity, in (0, 1]": (log.propensity > 0) & (log.propensity <= 1 + _SUMS_TO),
        "reward, finite": np.isfinite(log.reward),
        "left, at a user's last interaction only": ~log.left | log.ends,
    }
    for name, values in log.said.items():
        good[f"said {name}, finite"] = np.isfinite(values)
    _check(good, log, where)
    if log.probabilities is not None:
        _check(_good_probabilities(log.probabilities, log), log, where)


def _good_probabilities(
    probabilities: Float[np.ndarray, "N K"], log: Log
) -> dict[str, Bool[np.ndarray, "N"]]:
    shown = np.take_along_axis(probabilities, log.action[:, None], axis=1)[:, 0]
    total = probabilities.sum(axis=1)
    return {
        "probabilities, not negative": (probabilities >= 0).all(axis=1),
        "probabilities, that add up to 1": np.abs(total - 1) <= _SUMS_TO,
        "propensity, the probability of what was shown": np.abs(shown - log.propensity)
        <= _SUMS_TO,
    }


def _check(good: Mapping[str, Bool[np.ndarray, "N"]], log: Log, where: str) -> None:
    """Raises ValueError at the first row of the first column that is not as expected."""
    columns = vars(log) | {f"said {name}": values for name, values in log.said.items()}
    for expected, rows in good.items():
        if not rows.all():
            name, _, wanted = expected.partition(", ")
            row = int(np.argmin(rows))
            raise ValueError(
                f"{where}: {name}, row {row + 1}: expected {wanted}, got "
                f"{columns[name][row].tolist()}"
            )
