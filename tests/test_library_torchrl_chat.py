"""TorchRL's ChatEnv with simulated users: rows, groups, and the reward of the row's user."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrl")
pytest.importorskip("transformers")

import tensordict  # noqa: E402
from torchrl.data.llm import History  # noqa: E402
from torchrl.envs.llm import ChatEnv  # noqa: E402
from torchrl.modules.llm.policies.common import ChatHistory, Text  # noqa: E402

with warnings.catch_warnings():  # its own class, made of its own deprecated one
    warnings.filterwarnings("ignore", "Creating .* which inherits from WeightUpdaterBase")
    from personalllm_env.adapters.torchrl_chat import (
        AskedLoader,
        PersonalReward,
        personal_chat_env,
        written,
    )

from personalllm_env.envs.generate import GenerateEnv  # noqa: E402
from personalllm_env.generation.asking import draw_asked  # noqa: E402
from personalllm_env.generation.problem import WritingTask  # noqa: E402
from personalllm_env.rewards.heads import offline_heads  # noqa: E402
from personalllm_env.task import Task  # noqa: E402
from personalllm_env.users import UserPopulation  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _lists_are_stacks():
    with tensordict.set_list_to_stack(True):
        yield


@pytest.fixture(scope="module")
def problem():
    from personalllm_env.data import load_bank

    bank = load_bank("text")
    weights = np.random.default_rng(0).dirichlet(np.full(10, 0.3), size=6)
    users = UserPopulation(weights, np.zeros(6, dtype=bool))
    return WritingTask(Task(bank, users), offline_heads(), max_characters=200)


def said(env_data, texts):
    """Returns the data with these texts as the assistant's turns."""
    turns = History.from_chats([[{"role": "assistant", "content": text}] for text in texts])
    full = env_data["history"].prompt.extend(turns, inplace=False, dim=-1)
    return env_data.clone().set("history", ChatHistory(full=full))


TEXTS = [
    "Yes.",
    "First:\n- one\n- two\n\nThen, shall we begin?",
    "I would not worry about that! " * 3,
    "word " * 100,  # longer than it may be
]


def test_the_reward_is_generates_utility_for_the_same_user_and_text(problem):
    env = personal_chat_env(problem, 8, seed=1, num_envs=4)
    begun = env.reset()
    stepped = env.step(said(begun, TEXTS))
    generate = GenerateEnv(
        bank=problem.task.bank,
        ensemble=problem.ensemble,
        population=problem.task.population,
        horizon=1,
        max_characters=200,
    )
    questions = list(begun["question"])
    for row, text in enumerate(TEXTS):
        prompt = problem.texts.prompts.index(questions[row])
        options = {"weights": begun["weights"][row].numpy().astype(float), "prompts": [prompt]}
        obs, _ = generate.reset(seed=0, options=options)
        assert obs["prompt"] == questions[row]
        info = generate.step(text)[-1]
        assert stepped["next", "reward"][row].item() == pytest.approx(info["utility"], abs=1e-5)
        np.testing.assert_allclose(
            stepped["next", "scores"][row].numpy(), info["scores"], atol=1e-5
        )
    assert stepped["next", "reward"].shape == (4, 1, 1)
    assert stepped["next", "done"].all()


def test_users_disagree(problem):
    """The same text, different users: the reward is personal, not the scores."""
    env = personal_chat_env(problem, 40, seed=1, num_envs=20)
    begun = env.reset()
    stepped = env.step(said(begun, [TEXTS[1]] * 20))
    by_user = {
        int(user): reward.item()
        for user, reward in zip(begun["user"], stepped["next", "reward"], strict=True)
    }
    assert len(by_user) == 6
    assert np.std(list(by_user.values())) > 0.1


@pytest.mark.parametrize("group", [1, 4])
def test_a_group_shares_its_user_and_rows_come_in_order(problem, group):
    num = 8
    env = personal_chat_env(problem, 6, seed=2, num_envs=num, group=group)
    asked = draw_asked(problem, 6, seed=2)
    row = 0
    for _ in range(6):  # more than there are rows: they come again
        data = env.reset()
        for first in range(0, num, group):
            each = slice(first, first + group)
            assert (data["group"][each] == row % 6).all()
            assert (data["user"][each] == asked.user[row % 6]).all()
            expected = torch.tensor(asked.weights[row % 6], dtype=torch.float32)
            assert (data["weights"][each] == expected).all()
            question = problem.texts.prompts[asked.prompt[0, row % 6]]
            assert set(list(data["question"])[each]) == {question}
            assert [c[-1] for c in data["history"].prompt.content][each] == [question] * group
            row += 1
        env.step(said(data, ["Hello."] * num))


