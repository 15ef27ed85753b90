"""A log as the Open Bandit Pipeline's ``bandit_feedback`` dictionary, in memory or in a file.

The keys and shapes are those that ``SyntheticBanditDataset.obtain_batch_bandit_feedback`` of
obp 0.5 returns (https://zr-obp.readthedocs.io, https://github.com/st-tech/zr-obp) and that its
``OffPolicyEvaluation``, ``RegressionModel`` and policy learners read. The package itself is not
needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.files import written_whole
from personalllm_env.logged.log import Log, check_log

_ARRAYS = {  # NumPy's letters for the types, and the numbers of axes
    "context": ("f", 2),
    "action_context": ("iuf", 2),
    "action": ("iu", 1),
    "reward": ("f", 1),
    "pi_b": ("f", 3),
    "pscore": ("f", 1),
    "expected_reward": ("f", 2),
    "user_idx": ("iu", 1),
}
_OPTIONAL = ("pi_b", "expected_reward")


class BanditFeedback(TypedDict):
    """What obp calls a logged bandit data set; N rounds with K actions."""

    n_rounds: int
    n_actions: int
    context: Float[np.ndarray, "N X"]
    action_context: Int[np.ndarray, "K K"]
    action: Int[np.ndarray, "N"]
    position: None  # obp's places of a list; one response is shown
    reward: Float[np.ndarray, "N"]
    expected_reward: Float[np.ndarray, "N K"] | None
    pi_b: Float[np.ndarray, "N K 1"] | None
    pscore: Float[np.ndarray, "N"]
    user_idx: Int[np.ndarray, "N"]  # ours: whose round it is, for errors clustered by user


def bandit_feedback(log: Log, *, expected_reward: bool = False) -> BanditFeedback:
    """Returns the interactions at which something was said.

    An obp data set has one set of actions with fixed features; here each round has K responses
    of its own. So action a is the a-th response shown, ``action_context`` is one-hot, as obp's
    own synthetic data have it, and what the responses are like is in the context: the prompt's
    D features, then the D (in a white-box task M) numbers of each response in the order shown.
    What the agent knew of the user is not in the context; ``pscore`` and ``pi_b`` are right
    all the same.

    Silent rounds are left out. Users are silent independently of what they are shown, so what
    is left is a fair sample.

    Args:
        log: N rounds; the context takes 4 * N * (D + K * I) bytes.
        expected_reward: Whether the simulator's truth is handed over, for measuring estimates.

    Raises:
        ValueError: If nothing was said, or if the expected reward is asked for and not known:
            in a log without truth, and where the reward is not the utility plus noise. If the
            log does not fit together.
    """
    check_log(log)
    if expected_reward:
        check_expected(log.said, truth=log.truth is not None)
    if not log.heard.any():
        raise ValueError(f"nothing was said in any of the {len(log)} interactions")
    log = log.spoken()
    pi_b = None if log.probabilities is None else log.probabilities[:, :, None].copy()
    truth = log.truth.astype(np.float64) if expected_reward and log.truth is not None else None
    return {
        "n_rounds": len(log),
        "n_actions": log.num_responses,
        "context": _context(log),
        "action_context": np.eye(log.num_responses, dtype=np.int64),
        "action": log.action.copy(),
        "position": None,
        "reward": log.reward.astype(np.float64),
        "expected_reward": truth,
        "pi_b": pi_b,
        "pscore": log.propensity.astype(np.float64),
        "user_idx": log.user.copy(),
    }


def check_expected(channels: Iterable[str], *, truth: bool = True) -> None:
    """Checks that an expected reward can be handed over.

    Args:
        channels: Their names, in the task's order.
        truth: Whether the log has it.

    Raises:
        ValueError: If not.
    """
    names = list(channels)
    if not truth or names[:1] != ["reward"]:
        raise ValueError(
            "the expected reward is known in logs with truth whose first channel is 'reward'; "
            f"this one has {'the' if truth else 'no'} truth and channels {', '.join(names)}"
        )


def _context(log: Log) -> Float[np.ndarray, "N X"]:
    d, each = log.prompt_features.shape[1], log.inputs.shape[2]
    context = np.empty((len(log), d + log.num_responses * each), dtype=np.float32)
    for rows in log.blocks():
        context[rows, :d] = log.prompt_features[log.prompt[rows]]
        candidates = log.candidates(rows)
        context[rows, d:] = candidates.reshape(len(candidates), -1)
    return context


def save_bandit_feedback(feedback: BanditFeedback, path: str | os.PathLike[str]) -> None:
    """Writes the dictionary to an ``.npz`` file without pickles, whole or not at all.

    Args:
        feedback: What ``bandit_feedback`` returns.
        path: The file.
    """
    arrays: dict[str, Any] = {
        name: feedback[name]  # type: ignore[literal-required]
        for name in _ARRAYS
        if feedback[name] is not None  # type: ignore[literal-required]
    }
    with written_whole(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)


def open_bandit_feedback(path: str | os.PathLike[str]) -> BanditFeedback:
    """Reads what ``save_bandit_feedback`` wrote, bit for bit.

    Raises:
        ValueError: If the file is damaged or is another, naming what is missing.
    """
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile's, zlib's and NumPy's own
        raise ValueError(f"{path}: no .npz file, or a damaged one: {error}") from error
    if missing := [name for name in _ARRAYS if name not in (*found, *_OPTIONAL)]:
        raise ValueError(f"{path}: no bandit feedback: missing {', '.join(missing)}")
    n, k = len(found["action"]), len(found["action_context"])
    for name in set(_ARRAYS) & set(found):
        array, (kinds, axes) = found[name], _ARRAYS[name]
        rows = k if name == "action_context" else n
        if array.dtype.kind not in kinds or array.ndim != axes or len(array) != rows:
            raise ValueError(
                f"{path}: {name}: expected {axes} axes with {rows} rows, got {array.dtype} "
                f"{array.shape}"
            )
    empty = dict.fromkeys(_OPTIONAL)
    feedback: Any = {"n_rounds": n, "n_actions": k, "position": None, **empty, **found}
    return feedback
