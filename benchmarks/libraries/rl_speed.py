"""What the measurements of RL libraries share: bare environments, examples, a reference."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from personalllm_env.registry import find_agent
from personalllm_env.runner import prior_for, run

SELECT = "personalllm_env:PersonalLLM/Select-v0"
HORIZON = 20
_EXAMPLES = Path(__file__).parents[2] / "examples" / "libraries"


def best(steps: int, does: Callable[[], object], times: int = 5) -> float:
    """Returns the most steps per second of several runs: noise only ever slows one down."""
    found = 0.0
    for _ in range(times):
        begin = time.perf_counter()
        does()
        found = max(found, steps / (time.perf_counter() - begin))
    return found


def bare_vector(env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> float:
    """Returns the speed of a vector environment under random actions."""

    def does() -> None:
        for _ in range(steps):
            env.step(env.action_space.sample())

    env.reset(seed=0)
    return best(steps * env.num_envs, does)


def bare_single(env: gym.Env[Any, Any], steps: int) -> float:
    """Returns the speed of a single environment under random actions."""

    def does() -> None:
        over = True
        for _ in range(steps):
            if over:
                env.reset()
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated

    return best(steps, does)


def example(name: str, *arguments: str) -> tuple[str, float]:
    """Runs an example whole, with its looks at fresh users and without its imports.

    Returns:
        What it learnt, in words, and environment steps per second of the whole of it.
    """
    main = runpy.run_path(str(_EXAMPLES / f"{name}.py"))["main"]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()) as told,
    ):
        begin = time.perf_counter()
        main(f"{folder}/figure.png", *arguments)
        seconds = time.perf_counter() - begin
    words = told.getvalue()
    numbers = re.search(r"(-?[\d.]+), and after (\d+) steps\s+([+-][\d.]+) ± ([\d.]+)", words)
    if numbers is None:
        raise RuntimeError(f"example {name} said something else: {words!r}")
    before, steps, gain, error = numbers.groups()
    return f"{before} before, {gain} ± {error} after {int(steps):,} steps", int(steps) / seconds


def linucb() -> str:
    """Returns what LinUCB does for the users that the examples are judged by."""
    env = gym.make(SELECT, horizon=HORIZON, split="test")
    task = replace(env.unwrapped.task)  # type: ignore[attr-defined]
    _, agent_class, settings = find_agent("linucb")
    agent = agent_class(prior_for(agent_class, task), **settings)
    done = run(agent, task, num_users=300, seed=1).utility.mean(axis=1)
    return f"LinUCB {done.mean():.2f} ± {1.96 * done.std(ddof=1) / len(done) ** 0.5:.2f}"


def learnt(words: str) -> str:
    """Returns a learning result with what it is compared with."""
    return (
        f"mean utility of 300 fresh users {words} ({linucb()}, which knows of no other users)"
    )