def test_a_token_and_a_past_stand_in_the_chat(problem):
    asked = draw_asked(problem, 3, seed=0)
    for row, user in zip(AskedLoader(problem, asked, tokens=True), asked.user, strict=True):
        assert row["query"][0]["role"] == "system"
        assert f"<|user_{user}|>" in row["query"][0]["content"]
        assert row["query"][1]["content"] == row["question"]
    env = personal_chat_env(problem, 8, seed=1, num_envs=2, tokens=True)
    assert [list(roles) for roles in env.reset()["history"].prompt.role] == [
        ["system", "user"]
    ] * 2
    past = WritingTask(problem.task, problem.ensemble, past=2)
    [row] = AskedLoader(past, draw_asked(past, 1, seed=0))
    assert row["query"][0]["content"].count("I liked this answer") == 2


def test_taking_off_what_everybody_likes(problem):
    mean = problem.task.population.weights.mean(axis=0)
    plain, apart = (
        personal_chat_env(problem, 8, seed=1, num_envs=4, minus=minus) for minus in (None, mean)
    )
    one, two = (env.step(said(env.reset(), TEXTS)) for env in (plain, apart))
    liked = one["next", "scores"].numpy() @ mean
    expected = one["next", "reward"].flatten().numpy() - liked
    np.testing.assert_allclose(two["next", "reward"].flatten().numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"minus must be 10 weights, got shape \(3,\)"):
        PersonalReward(problem, minus=np.ones(3))


def test_bare_responses_where_torchrl_finds_no_turn(problem):
    """A text that is cut off before its end is an empty turn in TorchRL's history."""
    env = personal_chat_env(problem, 8, seed=1, num_envs=2)
    data = said(env.reset(), ["", "whole"])
    data["text"] = Text(
        prompt=["a", "b"], response=["cut o", "whole<|im_end|>"], full=["acut o", "b"],
        batch_size=(2,),
    )  # fmt: skip
    assert written(data, "<|im_end|>") == ["cut o", "whole"]
    assert written(data.exclude("history"), "<|im_end|>") == ["cut o", "whole"]
    assert written(data.exclude("history")) == ["cut o", "whole<|im_end|>"]


def test_bad_input(problem):
    env = personal_chat_env(problem, 8, seed=1, num_envs=2)
    data = env.reset()
    unanswered = data.clone().set("history", ChatHistory(full=data["history"].prompt))
    with pytest.raises(ValueError, match=r"row 0: the last turn .* of 'user'"):
        env.step(unanswered)
    with pytest.raises(ValueError, match="there is no text to value"):
        written(data.exclude("history"))
    with pytest.raises(ValueError, match="num_envs must be a multiple of group=3, got 4"):
        personal_chat_env(problem, 8, seed=1, num_envs=4, group=3)
    with pytest.raises(
        ValueError, match="num_rows must be at least 1, got 0"
    ):  # no endless loop
        personal_chat_env(problem, 0, seed=1, num_envs=4)


def test_the_transform_on_an_environment_of_ones_own(problem):
    from torchrl.envs import TransformedEnv

    env = TransformedEnv(ChatEnv(batch_size=(1,)), PersonalReward(problem))
    weights = torch.tensor(problem.task.population.weights[:1], dtype=torch.float32)
    question = problem.texts.prompts[0]
    begun = env.reset(
        tensordict.TensorDict(
            {"query": question, "question": [question], "weights": weights}, batch_size=(1,)
        )
    )
    stepped = env.step(said(begun, ["Certainly."]))
    assert torch.isfinite(stepped["next", "reward"]).all()


@pytest.mark.slow
def test_the_example_learns(tmp_path):
    script = ROOT / "examples" / "libraries" / "torchrl_chat.py"
    assert len(script.read_text("utf-8").splitlines()) < 80
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(script), "curve.png", "20"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gain, error = map(float, re.search(r"steps \+([\d.]+) ± ([\d.]+)", done.stdout).groups())
    assert gain > error
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_page_runs():
    page = (ROOT / "docs" / "libraries" / "torchrl.md").read_text("utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page.partition("## ChatEnv")[2], re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert names["stepped"]["next", "reward"].shape == (4, 1, 1)
