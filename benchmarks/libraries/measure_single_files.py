"""The one-file learners of ``examples/``: how fast they train, and what they learn.

Speed is interactions per second of processor time in training: the difference between the whole
example and one that trains hardly at all, so that start, evaluation and figure do not count. It
is set against the bare vector environment, same users, with random actions (best of five).
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
from rows import Row

from personalllm_env.envs.augmentations import Augmentation, Belief, History
from personalllm_env.envs.wrappers import VectorAugmented

EXAMPLES = Path(__file__).parents[2] / "examples"


def rows() -> list[Row]:
    """Measures all three: about two minutes."""
    return [
        _row("ppo", 200_000, 256, 30, [Belief(30.0)], "PPO, belief wrapper"),
        _row("dqn", 100_000, 64, 30, [History(30)], "DQN, history wrapper"),
        _row("recurrent_ppo", 300_000, 128, 50, [], "recurrent PPO, no wrapper"),
    ]


def _row(
    name: str,
    steps: int,
    users: int,
    horizon: int,
    parts: Sequence[Augmentation],
    what: str,
) -> Row:
    least = 2 * users * horizon
    base, _ = _example(name, least)
    seconds, said = _example(name, steps)
    speed = (steps - least) / (seconds - base)
    bare = _bare(users, horizon, parts)
    return Row(
        library="torch",
        version=version("torch"),
        ran=f"examples/{name}.py: {what}, {users} users, native vector environment",
        steps_per_second=round(speed),
        against=f"{speed / bare:.2g} of that environment with random actions",
        learnt=f"{_learnt(said)}; {steps:,} interactions, 1,000 new users",
    )


def _example(name: str, steps: int) -> tuple[float, str]:
    """Runs an example; returns its seconds of processor time and what it printed."""
    before = _children()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), str(steps)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    return _children() - before, done.stdout


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bare(users: int, horizon: int, parts: Sequence[Augmentation]) -> float:
    """Returns steps per second of processor time of the environment alone."""
    env = gym.make_vec(
        "personalllm_env:PersonalLLM/Select-v0",
        users,
        horizon=horizon,
        autoreset_mode="SAME_STEP",
    )
    if parts:
        env = VectorAugmented(env, parts)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(8, size=(horizon, users))
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for action in actions:
            env.step(action)
        best = max(best, users * horizon / (time.process_time() - start))
    return best


def _learnt(said: str) -> str:
    """Returns the result in words."""
    if found := re.search(
        r"after training: (\S+) at (.*?),\s+(\S+) at (\S+): learnt (.*)", said
    ):
        first, when, last, then, gain = found.groups()
        return f"utility from {first} at {when} to {last} at {then}: {gain}"
    before, after, gain = re.findall(r"mean utility \w+: (\S+ ±\S+)", said)
    return f"mean utility {before.split()[0]} to {after}"
