"""OpenEnv in process: the same episodes as Gymnasium's, users as rubrics, nothing told."""

import asyncio
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("openenv.core")

from openenv.core.rubrics import WeightedSum
from typer.testing import CliRunner

import personalllm_env  # noqa: F401
from personalllm_env.adapters.openenv import (
    GenerateAction,
    GenerateEnvironment,
    SelectAction,
    SelectEnvironment,
)
from personalllm_env.adapters.openenv.episode import last_scores
from personalllm_env.adapters.openenv.messages import BadMessage, checked
from personalllm_env.adapters.openenv.resets import RequestError
from personalllm_env.users import UserPopulation

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "openenv"
TEXTS = ("", "I would go.", "No. " * 40, "Böse Zungen \ud800 sagen")

SELECTS = [
    {"horizon": 6},
    {"horizon": 6, "feedback": ["stars", "click"], "shuffle": True, "split": "test"},
    {"horizon": 6, "feedback": {"reward": {"noise_sd": 0.0}, "silence": {"probability": 0.5}}},
    {"horizon": 6, "feedback": ["like", "delay", "leave"], "drift": "gradual"},
    {"horizon": 6, "prompts_per_episode": 2, "drift": {"sudden": {"probability": 1.0}}},
]


def as_gym_says(env, obs):
    """Returns what was said as a client reads it, from Gymnasium's observation."""
    if not obs["heard"][0]:
        return {}
    told = env.unwrapped.task.feedback.decode(obs["feedback"][None], 8)
    return {name: float(value[0]) for name, value in told.items()}


@pytest.mark.parametrize("settings", SELECTS, ids=str)
def test_select_is_gymnasiums_episode(settings):
    twin = gym.make("PersonalLLM/Select-v0", bank="text", texts=True, **settings)
    ours = SelectEnvironment(settings, features=True)
    rng = np.random.default_rng(0)
    for seed in (7, None, 8):
        obs, _ = twin.reset(seed=seed)
        seen = ours.reset(seed=seed)
        assert (seen.reward, seen.said, seen.metadata) == (None, {}, {})
        done = False
        while not done:
            assert not seen.done
            action = int(rng.integers(8))
            obs, reward, left, truncated, info = twin.step(action)
            seen = ours.step(SelectAction(response=action))
            done = left or truncated
            assert (seen.reward, seen.done) == (reward, done)
            assert seen.metadata == {"terminated": left, "truncated": truncated}
            assert (seen.prompt, tuple(seen.responses)) == (
                obs["prompt_text"],
                obs["response_texts"],
            )
            assert seen.said == as_gym_says(twin, obs)
            assert seen.heard == bool(obs["heard"][0])
            assert np.float32(seen.step) / np.float32(seen.horizon) == obs["step"][0]
            np.testing.assert_array_equal(seen.prompt_features, obs["prompt_features"])
            np.testing.assert_array_equal(seen.response_features, obs["response_features"])
            assert ours.rubric.last_score == pytest.approx(info["utility"], abs=2e-6)


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"horizon": 3, "past": 2}, lambda i: TEXTS[i % 4]),
        ({"horizon": 3, "num_written": 2}, lambda i: (TEXTS[i % 4], TEXTS[(i + 1) % 4])),
        ({"horizon": 3, "drift": "gradual", "max_characters": 9}, lambda i: TEXTS[i % 4]),
    ],
)
def test_generate_is_gymnasiums_episode(settings, texts):
    twin = gym.make("PersonalLLM/Generate-v0", prompt_features=True, **settings)
    ours = GenerateEnvironment(settings, features=True)
    for seed in (3, 4):
        obs, _ = twin.reset(seed=seed)
        seen = ours.reset(seed=seed)
        for i in range(3):
            assert (seen.prompt, seen.conversation) == (obs["prompt"], obs["conversation"])
            np.testing.assert_array_equal(seen.prompt_features, obs["prompt_features"])
            now = texts(i + seed)
            obs, reward, left, truncated, info = twin.step(now)
            pair = (now,) if isinstance(now, str) else now
            action = GenerateAction(**dict(zip(("text", "other"), pair, strict=False)))
            seen = ours.step(action)
            assert (seen.reward, seen.done) == (reward, left or truncated)
            assert seen.said == as_gym_says(twin, obs)
            assert ours.rubric.last_score == pytest.approx(info["utility"], abs=1e-5)
            mean = np.atleast_2d(info["scores"]).mean(axis=0)
            assert list(last_scores(ours.rubric).values()) == pytest.approx(mean.tolist())


