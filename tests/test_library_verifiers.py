"""verifiers: rows, rewards and metrics of a run against an endpoint on this machine."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import personalllm_env as pe
from personalllm_env.generation.asking import value_texts

vf = pytest.importorskip("verifiers.v1")
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "verifiers_personalllm"
VF_EVAL = (sys.executable, "-c", "from verifiers.v1.cli.eval.main import main; main()")
TEXTS = ("Tea? Yes!", "A list:\n- one\n- two\n", "  Why not? Because it rains.  ", "é")


@pytest.fixture(scope="module")
def bank():
    return pe.load_bank("text")


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """The package is on the path, as if it were installed; nothing asks a proxy."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("PRIME_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def taskset(**settings):
    return vf.load_taskset(vf.taskset_config_type("personalllm")(id="personalllm", **settings))


def answer(prompt):
    return TEXTS[len(prompt) % len(TEXTS)]


def utility(bank, data, text):
    """Returns what a text is worth in PersonalLLM/Generate-v0, and its scores."""
    env = gym.make("PersonalLLM/Generate-v0", bank=bank, disable_env_checker=True)
    options = {"weights": data["user_weights"], "prompts": [data["prompt_row"]]}
    env.reset(seed=0, options=options)
    info = env.step(text)[4]
    return info["utility"], info["scores"]


def run(folder, *more, url):
    return subprocess.run(
        [*VF_EVAL, "personalllm", "--no-push", "--no-rich", "-o", str(folder),
         "--env.agent.runtime.type", "subprocess", "--client.base-url", url, "-m", "local",
         *more],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def traces(folder):
    [path] = folder.rglob("traces.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [trace for line in lines for trace in json.loads(line)["traces"]]


def test_rows_are_users_who_ask(bank):
    tasks = list(taskset(num_tasks=6, past=2, words=5, seed=1))
    assert [task.data.idx for task in tasks] == list(range(6))
    for task in tasks:
        assert isinstance(task.config.bank, str)
        assert task.data.prompt_row in bank.prompts("train")
        assert task.data.question == bank.texts.prompts[task.data.prompt_row]
        assert task.data.prompt.endswith(task.data.question)
        assert task.data.prompt.count("I liked this answer: ") == 2
        assert sum(task.data.user_weights) == pytest.approx(1, abs=1e-5)
    assert len({task.data.user_weights for task in tasks}) == 6
    again = list(taskset(num_tasks=6, past=2, words=5, seed=1))
    assert [task.hash for task in again] == [task.hash for task in tasks]
    other = list(taskset(num_tasks=6, past=2, words=5, seed=2))
    assert not {task.hash for task in other} & {task.hash for task in tasks}
    held = list(taskset(num_tasks=6, split="test"))
    assert all(task.data.prompt_row in bank.prompts("test") for task in held)
    assert all(task.data.prompt == task.data.question for task in held)  # who asks is hidden


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ({"past": -1}, "past must be"),
        ({"concentration": 0.0}, "concentration must be positive"),
        ({"task": {"bank": "synthetic"}}, "needs a bank with texts"),
        ({"task": {"max_characters": 0}}, "max_characters must be"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        list(taskset(**settings))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="extra"):
        taskset(horizon=3)


def test_scores_and_reward_are_those_of_generate(bank, monkeypatch):
    """Without a run: a trace is made by hand. A text is scored once, for both."""
    scored = []

    def counted(problem, prompts, texts, weights):
        scored.extend(texts)
        return value_texts(problem, prompts, texts, weights)

    monkeypatch.setattr("personalllm_env.adapters.verifiers.value_texts", counted)
    [task] = taskset(num_tasks=1)
    long = " ".join(bank.texts.responses[0])
    assert len(long) > 4000
    for text in ("Tea? Yes!", "", long[:300], long):
        trace = vf.Trace(
            task=vf.TraceTask(type="PersonalLLMTask", data=task.data),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            root_reply=text,
        )
        asyncio.run(task.score(trace))
        value, scores = utility(bank, task.data.model_dump(), text)
        assert trace.reward == value
        assert trace.metrics == dict(zip(bank.reward_models, scores.tolist(), strict=True))
        assert scored.pop() == text.strip()
        assert not scored


def test_the_command_runs_against_an_endpoint(bank, tmp_path):
    from local_endpoint import endpoint

    asked = []

    def write(prompt):
        asked.append(prompt)
        return answer(prompt)

    with endpoint(write) as url:
        done = run(tmp_path, "-n", "5", "-r", "2", "--env.taskset.past", "1", url=url)
    assert done.returncode == 0, done.stderr[-3000:]
    found = traces(tmp_path)
    assert len(found) == len(asked) == 10
    for trace in found:
        assert trace["ok"]
        assert not trace["errors"]
        data, text = trace["task"]["data"], answer(trace["task"]["data"]["prompt"])
        assert data["prompt"] in asked
        value, scores = utility(bank, data, text.strip())
        assert trace["rewards"] == {"utility": {"score": pytest.approx(value), "weight": 1.0}}
        assert list(trace["metrics"]) == list(bank.reward_models)
        np.testing.assert_allclose(list(trace["metrics"].values()), scores, rtol=1e-6)
    users = {}
    for trace in found:  # the rollouts of a row are for the same user
        data = trace["task"]["data"]
        users.setdefault(data["idx"], set()).add(tuple(data["user_weights"]))
    assert [len(found) for found in users.values()] == [1] * 5


def test_an_endpoint_that_fails_is_an_error_and_no_reward(tmp_path):
    from local_endpoint import endpoint
    from verifiers.v1.cli.eval.runner import run_eval
    from verifiers.v1.configs.cli.eval import EvalConfig

    def broken(prompt):
        raise ValueError(prompt)

    env = {"taskset": {"id": "personalllm", "num_tasks": 1},
           "agent": {"runtime": {"type": "subprocess"}}}  # fmt: skip
    with endpoint(broken) as url:
        [episode] = asyncio.run(run_eval(EvalConfig(
            env=env, client={"base_url": url}, push=False, rich=None, output_dir=tmp_path
        )))  # fmt: skip
    [trace] = episode.traces
    assert not trace.ok
    assert trace.errors
    assert trace.reward == 0
    assert not trace.metrics


def test_the_null_harness_is_another_choice():
    """What it needs (the package index, a streaming endpoint) is not here; it is found."""
    assert vf.default_harness_id("personalllm") == "personalllm"
    assert vf.harness_config_type("personalllm") is vf.HarnessConfig
    assert vf.load_harness(vf.HarnessConfig(id="null")).config.id == "null"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "libraries" / "verifiers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})


def test_the_example_runs(tmp_path):
    example = ROOT / "examples" / "libraries" / "verifiers_eval.py"
    done = subprocess.run(
        [sys.executable, str(example), "figure.png", "20"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "reads_the_past: " in done.stdout
    assert (tmp_path / "figure.png").stat().st_size > 5000
