"""What a ``SB3VecEnv`` and an ``SB3Agent`` are given, checked; without Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool

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
