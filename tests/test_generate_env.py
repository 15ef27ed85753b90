"""Environments whose action is text: Gymnasium's contract, Select's numbers, odd texts."""

import copy
import pickle
import re
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_texts import listening, text_bank

from personalllm_env.bank import ResponseBank
from personalllm_env.envs.generate import GenerateEnv
from personalllm_env.envs.generate_vector import GenerateVectorEnv
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.rewards.heads import offline_heads
from personalllm_env.users import DirichletUsers, dirichlet_population

GENERATE = "PersonalLLM/Generate-v0"
NEXT, SAME, OFF = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
BANK, HEADS = text_bank(), offline_heads()
ANYBODY = DirichletUsers(10, 0.05)  # one for all, since its quantiles take a while
USERS = dirichlet_population(7, concentration=0.5, num_test=2)
LEAVE = {"leave": {"threshold": 0.5, "probability": 0.6}}
SETTINGS = {
    "reward": {},
    "like": {"feedback": "like"},
    "stars and silence": {"feedback": ["stars", {"silence": {"probability": 0.4}}]},
    "late": {"feedback": ["like", {"delay": {"interactions": 2}}]},
    "leaving": {"feedback": ["reward", LEAVE]},
    "leaving late": {
        "feedback": ["reward", "like", LEAVE, {"delay": {"interactions": 1}}],
        "drift": "gradual",
        "population": USERS,
        "recognise": True,
        "past": 3,
        "prompts_per_episode": 2,
    },
    "two": {"num_written": 2},
    "two with reward": {"num_written": 2, "feedback": ["choice", "reward", "silence"]},
    "past": {"past": 2, "prompt_features": True},
    "extremes": {"past": "all", "past_rule": "extremes", "max_conversation": 900},
    "test": {"split": "test", "horizon": 2},
    "cut": {"max_characters": 12, "max_conversation": 0, "feedback": ["reward", LEAVE]},
}
WORDS = ("", "Yes.", "Well, perhaps you may.", "1. One\n2. Two", "Lovely!! 😀", "x" * 40)


def env_of(**changes):
    defaults = {"bank": BANK, "ensemble": HEADS, "horizon": 5, "population": ANYBODY}
    return GenerateEnv(**defaults | changes)


def vector_of(num=4, mode=NEXT, **changes):
    defaults = {"bank": BANK, "ensemble": HEADS, "horizon": 5, "population": ANYBODY}
    return GenerateVectorEnv(num, autoreset_mode=mode, **defaults | changes)


def texts_of(num, shown, rng):
    """B rows of S texts."""
    return [[WORDS[i] for i in row] for row in rng.integers(len(WORDS), size=(num, shown))]


def single_action(texts):
    return texts[0] if len(texts) == 1 else tuple(texts)


def vector_action(rows):
    columns = tuple(zip(*rows, strict=True))
    return columns[0] if len(columns) == 1 else columns


def same(left, right):
    assert data_equivalence(left, right, exact=True)


def play(env, num, seed=0, reset_seed=0):
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=reset_seed)]
    for _ in range(num):
        [texts] = texts_of(1, env.unwrapped.task.num_shown, rng)
        seen.append(env.step(single_action(texts)))
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
    return seen


# -- Gymnasium's contract


@pytest.mark.parametrize("name", SETTINGS)
def test_gymnasiums_checker(name):
    env = env_of(**SETTINGS[name])
    check_env(env, skip_render_check=True)
    for obs, *_ in play(env, 12):
        assert env.observation_space.contains(obs)


def test_made_by_id_with_nothing_else():
    """The built-in bank of text, the passive checker, render modes."""
    env = gym.make(f"personalllm_env:{GENERATE}", render_mode="ansi")
    check_env(env.unwrapped)
    assert env.unwrapped.task.bank.name == "text"
    assert env.unwrapped.task.horizon == 50
    obs, _ = env.reset(seed=0)
    _, reward, *_, info = env.step("I would say so, but ask your sister.")
    assert obs["prompt"] in env.unwrapped.task.bank.texts.prompts
    assert obs["conversation"] == ""
    assert np.isfinite([reward, info["utility"]]).all()
    assert abs(reward - info["utility"]) < 4


