"""Speed and memory of the environments and agents, as ratios to peers measured in the same run.

    python benchmarks/speed.py                 # prints the table
    python benchmarks/speed.py --out docs/benchmarks.md

The yardstick is a bare one-thread NumPy loop that does only the unavoidable work: the weighted
sum of ten scores, the next prompt drawn, K x D float32 features copied. Each pair is measured
in turn, round after round, and the ratio is that of the fastest rounds: on a shared machine
noise only ever slows.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import typer

import personalllm_env
from personalllm_env.agents.linear import LinUCB
from personalllm_env.runner import prior_for, run
from personalllm_env.task import Task
from personalllm_env.types import Feedback, Observation

SELECT = "PersonalLLM/Select-v0"
Steps = Callable[[int], None]


class Line(NamedTuple):
    """One row of the table."""

    what: str
    value: str
    peer: str
    ratio: str
    goal: str
    met: str


class Timing(NamedTuple):
    """Steps per second: the fastest round, and the middle one."""

    best: float
    median: float


def measure(
    contenders: dict[str, Steps], sizes: dict[str, int], rounds: int
) -> dict[str, Timing]:
    """Times every contender in turn, round after round; sizes are steps a call, of all rows."""
    calls = {name: 4 for name in contenders}
    for name, go in contenders.items():  # warm up, and find calls of about a tenth of a second
        go(8)
        start = time.perf_counter()
        go(64)
        calls[name] = max(64, int(64 * 0.1 / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, go in contenders.items():
            start = time.perf_counter()
            go(calls[name])
            seconds[name].append((time.perf_counter() - start) / calls[name] / sizes[name])
    return {n: Timing(1 / min(s), 1 / float(np.median(s))) for n, s in seconds.items()}


def bare_loop(
    bank: personalllm_env.ResponseBank, num: int, *, ids: bool, block: int = 1
) -> Steps:
    """Returns the yardstick; ``block`` prompts are drawn with one call of the generator."""
    rng = np.random.default_rng(0)
    p, k, m = bank.scores.shape
    scores, features = bank.scores.reshape(-1, m), bank.response_features
    weights = rng.dirichlet(np.ones(m), num).astype(np.float32)
    actions = rng.integers(k, size=num)
    kept, seen = (
        np.empty((num, m), np.float32),
        np.empty((num, *features.shape[1:]), np.float32),
    )
    prompt = np.zeros(num, np.int64)

    def go(calls: int) -> None:
        nonlocal prompt
        drawn = rng.integers(p, size=(block, num))
        for i in range(calls):
            np.take(scores, prompt * k + actions, axis=0, out=kept, mode="clip")
            np.einsum("nm,nm->n", kept, weights)
            if i % block == 0:
                drawn = rng.integers(p, size=(block, num))
            prompt = drawn[i % block]
            if not ids:
                np.take(features, prompt, axis=0, out=seen, mode="clip")

    return go


def vector_steps(env: gym.vector.VectorEnv, seed: int = 0) -> Steps:
    """Returns a loop over a vector environment with random actions drawn beforehand."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(32)]

    def go(calls: int) -> None:
        for i in range(calls):
            held, *_ = env.step(actions[i % 32])  # as a policy would, until the next one
        del held

    return go


def single_steps(env: gym.Env) -> Steps:
    """Returns a loop over a single environment, resets included."""
    env.reset(seed=0)

    def go(calls: int) -> None:
        for i in range(calls):
            _, _, terminated, truncated, _ = env.step(i % 8)
            if terminated or truncated:
                env.reset()

    return go


def bench_vector(bank: personalllm_env.ResponseBank, rounds: int) -> list[Line]:
    """Native vector environment against the bare loop."""
    goals = {(64, False): 0.6, (1024, False): 0.6, (16384, False): 0.6, (16384, True): 0.4}
    lines = []
    for (num, ids), goal in goals.items():
        kind = "ids" if ids else "features"
        env = gym.make_vec(SELECT, num, bank=bank, observation=kind)
        contenders = {
            "env": vector_steps(env),
            "loop": bare_loop(bank, num, ids=ids),
            "loop, prompts drawn 64 steps ahead": bare_loop(bank, num, ids=ids, block=64),
            "CartPole": vector_steps(gym.make_vec("CartPole-v1", num)),
        }
        found = measure(contenders, dict.fromkeys(contenders, num), rounds)
        ours = found.pop("env")
        what = f"vector env, N = {num:,}, {kind}"
        for name, peer in found.items():
            wanted = goal if name == "loop" else None
            lines.append(_line(what, ours, name, peer, wanted))
    return lines


