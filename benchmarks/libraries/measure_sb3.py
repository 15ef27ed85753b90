"""Stable-Baselines3 and sb3-contrib: our ``VecEnv`` beside ``DummyVecEnv``, and learning.

Speeds are the best of several short runs in which both take turns; medians are in brackets.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rows import Row
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from personalllm_env import load_bank
from personalllm_env.adapters.sb3 import SB3Agent, make_sb3, save_agent
from personalllm_env.envs.translate import task_from_settings
from personalllm_env.envs.wrappers import Flat
from personalllm_env.registry import find_agent
from personalllm_env.report import summarise
from personalllm_env.runner import Entrant, compare
from personalllm_env.task import Task

sys.path.append(str(Path(__file__).parents[2] / "examples" / "libraries"))

SELECT, NUM = "PersonalLLM/Select-v0", 64
LIBRARY, CONTRIB = "stable-baselines3", "sb3-contrib"
LSTM = {"lstm_hidden_size": 32, "shared_lstm": True, "enable_critic_lstm": False}
BANK = load_bank()
Go = Callable[[], int]
"""Does something once, and returns how many environment steps it took."""


def rows() -> list[Row]:
    """Measures everything: about two minutes."""
    torch.set_num_threads(1)
    found = [
        _speed("random actions, dicts of features", "features", flat=False),
        _speed("random actions, flat features", "features", flat=True),
        _speed("random actions, dicts of ids", "ids", flat=False),
        _trained("PPO", PPO, {"n_steps": 32, "batch_size": 512, "n_epochs": 4}, 2048),
        _trained("DQN", DQN, {"learning_starts": 256, "buffer_size": 20_000}, 2048),
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return [*found, _ppo(), _recurrent()]


def native(observation: str, *, flat: bool) -> VecEnv:
    """Returns ours."""
    settings = {"bank": BANK, "observation": observation}
    return make_sb3(SELECT, NUM, settings=settings, flat=flat, seed=0)


def dummy(observation: str, *, flat: bool) -> VecEnv:
    """Returns SB3's own loop over the same users."""

    def one(row: int) -> gym.Env[Any, Any]:
        env = gym.make(SELECT, bank=BANK, observation=observation, row=row)
        return Flat(env) if flat else env

    return DummyVecEnv([lambda row=row: one(row) for row in range(NUM)])  # type: ignore[misc]


def stepping(env: VecEnv, steps: int) -> Go:
    """Returns a loop of random actions, drawn beforehand."""
    env.reset()
    rng = np.random.default_rng(0)
    actions = [rng.integers(BANK.num_responses, size=NUM) for _ in range(16)]

    def go() -> int:
        for i in range(steps):
            env.step(actions[i % 16])
        return steps * NUM

    return go


def in_turns(contenders: dict[str, Go], rounds: int) -> dict[str, tuple[float, float]]:
    """Returns steps per second of each: the best, and the median, after a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, go in contenders.items():
            start = time.perf_counter()
            steps = go()
            if round_ > 0:
                rates[name].append(steps / (time.perf_counter() - start))
    return {name: (max(found), float(np.median(found))) for name, found in rates.items()}


def _speed(what: str, observation: str, *, flat: bool) -> Row:
    contenders = {
        "native": stepping(native(observation, flat=flat), 1000),
        "dummy": stepping(dummy(observation, flat=flat), 60),
    }
    return _row(what, in_turns(contenders, 9))


def _trained(what: str, made: Any, settings: dict[str, Any], steps: int) -> Row:
    """Measures learning, networks and all."""

    def learning(env: VecEnv) -> Go:
        model = made("MlpPolicy", env, seed=0, device="cpu", **settings)

        def go() -> int:
            before = model.num_timesteps
            model.learn(steps, reset_num_timesteps=False)
            return int(model.num_timesteps - before)

        return go

    contenders = {
        "native": learning(native("features", flat=True)),
        "dummy": learning(VecMonitor(dummy("features", flat=True))),
    }
    return _row(f"{what}, flat features, learning included", in_turns(contenders, 4))


def _row(what: str, found: dict[str, tuple[float, float]]) -> Row:
    (best, median), (other, middle) = found["native"], found["dummy"]
    against = f"{best / other:.1f} x DummyVecEnv (medians {median / middle:.1f} x)"
    return Row(LIBRARY, version(LIBRARY), f"{what}, {NUM} environments", best, against)


def _mean(utility: np.ndarray) -> str:
    means = utility.mean(axis=1)
    return f"{means.mean():.3f} ±{1.96 * means.std(ddof=1) / len(means) ** 0.5:.3f}"


def _ppo() -> Row:
    """Runs the example and says what it says."""
    from sb3_ppo import TASK, learner

    model, entrants = learner(), [find_agent(n) for n in ("uniform", "popular", "linucb")]
    entrants.append(Entrant("before", SB3Agent, {"path": str(save_agent(model, "before"))}))
    start = time.perf_counter()
    model.learn(300_000)
    seconds = time.perf_counter() - start
    entrants.append(Entrant("after", SB3Agent, {"path": str(save_agent(model, "after"))}))
    result = compare(entrants, Task(BANK, **TASK), seeds=[0], num_users=400)
    gains = {row.agent: row.gain for row in summarise(result)}
    gained = [
        f"{gains[name].value:.3f} ±{(gains[name].high - gains[name].low) / 2:.3f}"
        for name in ("after", "linucb")
    ]
    before, after = (_mean(result.runs[name][0].utility) for name in ("before", "after"))
    learnt = (
        f"mean utility {before} to {after} over 400 new users, {model.num_timesteps:,} steps; "
        f"personalisation gain {gained[0]}, LinUCB's {gained[1]}"
    )
    what = "PPO, dicts with a belief, cold start (examples/libraries/sb3_ppo.py)"
    return Row(LIBRARY, version(LIBRARY), what, model.num_timesteps / seconds, "", learnt)


def _recurrent() -> Row:
    """Runs the example with a memory, beside one agent that needs no training."""
    from sb3_recurrent import TASK, train

    steps = 120_000
    start = time.perf_counter()
    entrant = train(RecurrentPPO, "MultiInputLstmPolicy", steps, LSTM)
    seconds = time.perf_counter() - start
    entrants = [entrant, find_agent("linucb")]
    result = compare(entrants, task_from_settings(**TASK), seeds=[0], num_users=1000)
    mine, theirs = (done.utility for [done] in result.runs.values())
    first, last, linucb = _mean(mine[:, :1]), _mean(mine[:, -3:]), _mean(theirs[:, -3:])
    learnt = (
        f"mean utility {first} at the first interaction, {last} over the last three of ten, "
        f"1,000 new users, {steps:,} steps; LinUCB's {linucb}"
    )
    what = "RecurrentPPO, one prompt again and again (examples/libraries/sb3_recurrent.py)"
    return Row(CONTRIB, version(CONTRIB), what, steps / seconds, "", learnt)
