"""Tianshou: a collector of random actions, and the DQN example."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import gymnasium as gym
import torch
from rl_speed import HORIZON, SELECT, bare_single, best, example, learnt
from rows import Row

from personalllm_env.envs.wrappers import Flat

NUM = 16


def make(row: int) -> Flat:
    """Returns one user at a time."""
    return Flat(gym.make(SELECT, horizon=HORIZON, row=row))


def rows() -> list[Row]:
    """Measures; about a minute."""
    torch.set_num_threads(1)
    return [collector(), dqn()]


def collector(steps: int = 3200) -> Row:
    """Measures a collector with random actions on a list of environments."""
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    bare = bare_single(make(0), steps)
    envs = DummyVectorEnv([partial(make, row) for row in range(NUM)])
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy

    one = make(0)
    policy = DiscreteQLearningPolicy(model=torch.nn.Identity(), action_space=one.action_space)
    collects = Collector(policy, envs, VectorReplayBuffer(20_000, NUM))
    collects.reset(gym_reset_kwargs={"seed": 0})
    speed = best(steps, lambda: collects.collect(n_step=steps, random=True))
    return Row(
        "tianshou",
        version("tianshou"),
        f"Collector, random actions, DummyVectorEnv of {NUM}, flat",
        round(speed),
        f"{speed / bare:.2f} of the bare environment",
    )


def dqn() -> Row:
    """Measures the example."""
    words, speed = example("tianshou_dqn")
    ran = f"DQN, DummyVectorEnv of {NUM}, flat observations with a belief"
    return Row("tianshou", version("tianshou"), ran, round(speed), "", learnt(words))