def test_specification_survives_json(tmp_path):
    BANK.save(tmp_path / "bank")
    chosen = {
        "bank": str(tmp_path / "bank"),
        "ensemble": "heads",
        "num_written": 2,
        "past": "all",
        "past_rule": "extremes",
        "feedback": [{"choice": {"temperature": 0.5}}, {"silence": {"probability": 0.5}}],
        "max_characters": 30,
        "max_conversation": 500,
        "horizon": 3,
    }
    first = gym.make(GENERATE, **chosen)
    spec = EnvSpec.from_json(first.spec.to_json())
    assert spec.kwargs == first.spec.kwargs == chosen
    second = gym.make(spec)
    assert second.observation_space == first.observation_space
    same(play(first, 8), play(second, 8))
    assert EnvSpec.from_json(gym.spec(GENERATE).to_json()) == gym.spec(GENERATE)


@pytest.mark.parametrize("name", SETTINGS)
def test_info_has_the_same_keys_and_types_in_reset_and_step(name):
    env = env_of(**SETTINGS[name])
    _, info = env.reset(seed=0)
    [texts] = texts_of(1, env.task.num_shown, np.random.default_rng(0))
    later = env.step(single_action(texts))[-1]
    assert {k: type(v) for k, v in info.items()} == {k: type(v) for k, v in later.items()}
    assert {k: np.shape(v) for k, v in info.items()} == {
        k: np.shape(v) for k, v in later.items()
    }
    floats = dict.fromkeys(("utility", "best_of_bank", "percentile"), float)
    others = {"prompt": int, "user": int, "cut": bool, "scores": np.ndarray}
    assert {name: type(value) for name, value in info.items()} == floats | others
    assert info["scores"].dtype == np.float32


def test_infos_and_observations_are_fresh():
    env = env_of(past=1, prompt_features=True)
    kept = [env.reset(seed=0)]
    copies = copy.deepcopy(kept)
    for text in WORDS[:4]:
        kept.append(env.step(text))
        copies.append(copy.deepcopy(kept[-1]))
    same(kept, copies)
    kept[2][0]["prompt_features"][:] = 9
    kept[2][-1]["scores"][:] = 9
    same([kept[1], kept[3]], [copies[1], copies[3]])
    same(play(env_of(past=1, prompt_features=True), 3)[0], copies[0])
    assert np.array_equal(BANK.prompt_features, text_bank().prompt_features)


# -- the numbers are Select's


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize(
    "name", ["reward", "like", "stars and silence", "late", "leaving", "leaving late", "test"]
)
def test_the_banks_own_words_bring_what_select_brings(name, row):
    """Users, prompts, noise, utility, regret, ends: to the bit."""
    chosen = SETTINGS[name]
    select = PersonalEnv(
        bank=BANK,
        row=row,
        regret=True,
        **{"horizon": 5, "population": ANYBODY}
        | {k: v for k, v in chosen.items() if k[:4] != "past"},
    )
    env, rng = env_of(row=row, **chosen), np.random.default_rng(1)
    for episode in range(4):
        seed = 3 if episode == 0 else None
        (theirs, known), (obs, info) = select.reset(seed=seed), env.reset(seed=seed)
        while True:
            assert (info["prompt"], info["user"]) == (known["prompt"], known["user"])
            assert obs["prompt"] == BANK.texts.prompts[info["prompt"]]
            for part in ("feedback", "heard", "step"):
                assert np.array_equal(obs[part], theirs[part])
            k = int(rng.integers(4))
            words = BANK.texts.responses[info["prompt"]][k]
            theirs, *outcome, known = select.step(k)
            obs, *mine, info = env.step(words)
            assert mine == outcome
            assert info["utility"] == known["utility"]
            regret = info["best_of_bank"] - info["utility"]
            assert regret == pytest.approx(known["regret"], abs=1e-6)
            if mine[1] or mine[2]:
                break


def test_two_of_the_banks_words_bring_what_a_duel_brings():
    env = env_of(**SETTINGS["two with reward"])
    duel = PersonalEnv(
        bank=BANK,
        horizon=5,
        num_shown=2,
        feedback=["choice", "reward", "silence"],
        population=ANYBODY,
    )
    (theirs, _), (obs, info) = duel.reset(seed=3), env.reset(seed=3)
    for pair in ((0, 1), (3, 3), (2, 0), (1, 3), (3, 2)):
        words = BANK.texts.responses[info["prompt"]]
        theirs, *outcome, known = duel.step(pair)
        obs, *mine, info = env.step((words[pair[0]], words[pair[1]]))
        assert mine == outcome
        assert info["utility"] == pytest.approx(known["utility"], abs=1e-6)
        assert info["scores"].shape == (2, 10)
        assert np.array_equal(obs["feedback"], theirs["feedback"])


