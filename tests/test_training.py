"""Training a writer: rows, rewards, tokens, and a few real steps of TRL's trainers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from personalllm_env.adapters.trl_rewards import completion_text, personal_reward
from personalllm_env.adapters.trl_rows import dpo_rows, grpo_rows
from personalllm_env.bank import ResponseBank, Texts
from personalllm_env.generation.chats import ANYBODY, TIMES, chat_for, user_token
from personalllm_env.generation.problem import WritingTask
from personalllm_env.language.chat import Sampling
from personalllm_env.rewards.heads import offline_heads
from personalllm_env.task import Task
from personalllm_env.users import DirichletUsers, UserPopulation
from personalllm_env.writing import held_out as look

pytest.importorskip("trl")
pytest.importorskip("peft")
from personalllm_env.writing import toy_models
from personalllm_env.writing import trainable as models

# Of libraries, about each other; none of them is ours to mend.
pytestmark = [
    # TRL 1.16 sets arguments that transformers 5.23 renames.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing.*:FutureWarning"),
]
EXAMPLES = Path(__file__).parents[1] / "examples" / "training"
NUM_USERS = 3


@pytest.fixture(scope="module")
def problem():
    """A small bank of texts, three train users and two held-out ones."""
    rng = np.random.default_rng(0)
    ensemble = offline_heads()
    words = ["tea", "walk", "read", "good", "never", "list", "why", "plain", "stone", "because"]
    words += ["write", "garden"]
    prompts = tuple(f"How do I {words[i]} the {words[-i - 1]} number {i}?" for i in range(12))
    responses = tuple(
        tuple(" ".join(rng.choice(words, 6 + 3 * k)) + ".?!:"[k] for k in range(4))
        for _ in prompts
    )
    flat = [text for row in responses for text in row]
    asked = [prompt for prompt in prompts for _ in range(4)]
    is_test = np.arange(12) >= 8
    raw = ensemble.raw_scores(asked, flat).reshape(12, 4, -1)
    mean = raw[~is_test].mean((0, 1))
    sd = raw[~is_test].std((0, 1)) + 1e-6
    bank = ResponseBank(
        scores=((raw - mean) / sd).astype(np.float32),
        prompt_features=rng.normal(size=(12, 2)).astype(np.float32),
        response_features=rng.normal(size=(12, 4, 2)).astype(np.float32),
        reward_models=ensemble.reward_models,
        responders=("a", "b", "c", "d"),
        is_test=is_test,
        texts=Texts(prompts, responses),
        name="small",
        facts={
            "standardisation": dict(
                zip(ensemble.reward_models, np.stack([mean, sd], 1).tolist(), strict=True)
            )
        },
    )
    weights = np.eye(10)[[0, 6, 7, 8, 9]]
    people = UserPopulation(weights, np.arange(5) >= NUM_USERS)
    return WritingTask(Task(bank, people), ensemble, past=5)


@pytest.fixture(scope="module")
def saved(problem, tmp_path_factory):
    """A tiny Llama and its tokenizer on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = problem.task.bank.texts
    made = toy_models.tiny_trainable(
        [*texts.prompts, *(t for row in texts.responses for t in row)]
    )
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(saved):
    return models.load_trainable(str(saved), torch_dtype="float32")


def lora(ids):
    from peft import LoraConfig

    return LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": ids},
    )  # fmt: skip


def settings(folder):
    return {
        "output_dir": str(folder), "max_steps": 3, "learning_rate": 1e-2, "use_cpu": True,
        "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "weight_decay": 0.0, "lr_scheduler_type": "constant", "logging_steps": 1,
    }  # fmt: skip


def token_rows(model, ids):
    """Returns the user tokens' embeddings as the model reads them."""
    import torch

    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor(ids)).float().numpy()


def frozen(model):
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if not value.requires_grad
    }


