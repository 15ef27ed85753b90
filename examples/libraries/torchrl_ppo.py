"""PPO with TorchRL on 64 users at once; the actor then runs in the benchmark's loop.

Needs pip install 'personalllm-env[torchrl]'; arguments: the figure's path, the steps.
"""

import sys
from dataclasses import replace

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from personalllm_env.adapters.policies import PolicyAgent
from personalllm_env.adapters.torchrl import ActorPolicy, torchrl_env
from personalllm_env.envs.wrappers import Belief, VectorAugmented
from personalllm_env.runner import run

SELECT = "personalllm_env:PersonalLLM/Select-v0"
BATCH, SEEN = 64 * 20, ["belief_value", "belief_width", "response_features"]


class PerCandidate(torch.nn.Module):
    """The same small network for each candidate."""

    def __init__(self, num_features):
        super().__init__()
        self.net = MLP(num_features + 2, 1, num_cells=[64])

    def forward(self, value, width, features):
        """Reads (..., K), (..., K) and (..., K, D); returns (..., K) logits."""
        return self.net(torch.cat([value[..., None], width[..., None], features], -1))[..., 0]


def on_fresh_users(actor, task):
    """Returns each of 300 new users' mean utility, on prompts of the test side."""
    policy, known = ActorPolicy(actor), task.prior_knowledge()
    done = run(PolicyAgent(known, policy=policy, parts=[Belief()]), task, num_users=300, seed=1)
    return done.utility.mean(axis=1)


def main(figure="torchrl-ppo.png", steps=40 * BATCH):
    """Trains, compares before and after on fresh users, and draws the curve."""
    torch.manual_seed(0), torch.set_num_threads(1)
    plain = gym.make_vec(SELECT, 64, horizon=20, autoreset_mode="DISABLED")
    task = replace(plain.unwrapped.task, split="test")
    env = torchrl_env(VectorAugmented(plain, Belief()))
    env.set_seed(0)
    logits = TensorDictModule(PerCandidate(task.bank.num_features), SEEN, ["logits"])
    draw = {"distribution_class": torch.distributions.Categorical, "return_log_prob": True}
    critic = ValueOperator(MLP(task.bank.num_responses, 1, num_cells=[64]), SEEN[:1])
    actor = ProbabilisticActor(logits, ["logits"], **draw)
    advantage = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    loss_of = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    optimiser = torch.optim.Adam(loss_of.parameters(), lr=3e-3)
    before, curve = on_fresh_users(actor, task), []
    sizes = {"frames_per_batch": BATCH, "total_frames": int(steps)}
    for data in Collector(env, actor, auto_register_policy_transforms=True, **sizes):
        curve.append(data["next", "utility"].mean().item())
        advantage(data)
        for some in torch.cat([torch.randperm(BATCH) for _ in range(4)]).split(BATCH // 4):
            losses = loss_of(data.reshape(-1)[some])
            optimiser.zero_grad()
            sum(losses[f"loss_{of}"] for of in ("objective", "critic", "entropy")).backward()
            optimiser.step()
    gain = on_fresh_users(actor, task) - before
    print(f"300 fresh users: mean utility {before.mean():.2f}, and after {steps} steps")
    print(f"{gain.mean():+.2f} ± {1.96 * gain.std(ddof=1) / np.sqrt(len(gain)):.2f}")
    plt.plot(curve), plt.xlabel(f"times {BATCH} steps"), plt.ylabel("utility in training")
    plt.savefig(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