def test_options_hold():
    env = env_of(population=USERS)
    _, info = env.reset(seed=0, options={"user": 4, "prompts": [7, 2]})
    assert (info["user"], info["prompt"]) == (4, 7)
    scores = env.step(BANK.texts.responses[7][1])[-1]["scores"]
    assert np.array_equal(scores, BANK.scores[7, 1])
    weights = np.eye(10)[3]
    env.reset(seed=0, options={"weights": weights, "prompts": [5]})
    info = env.step("A new answer, perhaps.")[-1]
    assert info["utility"] == pytest.approx(info["scores"][3])
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"usr": 1})


def test_the_past_is_that_of_the_user_who_comes():
    """Also of one who is given; and no word of the test split is in it."""
    weights = np.eye(10)[2]
    env = env_of(past="all", past_rule="extremes", split="test", max_conversation=10**6)
    said = env.reset(seed=0, options={"weights": weights})[0]["conversation"]
    for row in range(10):
        assert (BANK.texts.prompts[row] in said) == (not BANK.is_test[row])
        for k in range(4):
            utility = BANK.scores[row, :, 2]
            expected = not BANK.is_test[row] and k in (utility.argmax(), utility.argmin())
            assert (BANK.texts.responses[row][k] + "\n" in said + "\n") == expected
        if not BANK.is_test[row]:
            best, worst = (
                BANK.texts.responses[row][int(k)] for k in (utility.argmax(), utility.argmin())
            )
            assert f"### They preferred\n\n{best}\n\n### They liked less\n\n{worst}" in said


# -- rows


def row_of(obs, b):
    return {name: value[b] for name, value in obs.items()}


def info_is(info, b, single):
    for name, value in single.items():
        assert np.array_equal(info[name][b], value), name


@pytest.mark.parametrize("mode", [NEXT, SAME, OFF], ids=lambda m: m.name)
@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_single_environments(name, mode):
    """Observations, rewards, ends and infos; rows end at different times where users leave."""
    num, rng, ends = 4, np.random.default_rng(0), 0
    env = vector_of(num, mode, **SETTINGS[name])
    singles = [env_of(row=b, **SETTINGS[name]) for b in range(num)]
    obs, info = env.reset(seed=3)
    for b, single in enumerate(singles):
        first, known = single.reset(seed=3)
        same(row_of(obs, b), first)
        info_is(info, b, known)
    over = np.zeros(num, bool)
    for _ in range(13):
        written = texts_of(num, env.task.num_shown, rng)
        if mode is OFF and over.any():
            obs, info = env.reset(options={"reset_mask": over})
            for b in np.flatnonzero(over):
                first, known = singles[b].reset()
                same(row_of(obs, b), first)
                info_is(info, b, known)
            over = np.zeros(num, bool)
        obs, reward, terminated, truncated, info = env.step(vector_action(written))
        assert env.observation_space.contains(obs)
        assert reward.dtype == np.float32
        for b, single in enumerate(singles):
            if mode is NEXT and over[b]:
                first, known = single.reset()
                same(row_of(obs, b), first)
                info_is(info, b, known)
                assert (reward[b], terminated[b], truncated[b]) == (0, False, False)
                continue
            one, told, left, out, known = single.step(single_action(written[b]))
            assert (reward[b], terminated[b], truncated[b]) == (told, left, out)
            if mode is SAME and (left or out):
                same(info["final_obs"][b], one)
                info_is(info["final_info"], b, known)
                one, begun = single.reset()
                info_is(info, b, {k: begun[k] for k in ("prompt", "user")})
            else:
                info_is(info, b, known)
            same(row_of(obs, b), one)
        ended = terminated | truncated
        ends += ended.sum()
        over = ended & (mode is not SAME)
    assert ends >= num


