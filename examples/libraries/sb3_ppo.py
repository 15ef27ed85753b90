"""PPO of Stable-Baselines3 learns to use a belief about the user, and meets LinUCB.

    python examples/libraries/sb3_ppo.py figure.png 300000

The network scores each candidate by one rule, from its features and from what the belief (ridge
regression on what this user said so far) expects of it.
"""

import sys

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from personalllm_env import load_bank
from personalllm_env.adapters.sb3 import SB3Agent, make_sb3, save_agent
from personalllm_env.envs.wrappers import Belief
from personalllm_env.plots import plot_learning_curves
from personalllm_env.registry import find_agent
from personalllm_env.report import summarise
from personalllm_env.runner import Entrant, compare
from personalllm_env.task import Task

TASK = {"horizon": 60}  # as on the benchmark's cold-start track


class PerCandidate(BaseFeaturesExtractor):
    """K scores by one small network, beside the belief's K expectations."""

    def __init__(self, space, width=32):
        k, d = space["response_features"].shape
        super().__init__(space, 2 * k)
        self.score = nn.Sequential(nn.Linear(2 * d + 3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, seen):
        """Returns them, one row per user."""
        x = seen["response_features"]
        user = torch.cat([seen["belief_mean"], seen["step"]], dim=1)
        user = user[:, None].expand(-1, x.shape[1], -1)
        own = torch.stack([seen["belief_value"], seen["belief_width"]], dim=2)
        scores = self.score(torch.cat([x, user, own], dim=2)).squeeze(2)
        return torch.cat([scores, seen["belief_value"]], dim=1)


def learner():
    """Returns an untrained model, and users for it who report noisy rewards."""
    env = make_sb3("PersonalLLM/Select-v0", 64, settings=TASK, parts=[Belief()])
    net = {"features_extractor_class": PerCandidate, "net_arch": []}
    settings = {"gamma": 0.0, "n_steps": 60, "batch_size": 960, "n_epochs": 4}  # greedy will do
    settings |= {"learning_rate": 1e-3, "policy_kwargs": net, "seed": 0, "device": "cpu"}
    return PPO("MultiInputPolicy", env, **settings)


def main(figure="sb3_ppo.png", steps="300000"):
    """Trains, and compares on new users and new prompts."""
    torch.set_num_threads(1)
    model = learner()
    entrants = [find_agent(name) for name in ("uniform", "popular", "linucb", "oracle")]
    untrained = save_agent(model, "ppo-untrained.zip")
    trained = save_agent(model.learn(int(steps)), "ppo.zip")
    entrants.append(Entrant("untrained", SB3Agent, {"path": str(untrained)}))
    entrants.append(Entrant("ppo", SB3Agent, {"path": str(trained)}))
    result = compare(entrants, Task(load_bank(), **TASK), seeds=[0], num_users=400)
    for row in summarise(result):
        [done] = result.runs[row.agent]
        utility, half = done.utility.mean(axis=1), (row.gain.high - row.gain.low) / 2
        error = 1.96 * utility.std(ddof=1) / np.sqrt(len(utility))
        print(f"{row.agent:9} utility {utility.mean():6.3f} ±{error:.3f}", end="   ")
        print(f"personalisation gain {row.gain.value:6.3f} ±{half:.3f}")
    plot_learning_curves(result, figure, title="PPO beside bandits on the cold-start track")


if __name__ == "__main__":
    main(*sys.argv[1:])
