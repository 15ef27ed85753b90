"""verifiers asks two writers behind a local endpoint: does reading the user's past help?

Every prompt tells what its user liked. One writer answers with any of the bank's responses,
the other with the one that is most like what was liked.

    pip install 'personalllm-env[verifiers]'
    python examples/libraries/verifiers_eval.py [FIGURE] [TASKS]
"""

import asyncio
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "verifiers_personalllm"))  # or pip install
from local_endpoint import endpoint
from verifiers.v1.cli.eval.runner import run_eval
from verifiers.v1.configs.cli.eval import EvalConfig

from personalllm_env import load_bank
from personalllm_env.rewards.statistics import statistics

BANK = load_bank("text")
LIKED = re.compile(r"I liked this answer: (.*?)\nI did not like this one: (.*?)\n\n", re.DOTALL)


def responses(prompt):
    """Returns the bank's responses to the question at the end of a prompt."""
    rows = zip(BANK.texts.prompts, BANK.texts.responses, strict=True)
    return next(texts for question, texts in rows if prompt.endswith(question))


def at_random(prompt):
    """Answers with one or another, whatever the user likes."""
    return responses(prompt)[len(prompt) % 8]


def reads_the_past(prompt):
    """Answers with what is most like the liked texts and least like the others."""
    texts = [*responses(prompt), *(text for pair in LIKED.findall(prompt) for text in pair)]
    seen = statistics([""] * len(texts), texts)
    seen = (seen - seen.mean(0)) / (seen.std(0) + 1e-9)
    apart = (seen[8::2] - seen[9::2]).mean(0)
    return texts[int((seen[:8] @ apart).argmax())]


def rewards(write, tasks):
    """Returns each task's reward, in order, as verifiers records it."""
    taskset = {"id": "personalllm", "num_tasks": tasks, "past": 16, "words": 400}
    env = {"taskset": taskset, "agent": {"runtime": {"type": "subprocess"}}}
    with endpoint(write) as url, tempfile.TemporaryDirectory() as folder:
        client = {"base_url": url}
        config = EvalConfig(env=env, client=client, push=False, rich=None, output_dir=folder)
        episodes = asyncio.run(run_eval(config))
    assert all(episode.ok for episode in episodes), "see the errors above"
    episodes.sort(key=lambda episode: episode.task.data.idx)
    return np.array([episode.traces[0].reward for episode in episodes])


def main(figure, tasks):
    """Prints both writers' mean reward, and what one gains on the other."""
    found = {write.__name__: rewards(write, tasks) for write in (at_random, reads_the_past)}
    found["gain"] = found["reads_the_past"] - found["at_random"]  # for the same users
    axes = Figure(layout="constrained").subplots()
    for name, each in found.items():
        print(f"{name}: {each.mean():+.2f} ± {each.std(ddof=1) / np.sqrt(tasks):.2f}")
        axes.ecdf(each, label=name.replace("_", " "))
    axes.set(xlabel="reward (utility to the user)", ylabel="share of users")
    axes.legend(frameon=False)
    axes.figure.savefig(figure, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["verifiers-eval.png"], *map(int, sys.argv[2:3] or [100]))