@pytest.mark.parametrize("mode", [NEXT, SAME], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["leaving late", "two", "past"])
def test_semantics_are_gymnasiums(name, mode):
    num, rng = 3, np.random.default_rng(0)
    mine = vector_of(num, mode, **SETTINGS[name])
    theirs = SyncVectorEnv(
        [partial(env_of, row=b, **SETTINGS[name]) for b in range(num)], autoreset_mode=mode
    )
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    left, right = mine.reset(seed=4), theirs.reset(seed=[4] * num)
    for _ in range(14):
        same(dict(left[0]), dict(right[0]))
        for one, another in zip(left[1:-1], right[1:-1], strict=True):
            assert np.array_equal(one, another)
        info, other = left[-1], right[-1]
        if "final_obs" in other:
            assert np.array_equal(info["_final_obs"], other["_final_obs"])
            for b in np.flatnonzero(other["_final_obs"]):
                same(info["final_obs"][b], other["final_obs"][b])
            for part, value in other["final_info"].items():
                mask = other["_final_info"]
                assert np.array_equal(info["final_info"][part][mask], value[mask]), part
        else:
            for part, value in other.items():
                assert np.array_equal(info[part], value), part
        action = vector_action(texts_of(num, mine.task.num_shown, rng))
        left, right = mine.step(action), theirs.step(action)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**64),
    num=st.integers(1, 5),
    shown=st.integers(1, 2),
    past=st.one_of(st.integers(0, 3), st.just("all")),
    rule=st.sampled_from(["pair", "extremes"]),
    horizon=st.integers(1, 4),
    limits=st.tuples(st.integers(1, 50), st.integers(0, 2000)),
    around=st.lists(
        st.sampled_from(["silence", LEAVE, {"delay": {"interactions": 1}}, "like"]),
        unique_by=str,
    ),
    split=st.sampled_from(["train", "test", "all"]),
)
def test_rows_do_not_depend_on_how_many_there_are(
    seed, num, shown, past, rule, horizon, limits, around, split
):
    """Whatever the settings; observations are in the space, ends where they must be."""
    chosen = {
        "num_written": shown,
        "past": past,
        "past_rule": rule,
        "horizon": horizon,
        "max_characters": limits[0],
        "max_conversation": limits[1],
        "feedback": ["choice" if shown == 2 else "reward", *around],
        "split": split,
    }
    few, many = vector_of(num, **chosen), vector_of(num + 2, **chosen)
    left, right = few.reset(seed=seed)[0], many.reset(seed=seed)[0]
    rng = np.random.default_rng(seed)
    for t in range(2 * horizon + 3):
        assert few.observation_space.contains(left)
        assert all(len(said) <= limits[1] for said in left["conversation"])
        for part in left:
            assert np.array_equal(left[part], right[part][:num]), part
        written = texts_of(num + 2, shown, rng)
        left, *ends, info = few.step(vector_action(written[:num]))
        right, *others, known = many.step(vector_action(written))
        for mine, theirs in zip(ends, others, strict=True):
            assert np.array_equal(mine, theirs[:num])
        for name, value in info.items():
            assert np.array_equal(value, known[name][:num]), name
        if LEAVE not in around:
            assert ends[2].all() == ((t + 1) % (horizon + 1) == horizon)


