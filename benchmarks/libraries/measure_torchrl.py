"""TorchRL: rollouts of random actions, the PPO example and that of ChatEnv."""

from __future__ import annotations

from importlib.metadata import version

import gymnasium as gym
import torch
from rl_speed import HORIZON, SELECT, bare_single, bare_vector, best, example, learnt
from rows import Row

from personalllm_env.adapters.torchrl import torchrl_env


def rows() -> list[Row]:
    """Measures; some three minutes."""
    torch.set_num_threads(1)
    return [one_user(), *(many_users(num) for num in (64, 1024)), ppo(), chat()]


def row(ran: str, speed: float, against: str = "", learnt: str = "") -> Row:
    """Returns a line of the table."""
    return Row("torchrl", version("torchrl"), ran, round(speed), against, learnt)


def one_user(steps: int = 1500) -> Row:
    """Measures GymWrapper on one user at a time."""
    from torchrl.envs import GymWrapper

    bare = bare_single(gym.make(SELECT, horizon=HORIZON), steps)
    env = GymWrapper(gym.make(SELECT, horizon=HORIZON), categorical_action_encoding=True)
    speed = best(steps, lambda: env.rollout(steps, break_when_any_done=False), 3)
    return row(
        "GymWrapper, random actions, one user",
        speed,
        f"{speed / bare:.2f} of the bare environment",
    )


def many_users(num: int) -> Row:
    """Measures the adapter on the native vector environment, dict observations."""
    settings = {"num_envs": num, "horizon": HORIZON}
    steps = max(10_000 // num, 40)
    bare = bare_vector(gym.make_vec(SELECT, autoreset_mode="SAME_STEP", **settings), steps)
    env = torchrl_env(gym.make_vec(SELECT, autoreset_mode="DISABLED", **settings))
    speed = best(num * steps, lambda: env.rollout(steps, break_when_any_done=False))
    return row(
        f"torchrl_env, random actions, {num:,} users, dict observations",
        speed,
        f"{speed / bare:.2f} of the bare vector environment",
    )


def ppo() -> Row:
    """Measures the example."""
    words, speed = example("torchrl_ppo")
    return row("PPO, 64 users, dict observations with a belief", speed, "", learnt(words))


def chat() -> Row:
    """Measures the example that writes; a step is an update by 32 texts."""
    words, speed = example("torchrl_chat")
    return row(
        "ChatEnv with a personal reward, GRPO of a toy writer, texts",
        32 * speed,
        "",
        f"what the own user gains over the other from the same texts: {words} of 32 texts",
    )
