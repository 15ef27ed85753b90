"""Stable-Baselines3 and sb3-contrib: the environments for them, and their models as agents.

env = make_sb3("PersonalLLM/Select-v0", 64, parts=[Belief()], flat=True)
model = PPO("MlpPolicy", env).learn(100_000)
save_agent(model, "ppo.zip")

personalllm-env compare --agent personalllm_env.adapters.sb3:SB3Agent@path=ppo.zip
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from personalllm_env.adapters.sb3_agent import SB3Agent, save_agent
from personalllm_env.adapters.sb3_checks import GymVectorEnv
from personalllm_env.adapters.sb3_env import Masks, SB3VecEnv
from personalllm_env.envs.augmentations import Parts

__all__ = ["Masks", "SB3Agent", "SB3VecEnv", "make_sb3", "save_agent"]


def make_sb3(
    env_id: str = "PersonalLLM/Select-v0",
    num_envs: int = 64,
    *,
    settings: Mapping[str, Any] | None = None,
    parts: Parts = (),
    flat: bool = False,
    utility_reward: bool = False,
    seed: int | None = None,
    info: str | Sequence[str] = (),
    masks: Masks | None = None,
    monitor: bool = True,
) -> SB3VecEnv:
    """Makes B users in lockstep for Stable-Baselines3.

    Args:
        env_id: ``PersonalLLM/Select-v0`` or ``PersonalLLM/Duel-v0``.
        num_envs: B.
        settings: Keywords of the environment: ``{"feedback": "like", "horizon": 20}``.
        parts: As for ``SB3VecEnv``, like the following.
        flat: Whether observations are one vector.
        utility_reward: Whether the reward is the noise-free utility.
        seed: Of the first episodes. An SB3 model with a seed of its own sets that instead.
        info: Which infos every row's dict carries.
        masks: For ``MaskablePPO``, what may be shown.
        monitor: Whether ``infos`` have ``episode``.

    Raises:
        ValueError: If a setting is unknown, out of range or does not fit.
    """
    made = SB3VecEnv(
        _native(env_id, num_envs, settings or {}),
        parts=parts,
        flat=flat,
        utility_reward=utility_reward,
        info=info,
        masks=masks,
        monitor=monitor,
    )
    if seed is not None:
        made.seed(seed)
    return made


def _native(env_id: str, num_envs: int, settings: Mapping[str, Any]) -> GymVectorEnv:
    """Returns the vector environment in the mode that Stable-Baselines3 needs."""
    chosen = {*signature(gym.make_vec).parameters, "autoreset_mode"}
    if taken := sorted(chosen & {*settings}):
        raise ValueError(
            f"settings are the environment's own; make_sb3 chooses {', '.join(taken)} (the "
            "native environment, in mode SAME_STEP): leave that out"
        )
    try:
        return gym.make_vec(
            env_id, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings
        )
    except TypeError as error:
        if "'autoreset_mode'" not in str(error):
            raise
        raise ValueError(
            f"{env_id} has no vector environment with an autoreset_mode, as "
            "PersonalLLM/Select-v0 and Duel-v0 have: make it with SB3's own make_vec_env"
        ) from error