def test_a_user_is_a_weighted_sum_that_values_any_response():
    env = SelectEnvironment({"horizon": 4, "shuffle": True}, diagnostics=True)
    env.reset(seed=1)
    user, names = env.rubric, env._task.bank.reward_models
    assert isinstance(user, WeightedSum)
    assert [name for name, _ in user.named_rubrics()] == list(names)
    assert next(name for name, _ in user.named_rubrics("user")) == f"user.{names[0]}"
    assert sum(user.weights) == pytest.approx(1, abs=1e-12)
    assert env.state.weights == dict(zip(names, user.weights, strict=True))
    # Before the step, the rubric says what each candidate would be worth.
    foretold = [user(SelectAction(response=k), None) for k in range(8)]
    seen = env.step(SelectAction(response=5))
    assert seen.metadata["utility"] == pytest.approx(foretold[5], abs=2e-6)
    assert seen.metadata["scores"] == last_scores(env.rubric)
    env.reset(seed=2)
    assert env.rubric is not user
    assert env.rubric.weights != user.weights
    assert set(last_scores(env.rubric).values()) == {None}


def test_a_text_that_was_not_written_is_scored_too():
    env = GenerateEnvironment({"horizon": 2}, utility_reward=True)
    env.reset(seed=1)
    foretold = env.rubric(GenerateAction(text="Yes, buy it."), None)
    seen = env.step(GenerateAction(text="Yes, buy it."))
    assert seen.reward == pytest.approx(foretold, abs=1e-5)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


@pytest.mark.parametrize("kind", [SelectEnvironment, GenerateEnvironment])
def test_nothing_hidden_is_told(kind):
    """With a noisy reward no number told equals a weight, a score or a utility."""
    env, shown = kind({"horizon": 5}), []
    action = SelectAction(response=1) if kind is SelectEnvironment else GenerateAction(text="x")
    shown.append((env.reset(seed=5), env.state))
    hidden = {round(weight, 6) for weight in env.rubric.weights}
    for _ in range(5):
        shown.append((env.step(action), env.state))
        hidden |= {round(score, 6) for score in last_scores(env.rubric).values()}
        hidden.add(round(env.rubric.last_score, 6))
    told = [leaf for pair in shown for part in pair for leaf in leaves(part.model_dump())]
    numbers = {round(leaf, 6) for leaf in told if isinstance(leaf, float)}
    assert numbers
    assert not numbers & (hidden - {0.0, 1.0})
    words = json.dumps([part.model_dump() for pair in shown for part in pair])
    assert not any(name in words for name in env._task.bank.reward_models)
    assert "utility" not in words


def test_utility_as_reward():
    settings = {"horizon": 2, "feedback": "stars"}
    twin = gym.make("PersonalLLM/Select-v0", bank="text", **settings)
    twin.reset(seed=0)
    env = SelectEnvironment(settings, utility_reward=True)
    env.reset(seed=0)
    assert env.step(SelectAction(response=3)).reward == twin.step(3)[4]["utility"]


def test_a_bank_without_words_shows_features():
    env = SelectEnvironment({"bank": "synthetic", "horizon": 2})
    seen = env.reset(seed=0)
    assert seen.prompt is None
    assert np.shape(seen.response_features) == (8, 32)
    assert [action for _, action in env.web_actions(seen.model_dump())] == [
        {"response": k} for k in range(8)
    ]
    with pytest.raises(ValueError, match="take features=True"):
        SelectEnvironment({"bank": "synthetic"}, features=False)


def test_users_who_recur_can_be_asked_for_and_recognised():
    weights = np.eye(10)[[3, 7]]
    env = SelectEnvironment({"population": UserPopulation(weights), "recognise": True})
    seen = env.reset(seed=0, user=1, prompts=[4, 9])
    assert seen.user == 1
    assert env.rubric.weights == weights[1].tolist()
    assert seen.prompt == env._task.bank.texts.prompts[4]
    assert env.step(SelectAction(response=0)).prompt == env._task.bank.texts.prompts[9]