def test_masked_resets_leave_other_conversations_alone():
    env, twin = (vector_of(3, OFF, past=1) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    env.step(["a", "b", "c"])
    before = twin.step(["a", "b", "c"])[0]
    mask = np.array([False, True, False])
    obs = env.reset(options={"reset_mask": mask})[0]
    for b in (0, 2):
        same(row_of(obs, b), row_of(before, b))
    assert "## Interaction" not in obs["conversation"][1]
    after, theirs = env.step(["d", "e", "f"])[0], twin.step(["d", "e", "f"])[0]
    for b in (0, 2):
        same(row_of(after, b), row_of(theirs, b))


def test_ignored_texts_are_not_scored():
    """In NEXT_STEP a row that begins anew costs its reward models an empty text."""
    scorer, ensemble = listening()
    env = vector_of(6, ensemble=ensemble, feedback=["reward", LEAVE], horizon=8)
    env.reset(seed=0)
    over, ignored = np.zeros(6, bool), 0
    for t in range(20):
        scorer.calls.clear()
        written = [f"{t} and {b}" for b in range(6)]
        _, _, terminated, truncated, _ = env.step(written)
        if over.all():
            assert not scorer.calls
        else:
            [call] = scorer.calls
            heard = [text for _, text in call]
            assert heard == ["" if over[b] else written[b] for b in range(6)]
            ignored += over.sum()
        over = terminated | truncated
    assert ignored > 5


def test_gymnasiums_wrappers():
    env = RecordEpisodeStatistics(vector_of(2, horizon=2))
    env.reset(seed=0)
    env.step(["a", "b"])
    *_, info = env.step(["a", "b"])
    assert info["episode"]["l"].tolist() == [2, 2]
    infos = DictInfoToList(vector_of(2)).reset(seed=0)[1]
    assert [info["cut"] for info in infos] == [False, False]
    for kind in ("vector_entry_point", "sync"):
        made = gym.make_vec(
            GENERATE, 2, vectorization_mode=kind, bank=BANK, ensemble=offline_heads()
        )
        assert isinstance(made.unwrapped, GenerateVectorEnv) == (kind != "sync")
        obs, _ = made.reset(seed=0)
        assert made.observation_space.contains(made.step(made.action_space.sample())[0])
        assert obs["prompt"][0] == env_of().reset(seed=0)[0]["prompt"]


# -- conversations


def test_a_conversation_holds_everything_in_order():
    env = env_of(past=1, max_conversation=10**6)
    obs, _ = env.reset(seed=1)
    before = obs["conversation"]
    assert before.count("## Before") == 1
    for t, text in enumerate(WORDS[:5]):
        asked = obs["prompt"]
        obs, reward, *_ = env.step(text)
        before += (
            f"\n\n## Interaction {t + 1}\n\n### The user asks\n\n{asked}\n\n### You write\n\n"
            f"{text}\n\n### What is said\n\nThe user reports a reward of {reward:.2f}."
        ).replace("-0.00", "0.00")
        assert obs["conversation"] == before
    assert "## Interaction" not in env.reset()[0]["conversation"]


def test_the_oldest_is_dropped():
    whole, short = (env_of(past=2, max_conversation=limit) for limit in (10**6, 600))
    whole.reset(seed=1)
    assert len(short.reset(seed=1)[0]["conversation"]) <= 600
    for text in WORDS[:5]:
        long, some = (env.step(text)[0]["conversation"] for env in (whole, short))
        assert len(some) <= 600
        assert long.endswith(some)
        assert some.startswith("## ")
        assert some.count("## Interaction") < max(long.count("## Interaction"), 2) + 1
    assert some.count("## Interaction") < 5
    assert env_of(past=2, max_conversation=0).reset(seed=0)[0]["conversation"] == ""


def test_a_conversation_begins_with_a_whole_entry_or_an_ellipsis():
    whole = env_of(past=4, max_conversation=10**6).reset(seed=1)[0]["conversation"]
    entries = re.split(r"\n\n(?=## )", whole)
    for limit in (20, 100, 300, 500):
        some = env_of(past=4, max_conversation=limit).reset(seed=1)[0]["conversation"]
        assert len(some) <= limit
        if len(entries[-1]) > limit:
            assert some.startswith("… ")
            assert entries[-1].endswith(some[2:])
            assert entries[-1][-len(some[2:]) - 1].isspace()
        else:
            assert some.startswith("## Before")
    assert len(entries[-1]) > 20


@pytest.mark.parametrize("past", [6, "all"])
def test_no_answer_to_what_is_asked_stands_in_the_past(past):
    """Or a policy could learn to look the prompt up and copy what the user preferred."""
    env = vector_of(5, horizon=3, past=past, max_conversation=10**6)
    obs = env.reset(seed=0)[0]
    begun, asked = obs["conversation"], []
    for _ in range(3):
        asked.append(obs["prompt"])
        obs = env.step(["Hm."] * 5)[0]
    for b in range(5):
        assert begun[b].count("## Before") == 6
        for prompts in asked:
            assert prompts[b] not in begun[b]


def test_silence_delay_and_leaving_are_in_words():
    mute = env_of(feedback=["like", {"silence": {"probability": 1.0}}])
    mute.reset(seed=0)
    obs, reward, *_ = mute.step("Hm.")
    assert obs["conversation"].endswith("\n\nThe user says nothing.")
    assert (obs["heard"], reward) == (0, 0)
    late = env_of(feedback=["like", {"delay": {"interactions": 2}}])
    now = env_of(feedback=["like"])
    late.reset(seed=0)
    now.reset(seed=0)
    told = []
    for t, text in enumerate(WORDS[:5]):
        told.append(now.step(text)[0]["conversation"].rpartition("The user ")[2])
        words = late.step(text)[0]["conversation"].rpartition("\n")[2]
        about = f"About interaction {t - 1}, the user {told[t - 2]}" if t > 1 else None
        assert words == (about or "The user has said nothing yet.")
    gone = env_of(feedback=["reward", {"leave": {"threshold": 99, "probability": 1.0}}])
    gone.reset(seed=0)
    obs, _, terminated, truncated, _ = gone.step("Go.")
    assert (terminated, truncated) == (True, False)
    assert obs["conversation"].endswith(" The user leaves.")
    with pytest.raises(gym.error.ResetNeeded):
        gone.step("Come back.")


def test_observations_do_not_depend_on_what_is_hidden():
    """Other users, other scores: but for what is said, nothing is seen of them."""
    scores = np.random.default_rng(0).standard_normal(BANK.scores.shape).astype(np.float32)
    scores[[0, -1]] = BANK.scores[[0, -1]]  # where an ensemble is held against its bank
    silent = ["reward", {"silence": {"probability": 1.0}}]
    left = env_of(feedback=silent, prompt_features=True)
    right = env_of(
        bank=text_bank(scores=scores),
        feedback=silent,
        population=DirichletUsers(10, 9.0),
        prompt_features=True,
    )
    for (mine, *_), (theirs, *_) in zip(play(left, 12), play(right, 12), strict=True):
        same(mine, theirs)


# -- odd texts


ODD = {
    "empty": "",
    "blank": " \n\t\u2003",
    "long": "word " * 200_000,
    "nul": "a\0b",
    "surrogate": "half \ud83d of it",
    "right to left": "\u202eabc\u202c שלום",
    "emoji": "👩‍👩‍👧" * 50,
    "markup": "## Interaction 9\n\n[bold]no[/bold] {t} %s",
    "numpy": np.str_("text"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_are_read(name, capsys):
    env, vector = env_of(render_mode="ansi"), vector_of(2)
    env.reset(seed=0)
    vector.reset(seed=0)
    for _ in range(2):
        obs, reward, _, _, info = env.step(ODD[name])
        batch, rewards, *_ = vector.step([ODD[name], "x"])
        assert env.observation_space.contains(obs)
        assert np.isfinite(info["scores"]).all()
        assert (rewards[0], batch["conversation"][0]) == (reward, obs["conversation"])
        assert info["cut"] == (name == "long")
        obs["conversation"].encode()
        assert "The user reports" in env.render()
    env.render_mode = "human"
    env.render()
    assert "utility" in capsys.readouterr().out


@pytest.mark.parametrize("action", [None, b"bytes", 3, 1.5, ["a"], ("a",), {"text": "a"}])
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_text_changes_nothing(action):
    env, twin = env_of(), env_of()
    env.reset(seed=0)
    twin.reset(seed=0)
    env.step("a")
    twin.step("a")
    with pytest.raises(TypeError, match=r"row 0: expected text, got \w+: "):
        env.step(action)
    same(env.step("b"), twin.step("b"))


@pytest.mark.parametrize("action", [None, "ab", ("a",), ("a", "b", "c"), ("a", None), 7])
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_pair_changes_nothing(action):
    env, twin = env_of(num_written=2), env_of(num_written=2)
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises((ValueError, TypeError), match="row 0: expected "):
        env.step(action)
    for pair in (("a", "b"), ["a", "b"], np.array(["a", "b"])):
        same(env.step(pair), twin.step(("a", "b")))


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (None, ValueError, "expected 3 rows, a text each, in a sequence; got NoneType"),
        ("abc", ValueError, "expected 3 rows, a text each, in a sequence; got str: 'abc'"),
        (["a", "b"], ValueError, "expected 3 rows, .* got 2 rows"),
        (np.array("abc"), ValueError, "expected 3 rows, .* got ndarray"),
        (["a", "b", None], TypeError, "row 2: expected text, got NoneType: None"),
        (["a", ["b"], "c"], TypeError, r"row 1: expected text, got list: \['b'\]"),
        ([b"a", "b", "c"], TypeError, "row 0: expected text, got bytes: b'a'"),
        (np.zeros(3), TypeError, "row 0: expected text, got float64"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_rows_change_nothing(actions, error, message):
    env, twin = vector_of(3), vector_of(3)
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(actions)
    for given_ in (["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])):
        left, right = env.step(given_), twin.step(("a", "b", "c"))
        same(left[0], right[0])
        same(left[-1], right[-1])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (["a", "b", "c"], "expected a tuple of 2 sequences of 3 texts, got 3"),
        ("ab", "expected a tuple of 2 sequences of 3 texts, got str: 'ab'"),
        ((["a"] * 3, ["b"] * 2), "expected 3 rows, .* got 2 rows"),
        ((["a"] * 3, "bbb"), "expected 3 rows, .* got str: 'bbb'"),
    ],
)
def test_wrong_rows_of_pairs(actions, message):
    env = vector_of(3, num_written=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    env.step((["a"] * 3, ["b"] * 3))


def test_a_score_that_is_none_changes_nothing():
    class Broken:
        reward_models = offline_heads().reward_models
        identity = "broken"

        def raw_scores(self, prompts, responses):
            raw = offline_heads().raw_scores(prompts, responses)
            raw[[text == "break" for text in responses]] = np.nan
            return raw

    from personalllm_env.rewards.ensemble import Ensemble

    broken = Ensemble((Broken(),), offline_heads().constants)
    env, twin = env_of(ensemble=broken), env_of()
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match="gave text 0 the score nan"):
        env.step("break")
    same(env.step("go on"), twin.step("go on"))


def test_steps_need_a_reset():
    with pytest.raises(gym.error.ResetNeeded, match="no episode is under way"):
        env_of().step("a")
    with pytest.raises(gym.error.ResetNeeded):
        vector_of(1).step(["a"])
    env = vector_of(2, OFF, horizon=1)
    env.reset(seed=0)
    env.step(["a", "b"])
    with pytest.raises(gym.error.ResetNeeded, match="of 2 rows are over"):
        env.step(["a", "b"])


# -- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"num_writen": 2},
            "unexpected keyword argument 'num_writen'; did you mean 'num_written'",
        ),
        ({"max_conversations": 3}, "did you mean 'max_conversation'"),
        ({"prompt_feature": 3}, "known: .*max_conversation, .*prompt_features, .*render_mode"),
        ({"shuffle": True}, "'shuffle' means nothing where text is written: there are no cand"),
        ({"white_box": True}, "'white_box' means nothing where text is written"),
        ({"num_shown": 2}, "'num_shown' means nothing where text is written: .*num_written"),
        ({"num_written": 3, "feedback": "reward"}, "num_written must be 1 or 2, got 3"),
        ({"num_written": 0}, "num_written must be 1 or 2, got 0"),
        ({"num_written": True}, "num_written must be 1 or 2, got True"),
        ({"feedback": "choice"}, "feedback 'choice' needs num_written=2, got num_written=1"),
        ({"ensemble": 3}, "ensemble must be an Ensemble or the name of one, .* got 3"),
        ({"past": "some"}, "past must be 'all' or an integer of at least 0, got 'some'"),
        ({"past": True}, "past must be 'all' or an integer of at least 0, got True"),
        ({"feedback": "click"}, "a click is a choice among"),
        ({"max_conversation": -1}, "max_conversation must be an integer of at least 0, got -1"),
        ({"max_conversation": 1.5}, "max_conversation must be an integer"),
        ({"past": 1, "horizon": 6}, "may ask 6 prompts, and a past is about others"),
        (
            {"past": "all", "horizon": 9, "split": "all"},
            "'tiny words' has 6 in its train split",
        ),
        ({"past": -1}, "past must be 'all' or an integer of at least 0, got -1"),
        ({"bank": "synthetic"}, "writing needs a bank with texts, such as 'text'; 'synthetic'"),
        ({"bank": text_bank(facts={}), "ensemble": None}, "does not say what scores texts"),
        ({"ensemble": "no such model"}, "no such model"),
        ({"recognise": True}, "recognise=True needs a finite population"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_settings(wrong, message):
    for make in (env_of, vector_of):
        with pytest.raises(ValueError, match=message):
            make(**wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (3, "reset options must be a dict or None, got 3"),
        ({"weights": "x"}, r"options\['weights'\] must be numbers, got 'x'"),
        ({"prompts": [[1], [1, 2]]}, r"options\['prompts'\] must be integers"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_options(options, message):
    for env in (env_of(), vector_of()):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)


def test_a_space_of_text_names_no_alphabet():
    assert repr(env_of(max_characters=30).action_space) == "AnyText(max_length=30)"


def test_the_pages_code_runs():
    page = Path(__file__).parent.parent / "docs" / "environments.md"
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert names["observation"]["conversation"].count("## Before") == 5


def test_the_settings_of_select_are_listed_with_those_of_its_shell():
    with pytest.raises(ValueError, match=r"did you mean 'observation'.*render_mode, .*texts"):
        PersonalEnv(observations="ids")


def test_wrong_settings_of_the_shells():
    with pytest.raises(ValueError, match="render_mode must be one of ansi, human, rgb_array"):
        env_of(render_mode="3d")
    with pytest.raises(ValueError, match="does not render"):
        vector_of(render_mode="ansi")
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        vector_of(0)
    with pytest.raises(ValueError, match="autoreset_mode must be one of"):
        vector_of(mode="later")


# -- copies


@pytest.mark.parametrize("name", ["leaving late", "two", "late"])
@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],
    ids=["copy", "pickle"],
)
def test_a_copy_in_the_middle_of_an_episode_goes_on_alike(name, clone):
    env, vector = env_of(**SETTINGS[name]), vector_of(3, **SETTINGS[name])
    shown, rng = env.task.num_shown, np.random.default_rng(0)
    env.reset(seed=5)
    vector.reset(seed=5)
    vector.step(vector_action(texts_of(3, shown, rng)))
    twins = clone(env), clone(vector)
    for _ in range(12):
        [texts], rows = texts_of(1, shown, rng), texts_of(3, shown, rng)
        if not env._under_way:
            same(env.reset(), twins[0].reset())
        same(env.step(single_action(texts)), twins[0].step(single_action(texts)))
        left, right = (e.step(vector_action(rows)) for e in (vector, twins[1]))
        same(left[0], right[0])
        same(left[-1], right[-1])


# -- pictures


def test_a_picture_in_words():
    env = env_of(render_mode="ansi")
    env.reset(seed=0, options={"prompts": [8], "weights": np.eye(10)[0]})
    assert env.render() == "Interaction 1 of 5\n\n  What is a good name for a ferret?\n"
    _, reward, *_, info = env.step("Thief.")
    best = int(BANK.scores[8, :, 0].argmax())
    lines = env.render().splitlines()
    assert lines[:5] == [
        "Interaction 1 of 5",
        "",
        "  What is a good name for a ferret?",
        "",
        f"> 1  written, utility {info['utility']:+.2f}  (shown)",
    ]
    assert lines[5] == "     Thief."
    responder, worth = BANK.responders[best], info["best_of_bank"]
    assert lines[6] == f"  2  best of the bank ({responder}), utility {worth:+.2f}"
    assert lines[-1] == f"The user reports a reward of {reward:.2f}"


def test_a_picture_of_two():
    env = env_of(num_written=2, render_mode="ansi")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="no render_mode"):
        env_of().render()
    env.step(("One.", "Two, and more."))
    first, second = re.findall(r"^> \d  written, utility \S+  \((.*)\)$", env.render(), re.M)
    assert {first, second} == {"first", "second, preferred"} or {first, second} == {
        "first, preferred",
        "second",
    }
    with pytest.raises(gym.error.ResetNeeded):
        env_of(render_mode="ansi").render()


def test_pictures_on_the_terminal_and_in_pixels(capsys):
    env = env_of(render_mode="human")
    env.reset(seed=0)
    obs = env.step("Read me.")[0]
    shown = capsys.readouterr().out
    assert "Read me." in shown
    assert "best of the bank" in shown
    assert obs["prompt"]
    pixels = env_of(render_mode="rgb_array")
    pixels.reset(seed=0)
    before = pixels.render()
    pixels.step("Read me.")
    assert before.shape == pixels.render().shape == (720, 1280, 3)
    assert (before != pixels.render()).any()


# -- real words where words are shown


def test_words_are_real_where_they_are_shown():
    assert gym.make("PersonalLLM/Select-v0", texts=True).unwrapped.task.bank.name == "text"
    for mode in ("ansi", "human", "rgb_array"):
        assert PersonalEnv(render_mode=mode, num_shown=2).task.bank.name == "text"
    assert PersonalEnv(texts=True, bank=BANK).task.bank is BANK
    assert PersonalEnv(render_mode="ansi", bank="synthetic").task.bank.texts is None
    for plain in (PersonalEnv(), PersonalVectorEnv(2), PersonalEnv(render_mode=None)):
        assert isinstance(plain.task.bank, ResponseBank)
        assert plain.task.bank.name == "synthetic"
