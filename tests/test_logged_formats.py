"""Logs in the formats that need no library of their own: obp, RLlib's columns, the hub, DPO."""

from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny_texts import text_bank

from personalllm_env.database import record_history
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.translate import task_from_settings
from personalllm_env.envs.wrappers import Flat
from personalllm_env.logged.hub import log_card, write_hub
from personalllm_env.logged.log_files import about_log, open_log, save_log
from personalllm_env.logged.obp import (
    bandit_feedback,
    open_bandit_feedback,
    save_bandit_feedback,
)
from personalllm_env.logged.off_policy import estimate, hidden_from
from personalllm_env.logged.off_policy_models import personal_rewards, pooled_rewards
from personalllm_env.logged.preferences import (
    duel_pairs,
    pair_columns,
    reward_pairs,
    write_pairs,
)
from personalllm_env.logged.record import build_agent, record_duels, record_log
from personalllm_env.logged.replay import SelectStage, replay
from personalllm_env.logged.rllib_files import write_rllib
from personalllm_env.logged.vw import vw_examples, write_vw
from personalllm_env.registry import find_agent
from personalllm_env.testing import tiny_tasks

SELECT = [name for name, task in tiny_tasks().items() if task.num_shown == 1]


def log_of(task, agent="linucb", *, num_users=12, seed=0, **settings):
    agent = build_agent(find_agent(agent), task)
    return record_log(agent, task, num_users=num_users, seed=seed, **settings)


def env_of(task, **settings):
    return PersonalEnv(
        bank=task.bank,
        population=task.population,
        feedback=task.feedback,
        horizon=task.horizon,
        shuffle=task.shuffle,
        **settings,
    )


def words_task(**settings):
    return task_from_settings(bank=text_bank(), shuffle=True, horizon=6, **settings)


# --- played again -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECT)
def test_a_replay_is_what_the_environment_returns(tasks, name):
    task = tasks[name]
    log = log_of(task)
    episodes = list(replay(log, SelectStage(task)))
    assert [episode.user for episode in episodes] == list(range(12))
    for episode in episodes:
        env = env_of(task, row=episode.user)
        obs, _ = env.reset(seed=log.seed)
        for t, action in enumerate(episode.actions):
            for part, value in obs.items():
                assert np.array_equal(value, episode.observations[part][t]), part
            obs, reward, terminated, truncated, _ = env.step(action)
            assert reward == episode.rewards[t]
            assert terminated == episode.terminated[t]
            assert truncated == episode.truncated[t]
        assert terminated or truncated
        for part, value in obs.items():
            assert np.array_equal(value, episode.observations[part][-1])


def test_a_replay_with_words_is_what_the_environment_returns():
    task = words_task()
    log = log_of(task)
    for episode in replay(log, SelectStage(task, texts=True)):
        env = env_of(task, row=episode.user, texts=True)
        obs, _ = env.reset(seed=log.seed)
        for t, action in enumerate(episode.actions):
            assert obs["prompt_text"] == episode.observations["prompt_text"][t]
            assert obs["response_texts"] == episode.observations["response_texts"][t]
            obs, *_ = env.step(action)


def test_more_users_than_are_played_at_once(tasks):
    log = log_of(tasks["reward"], num_users=300)
    episodes = list(replay(log, SelectStage(tasks["reward"])))
    assert len(episodes) == 300
    for number in (0, 127, 128, 299):
        episode = episodes[number]
        assert np.array_equal(episode.rewards, log.reward[log.user == number])
        assert np.array_equal(episode.actions, log.action[log.user == number])


