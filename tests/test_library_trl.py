"""TRL: rows that hold their user, rewards, preferences, and conversations by tool calls."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import personalllm_env as pe

pytest.importorskip("trl")
pytest.importorskip("peft")
from personalllm_env.adapters.trl import PersonalLLMSpec
from personalllm_env.adapters.trl_environment import WritingConversation
from personalllm_env.writing import toy_models
from personalllm_env.writing import trainable as models

# Of libraries, about each other; none of them is ours to mend.
pytestmark = [
    # TRL 1.16 sets arguments that transformers 5.23 renames.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing.*:FutureWarning"),
    # TRL says so of whatever it may still change.
    pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning"),
]
ROOT = Path(__file__).parents[1]
GROUP = 4


@pytest.fixture(scope="module")
def bank():
    return pe.load_bank("text")


@pytest.fixture(scope="module")
def people():
    return pe.dirichlet_population(5, num_test=2, concentration=0.1)


@pytest.fixture(scope="module")
def saved(bank, tmp_path_factory):
    """A tiny Llama and its tokenizer on disk: TRL's RLOO and DPO look for a name."""
    folder = tmp_path_factory.mktemp("tiny")
    made = toy_models.tiny_trainable([*bank.texts.prompts[:30], *bank.texts.responses[0]])
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(saved):
    return models.load_trainable(str(saved), torch_dtype="float32")


def arguments(folder):
    return {
        "output_dir": str(folder), "max_steps": 1, "learning_rate": 1e-2, "use_cpu": True,
        "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 1,
    }  # fmt: skip


def rollouts(folder, **more):
    return arguments(folder) | {
        "per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP,
        "max_completion_length": 6,
    } | more  # fmt: skip


def watched(functions, calls):
    """Returns the functions as TRL names them, and keeps what they are called with."""

    def one(function):
        def called(**given):
            calls.append((given, function(**given)))
            return calls[-1][1]

        return called

    return [one(function) for function in functions]


def generate(bank, weights, row, text, **settings):
    """Returns the utility of a text in PersonalLLM/Generate-v0."""
    env = gym.make("PersonalLLM/Generate-v0", bank=bank, disable_env_checker=True, **settings)
    env.reset(seed=0, options={"weights": weights, "prompts": [row]})
    return env.step(text)[4]["utility"]


# ------------------------------------------------------------------------------------- rows


def test_rows_say_who_asks_what(bank, people):
    spec = PersonalLLMSpec(bank=bank, population=people, num_rows=9, num_eval_rows=7, past=2)
    rows, held = spec.train_dataset, spec.eval_dataset
    assert (len(rows), len(held)) == (9, 7)
    assert set(rows["user"]) <= {0, 1, 2}
    assert set(held["user"]) <= {3, 4}
    assert set(rows["prompt_row"]) <= set(bank.prompts("train").tolist())
    assert set(held["prompt_row"]) <= set(bank.prompts("test").tolist())
    for row in [*rows, *held]:
        np.testing.assert_array_equal(
            np.float32(row["user_weights"]), people.weights[row["user"]]
        )
        assert row["question"] == bank.texts.prompts[row["prompt_row"]]
        assert row["prompt_rows"] == [row["prompt_row"]]
        [asked] = row["prompt"]
        assert asked["content"].endswith(row["question"])
        assert asked["content"].count("I liked this answer: ") == 2
    again = PersonalLLMSpec(bank=bank, population=people, num_rows=9, past=2)
    assert again.train_dataset.to_list() == rows.to_list()
    other = PersonalLLMSpec(bank=bank, population=people, num_rows=9, past=2, seed=1)
    assert other.train_dataset["prompt"] != rows["prompt"]


def test_prompts_are_strings_for_base_models(bank):
    spec = PersonalLLMSpec(bank=bank, num_rows=3, conversational=False)
    for row in spec.train_dataset:
        assert row["prompt"] == row["question"] + "\n\n"
    for row in spec.preference_dataset:
        assert isinstance(row["chosen"], str)
        assert isinstance(row["rejected"], str)


def test_pairs_are_what_the_user_likes_better(bank, people):
    spec = PersonalLLMSpec(bank=bank, population=people, num_rows=60, seed=3)
    seen = set()
    for row, asked in zip(spec.preference_dataset, spec.train_dataset, strict=True):
        assert row["prompt"] == asked["prompt"]
        p, weights = row["prompt_row"], people.weights[row["user"]]
        won, lost = (
            bank.texts.responses[p].index(row[side][0]["content"])
            for side in ("chosen", "rejected")
        )
        assert won != lost
        assert weights @ bank.scores[p, won] >= weights @ bank.scores[p, lost]
        seen |= {won, lost}
    assert seen == set(range(8))