def test_rows_hold_train_prompts_and_train_users_only(problem):
    bank = problem.task.bank
    rows = grpo_rows(problem, num_rows=20, seed=3, user_tokens=True, anybody=0.4)
    assert set(rows["prompt_row"][:8]) == set(bank.prompts("train").tolist())
    assert not set(rows["prompt_row"]) & set(bank.prompts("test").tolist())
    assert set(rows["user"]) == {0, 1, 2}
    held = [bank.texts.prompts[row] for row in bank.prompts("test")]
    assert not any(prompt in str(rows["prompt"]) for prompt in held)
    for row in rows:
        np.testing.assert_array_equal(
            np.float32(row["user_weights"]), problem.task.population.weights[row["user"]]
        )
        assert row["question"] == bank.texts.prompts[row["prompt_row"]]
        system, asked = row["prompt"]
        assert asked["content"].endswith(row["question"])
        assert system["content"] in (user_token(row["user"]) * TIMES, ANYBODY * TIMES)
    unnamed = sum(row["prompt"][0]["content"] == ANYBODY * TIMES for row in rows)
    assert 0 < unnamed < 20
    again = grpo_rows(problem, num_rows=20, seed=3, user_tokens=True, anybody=0.4)
    assert again.to_list() == rows.to_list()
    other = grpo_rows(problem, num_rows=20, seed=4, user_tokens=True)
    assert other["user"] != rows["user"]
    assert len(set(rows["seed"])) == 20


def test_the_past_is_told_and_agrees_with_the_user(problem):
    bank = problem.task.bank
    new = WritingTask(Task(bank, DirichletUsers(10)), problem.ensemble, past=2)
    rows = grpo_rows(new, num_rows=4, seed=0)
    for row in rows:
        assert row["user"] == -1
        [asked] = row["prompt"]
        told = asked["content"].split("\n")
        value = {
            text: np.array(row["user_weights"]) @ bank.scores[p, k]
            for p in bank.prompts("train")
            for k, text in enumerate(bank.texts.responses[p])
        }
        liked = [line.split(": ", 1)[1] for line in told if line.startswith("I liked")]
        others = [line.split(": ", 1)[1] for line in told if line.startswith("I did not")]
        assert len(liked) == len(others) == 2
        for better, worse in zip(liked, others, strict=True):
            assert value[better] >= value[worse]
    with pytest.raises(ValueError, match="users who recur"):
        grpo_rows(new, num_rows=4, seed=0, user_tokens=True)
    with pytest.raises(ValueError, match="UserPopulation, got DirichletUsers"):
        dpo_rows(new, seed=0)


def test_nobody_is_shown_answers_to_what_they_are_asked(problem):
    bank = problem.task.bank
    many = len(bank.prompts("train")) - 1  # the past has nearly every train prompt in it
    new = WritingTask(Task(bank, DirichletUsers(10)), problem.ensemble, past=many)
    for row in grpo_rows(new, num_rows=12, seed=3):
        told = "\n".join(message["content"] for message in row["prompt"])
        assert told.count(row["question"]) == 1


def test_pairs_are_train_users_preferences(problem):
    bank = problem.task.bank
    rows = dpo_rows(problem, seed=1, anybody=0.3)
    assert len(rows) == NUM_USERS * 5
    assert sorted(set(rows["user"])) == [0, 1, 2]
    assert not set(rows["prompt_row"]) & set(bank.prompts("test").tolist())
    tokens = set()
    for row in rows:
        p, weights = row["prompt_row"], problem.task.population.weights[row["user"]]
        won, lost = (
            bank.texts.responses[p].index(row[side][0]["content"])
            for side in ("chosen", "rejected")
        )
        assert weights @ bank.scores[p, won] >= weights @ bank.scores[p, lost]
        tokens.add(row["prompt"][0]["content"])
        assert row["prompt"][0]["content"] in (
            user_token(row["user"]) * TIMES,
            ANYBODY * TIMES,
        )
    assert ANYBODY * TIMES in tokens
    assert rows["user"] != sorted(rows["user"])
    silent = WritingTask(problem.task, problem.ensemble)
    with pytest.raises(ValueError, match="past=0"):
        dpo_rows(silent, seed=0)