def test_what_cannot_be_played_again_is_refused(tasks):
    task = tasks["reward"]
    log = log_of(task)
    with pytest.raises(ValueError, match="only whole episodes"):
        next(replay(log.rows(slice(1, None)), SelectStage(task)))
    with pytest.raises(ValueError, match="only whole episodes"):
        next(replay(log.rows(log.user != 3), SelectStage(task)))
    with pytest.raises(ValueError, match="only whole episodes"):
        next(replay(log.rows(slice(None, -1)), SelectStage(task)))
    with pytest.raises(ValueError, match="only a log with the seed"):
        next(replay(replace(log, seed=None), SelectStage(task)))
    with pytest.raises(ValueError, match=r"another task, bank or seed.*prompt, row"):
        next(replay(replace(log, seed=5), SelectStage(task)))
    with pytest.raises(ValueError, match=r"another task, bank or seed.*reward, row \d+"):
        next(replay(log, SelectStage(replace(task, feedback=tasks["like"].feedback))))
    with pytest.raises(ValueError, match="needs a bank with texts"):
        SelectStage(task, texts=True)


# --- the Open Bandit Pipeline -----------------------------------------------------------------


def test_bandit_feedback_has_obps_keys_and_shapes(tasks):
    """As SyntheticBanditDataset.obtain_batch_bandit_feedback of obp 0.5 returns them."""
    log = log_of(tasks["reward"])
    feedback = bandit_feedback(log, expected_reward=True)
    n, k, d = 96, 4, 6
    assert (feedback["n_rounds"], feedback["n_actions"]) == (n, k)
    assert feedback["context"].shape == (n, d + k * d)
    assert np.array_equal(feedback["action_context"], np.eye(k))
    assert feedback["action"].shape == feedback["reward"].shape == (n,)
    assert feedback["position"] is None
    assert feedback["expected_reward"].shape == (n, k)
    assert feedback["pi_b"].shape == (n, k, 1)
    rows = np.arange(n)
    assert np.array_equal(feedback["pscore"], feedback["pi_b"][rows, feedback["action"], 0])
    assert bandit_feedback(log)["expected_reward"] is None
    # What obp's check_bandit_feedback_inputs asks for.
    assert feedback["action"].dtype.kind == "i"
    assert (feedback["pscore"] > 0).all()
    assert np.allclose(feedback["pi_b"].sum(axis=1), 1)


def test_the_context_holds_the_candidates_in_the_order_shown(tasks):
    log = log_of(tasks["reward"])
    context = bandit_feedback(log)["context"]
    assert np.array_equal(context[:, :6], log.prompt_features[log.prompt])
    assert np.array_equal(context[:, 6:].reshape(-1, 4, 6), log.candidates())


def test_obps_estimators_give_the_truth(tasks):
    """IPW on the dictionary, as obp computes it: mean of dist * reward / pscore; 4.5 sd."""
    log = log_of(tasks["reward"], num_users=1500)
    f = bandit_feedback(log, expected_reward=True)
    dist = np.eye(4)[f["expected_reward"].argmax(axis=1)][:, :, None]  # (rounds, actions, 1)
    weight = dist[np.arange(f["n_rounds"]), f["action"], 0] / f["pscore"]
    users = np.bincount(f["user_idx"], weight * f["reward"]) / np.bincount(f["user_idx"])
    truth = np.average(f["expected_reward"], weights=dist[:, :, 0], axis=1).mean()
    assert abs(users.mean() - truth) < 4.5 * users.std() / np.sqrt(1500)


def test_silent_rounds_are_left_out(tasks):
    log = log_of(tasks["silence"])
    feedback = bandit_feedback(log)
    assert feedback["n_rounds"] == log.heard.sum()
    assert np.array_equal(feedback["user_idx"], log.user[log.heard])
    quiet = replace(log, heard=np.zeros(len(log), dtype=bool))
    with pytest.raises(ValueError, match="nothing was said in any of the 96"):
        bandit_feedback(quiet)


def test_expected_rewards_are_handed_out_only_where_they_are_known(tasks):
    with pytest.raises(ValueError, match="channels like"):
        bandit_feedback(log_of(tasks["like"]), expected_reward=True)
    log = log_of(tasks["reward"]).without_truth()
    with pytest.raises(ValueError, match="no truth"):
        bandit_feedback(log, expected_reward=True)