def test_conversations_ask_different_prompts_and_tell_of_none_of_them(bank):
    spec = PersonalLLMSpec(bank=bank, num_rows=20, horizon=40, past=30)
    for row in spec.train_dataset:
        assert len(set(row["prompt_rows"])) == 40
        assert row["prompt_rows"][0] == row["prompt_row"]
        [asked] = row["prompt"]
        assert asked["content"].count("I once asked: ") == 30
        for number in row["prompt_rows"]:
            assert f"I once asked: {bank.texts.prompts[number]}\n" not in asked["content"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1, got 0"),
        ({"num_eval_rows": 0}, "num_eval_rows must be at least 1"),
        ({"anybody": 1.5}, "anybody is a share"),
        ({"anybody": 0.5}, "set user_tokens=True"),
        ({"words": 0}, "words must be at least 1, got 0"),
        ({"horizon": 2, "conversational": False}, "needs chats"),
        ({"horizon": 0}, "horizon must be"),
        ({"user_tokens": True}, "users who recur: a UserPopulation"),
        ({"past": -1}, "past must be"),
        ({"bank": "synthetic"}, "needs a bank with texts"),
        ({"feedback": "click"}, "click"),
    ],
)
def test_wrong_settings_are_named_at_once(given, message):
    with pytest.raises(ValueError, match=message):
        PersonalLLMSpec(**given)


def test_longer_conversations_than_prompts_are_refused(bank):
    with pytest.raises(ValueError, match="needs as many"):
        _ = PersonalLLMSpec(bank=bank, horizon=1000).train_dataset


# ----------------------------------------------------------------------------------- reward


def test_the_reward_is_what_generate_says(bank):
    spec = PersonalLLMSpec(bank=bank, num_rows=6, max_characters=50)
    rows = spec.train_dataset.to_dict()
    texts = ["", "Why not? Because!", "x " * 200, "**A list**\n- one\n- two", "é\ud800", "no"]
    logged = {}
    [reward] = spec.reward_funcs
    assert spec.reward_weights == [1.0]
    found = reward(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        prompts=rows.pop("prompt"), completion_ids=None, log_metric=logged.__setitem__,
        log_extra=None, trainer_state=None, **rows,
    )  # fmt: skip
    by_hand = [
        generate(bank, rows["user_weights"][i], rows["prompt_row"][i], text, max_characters=50)
        for i, text in enumerate(texts)
    ]
    assert found == by_hand
    assert len(set(found)) == 6
    assert set(logged) == {f"scores/{name}" for name in bank.reward_models}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=10, max_size=10),
    st.integers(0, 20),
    st.text(max_size=60),
)
def test_any_text_is_worth_what_generate_says(numbers, row, text):
    bank = pe.load_bank("text")
    weights = np.array(numbers) / sum(numbers)
    spec = PersonalLLMSpec(bank=bank)
    [found] = spec.reward_funcs[0](
        prompts=[""], completions=[text], question=[bank.texts.prompts[row]],
        user_weights=[weights.tolist()],
    )  # fmt: skip
    assert found == pytest.approx(generate(bank, weights, row, text), rel=1e-6)


# --------------------------------------------------------------------------------- trainers


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_a_group_shares_its_user(name, bank, tiny, tmp_path):
    import trl

    calls = []
    spec = PersonalLLMSpec(bank=bank, num_rows=6, past=1, words=3)
    trainer = getattr(trl, f"{name}Trainer")(
        tiny.model,
        watched(spec.reward_funcs, calls),
        getattr(trl, f"{name}Config")(
            **rollouts(tmp_path, max_steps=3, reward_weights=spec.reward_weights)
        ),
        train_dataset=spec.train_dataset,
        processing_class=tiny.tokenizer,
    )
    spec.check(tiny.tokenizer)
    trainer.train()
    assert len(calls) == 3
    users = []
    for columns, found in calls:
        assert len(found) == 2 * GROUP
        for group in (slice(0, GROUP), slice(GROUP, 2 * GROUP)):
            for column in ("question", "seed", "user_weights", "prompt_row"):
                assert len({str(value) for value in columns[column][group]}) == 1
            users.append(str(columns["user_weights"][group][0]))
        for i, completion in enumerate(columns["completions"]):
            [turn] = completion
            weights, row = columns["user_weights"][i], columns["prompt_row"][i]
            assert found[i] == generate(bank, weights, row, turn["content"])
    assert len(set(users)) == 6
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all(f"scores/{bank.reward_models[0]}" in entry for entry in logged)
    means = [np.mean(found) for _, found in calls]
    np.testing.assert_allclose([float(e["reward"]) for e in logged], means, rtol=1e-3)