def test_the_reward_is_the_weights_times_the_scores(problem):
    reward, logged = personal_reward(problem), {}
    weights = np.array([[0.5, *[0.0] * 8, 0.5], [0.0] * 7 + [1.0, 0.0, 0.0]])
    question, texts = ["How?", "Why not?"], ["Like this: slowly.", "Because!"]
    got = reward(
        prompts=[[{"role": "user", "content": "<|user_0|> How?"}]] * 2,
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        question=question,
        user_weights=weights.tolist(),
        log_metric=logged.__setitem__,
        trainer_state=None,
    )
    [raw] = problem.ensemble.scorers
    mean, sd = np.array(list(problem.ensemble.constants.values())).T
    scores = (raw.raw_scores(question, texts) - mean) / sd
    by_hand = [0.5 * scores[0, 0] + 0.5 * scores[0, 9], scores[1, 7]]
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)
    assert set(logged) == {f"scores/{name}" for name in problem.ensemble.reward_models}
    assert logged["scores/gemma_2b_head"] == pytest.approx(scores[:, 0].mean(), rel=1e-5)
    plain = reward(
        prompts=question, completions=texts, question=question, user_weights=weights.tolist()
    )
    np.testing.assert_allclose(plain, got)
    apart = personal_reward(problem, minus=weights.mean(axis=0))(
        prompts=question, completions=texts, question=question, user_weights=weights.tolist()
    )
    np.testing.assert_allclose(
        apart, np.sum(scores * (weights - weights.mean(0)), 1), rtol=1e-4
    )
    assert completion_text("words") == "words"
    turns = [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert completion_text(turns) == "y"


def test_tokens_of_users_are_read_and_never_written(tiny):
    import torch

    before = tiny.model.get_input_embeddings().weight.detach().clone()
    ids = models.add_user_tokens(tiny, NUM_USERS)
    after = tiny.model.get_input_embeddings().weight
    np.testing.assert_array_equal(after[: len(before)].detach(), before)
    torch.testing.assert_close(after[ids[0]], before.mean(0))
    assert (after[ids] == after[ids[0]]).all()  # nobody is anybody yet
    assert tiny.model.get_output_embeddings().weight is not after
    for user, token in zip((0, 1, 2, -1), ids, strict=True):
        text = tiny.tokenizer.apply_chat_template(
            [{"role": "system", "content": user_token(user)}], tokenize=False
        )
        found = tiny.tokenizer(text)["input_ids"]
        assert found.count(token) == 1
        assert not set(ids) - {token} & set(found)
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_spread_sets_users_apart(tiny):
    ids = models.add_user_tokens(tiny, NUM_USERS, spread=1.0)
    rows = tiny.model.get_input_embeddings().weight[ids].detach().numpy()
    assert min(np.linalg.norm(rows[i] - rows[j]) for i in range(4) for j in range(i)) > 0.01


def test_grpo_asks_one_user_per_group_and_changes_weights(problem, tiny, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    calls, reward = [], personal_reward(problem)

    def watched(**given):
        calls.append(given)
        return reward(**given)

    ids = models.add_user_tokens(tiny, NUM_USERS)
    rows = grpo_rows(problem, num_rows=12, seed=0, user_tokens=True)
    rows = rows.filter(lambda row: row["user"] != 2)
    trainer = GRPOTrainer(
        tiny.model, watched,
        GRPOConfig(per_device_train_batch_size=8, num_generations=4, max_completion_length=8,
                   **settings(tmp_path)),
        train_dataset=rows, processing_class=tiny.tokenizer, peft_config=lora(ids),
    )  # fmt: skip
    before, still = token_rows(trainer.model, ids), frozen(trainer.model)
    trainer.train()
    assert len(calls) == 3
    for call in calls:
        for group in (slice(0, 4), slice(4, 8)):
            for column in ("user", "question", "seed"):
                assert len(set(call[column][group])) == 1
            assert np.ptp(call["user_weights"][group], axis=0).max() == 0
    after = token_rows(trainer.model, ids)
    moved = np.abs(after - before).max(axis=1)
    seen = {user for call in calls for user in call["user"]}
    for user in range(NUM_USERS):
        assert (moved[user] > 0) == (user in seen)
    assert moved[2] == 0
    assert all((still[n] == p).all() for n, p in trainer.model.named_parameters() if n in still)
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all("scores/beaver_7b_head" in entry for entry in logged)


def test_dpo_moves_the_rows_of_those_who_spoke(problem, tiny, tmp_path):
    from trl import DPOConfig, DPOTrainer

    ids = models.add_user_tokens(tiny, NUM_USERS)
    rows = dpo_rows(problem, seed=0)
    rows = rows.filter(lambda row: row["user"] == 1)
    trainer = DPOTrainer(
        tiny.model,
        args=DPOConfig(per_device_train_batch_size=4, max_length=64, **settings(tmp_path)),
        train_dataset=rows, processing_class=tiny.tokenizer, peft_config=lora(ids),
    )  # fmt: skip
    before = token_rows(trainer.model, ids)
    trainer.train()
    moved = np.abs(token_rows(trainer.model, ids) - before).max(axis=1)
    assert moved[1] > 1e-4
    np.testing.assert_array_equal(moved[[0, 2, 3]], 0)
    # What was said of one token is known under it.
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])