def test_tasks_are_episodes_of_gymnasium():
    env = SelectEnvironment({"horizon": 3}, num_tasks=12)
    assert env.list_splits() == ["train", "test"]
    assert env.num_tasks("train") == len(env.list_tasks("train")) == 12
    task = env.get_task("test", 11)
    assert env.get_task_range("test", -1) == [task]
    twin = gym.make("PersonalLLM/Select-v0", bank="text", texts=True, horizon=3)
    obs, _ = twin.reset(seed=task["seed"], options={"split": "test"})
    assert env.reset(split="test", index=11).prompt == obs["prompt_text"]
    weights = env.rubric.weights
    env.reset(split="train", index=11)
    assert env.rubric.weights != weights, "users of the splits are others"
    everybody = {task["seed"] for split in ("train", "test") for task in env.list_tasks(split)}
    assert len(everybody) == 24
    for bad in (12, -1):
        with pytest.raises(IndexError):
            env.get_task("test", bad)
    with pytest.raises(RequestError, match="split must be one of train, test, got 'dev'"):
        env.num_tasks("dev")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sed": 1}, "unknown 'sed'; known: seed"),
        ({"seed": -1}, "seed: .*greater than or equal to 0, got -1"),
        ({"seed": True}, "expected an integer, got True"),
        ({"seed": 2**128}, "less than"),
        ({"seed": 1.5}, "got 1.5"),
        ({"seed": float("nan")}, "got nan"),
        ({"split": "dev"}, "'train' or 'test', got 'dev'"),
        ({"index": 3}, "give split, too"),
        ({"index": 3, "split": "test", "seed": 1}, "not both"),
        ({"index": 1000, "split": "test"}, r"0\.\.999, got 1000"),
        ({"user": 0}, "user"),
        ({"prompts": [10**6]}, "bank rows in"),
        ({"prompts": []}, "bank rows in"),
        ({"prompts": [0], "split": "test"}, "exclude each other"),
        ({"episode_id": "x" * 256}, "at most 255"),
        ({"weights": [1] + [0] * 9}, "unknown 'weights'"),
    ],
)
def test_a_reset_that_cannot_be_changes_nothing(asked, words):
    env, twin = SelectEnvironment({"horizon": 3}), SelectEnvironment({"horizon": 3})
    for one in (env, twin):
        one.reset(seed=1)
        one.step(SelectAction(response=0))
    with pytest.raises(RequestError, match=words):
        env.reset(**asked)
    assert env.step(SelectAction(response=1)) == twin.step(SelectAction(response=1))


def test_steps_that_cannot_be_change_nothing():
    env = SelectEnvironment({"horizon": 2})
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(SelectAction(response=0))
    assert (env.state.done, env.state.step_count) == (True, 0)
    env.reset(seed=1, episode_id="mine")
    with pytest.raises(RequestError, match=r"0\.\.7, got 8"):
        env.step(SelectAction(response=8))
    assert (env.state.episode_id, env.state.step_count) == ("mine", 0)
    env.step(SelectAction(response=np.int64(0)))
    assert env.step(SelectAction(response=0)).done
    assert (env.state.done, env.state.step_count) == (True, 2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(SelectAction(response=0))
    env.reset(seed=1, episode_id="mine")
    writer = GenerateEnvironment({"horizon": 2, "num_written": 2})
    writer.reset(seed=0)
    for bad in (GenerateAction(text="a"), {"response": 1}, 1):
        with pytest.raises(TypeError, match=r"expected SelectAction\(response=\), got "):
            env.step(bad)
    with pytest.raises(TypeError, match=r"GenerateAction\(text=, other=\), got SelectAction\("):
        writer.step(SelectAction(response=0))
    assert env.state.step_count == writer.state.step_count == 0
    with pytest.raises(RequestError, match="expected text and other"):
        writer.step(GenerateAction(text="a"))
    for bad in (True, "3", -1, 0.5, None):
        with pytest.raises(ValueError, match="response"):
            SelectAction(response=bad)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (SelectEnvironment, {"horizn": 3}, "did you mean 'horizon'"),
        (SelectEnvironment, {"num_shown": 2}, "an action shows one response"),
        (SelectEnvironment, {"white_box": True}, "shown with diagnostics"),
        (GenerateEnvironment, {"render_mode": "ansi"}, "means nothing here"),
        (GenerateEnvironment, {"bank": "synthetic"}, "bank with texts"),
    ],
)
def test_settings_that_do_not_fit(kind, settings, words):
    with pytest.raises(ValueError, match=words):
        kind(settings)