def test_dpo_trains_on_preferences_under_a_users_token(bank, people, tiny, tmp_path):
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    spec = PersonalLLMSpec(bank=bank, population=people, num_rows=8, user_tokens=True)
    with pytest.raises(ValueError, match="does not know '<|user_0|>'".replace("|", r"\|")):
        spec.check(tiny.tokenizer)
    ids = models.add_user_tokens(tiny, 3)
    spec.check(tiny.tokenizer)
    trainer = DPOTrainer(
        tiny.model,
        args=DPOConfig(per_device_train_batch_size=4, max_length=400, **arguments(tmp_path)),
        train_dataset=spec.preference_dataset,
        processing_class=tiny.tokenizer,
        # Without LoRA, TRL would read the reference from the folder, which has no such tokens.
        peft_config=LoraConfig(
            r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": ids}
        ),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[0]) == pytest.approx(np.log(2), rel=0.05)  # the first step's


# ---------------------------------------------------------------------------- conversations


def test_a_conversation_is_that_of_generate(bank):
    spec = PersonalLLMSpec(bank=bank, num_rows=2, horizon=3)
    row = spec.train_dataset[1]
    one, other = spec.environment_factory(), spec.environment_factory()
    assert "there are 3 messages" in one.reset(**row)
    other.reset(**spec.train_dataset[0])  # instances are used again
    other.respond("what came before")
    other.reset(**row)
    env = gym.make("PersonalLLM/Generate-v0", bank=bank, horizon=3)
    env.reset(
        seed=row["seed"],
        options={"weights": row["user_weights"], "prompts": row["prompt_rows"]},
    )
    utilities = []
    for t, text in enumerate(["Tea? Yes!", "A list:\n- of tea", "No."]):
        obs, reward, _, truncated, info = env.step(text)
        said = one.respond(text)
        assert said == other.respond(text)
        assert f"The user reports a reward of {reward:.2f}." in said
        following = f"The user asks:\n{obs['prompt']}"
        assert (following in said) == (not truncated) == (t < 2)
        utilities.append(info["utility"])
        np.testing.assert_array_equal(one.scores[t], info["scores"])
    assert one.utilities == other.utilities == tuple(utilities)
    assert len(other.scores) == 3
    assert one.get_reward() == pytest.approx(np.mean(utilities))
    with pytest.raises(ValueError, match="the conversation is over"):
        one.respond("more")
    assert one.get_reward() == pytest.approx(np.mean(utilities))


def test_a_prompt_without_an_answer_is_an_empty_text(bank):
    spec = PersonalLLMSpec(bank=bank, num_rows=1, horizon=3)
    [row] = spec.train_dataset
    silent, empty, once = (spec.environment_factory() for _ in range(3))
    for env in (silent, empty, once):
        env.reset(**row)
    for _ in range(3):
        empty.respond("")
    once.respond("Why? Because!")
    assert silent.get_reward() == pytest.approx(empty.get_reward(), rel=1e-5)
    by_hand = (once.utilities[0] + sum(empty.utilities[1:])) / 3
    assert once.get_reward() == pytest.approx(by_hand, rel=1e-5)
    assert silent.scores.shape == (0, 10)


def test_what_is_no_text_or_no_user_is_said(bank, unchecked_shapes):
    spec = PersonalLLMSpec(bank=bank, num_rows=1, horizon=2)
    [row] = spec.train_dataset
    env = spec.environment_factory()
    with pytest.raises(ValueError, match=r"no conversation has begun: call reset\(\*\*row\)"):
        env.respond("before there is a user")
    env.reset(**row)
    with pytest.raises(TypeError, match="expected text, got int"):
        env.respond(5)
    assert env.utilities == ()
    with pytest.raises(ValueError, match="sum to 1"):
        env.reset(**row | {"user_weights": [0.5] * 10})


def test_the_tool_is_what_trl_shows_to_models(bank):
    from transformers.utils import get_json_schema

    env = PersonalLLMSpec(bank=bank, horizon=2).environment_factory()
    public = [
        name
        for name, _ in inspect.getmembers(type(env), predicate=inspect.isfunction)
        if not name.startswith("_")
    ]
    assert public == ["get_reward", "reset", "respond"]
    schema = get_json_schema(env.respond)["function"]
    assert schema["name"] == "respond"
    assert schema["parameters"]["required"] == ["text"]
    assert schema["parameters"]["properties"]["text"]["type"] == "string"
    assert PersonalLLMSpec(bank=bank).environment_factory is None


