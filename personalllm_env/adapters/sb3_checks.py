"""What a ``SB3VecEnv`` and an ``SB3Agent`` are given, checked; without Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool

from personalllm_env.adapters.policies import Sight
from personalllm_env.types import Observation, PriorKnowledge

GymVectorEnv: TypeAlias = "gym.vector.VectorEnv[Any, Any, Any]"


def check_taken(env: Any) -> None:
    """Raises where Stable-Baselines3 cannot take a vector environment.

    Raises:
        TypeError: If it is none.
        ValueError: If it resets its rows in another way, or its actions are texts.
    """
    if not isinstance(env, gym.vector.VectorEnv):
        raise TypeError(
            f"SB3VecEnv takes a Gymnasium vector environment, got {type(env).__name__}; single "
            "ones go into SB3's DummyVecEnv or SubprocVecEnv"
        )
    if not isinstance(env.single_action_space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(
            f"Stable-Baselines3 has no policy for actions of {env.single_action_space}; use "
            "PersonalLLM/Select-v0 or Duel-v0"
        )
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.SAME_STEP:
        raise ValueError(
            "Stable-Baselines3 expects the first observation of the next episode from the step "
            "that ends one: make the environment with autoreset_mode='SAME_STEP', got "
            f"{getattr(mode, 'name', mode)}"
        )


def sizes_of(space: Any) -> list[int]:
    """Returns from how many responses each slot of an action is chosen: K, or K and K."""
    return [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()


def check_masks(masks: Any, num_rows: int, sizes: Sequence[int]) -> Bool[np.ndarray, "B N"]:
    """Returns masks, once they are known to be some.

    Args:
        masks: What a ``Masks`` returned.
        num_rows: B.
        sizes: As ``sizes_of`` the actions; their sum is N.

    Raises:
        ValueError: If they are not bools of that shape, or a block of a row is all False.
    """
    array, shape = np.asarray(masks), (num_rows, sum(sizes))
    if array.shape != shape or array.dtype != np.bool_:
        raise ValueError(
            f"masks must be bools of shape {shape}, got {array.dtype} {array.shape}"
        )
    blocks = np.split(array, np.cumsum(sizes)[:-1], axis=1)
    some = np.stack([block.any(axis=1) for block in blocks]).all(axis=0)
    if not some.all():
        row = int(np.flatnonzero(~some)[0])
        raise ValueError(f"masks must allow something to be shown; row {row} allows nothing")
    return array


def joined_options(options: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns one dict of reset options for all rows from one dict per row.

    Raises:
        ValueError: If rows differ in what they share.
    """
    given = list(options)
    first = given[0]
    if all(other is first or not (other or first) for other in given):
        return dict(first) or None
    if any(set(other) != set(first) for other in given):
        raise ValueError("options must have the same names in every row")
    joined: dict[str, Any] = {}
    for name, value in first.items():
        if name in ("user", "weights"):
            joined[name] = np.stack([other[name] for other in given])
        elif all(np.array_equal(other[name], value) for other in given):
            joined[name] = value
        else:
            raise ValueError(f"options[{name!r}] is shared by all rows, which differ in it")
    return joined


def check_fit(
    expected: Any, chooses: Any, sight: Sight, prior: PriorKnowledge, path: str
) -> None:
    """Checks that a task is of the shape that a model was trained on.

    Args:
        expected: The space of the model's observations.
        chooses: The space of its actions.
        sight: What it would be shown.
        prior: What is known of the task.
        path: Where the model is, for the error.

    Raises:
        ValueError: If it is not.
    """
    k, s = prior.num_responses, prior.num_shown
    does = spaces.Discrete(k) if s == 1 else spaces.MultiDiscrete([k] * s)
    if chooses != does:
        raise ValueError(
            f"{path} was trained to choose from {chooses}; this task needs {does} "
            f"({k} responses, {s} shown)"
        )
    users = isinstance(expected, spaces.Dict) and "user" in expected.spaces
    sight.reset(1)
    seen = sight.look(_nothing(prior, recognise=users))
    wanted, there = _shapes(expected), _shapes(seen)
    if wanted != there:
        names = sorted(
            name for name in {*wanted, *there} if wanted.get(name) != there.get(name)
        )
        differ = "; ".join(
            f"{n}: {wanted.get(n, 'none')} trained, {there.get(n, 'none')} here" for n in names
        )
        raise ValueError(
            f"{path} was trained on observations of another shape than this task's; {differ}"
        )


def _nothing(prior: PriorKnowledge, *, recognise: bool) -> Observation:
    """Returns an observation of the task's shapes, one user's."""
    k, d = prior.num_responses, prior.num_features
    scores = np.zeros((1, k, prior.num_reward_models), np.float32) if prior.white_box else None
    one = np.zeros(1, np.int64)
    return Observation(
        one,
        np.zeros((1, d), np.float32),
        np.zeros((1, k, d), np.float32),
        one if recognise else None,
        scores,
    )


def _shapes(seen: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of one row's entries, from a space or a batch of one."""
    if isinstance(seen, spaces.Dict):
        return {name: space.shape or () for name, space in seen.spaces.items()}
    if isinstance(seen, Mapping):
        return {name: value.shape[1:] for name, value in seen.items()}
    return {"all": (seen.shape or ()) if isinstance(seen, spaces.Space) else seen.shape[1:]}