def test_the_page_obeys_nobody():
    env = SelectEnvironment({"horizon": 1})
    seen = env.reset(seed=0).model_dump()
    page, buttons = env.render_web(seen), env.web_actions(seen)
    assert len(buttons) == 8
    assert all(len(label) < 70 for label, _ in buttons)
    assert seen["prompt"].split()[0] in page
    seen["responses"][0] = "<script>alert(1)</script>"
    assert "<script" not in env.render_web(seen)
    over = env.step(SelectAction(**buttons[2][1])).model_dump()
    assert env.web_actions(over) == []
    assert "over" in env.render_web(over)
    writer = GenerateEnvironment({"horizon": 2, "past": 1})
    writer.reset(seed=0)
    seen = writer.step(GenerateAction(text="<b>bold</b>")).model_dump()
    assert "<b>bold" not in writer.render_web(seen)
    assert "&lt;b&gt;bold" in writer.render_web(seen)


def test_it_runs_in_a_running_loop():
    """Notebooks have one: rubrics give numbers there, too, and no coroutines."""

    async def play():
        env = SelectEnvironment({"horizon": 1})
        first = await env.reset_async(seed=3)
        return first, await env.step_async(SelectAction(response=1)), env.rubric.last_score

    first, last, score = asyncio.run(play())
    env = SelectEnvironment({"horizon": 1})
    assert env.reset(seed=3) == first
    assert env.step(SelectAction(response=1)) == last
    assert env.rubric.last_score == score


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"), ("[1]", "got list"), ("3", "got int"), ("null", "got NoneType"),
        ('{"a": NaN}', "NaN is no JSON number"), ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "beyond the range"), ('{"a": ' + "1" * 5000 + "}", "digits"),
        ('{"a": ' * 100_000, "nested"), ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested"),
    ],
)  # fmt: skip
def test_messages_that_are_none(text, words):
    with pytest.raises(BadMessage, match=words):
        checked(text)


def test_messages_that_pass():
    assert checked('{"a": [1, 2.5, "é"]}') == '{"a": [1, 2.5, "é"]}'
    assert checked('{"a": "\\u00e9 \\ud83d\\ude00"}') == '{"a": "\\u00e9 \\ud83d\\ude00"}'
    assert json.loads(checked('{"\\udfff": "\\ud800!"}')) == {"\ufffd": "\ufffd!"}


def test_static_validation_passes(monkeypatch):
    from openenv.cli.__main__ import app as openenv_command

    monkeypatch.chdir(SPACE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["validate", "--level", "static", "--skip-build", "--json", "."]
    done = CliRunner().invoke(openenv_command, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "pass"


def test_the_space_says_what_it_is():
    import yaml

    manifest = yaml.safe_load((SPACE / "openenv.yaml").read_text(encoding="utf-8"))
    docker = (SPACE / "server" / "Dockerfile").read_text(encoding="utf-8")
    [line] = [line for line in docker.splitlines() if line.startswith("ENV PERSONALLLM")]
    from personalllm_env.adapters.openenv.server import read_settings

    server = read_settings(line.partition("'")[2].rstrip("'"))
    env = SelectEnvironment(server.settings)
    low, high = manifest["validation"]["reward"]["range"]
    env.reset(seed=0)
    rewards = [env.step(SelectAction(response=k % 8)).reward for k in range(20)]
    assert low <= min(rewards) < max(rewards) <= high
    counts = manifest["validation"]["capabilities"]["declared_task_count"]
    assert counts == {split: server.num_tasks for split in env.list_splits()}
    assert (manifest["app"], manifest["port"]) == ("server.app:app", 8000)
