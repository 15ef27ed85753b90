"""Gymnasium: the native vector environment beside Gymnasium's own over single environments.

Speeds are the best of several short runs in which all take turns; medians are in brackets.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from rows import Row

from personalllm_env import load_bank

SELECT, LIBRARY, ROUNDS = "PersonalLLM/Select-v0", "gymnasium", 9
BANK = load_bank()


class Stepping:
    """A vector environment under random actions, drawn beforehand.

    Args:
        env: The environment.
        steps: Its steps in one run.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> None:
        rng = np.random.default_rng(0)
        self.env, self._steps = env, steps
        shape = (16, env.num_envs)
        self._actions = rng.integers(BANK.num_responses, size=shape)
        env.reset(seed=0)
        self.rates: list[float] = []

    def run(self) -> None:
        """Measures one run."""
        start = time.perf_counter()
        for i in range(self._steps):
            self.env.step(self._actions[i % 16])
        done = self._steps * self.env.num_envs
        self.rates.append(done / (time.perf_counter() - start))


def made(num: int, kind: str, steps: int) -> Stepping:
    """Returns a vector environment made by Gymnasium."""
    return Stepping(gym.make_vec(SELECT, num, vectorization_mode=kind, bank=BANK), steps)


def rows() -> list[Row]:
    """Measures native, synchronous and asynchronous ones: less than a minute."""
    native = "vector_entry_point"
    counted = RecordEpisodeStatistics(gym.make_vec(SELECT, 64, bank=BANK))
    runs = {
        "native, 64": made(64, native, 1000),
        "native, 64, counted by RecordEpisodeStatistics": Stepping(counted, 1000),
        "native, 8": made(8, native, 1000),
        "sync, 64": made(64, "sync", 40),
        "async, 8": made(8, "async", 200),
    }
    for _ in range(ROUNDS):
        for stepping in runs.values():
            stepping.run()
    for stepping in runs.values():
        stepping.env.close()
    against = {
        "native, 64": "sync, 64",
        "native, 64, counted by RecordEpisodeStatistics": "native, 64",
        "native, 8": "async, 8",
    }
    found = []
    for name, peer in against.items():
        mine, theirs = runs[name].rates, runs[peer].rates
        ratio, middle = max(mine) / max(theirs), np.median(mine) / np.median(theirs)
        words = f"{ratio:.2g} x {peer} (medians {middle:.2g} x)"
        ran = f"random actions, make_vec {name}"
        found.append(Row(LIBRARY, version(LIBRARY), ran, max(mine), words))
    return found