def bench_single(bank: personalllm_env.ResponseBank, rounds: int) -> list[Line]:
    """A single environment through ``gym.make``, and the gain of the native vector one."""
    contenders = {
        "env": single_steps(gym.make(SELECT, bank=bank)),
        "loop": bare_loop(bank, 1, ids=False),
    }
    found = measure(contenders, dict.fromkeys(contenders, 1), rounds)
    ratio = found["env"].best / found["loop"].best
    met = _met(found["env"].best, 100_000)
    first = Line(
        "single env, gym.make",
        _rate(found["env"]),
        f"loop, N = 1: {_rate(found['loop'])}",
        f"{ratio:.2f}",
        "100,000/s",
        met,
    )
    num = 1024
    sync = gym.make_vec(SELECT, num, vectorization_mode="sync", bank=bank)
    native = gym.make_vec(SELECT, num, bank=bank)
    contenders = {"native": vector_steps(native), "SyncVectorEnv": vector_steps(sync)}
    found = measure(contenders, dict.fromkeys(contenders, num), max(2, rounds // 4))
    peer = found["SyncVectorEnv"]
    return [
        first,
        _line("vector env, N = 1,024, features", found["native"], "SyncVectorEnv", peer, 30),
    ]


def bench_agents(rounds: int) -> list[Line]:
    """LinUCB with D = 64 and K = 8: one user, 64 users, and 1,000 users x 50 interactions."""
    bank = personalllm_env.data.load_bank("synthetic", num_features=64)
    task = Task(bank)
    lines = []
    for num, goal in ((1, 40_000), (64, 150_000)):
        agent = LinUCB(prior_for(LinUCB, task), ridge=1.0)
        steps = _decisions(agent, num, bank)
        found = measure({"agent": steps}, {"agent": num}, rounds)["agent"]
        met = _met(found.best, goal)
        what = f"LinUCB, D = 64, K = 8, {num} user{'s' if num > 1 else ''}"
        lines.append(Line(what, f"{_rate(found)} decisions", "", "", f"{goal:,}/s", met))
    agent = LinUCB(prior_for(LinUCB, task), ridge=1.0)
    start = time.perf_counter()
    run(agent, task, num_users=1000, seed=0)
    seconds = time.perf_counter() - start
    what = "LinUCB, 1,000 users x 50 interactions, env included"
    lines.append(Line(what, f"{seconds:.2f} s", "", "", "5 s", _met(-seconds, -5)))
    return lines


def _decisions(agent: LinUCB, num: int, bank: personalllm_env.ResponseBank) -> Steps:
    rng = np.random.default_rng(0)
    agent.reset(num, rng)
    prompts = rng.integers(bank.num_prompts, size=(64, num))
    seen = [Observation(p, bank.prompt_features[p], bank.response_features[p]) for p in prompts]
    heard, left = np.ones(num, bool), np.zeros(num, bool)
    reward = rng.standard_normal(num).astype(np.float32)
    feedback = Feedback(reward, heard, {"reward": reward}, left)

    def go(calls: int) -> None:
        for i in range(calls):
            observation = seen[i % 64]
            agent.update(observation, agent.act(observation), feedback)

    return go


def bench_process() -> list[Line]:
    """Import time and memory, each in a process of its own."""
    base = min(_child("import gymnasium")[0] for _ in range(5))
    ours = min(_child("import gymnasium, personalllm_env")[0] for _ in range(5))
    added = ours - base
    lines = [
        Line(
            "import personalllm_env, beyond gymnasium",
            f"{added:.2f} s",
            f"import gymnasium: {base:.2f} s",
            "",
            "0.3 s",
            _met(-added, -0.3),
        )
    ]
    build = "from personalllm_env import load_bank; bank = load_bank('synthetic')"
    seconds, peak = _child(build, setup="import personalllm_env")
    value = f"{seconds:.1f} s, {peak:.0f} MB peak"
    met = "yes" if seconds < 5 and peak < 1000 else "no"
    lines.append(Line("synthetic bank, full size", value, "", "", "5 s, 1,000 MB", met))
    many = build + (
        "\nimport gymnasium as gym"
        "\nenv = gym.make_vec('PersonalLLM/Select-v0', 16384, bank=bank); env.reset(seed=0)"
        "\nfor _ in range(60): obs, *_ = env.step(env.action_space.sample())"
    )
    _, peak = _child(many, setup="import personalllm_env")
    lines.append(Line("16,384 vector envs over it", f"{peak:.0f} MB peak", "", "", "", ""))
    return lines


# ru_maxrss counts what the parent held when it forked; Linux's VmHWM begins at exec.
_PEAK = """
from pathlib import Path
status = Path("/proc/self/status")
if status.exists():
    peak = float(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, peak)
"""


def _child(code: str, setup: str = "") -> tuple[float, float]:
    """Returns the seconds that code takes in a new process, and its peak memory in MB."""
    script = (
        f"import time\n{setup}\nstart = time.perf_counter()\n{code}\n"
        f"seconds = time.perf_counter() - start\n{_PEAK}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def _line(what: str, ours: Timing, name: str, peer: Timing, goal: float | None) -> Line:
    ratio = ours.best / peer.best
    spread = f"{ratio:.2f} (medians {ours.median / peer.median:.2f})"
    wanted, met = ("", "") if goal is None else (f"{goal:g} x", _met(ratio, goal))
    return Line(what, _rate(ours), f"{name}: {_rate(peer)}", spread, wanted, met)


def _met(value: float, goal: float) -> str:
    return "yes" if value >= goal else "no"


def _rate(timing: Timing) -> str:
    rate = timing.best
    return f"{rate / 1e6:.2f} M/s" if rate >= 1e6 else f"{rate / 1e3:.0f} k/s"


def as_markdown(lines: list[Line]) -> str:
    """Returns the page that ``docs/`` keeps."""
    versions = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"Gymnasium {gym.__version__}"
    )
    head = (
        "# Speed and memory\n\n"
        "Written by `python benchmarks/speed.py --out docs/benchmarks.md`; never by hand.\n\n"
        f"{os.cpu_count()} cores, one thread used; {versions}. Steps per second are those of "
        "the fastest round; a ratio is ours to the peer's, measured in turn in the same run. "
        "The loop is a bare NumPy loop of the unavoidable work only (see the file's head).\n\n"
        "| what | measured | peer | ratio | goal | met |\n|---|---|---|---|---|---|\n"
    )
    return head + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds in which contenders take turns.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Runs everything; about two minutes."""
    bank = personalllm_env.load_bank("synthetic")
    lines = bench_vector(bank, rounds) + bench_single(bank, rounds)
    lines += bench_agents(rounds) + bench_process()
    page = as_markdown(lines)
    print(page)
    if out is not None:
        out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