@pytest.mark.parametrize("truth", [False, True])
def test_bandit_feedback_survives_a_file(tasks, tmp_path, truth):
    feedback = bandit_feedback(log_of(tasks["reward"]), expected_reward=truth)
    save_bandit_feedback(feedback, tmp_path / "log.npz")
    again = open_bandit_feedback(tmp_path / "log.npz")
    assert list(sorted(again)) == list(sorted(feedback))
    for name, value in feedback.items():
        assert np.array_equal(again[name], value), name
        if isinstance(value, np.ndarray):
            assert again[name].dtype == value.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["log.npz"]


def test_other_files_are_refused(tasks, tmp_path):
    path = tmp_path / "log.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"log.npz: no \.npz file"):
        open_bandit_feedback(path)
    np.savez(path, action=np.zeros(3, int))
    with pytest.raises(ValueError, match="missing context"):
        open_bandit_feedback(path)
    feedback = bandit_feedback(log_of(tasks["reward"]))
    save_bandit_feedback({**feedback, "reward": feedback["reward"][:4]}, path)
    with pytest.raises(ValueError, match="reward: expected 1 axes with 96 rows"):
        open_bandit_feedback(path)
    save_bandit_feedback(feedback, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        open_bandit_feedback(path)


# --- RLlib's columns --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECT)
def test_rllibs_columns_are_what_the_flat_environment_returns(tasks, tmp_path, name):
    task = tasks[name]
    log = log_of(task)
    write_rllib(log, task, tmp_path / "log.parquet")
    table = parquet.read_table(tmp_path / "log.parquet")
    names = ["eps_id", "t", "obs", "actions", "rewards", "new_obs", "terminateds"]
    assert table.column_names == [*names, "truncateds", "infos", "action_logp"]
    rows = table.to_pylist()
    env = None
    for row in rows:
        if row["t"] == 0:
            env = Flat(env_of(task, row=int(row["eps_id"])))
            obs, _ = env.reset(seed=log.seed)
        assert np.array_equal(np.float32(row["obs"]), obs)
        obs, reward, terminated, truncated, _ = env.step(row["actions"])
        assert np.array_equal(np.float32(row["new_obs"]), obs)
        assert row["rewards"] == reward
        assert (row["terminateds"], row["truncateds"]) == (terminated, truncated)
    infos = [row["infos"]["propensity"] for row in rows]
    assert np.array_equal(infos, log.propensity)
    np.testing.assert_allclose(np.exp(table["action_logp"]), log.propensity, rtol=1e-6)


def test_rllibs_file_has_a_name_that_rllib_finds(tasks, tmp_path):
    with pytest.raises(ValueError, match=r"called \*\.parquet, such as .*, got .*log\.rllib"):
        write_rllib(log_of(tasks["reward"]), tasks["reward"], tmp_path / "log.rllib")
    assert not list(tmp_path.iterdir())


def test_rllibs_file_is_written_whole_or_not_at_all(tasks, tmp_path):
    log = log_of(tasks["reward"])
    with pytest.raises(ValueError, match="another task"):
        write_rllib(replace(log, seed=1), tasks["reward"], tmp_path / "log.parquet")
    assert not list(tmp_path.iterdir())


# --- our own file, and the hub ----------------------------------------------------------------


def same(one, other):
    for part in fields(one):
        a, b = getattr(one, part.name), getattr(other, part.name)
        if part.name == "said":
            assert list(a) == list(b)
            assert all(np.array_equal(a[name], b[name]) for name in a)
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b), part.name
            assert a.dtype == b.dtype, part.name
        else:
            assert a == b, part.name


@pytest.mark.parametrize("name", SELECT)
def test_a_log_survives_a_file(tasks, tmp_path, name):
    log = log_of(tasks[name])
    save_log(log, tmp_path / "log.parquet", tasks[name].bank, truth=True)
    same(log, open_log(tmp_path / "log.parquet", tasks[name].bank))
    save_log(log, tmp_path / "log.parquet", tasks[name].bank)
    same(log.without_truth(), open_log(tmp_path / "log.parquet", tasks[name].bank))
    assert "true_utility" not in parquet.read_schema(tmp_path / "log.parquet").names


