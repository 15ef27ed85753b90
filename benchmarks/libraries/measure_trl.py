"""TRL: what the example learns, and what its interface costs beside our own environment."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rows import Row

from personalllm_env import load_bank
from personalllm_env.adapters.trl import PersonalLLMSpec
from personalllm_env.envs.generate import GenerateEnv
from personalllm_env.generation.asking import value_texts

EXAMPLE = Path(__file__).parents[2] / "examples" / "libraries" / "trl_grpo.py"
STEPS, TURNS = 60, 50
LEARNT = re.compile(r"utility to the user: (.*)\nsame texts, own user minus others: (.*)\n")


def rows() -> list[Row]:
    """Returns a row of rewards and training, and one of conversations."""
    bank = load_bank("text")
    texts = [text for row in bank.texts.responses[:32] for text in row]  # type: ignore[union-attr]
    rewarding, scoring = _rewards(PersonalLLMSpec(bank=bank, num_rows=len(texts)), texts)
    talking, stepping = _conversations(bank, texts)
    return [
        Row(
            "trl",
            version("trl"),
            f"GRPO, toy of a million weights, {STEPS} steps of 32 texts; rewards of 256 texts",
            len(texts) / rewarding,
            f"{scoring / rewarding:.2f} of scoring them without TRL's columns",
            _learnt(),
        ),
        Row(
            "trl",
            version("trl"),
            f"conversations of {TURNS} tool calls (environment_factory), no model",
            TURNS / talking,
            f"{stepping / talking:.2f} of Generate-v0",
        ),
    ]


def _best(run: Callable[[], object], times: int = 7) -> float:
    """Returns the seconds that the fastest of several runs took."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _rewards(spec: PersonalLLMSpec, texts: list[str]) -> tuple[float, float]:
    """Returns the seconds of TRL's reward function, and of the same without TRL."""
    columns = spec.train_dataset.to_dict()
    prompts, weights = columns.pop("prompt"), np.float32(columns["user_weights"])
    [reward] = spec.reward_funcs
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    return (
        _best(lambda: reward(prompts=prompts, completions=answers, **columns)),
        _best(lambda: value_texts(spec.problem, columns["question"], texts, weights)),
    )


def _conversations(bank: object, texts: list[str]) -> tuple[float, float]:
    """Returns the seconds of a conversation by tool calls, and in our own environment."""
    spec = PersonalLLMSpec(bank=bank, num_rows=1, horizon=TURNS)  # type: ignore[arg-type]
    [row] = spec.train_dataset
    tool = spec.environment_factory()  # type: ignore[misc]
    env = GenerateEnv(bank=bank, horizon=TURNS, max_conversation=0)

    def talk() -> None:
        tool.reset(**row)
        for text in texts[:TURNS]:
            tool.respond(text)

    def step() -> None:
        env.reset(seed=0)
        for text in texts[:TURNS]:
            env.step(text)

    return _best(talk), _best(step)


def _learnt() -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", EXAMPLE, f"{folder}/figure.png", str(STEPS)],
            capture_output=True, text=True, check=True, cwd=folder,
        )  # fmt: skip
    found = LEARNT.search(done.stdout)
    assert found, done.stdout
    return f"utility to the user {found[1]}; own user minus others {found[2]} (12 prompts)"
