"""DQN with Tianshou 2 on a list of environments; the policy then runs in the benchmark's loop.

Needs pip install 'personalllm-env[tianshou]'; arguments: the figure's path, the steps.
"""

import sys
from dataclasses import replace
from functools import partial

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from personalllm_env.adapters.policies import PolicyAgent
from personalllm_env.adapters.tianshou import TianshouPolicy
from personalllm_env.envs.wrappers import Augmented, Belief, Flat
from personalllm_env.runner import run

NUM, LOOKS = 16, 5


def make(row):
    """Returns one user at a time; rows of one seed are different users."""
    env = gym.make("personalllm_env:PersonalLLM/Select-v0", horizon=20, row=row)
    return Flat(Augmented(env, Belief()))


def on_fresh_users(policy, task):
    """Returns each of 300 new users' mean utility, on prompts of the test side."""
    known, chooser = task.prior_knowledge(), TianshouPolicy(policy)
    agent = PolicyAgent(known, policy=chooser, parts=[Belief()], flat=True)
    return run(agent, task, num_users=300, seed=1).utility.mean(axis=1)


def main(figure="tianshou-dqn.png", steps=12_000):
    """Trains, compares before and after on fresh users, and draws the curve."""
    torch.manual_seed(0), torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - Tianshou draws from it
    one = make(0)
    task = replace(one.unwrapped.task, split="test")
    spaces = {"action_space": one.action_space, "observation_space": one.observation_space}
    shapes = {"state_shape": one.observation_space.shape, "action_shape": one.action_space.n}
    net = Net(hidden_sizes=[128], **shapes)
    policy = DiscreteQLearningPolicy(model=net, eps_training=0.2, **spaces)
    # What is shown now changes nothing of what is asked next: no discounted future.
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.0)
    envs = DummyVectorEnv([partial(make, row) for row in range(NUM)])
    collector = Collector(algorithm, envs, VectorReplayBuffer(50_000, NUM))
    collector.reset(gym_reset_kwargs={"seed": 0})
    curve = [on_fresh_users(policy, task)]
    for _ in range(LOOKS):
        params = OffPolicyTrainerParams(
            training_collector=collector, max_epochs=1, epoch_num_steps=int(steps) // LOOKS,
            collection_step_num_env_steps=10 * NUM, batch_size=128, test_in_training=False,
            update_step_num_gradient_steps_per_sample=0.1, verbose=False, show_progress=False,
        )  # fmt: skip
        algorithm.run_training(params)
        curve.append(on_fresh_users(policy, task))
    before, gain = curve[0].mean(), curve[-1] - curve[0]
    print(f"300 fresh users: mean utility {before:.2f}, and after {steps} steps")
    print(f"{gain.mean():+.2f} ± {1.96 * gain.std(ddof=1) / np.sqrt(len(gain)):.2f}")
    plt.plot(np.linspace(0, int(steps), LOOKS + 1), [look.mean() for look in curve])
    plt.xlabel("steps"), plt.ylabel("mean utility of 300 fresh users")
    plt.savefig(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