def test_white_box_and_recognised_logs_survive_a_file(tasks, tmp_path):
    from personalllm_env.users import UserPopulation

    users = UserPopulation(np.eye(3)[[0, 1, 2, 0]])
    task = replace(tasks["reward"], population=users, recognise=True, white_box=True)
    log = log_of(task)
    save_log(log, tmp_path / "log.parquet", task.bank, truth=True)
    again = open_log(tmp_path / "log.parquet", task.bank)
    same(log, again)
    assert again.inputs.shape == (60, 4, 3)


def rewritten(path, change):
    """Changes a file's table, metadata and all."""
    table = change(parquet.read_table(path))
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["action"]), "missing columns action"),
        (lambda t: t.slice(1), r"expected 96 interactions, got 95"),
        (lambda t: t.replace_schema_metadata({}), "no metadata 'personalllm_env_log'"),
        (
            lambda t: t.set_column(0, "user", t["user"].cast(pa.float64())),
            "column 'user' cannot be of type double",
        ),
        (
            lambda t: t.set_column(2, "prompt", pa.array([None] + [0] * 95, pa.int64())),
            "column 'prompt', row 1: no value",
        ),
        (
            lambda t: t.set_column(4, "action", pa.array([0] * 95 + [7])),
            r"action, row 96: expected in 0\.\.3",
        ),
        (
            lambda t: t.set_column(5, "propensity", pa.array([0.5] * 96)),
            "propensity, row .: expected the probability",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tasks, tmp_path, change, words):
    path = tmp_path / "log.parquet"
    save_log(log_of(tasks["reward"]), path, tasks["reward"].bank)
    rewritten(path, change)
    with pytest.raises(ValueError, match=words) as caught:
        open_log(path, tasks["reward"].bank)
    assert "log.parquet" in str(caught.value)


def test_other_banks_and_damaged_files_are_refused(tasks, tmp_path):
    from personalllm_env.testing import tiny_bank

    path, bank = tmp_path / "log.parquet", tasks["reward"].bank
    log = log_of(tasks["reward"])
    save_log(log, path, bank)
    with pytest.raises(ValueError, match="of other scores"):
        open_log(path, tiny_bank(seed=1))
    again = open_log(path, tiny_bank(seed=1), same_bank=False)
    assert np.array_equal(again.reward, log.reward)
    assert about_log(path)["facts"]["exploration"] == 0.2
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        open_log(path, bank)
    with pytest.raises(ValueError, match="damaged"):
        about_log(path)
    with pytest.raises(FileNotFoundError):
        open_log(tmp_path / "none", bank)
    with pytest.raises(FileNotFoundError, match="a log's file, or a folder with data/train"):
        open_log(tmp_path, bank)
    with pytest.raises(ValueError, match="needs a bank with texts"):
        save_log(log, path, bank, texts=True)
    with pytest.raises(ValueError, match="needs a log with truth"):
        save_log(log.without_truth(), path, bank, truth=True)


