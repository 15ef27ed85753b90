"""RecurrentPPO of sb3-contrib learns to learn: it tries what a user may like, and remembers.

    python examples/libraries/sb3_recurrent.py figure.png 120000

One prompt comes again and again, with four responses. The policy sees which it showed last and
what the user said of it. With a memory it learns to explore within the episode (RL-squared).
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from personalllm_env.adapters.sb3 import SB3Agent, make_sb3, save_agent
from personalllm_env.data.synthetic import synthetic_bank
from personalllm_env.envs.translate import task_from_settings
from personalllm_env.envs.wrappers import History
from personalllm_env.registry import find_agent
from personalllm_env.runner import Entrant, compare

HORIZON = 10
TASK = {
    "bank": synthetic_bank(num_responses=4, num_features=12),
    "horizon": HORIZON,
    "prompts_per_episode": 1,
    "feedback": {"reward": {"noise_sd": 0.3}},
}


class LastShown(BaseFeaturesExtractor):
    """Which candidate was shown last, what was said of it, and how late it is."""

    def __init__(self, space):
        super().__init__(space, space["response_features"].shape[0] + 3)

    def forward(self, seen):
        """Returns them, one row per user."""
        last = seen["history_features"][:, 0]
        same = (seen["response_features"] == last).all(dim=2).float()
        return torch.cat([same, seen["feedback"], seen["heard"], seen["step"]], dim=1)


def train(algorithm, policy, steps, net):
    """Trains on users who are always new; returns the agent."""
    env = make_sb3("PersonalLLM/Select-v0", 256, settings=TASK, parts=[History(1)])
    settings = {"n_steps": HORIZON, "batch_size": 640, "n_epochs": 4, "gamma": 0.9}
    settings |= {"learning_rate": 5e-3, "ent_coef": 0.01, "seed": 0, "device": "cpu"}
    net = {"features_extractor_class": LastShown, "net_arch": [32], **net}
    model = algorithm(policy, env, policy_kwargs=net, **settings).learn(steps)
    path = save_agent(model, f"{algorithm.__name__}.zip")
    return Entrant(algorithm.__name__, SB3Agent, {"path": str(path)})


def main(figure="sb3_recurrent.png", steps="120000"):
    """Trains both, and compares them with agents that need no training."""
    torch.set_num_threads(1)
    lstm = {"lstm_hidden_size": 32, "shared_lstm": True, "enable_critic_lstm": False}
    entrants = [find_agent(name) for name in ("uniform", "linucb", "tabular", "oracle")]
    entrants.append(train(PPO, "MultiInputPolicy", int(steps), {}))
    entrants.append(train(RecurrentPPO, "MultiInputLstmPolicy", int(steps), lstm))
    result = compare(entrants, task_from_settings(**TASK), seeds=[0], num_users=1000)
    print("mean utility of 1,000 new users: first interaction, last three")
    for name, [done] in result.runs.items():
        first, last = done.utility[:, 0], done.utility[:, -3:].mean(axis=1)
        errors = [1.96 * u.std(ddof=1) / np.sqrt(len(u)) for u in (first, last)]
        numbers = first.mean(), errors[0], last.mean(), errors[1]
        print(f"{name:15}" + "{:7.3f} ±{:.3f}  {:7.3f} ±{:.3f}".format(*numbers))
        plt.plot(np.arange(1, HORIZON + 1), done.utility.mean(axis=0), label=name)
    plt.gca().set(xlabel="interaction", ylabel="mean utility")
    plt.legend()
    plt.savefig(figure, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
