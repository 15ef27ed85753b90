"""OpenEnv: steps per second in process and over a websocket, and whether replies are lost.

python benchmarks/libraries measure openenv
python benchmarks/libraries/measure_openenv.py nothing     # the peer's server alone
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
from openenv import GenericEnvClient
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from rows import Row

from personalllm_env.adapters.openenv import (
    GenerateAction,
    GenerateEnvironment,
    SelectAction,
    SelectClient,
    SelectEnvironment,
)
from personalllm_env.adapters.openenv.guard import Guard, Limits
from personalllm_env.adapters.openenv.network import listen, serve

HORIZON, REPEATS, STEPS, SESSIONS = 50, 6, 600, 8
EXAMPLE = Path(__file__).parents[2] / "examples" / "libraries" / "openenv_client.py"


class Nothing(Environment[Action, Observation, State]):
    """The peer: an environment that does nothing, on the same server."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Observation:
        """Does nothing."""
        return Observation()

    def step(self, action: Action, timeout_s: Any = None, **kwargs: Any) -> Observation:
        """Does nothing."""
        return Observation(reward=0.0)

    @property
    def state(self) -> State:
        """Nothing."""
        return State()


def rows() -> list[Row]:
    """Measures on one machine, the ways by turns; speed is the best of six short runs."""
    bare, select, generate = _in_process()
    with contextlib.ExitStack() as stack:
        here = [sys.executable, __file__, "nothing"]
        ours = [sys.executable, "-m", "personalllm_env", "serve", "select", "--port", "0"]
        peer = stack.enter_context(_served(here))
        texts = stack.enter_context(_served(ours))
        features = stack.enter_context(_served([*ours, "--features"]))
        best = dict.fromkeys(("peer", "texts", "features", "eight"), 0.0)
        lost = 0
        for _ in range(REPEATS):
            for name, url in (("peer", peer), ("texts", texts), ("features", features)):
                client = SelectClient if name != "peer" else GenericEnvClient
                action = {} if name == "peer" else SelectAction(response=1)
                speed = asyncio.run(_one(client(base_url=url), action))
                best[name] = max(best[name], speed)
            speed, missing = asyncio.run(_eight(texts))
            best["eight"], lost = max(best["eight"], speed), lost + missing
    share = f"of a websocket client of an environment that does nothing ({best['peer']:,.0f})"
    return [
        _row(
            "Select in process, texts and rubrics",
            select,
            f"{select / bare:.2f} of Gymnasium's",
        ),
        _row("Generate in process, 40 words, offline heads", generate, ""),
        _row(
            "Select, one websocket client, texts",
            best["texts"],
            f"{best['texts'] / best['peer']:.2f} {share}",
            _learnt(),
        ),
        _row(
            "Select, one websocket client, texts and features",
            best["features"],
            f"{best['features'] / best['peer']:.2f} {share}",
        ),
        _row(
            f"Select, {SESSIONS} websocket clients of one process, replies compared with "
            f"episodes in process: {lost} of {REPEATS * SESSIONS * HORIZON * 4:,} lost",
            best["eight"],
            f"{best['eight'] / best['texts']:.2f} of one client",
        ),
    ]


def _row(ran: str, speed: float, against: str, learnt: str = "") -> Row:
    return Row("openenv", version("openenv"), ran, speed, against, learnt)


def _in_process() -> tuple[float, float, float]:
    env = gym.make("PersonalLLM/Select-v0", texts=True, horizon=HORIZON).unwrapped
    ours = SelectEnvironment({"horizon": HORIZON})
    writer = GenerateEnvironment({"horizon": HORIZON})
    show, write = SelectAction(response=1), GenerateAction(text="It is well said. " * 10)
    return (
        _best(lambda: env.reset(seed=0), lambda: env.step(1)),
        _best(lambda: ours.reset(seed=0), lambda: ours.step(show)),
        _best(lambda: writer.reset(seed=0), lambda: writer.step(write)),
    )


def _best(reset: Callable[[], Any], step: Callable[[], Any]) -> float:
    """Returns steps per second, resets included, the best of so many episodes."""
    fastest = 0.0
    for _ in range(5 * REPEATS):
        began = time.perf_counter()
        reset()
        for _ in range(HORIZON):
            step()
        fastest = max(fastest, HORIZON / (time.perf_counter() - began))
    return fastest


async def _one(client: Any, action: Any) -> float:
    async with client:
        await client.reset(seed=0)
        began = time.perf_counter()
        for _ in range(STEPS):
            if (await client.step(action)).done:
                await client.reset()
        return STEPS / (time.perf_counter() - began)


async def _eight(url: str) -> tuple[float, int]:
    """Plays eight sessions at a time; returns steps per second, and how many went wrong."""
    began = time.perf_counter()
    played = await asyncio.gather(*(_episodes(url, seed) for seed in range(SESSIONS)))
    speed = sum(map(len, played)) / (time.perf_counter() - began)
    return speed, sum(_wrong(seed, found) for seed, found in enumerate(played))


async def _episodes(url: str, seed: int) -> list[Any]:
    found = []
    async with SelectClient(base_url=url) as client:
        for episode in range(4):
            await client.reset(seed=10 * seed + episode)
            for t in range(HORIZON):
                result = await client.step(SelectAction(response=(seed + t) % 8))
                found.append((result.reward, result.observation.prompt))
    return found


def _wrong(seed: int, found: list[Any]) -> int:
    env, wanted = SelectEnvironment({"horizon": HORIZON}), []
    for episode in range(4):
        env.reset(seed=10 * seed + episode)
        for t in range(HORIZON):
            seen = env.step(SelectAction(response=(seed + t) % 8))
            wanted.append((seen.reward, seen.prompt))
    return sum(one != other for one, other in zip(found, wanted, strict=True))


def _learnt() -> str:
    """Runs the example and returns what it says it learnt."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLE), "figure.png"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    first, last, error = re.findall(r"\d*\.\d+", done.stdout)[-3:]
    return f"a ridge belief per user: reward {first} at first to {last} ±{error}, 160 users"


@contextlib.contextmanager
def _served(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://[\d.:]+", process.stdout.readline())
            assert found is not None
            yield found.group()
        finally:
            process.terminate()


def _serve_nothing() -> None:
    app = create_fastapi_app(Nothing, Action, Observation, max_concurrent_envs=8)
    bound = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    serve(Guard(app, Limits()), bound)


if __name__ == "__main__" and sys.argv[1:] == ["nothing"]:
    _serve_nothing()
