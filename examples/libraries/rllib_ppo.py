"""PPO with Ray RLlib: a remote env runner, 64 users at once; its checkpoint as an agent.

Needs pip install 'personalllm-env[rllib]'; arguments: the figure's path, the iterations.
"""

import os
import sys
import tempfile
from dataclasses import replace

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import matplotlib.pyplot as plt
import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env

from personalllm_env.adapters.rllib import Creator, RLlibAgent
from personalllm_env.envs.wrappers import Belief
from personalllm_env.runner import run

HORIZON, USERS = 20, 64


def on_fresh_users(algorithm, task):
    """Returns each of 300 new users' mean utility, on prompts of the test side."""
    with tempfile.TemporaryDirectory() as folder:
        path = algorithm.save_to_path(folder)
        agent = RLlibAgent(task.prior_knowledge(), path=str(path), belief=10)
    return run(agent, task, num_users=300, seed=1).utility.mean(axis=1)


def main(figure="rllib-ppo.png", iterations=30):
    """Trains, compares before and after on fresh users, and draws the curve."""
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    creator = Creator(parts=[Belief(10)])
    register_env("PersonalLLM", creator)
    config = (
        PPOConfig()
        .environment("PersonalLLM", env_config={"horizon": HORIZON})
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=USERS,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=HORIZON,
        )
        .training(
            train_batch_size_per_learner=USERS * HORIZON,
            minibatch_size=320,
            num_epochs=4,
            lr=1e-3,
            gamma=0.5,
        )
        .rl_module(model_config={"fcnet_hiddens": [64]})
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    task = replace(creator({"horizon": HORIZON}).unwrapped.task, split="test")
    before, curve = on_fresh_users(algorithm, task), []
    for _ in range(int(iterations)):
        found = algorithm.train()["env_runners"]
        curve.append(found["episode_return_mean"] / found["episode_len_mean"])
    gain = on_fresh_users(algorithm, task) - before
    algorithm.stop(), ray.shutdown()
    steps = USERS * HORIZON * len(curve)
    print(f"300 fresh users: mean utility {before.mean():.2f}, and after {steps} steps")
    print(f"{gain.mean():+.2f} ± {1.96 * gain.std(ddof=1) / np.sqrt(len(gain)):.2f}")
    plt.plot(curve), plt.ylabel("mean reward in training")
    plt.xlabel(f"times {USERS * HORIZON} steps")
    plt.savefig(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