def call(text):
    arguments = {"name": "respond", "arguments": {"text": text}}
    return f"<tool_call>\n{json.dumps(arguments)}\n</tool_call><|im_end|>"


def test_grpo_holds_conversations_by_tool_calls(bank, tiny, tmp_path, monkeypatch):
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen2_5_chat_template

    spec = PersonalLLMSpec(bank=bank, num_rows=1, horizon=2)
    with pytest.raises(ValueError, match=r"conversations need tool calls.*qwen2_5"):
        spec.check(tiny.tokenizer)
    tiny.tokenizer.chat_template = qwen2_5_chat_template
    spec.check(tiny.tokenizer)
    assert getattr(tiny.tokenizer, "response_template", None) is None  # it was only looked at
    calls = []
    trainer = GRPOTrainer(
        tiny.model,
        watched(spec.reward_funcs, calls),
        GRPOConfig(**rollouts(
            tmp_path, per_device_train_batch_size=GROUP, max_completion_length=600,
            reward_weights=spec.reward_weights,
        )),
        train_dataset=spec.train_dataset,
        environment_factory=spec.environment_factory,
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    # The first rollout answers twice, the second once, the third calls a tool that is not
    # there, the fourth writes past the tool.
    first = [call("Tea? Yes!"), call("No."), '<tool_call>\n{"name": "step", "arguments": {}}\n'
             "</tool_call><|im_end|>", "words<|im_end|>"]  # fmt: skip
    script = iter([first, [call("A list:"), "bye<|im_end|>", "sorry<|im_end|>"],
                   ["bye<|im_end|>"]])  # fmt: skip
    prompts = []

    def scripted(prompt_ids, images, fields, num_generations, **more):
        prompts.append(tiny.tokenizer.batch_decode(prompt_ids))
        texts = next(script)
        assert len(texts) == len(prompt_ids)
        return [tiny.tokenizer(text)["input_ids"] for text in texts], None

    monkeypatch.setattr(trainer, "_generate_single_turn", scripted)
    trainer.train()
    [(columns, shares)] = calls
    assert shares == [1.0, 0.5, 0.0, 0.0]
    [row] = spec.train_dataset
    assert '"name": "respond"' in prompts[0][0]
    assert f"{row['question']}\n\n(Answer by calling the tool" in prompts[0][0]
    following = bank.texts.prompts[row["prompt_rows"][1]]
    assert f"The user asks:\n{following}" in prompts[1][0]
    assert "That was the last message." in prompts[2][0]
    assert "Tool step not found" in prompts[1][2]
    # All met the same user; what they got is what the user thinks of their answers.
    hand = spec.environment_factory()
    rewards = []
    for texts in (["Tea? Yes!", "A list:"], ["No."], [], []):
        hand.reset(**row)
        for text in texts:
            hand.respond(text)
        rewards.append(hand.get_reward())
    assert [env.get_reward() for env in columns["environments"]] == pytest.approx(rewards)
    [logged] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert float(logged["reward"]) == pytest.approx(np.mean(rewards), rel=1e-3)
    assert float(logged[f"rewards/{WritingConversation.__name__}/mean"]) == pytest.approx(
        np.mean(rewards), rel=1e-3
    )
    assert float(logged["tools/failure_frequency"]) == pytest.approx(1 / 4)
    assert f"scores/{bank.reward_models[0]}" in logged


def test_templates_that_cannot_be_used_are_said(bank, tiny):
    plain = PersonalLLMSpec(bank=bank)
    plain.check(tiny.tokenizer)
    template = tiny.tokenizer.chat_template
    tiny.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        plain.check(tiny.tokenizer)
    PersonalLLMSpec(bank=bank, conversational=False).check(tiny.tokenizer)
    tiny.tokenizer.chat_template = template.replace("m['content'] }}", (
        "m['content'] }}{% if m['tool_calls'] %}{{ m['tool_calls'] }}{% endif %}"
    ))  # fmt: skip
    with pytest.raises(ValueError, match="TRL does not know how tool calls are to be read"):
        PersonalLLMSpec(bank=bank, horizon=2).check(tiny.tokenizer)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "libraries" / "trl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    example = ROOT / "examples" / "libraries" / "trl_grpo.py"
    done = subprocess.run(
        [sys.executable, str(example), "figure.png", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "utility to the user: " in done.stdout
    assert (tmp_path / "figure.png").stat().st_size > 5000