@pytest.mark.parametrize("words", [False, True])
def test_datasets_loads_the_folder(tasks, tmp_path, words):
    datasets = pytest.importorskip("datasets")
    task = words_task() if words else tasks["reward"]
    log = log_of(task)
    file = write_hub(log, tmp_path / "log", task.bank)
    rows = datasets.load_dataset(
        str(tmp_path / "log"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == len(log)
    assert np.array_equal(rows["propensity"], log.propensity)
    assert np.array_equal(rows["order"], log.order)
    assert ("response_texts" in rows.column_names) == words
    if words:
        row, texts = rows[5], task.bank.texts
        assert row["prompt_text"] == texts.prompts[log.prompt[5]]
        shown = row["response_texts"][row["action"]]
        assert shown == texts.responses[log.prompt[5]][log.shown[5]]
    for path in (file, tmp_path / "log"):
        same(log.without_truth(), open_log(path, task.bank))
    assert about_log(tmp_path / "log") == about_log(file)


def test_the_card_is_one_that_the_hub_reads(tasks, tmp_path):
    yaml = pytest.importorskip("yaml")
    write_hub(log_of(tasks["like"]), tmp_path / "log", tasks["like"].bank)
    card = (tmp_path / "log" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    tags = {"rl-environment", "reinforcement-learning", "personalisation"}
    assert tags <= set(about["tags"])
    assert about["size_categories"] == ["n<1K"]
    assert about["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    for name in parquet.read_schema(next((tmp_path / "log" / "data").iterdir())).names:
        assert f"| `{name}` |" in text
    assert "- exploration: 0.2" in text
    assert "weights" not in text
    assert "draw its users again" in text
    log = replace(log_of(tasks["like"]), seed=None, facts={})
    file = write_hub(log, tmp_path / "no seed", tasks["like"].bank)
    assert "seed" not in log_card(file).partition("\n|")[0]
    assert about_log(file)["seed"] is None


def test_a_folder_is_written_whole_or_not_at_all(tasks, tmp_path):
    log, bank = log_of(tasks["reward"]), tasks["reward"].bank
    with pytest.raises(ValueError, match="row 1"):
        write_hub(replace(log, reward=np.full(96, np.nan)), tmp_path / "log", bank)
    assert not list(tmp_path.iterdir())
    write_hub(log, tmp_path / "log", bank)
    with pytest.raises(FileExistsError, match="choose another path"):
        write_hub(log, tmp_path / "log", bank)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no metadata"):
        log_card(tmp_path / "other.parquet")


# --- preferences ------------------------------------------------------------------------------


def duels_of(task, num_users=12):
    agent = build_agent(find_agent("thompson"), task)
    return record_duels(agent, task, num_users=num_users, seed=0, exploration=0.5)


def test_choices_become_pairs():
    task = words_task(num_shown=2, feedback={"choice": {"temperature": 0}})
    duels = duels_of(task)
    pairs = duel_pairs(duels)
    different = (duels.action[:, 0] != duels.action[:, 1]) & duels.heard
    assert len(pairs.user) == different.sum() > 20
    assert np.array_equal(pairs.prompt, duels.prompt[different])
    first = duels.said["choice"][different] > 0
    assert np.array_equal(pairs.chosen, np.where(first, *duels.action[different].T))
    assert np.array_equal(pairs.rejected, np.where(first, *duels.action[different].T[::-1]))


def test_chosen_is_what_the_user_likes_better():
    from personalllm_env.users import UserPopulation

    bank = text_bank()
    weights = np.eye(bank.num_reward_models)[:3]
    task = words_task(num_shown=2, feedback={"choice": {"temperature": 0}})
    task = replace(task, population=UserPopulation(weights), recognise=True)
    duels = duels_of(task)
    pairs = duel_pairs(duels)
    utility = np.einsum("pkm,um->upk", bank.scores, weights[duels.identity])
    assert (
        utility[pairs.user, pairs.prompt, pairs.chosen]
        >= utility[pairs.user, pairs.prompt, pairs.rejected]
    ).all()


def test_rewards_become_pairs():
    task = words_task(feedback={"reward": {"noise_sd": 0}}, prompts_per_episode=2)
    log = log_of(task, "uniform")
    pairs = reward_pairs(log)
    shown = {
        (u, p, k): r
        for u, p, k, r in zip(log.user, log.prompt, log.shown, log.reward, strict=True)
    }
    expected = {
        (u, p, k, j)
        for (u, p, k), r in shown.items()
        for (v, q, j), s in shown.items()
        if (u, p) == (v, q) and r > s
    }
    found = list(zip(*(column.tolist() for column in pairs), strict=True))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert len(reward_pairs(log, margin=1.0).user) < len(found)


def test_columns_are_dpos(tmp_path):
    task = words_task(num_shown=2)
    pairs, texts = duel_pairs(duels_of(task)), task.bank.texts
    columns = pair_columns(pairs, task.bank)
    assert list(columns) == ["prompt", "chosen", "rejected", "question", "prompt_row", "user"]
    words = texts.responses[pairs.prompt[3]]
    assert columns["prompt"][3] == [{"role": "user", "content": texts.prompts[pairs.prompt[3]]}]
    assert columns["chosen"][3] == [{"role": "assistant", "content": words[pairs.chosen[3]]}]
    assert columns["rejected"][3][0]["content"] == words[pairs.rejected[3]]
    write_pairs(pairs, task.bank, tmp_path / "pairs.parquet")
    assert parquet.read_table(tmp_path / "pairs.parquet").to_pydict() == columns
    named = pair_columns(pairs, task.bank, user_tokens=True)["prompt"][3]
    assert named[0]["role"] == "system"
    assert f"<|user_{pairs.user[3]}|>" in named[0]["content"]


@pytest.mark.slow
def test_trl_takes_the_pairs(tmp_path):
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    task = words_task(num_shown=2)
    write_pairs(duel_pairs(duels_of(task)), task.bank, tmp_path / "pairs.parquet")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "pairs.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert data_utils.is_conversational(rows[0])
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)


def test_no_pairs_and_no_texts_are_errors(tasks, tmp_path):
    history = record_history(tasks["reward"], num_users=2, seed=0)
    with pytest.raises(ValueError, match="here 1 shown and feedback reward"):
        duel_pairs(history)
    task = words_task()
    once = log_of(replace(task, horizon=1))
    with pytest.raises(ValueError, match="there are no pairs"):
        reward_pairs(once)
    duels = duel_pairs(record_history(tasks["duel"], num_users=4, seed=0))
    for write in (pair_columns, lambda p, b: write_pairs(p, b, tmp_path / "pairs.parquet")):
        with pytest.raises(ValueError, match="'tiny' has none"):
            write(duels, tasks["duel"].bank)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "use",
    [
        lambda duels, task, path: write_vw(duels, path),
        lambda duels, task, path: bandit_feedback(duels),
        lambda duels, task, path: save_log(duels, path, task.bank),
        lambda duels, task, path: write_hub(duels, path, task.bank),
        write_rllib,
        lambda duels, task, path: reward_pairs(duels),
        lambda duels, task, path: pooled_rewards(duels),
        lambda duels, task, path: personal_rewards(duels),
        lambda duels, task, path: estimate(duels, np.ones((1, 4)), np.ones((1, 4))),
        lambda duels, task, path: hidden_from(task, duels),
    ],
)
def test_duels_are_no_log(tasks, tmp_path, unchecked_shapes, use):
    duels = record_history(tasks["duel"], num_users=4, seed=0)
    with pytest.raises(ValueError, match=r"expected a Log, .*, got a Database"):
        use(duels, tasks["duel"], tmp_path / "log.parquet")
    assert not list(tmp_path.iterdir())


def test_a_log_is_no_duels(tasks, unchecked_shapes):
    with pytest.raises(ValueError, match=r"expected a Database, .*got a Log; .*reward_pairs"):
        duel_pairs(log_of(tasks["reward"]))


@pytest.mark.parametrize("write", [bandit_feedback, lambda log: next(vw_examples(log))])
def test_formats_refuse_a_log_that_does_not_fit_together(tasks, write):
    log = log_of(tasks["reward"])
    with pytest.raises(ValueError, match=r"propensity, row 1: expected in \(0, 1\], got nan"):
        write(replace(log, propensity=np.full(96, np.nan)))


def test_flat_stands_for_gymnasiums_order():
    """The order of Flat's parts is that of the space, which is alphabetical."""
    names = list(gym.make("PersonalLLM/Select-v0").observation_space.spaces)
    assert names == sorted(names)
