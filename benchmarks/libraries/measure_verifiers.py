"""verifiers: two writers' rewards, and rollouts per second beside bare requests."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rows import Row

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path += [str(EXAMPLES / "libraries"), str(EXAMPLES / "verifiers_personalllm")]
TASKS = 100


def rows() -> list[Row]:
    """Returns one row: the example's two writers, each over the same users."""
    import verifiers_eval as example

    took, found = [], []
    for write in (example.at_random, example.reads_the_past):
        example.rewards(write, 2)  # imports and caches
        start = time.perf_counter()
        found.append(example.rewards(write, TASKS))
        took.append(time.perf_counter() - start)
    random, reads = found
    means = [f"{x.mean():+.2f} ± {x.std(ddof=1) / np.sqrt(TASKS):.2f}" for x in found]
    gain = reads - random
    error = gain.std(ddof=1) / np.sqrt(TASKS)
    speed = TASKS / min(took)
    return [
        Row(
            "verifiers",
            version("verifiers"),
            f"{TASKS} rollouts, 16 comparisons in the prompt, local endpoint, our harness",
            speed,
            f"{speed / max(_bare(example) for _ in range(3)):.2f} of bare requests and rewards",
            f"mean reward {means[0]} at random, {means[1]} by reading the past: gain "
            f"{gain.mean():+.2f} ± {error:.2f} (standard errors; the same {TASKS} users)",
        )
    ]


def _bare(example: object) -> float:
    """Returns prompts per second asked one after the other, and valued, without verifiers."""
    from local_endpoint import endpoint
    from openai import OpenAI

    from personalllm_env.envs.writing_settings import writing_task_from_settings
    from personalllm_env.generation.asking import draw_asked, value_texts

    problem = writing_task_from_settings(past=16)
    asked = draw_asked(problem, TASKS, seed=0)
    chats = asked.chats(problem, words=400)
    with endpoint(example.reads_the_past) as url:  # type: ignore[attr-defined]
        client = OpenAI(base_url=url, api_key="none")
        start = time.perf_counter()
        for i, chat in enumerate(chats):
            answer = client.chat.completions.create(model="local", messages=chat)
            question = problem.texts.prompts[asked.prompt[0, i]]
            text = answer.choices[0].message.content
            value_texts(problem, [question], [text], asked.weights[i : i + 1])
        return TASKS / (time.perf_counter() - start)
