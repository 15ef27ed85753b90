"""RLlib: an env runner's random actions, and the PPO example with a remote runner."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import torch
from rl_speed import HORIZON, bare_single, bare_vector, best, example, learnt
from rows import Row

from personalllm_env.adapters.rllib import Creator

USERS = 64


def rows() -> list[Row]:
    """Measures; about a minute."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    torch.set_num_threads(1)
    return [*runners(), ppo()]


def row(ran: str, speed: float, against: str = "", learnt: str = "") -> Row:
    """Returns a line of the table."""
    return Row("ray[rllib]", version("ray"), ran, round(speed), against, learnt)


def runners() -> list[Row]:
    """Measures env runners with random actions: native vector environment, and single ones."""
    import ray
    from ray.tune import register_env

    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    creator, settings = Creator(), {"horizon": HORIZON}
    register_env("PersonalLLM", creator)
    try:
        native, sync = (sampled(mode) for mode in ("vector_entry_point", "sync"))
    finally:
        ray.shutdown()
    many: Any = creator(settings | {"num_envs": USERS})
    of_many = native / bare_vector(many, 200)
    of_one = sync / bare_single(creator(settings), 3000)  # type: ignore[arg-type]
    ran = f"env runner, random actions, {USERS} users"
    return [
        row(f"{ran}, native", native, f"{of_many:.3f} of the bare vector environment"),
        row(f"{ran}, sync", sync, f"{of_one:.3f} of the bare environment"),
    ]


def sampled(mode: str) -> float:
    """Returns the interactions per second of an env runner of this process."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    config = (
        PPOConfig()
        .environment("PersonalLLM", env_config={"horizon": HORIZON})
        .env_runners(num_envs_per_env_runner=USERS, gym_env_vectorize_mode=mode)
    )
    runner, steps = SingleAgentEnvRunner(config=config), USERS * 100
    speed = best(steps, lambda: runner.sample(num_timesteps=steps, random_actions=True), 3)
    runner.stop()
    return speed


def ppo() -> Row:
    """Measures the example; its speed includes Ray's start."""
    words, speed = example("rllib_ppo")
    ran = "PPO, a remote env runner, 64 users, flat with a belief"
    return row(ran, speed, "", learnt(words))