def test_likelihoods_are_those_of_one_text_at_a_time(tiny, problem):
    import torch

    bank = problem.task.bank
    chats = [chat_for(bank, 0), chat_for(bank, 5)]
    answers = ["tea walk read", "good never list why plain stone write"]
    got = models.log_likelihoods(tiny, chats, answers, max_tokens=50, batch=2)
    for chat, answer, value in zip(chats, answers, got, strict=True):
        asked = tiny.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        start = tiny.tokenizer(asked, return_tensors="pt")["input_ids"]
        said = tiny.tokenizer(answer)["input_ids"] + [tiny.tokenizer.eos_token_id]
        ids = torch.cat([start, torch.tensor([said])], dim=1)
        with torch.no_grad():
            each = tiny.model(ids).logits.log_softmax(-1)[0]
        places = range(start.shape[1] - 1, ids.shape[1] - 1)
        by_hand = sum(float(each[i, ids[0, i + 1]]) for i in places)
        assert value == pytest.approx(by_hand, rel=1e-4)
    cut = models.log_likelihoods(tiny, chats, answers, max_tokens=2, batch=1)
    assert (cut > got).all()


def test_writing_leaves_the_global_generator_alone(tiny, problem):
    import torch

    chats = [chat_for(problem.task.bank, row) for row in range(3)]
    state = torch.random.get_rng_state()
    sampling = Sampling(6, temperature=1.0)
    texts = models.write_texts(tiny, chats, sampling, seed=1, batch=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(texts) == 3
    assert texts == models.write_texts(tiny, chats, sampling, seed=1, batch=2)
    assert texts != models.write_texts(tiny, chats, sampling, seed=2, batch=2)


def test_readers_value_texts_as_the_bank_does(problem):
    readers = look.held_out(problem, num_prompts=2)
    bank, weights = problem.task.bank, problem.task.population.weights
    rows = bank.prompts("test")[:2]
    assert readers.prompts == tuple(bank.texts.prompts[row] for row in rows)
    assert [chat[0]["content"].split(">")[0] + ">" for chat in readers.chats[:4]] == [
        user_token(0), user_token(1), user_token(2), ANYBODY
    ]  # fmt: skip
    texts = [text for row in rows for text in bank.texts.responses[row]]  # k-th for user k
    found = readers.judge(texts)
    for i, row in enumerate(rows):
        value = bank.scores[row] @ weights.T  # (4, 5)
        own = [value[u, u] for u in range(3)]
        rest = [value[u, v] for u in range(3) for v in range(3) if u != v]
        np.testing.assert_allclose(found.own[i], np.mean(own), rtol=1e-4)
        np.testing.assert_allclose(found.other[i], np.mean(rest), rtol=1e-4)
        np.testing.assert_allclose(found.newcomers[i], value[3, 3:].mean(), rtol=1e-4)
        assert found.texts[i] == bank.texts.responses[row]
    same = readers.judge([text for text in ("One.", "Two words?") for _ in range(4)])
    np.testing.assert_allclose(same.gap, 0, atol=1e-6)


def test_preferences_count_pairs():
    utility = np.array([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]])  # (1, 2, 3)
    implicit = np.array([[[0.3, 0.2, 0.1], [0.1, 0.3, 0.2], [0.0, 0.0, 0.0]]])
    found = look.preferences(utility, implicit)
    np.testing.assert_allclose(found.own, (3 / 3 + 2 / 3) / 2)
    np.testing.assert_allclose(found.other, (1 / 3 + 0 / 3) / 2)
    np.testing.assert_allclose(found.generic, 0.5)


def test_intervals_cover_their_mean_and_narrow():
    rng = np.random.default_rng(0)
    few, many = look.interval(rng.normal(1, 1, 10)), look.interval(rng.normal(1, 1, 1000))
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.15)
    assert str(look.Interval(1.0, 0.5, 1.5)) == "+1.00 [+0.50, +1.50]"


@pytest.mark.parametrize(
    ("name", "figure"),
    [("grpo", "train-grpo"), ("personal_dpo", "train-personal-dpo")],
)
def test_examples_run(name, figure, tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, example)
    spec.loader.exec_module(example)
    example.main(["--size", "quick", "--out", str(tmp_path)])
    assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "step    2" in said
    assert "change" in said
