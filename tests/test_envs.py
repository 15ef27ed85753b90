"""The single environment: Gymnasium's contract, the core's numbers, options and errors."""

import copy
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence

from personalllm_env import core
from personalllm_env.bank import Texts
from personalllm_env.drift import SuddenDrift
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.feedback import Reward
from personalllm_env.session import Session
from personalllm_env.testing import tiny_bank, tiny_tasks
from personalllm_env.users import DirichletUsers, dirichlet_population

SELECT, DUEL = "PersonalLLM/Select-v0", "PersonalLLM/Duel-v0"
TASKS = tiny_tasks()


def settings_of(task):
    """An environment's keywords for a task."""
    names = (
        "bank population feedback horizon num_shown split user_split prompts_per_episode "
        "shuffle drift recognise white_box"
    )
    return {name: getattr(task, name) for name in names.split()}


def env_of(task, **settings):
    return PersonalEnv(**settings_of(task) | settings)


def finite(num=7):
    return dirichlet_population(num, num_reward_models=3, concentration=0.5, num_test=2)


@pytest.fixture(scope="module")
def texts():
    """A bank with words of all alphabets, and an empty answer."""
    bank = tiny_bank(num_prompts=12)
    words = tuple(
        tuple("" if (i, k) == (3, 1) else f"réponse {i}.{k} 漢字\n" for k in range(4))
        for i in range(12)
    )
    prompts = tuple(f"¿{i}?" for i in range(12))
    return replace(bank, texts=Texts(prompts, words))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, bank):
    path = tmp_path_factory.mktemp("banks") / "tiny"
    bank.save(path)
    return str(path)


def play(env, num, seed=0, reset_seed=0):
    """Some steps of uniformly random actions; begins anew where an episode ends."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=reset_seed)]
    for _ in range(num):
        action = rng.integers(0, 4, size=env.action_space.shape)
        seen.append(env.step(action if action.shape else int(action)))
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
    return seen


def same(left, right):
    assert data_equivalence(left, right, exact=True)


# -- Gymnasium's contract


@pytest.mark.parametrize("name", TASKS)
def test_gymnasiums_checker_on_every_feedback(name):
    check_env(env_of(TASKS[name]), skip_render_check=True)


OPTION_SETS = {
    "ids": {"observation": "ids", "shuffle": False},
    "texts": {"texts": True},
    "ids and texts": {"observation": "ids", "texts": True, "shuffle": False},
    "white box": {"white_box": True},
    "white box ids": {"white_box": True, "observation": "ids", "shuffle": False},
    "recognise": {"recognise": True, "population": finite()},
    "regret": {"regret": True},
    "drift": {"drift": "sudden"},
    "few prompts": {"prompts_per_episode": 2},
    "test": {"split": "test"},
    "test users": {"population": finite(), "user_split": "test"},
    "two interactions": {"horizon": 2},
    "another row": {"row": 3},
}


@pytest.mark.parametrize("name", OPTION_SETS)
def test_gymnasiums_checker_on_every_option(name, texts):
    settings = settings_of(TASKS["reward"]) | {"bank": texts} | OPTION_SETS[name]
    env = PersonalEnv(**settings)
    check_env(env, skip_render_check=True)
    for obs, *_ in play(env, 12):
        assert env.observation_space.contains(obs)


@pytest.mark.parametrize("env_id", [SELECT, DUEL])
def test_made_by_id_with_the_module_named(env_id, saved):
    """Spaces, determinism, render modes and closing, on the environment as it is made."""
    env = gym.make(f"personalllm_env:{env_id}", bank=saved, horizon=4, render_mode="ansi")
    check_env(env.unwrapped)
    assert env.spec.id == env_id
    shown = 1 if env_id == SELECT else 2
    assert env.unwrapped.task.num_shown == shown
    channels = env.unwrapped.task.feedback.channels
    assert [c.name for c in channels] == ["reward" if shown == 1 else "choice"]


def test_a_wrong_id_is_answered_with_a_suggestion():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `Select`"):
        gym.make("PersonalLLM/Selct-v0")
    with pytest.raises(gym.error.VersionNotFound, match="v0"):
        gym.make("PersonalLLM/Select-v9")


@pytest.mark.parametrize("env_id", [SELECT, DUEL])
def test_specification_survives_json(env_id, saved):
    settings = {
        "bank": saved,
        "concentration": [0.05, 1.0],
        "feedback": [{"reward": {"noise_sd": 0.25}}, {"silence": {"probability": 0.5}}],
        "horizon": 5,
        "drift": {"sudden": {"probability": 0.5}},
        "prompts_per_episode": 3,
        "shuffle": True,
        "white_box": True,
        "regret": True,
    }
    first = gym.make(env_id, **settings)
    spec = EnvSpec.from_json(first.spec.to_json())
    assert spec.kwargs == first.spec.kwargs
    second = gym.make(spec)
    assert second.observation_space == first.observation_space
    same(play(first, 12), play(second, 12))
    task = second.unwrapped.task
    assert task.feedback.channels == (Reward(0.25),)
    assert task.feedback.silence.probability == 0.5
    assert task.drift == SuddenDrift(0.5)
    assert task.population == DirichletUsers(3, (0.05, 1.0))
    assert (task.horizon, task.prompts_per_episode, task.shuffle) == (5, 3, True)


def test_registered_settings_are_plain():
    for env_id in (SELECT, DUEL):
        assert EnvSpec.from_json(gym.spec(env_id).to_json()) == gym.spec(env_id)


def test_gym_make_does_not_copy_the_bank(bank):
    env = gym.make(SELECT, bank=bank, population=finite())
    assert env.unwrapped.task.bank is bank


# -- the numbers are the core's


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("name", TASKS)
def test_steps_are_the_sessions(name, row):
    task = TASKS[name]
    env, session = (
        env_of(task, row=row, regret=True),
        Session(task, np.array([row]), regret=True),
    )
    rng = np.random.default_rng(0)
    for episode in range(4):
        seed = 6 if episode == 0 else None
        obs, info = env.reset(seed=seed)
        session.begin(seed)
        said, heard, utility, regret = np.zeros((1, 0)), False, 0.0, 0.0
        reward = None
        for t in range(task.horizon + 1):
            seen = session.observe()
            assert np.array_equal(obs["prompt_features"], seen.prompt_features[0])
            assert np.array_equal(obs["response_features"], seen.response_features[0])
            assert obs["step"] == np.float32(t) / np.float32(task.horizon)
            assert obs["heard"] == heard
            assert obs["feedback"].tolist() == (said[0].tolist() if t else [0.0] * env._width)
            expected = {"utility": utility, "prompt": int(seen.prompt[0]), "user": -1}
            assert info == expected | {"regret": regret}
            if t and (terminated or truncated):
                break
            action = rng.integers(4, size=(1, task.num_shown))
            feedback, known = session.step(action)
            single = int(action[0, 0]) if task.num_shown == 1 else action[0]
            obs, reward, terminated, truncated, info = env.step(single)
            said = task.feedback.encode(feedback, 4)
            heard, utility = bool(feedback.heard[0]), float(known.utility[0])
            regret = float(known.regret[0])
            assert reward == feedback.reward[0]
            assert isinstance(reward, float)
            assert terminated is bool(feedback.left[0])
            assert truncated is (t + 1 == task.horizon)


def test_blocks_of_outcomes_join(monkeypatch):
    """A long episode is computed in blocks; where they end does not matter."""
    from personalllm_env.envs import outcomes

    task = replace(TASKS["duel with reward"], horizon=40)
    whole = play(env_of(task), 60)
    monkeypatch.setattr(outcomes, "_BLOCK", 70)  # four interactions of 16 pairs
    same(whole, play(env_of(task), 60))
    monkeypatch.setattr(outcomes, "_BLOCK", 1)
    same(whole, play(env_of(task), 60))


def test_episodes_go_on_and_come_back():
    """``reset(seed)`` is episode 0 of that seed, ``reset()`` the next one."""
    env, task = env_of(TASKS["reward"]), TASKS["reward"]
    session = Session(task, np.arange(1))
    first = env.reset(seed=3)[0]
    session.begin(3)
    for _ in range(3):
        obs = env.reset()[0]
        session.begin()
        assert np.array_equal(obs["response_features"], session.observe().response_features[0])
        assert not np.array_equal(obs["response_features"], first["response_features"])
    same(env.reset(seed=3)[0], first)
    same(env.reset(seed=3)[0], first)
    assert env.np_random_seed == 3


def test_without_a_seed_every_env_is_different():
    left, right = (env_of(TASKS["reward"]).reset()[0] for _ in range(2))
    assert not np.array_equal(left["response_features"], right["response_features"])


def test_rows_differ():
    left, right = (env_of(TASKS["reward"], row=row).reset(seed=0)[0] for row in range(2))
    assert not np.array_equal(left["response_features"], right["response_features"])


def test_observations_are_fresh():
    env = env_of(replace(TASKS["reward"], white_box=True), regret=True)
    obs, _ = env.reset(seed=0)
    kept = [obs]
    copies = [copy.deepcopy(obs)]
    for t in range(8):
        kept.append(env.step(t % 4)[0])
        copies.append(copy.deepcopy(kept[-1]))
    same(kept, copies)
    # Whoever keeps an observation keeps its memory and no more.
    assert all(value.flags.owndata for obs in kept for value in obs.values())
    for part in kept[3].values():
        part[...] = 99
    same([o for i, o in enumerate(kept) if i != 3], [o for i, o in enumerate(copies) if i != 3])
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    same(env.step(2)[0], copies[3])


# -- delay, leaving, ends


@pytest.mark.parametrize("delay", [1, 2, 5, 8, 12])
def test_delay_is_exact(delay):
    task = TASKS["like"]
    now = env_of(task, feedback=["like"])
    late = env_of(task, feedback=["like", {"delay": {"interactions": delay}}])
    now.reset(seed=2)
    late.reset(seed=2)
    told = []
    for t in range(8):
        obs, reward, *_, info = now.step(t % 4)
        told.append((obs["feedback"].copy(), reward))
        obs, reward, terminated, truncated, late_info = late.step(t % 4)
        assert late_info == info  # utility is of this interaction
        if t < delay:
            assert (obs["heard"][0], obs["feedback"][0], reward) == (0, 0, 0)
        else:
            assert obs["heard"] == 1
            assert (obs["feedback"], reward) == told[t - delay]
        assert (terminated, truncated) == (False, t == 7)


def test_leaving_terminates():
    env = env_of(TASKS["leaving"], feedback=[Reward(0.0), {"leave": {"probability": 1.0}}])
    ends = 0
    for episode in range(20):
        env.reset(seed=0 if episode == 0 else None)
        for t in range(8):
            _, reward, terminated, truncated, info = env.step(0)
            assert terminated == (info["utility"] < 0) == (reward < 0)
            assert truncated == (t == 7)
            if terminated:
                ends += t < 7
                with pytest.raises(gym.error.ResetNeeded):
                    env.step(0)
                break
    assert ends > 5


def test_steps_need_a_reset():
    env = env_of(TASKS["reward"])
    with pytest.raises(gym.error.ResetNeeded, match="no episode is under way"):
        env.step(0)
    env.reset(seed=0)
    for t in range(8):
        assert env.step(0)[3] == (t == 7)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


# -- actions


@pytest.mark.parametrize("action", [0, np.int64(1), np.uint8(2), np.array(3)])
def test_actions_of_select(action):
    env, twin = (env_of(TASKS["reward"]) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    same(env.step(action), twin.step(int(action)))


@pytest.mark.parametrize(
    "action", [-1, 4, 1.5, 1.0, np.float32(1), None, "one", [1], np.array([1]), (0, 1), np.nan]
)
def test_wrong_actions_of_select(action):
    env = env_of(TASKS["reward"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be an integer in 0\.\.3, got"):
        env.step(action)
    env.step(0)  # nothing has happened


@pytest.mark.parametrize("action", [(0, 1), [2, 2], np.array([3, 1], np.uint8)])
def test_actions_of_duel(action):
    env, twin = (env_of(TASKS["duel"]) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    same(env.step(action), twin.step(np.array(action, dtype=np.int64)))


@pytest.mark.parametrize(
    "action",
    [
        0,
        (0,),
        (0, 1, 2),
        (0, 4),
        (-1, 0),
        (0.0, 1.0),
        np.array([0.5, 1]),
        None,
        "ab",
        [[0], [1]],
    ],
)
def test_wrong_actions_of_duel(action):
    env = env_of(TASKS["duel"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be 2 integers in 0\.\.3, got"):
        env.step(action)


def test_order_within_a_pair_matters_only_to_the_choice():
    env = env_of(TASKS["duel"], feedback={"choice": {"temperature": 0.0}})
    for pair in ((0, 1), (2, 3)):
        env.reset(seed=1)
        _, said, *_, one = env.step(pair)
        env.reset(seed=1)
        _, opposite, *_, other = env.step(pair[::-1])
        assert said == -opposite
        assert one["utility"] == other["utility"]


# -- options


def test_option_user():
    env = env_of(TASKS["reward"], population=finite(), recognise=True)
    for user in range(7):
        obs, info = env.reset(seed=0, options={"user": user})
        assert obs["user"] == info["user"] == user
        assert env.step(0)[0]["user"] == user
    free = env.reset(seed=0)[0]
    assert np.array_equal(free["response_features"], obs["response_features"])


def test_option_weights():
    env = env_of(TASKS["reward"])
    scores = env.task.bank.scores
    for weights in ([1, 0, 0], (0.5, 0.25, 0.25), np.array([0, 0, 1.0])):
        _, info = env.reset(seed=0, options={"weights": weights})
        order = env._order(0)
        prompt = info["prompt"]
        info = env.step(2)[-1]
        expected = scores[prompt, order[2]] @ np.float32(weights)
        assert info["utility"] == pytest.approx(expected, abs=1e-6)
        assert info["user"] == -1


def test_option_prompts_and_split():
    env = env_of(TASKS["reward"])
    prompts = [env.reset(seed=0, options={"prompts": [5, 40]})[1]["prompt"]]
    prompts += [env.step(0)[-1]["prompt"] for _ in range(8)]
    assert prompts == [5, 40] * 4 + [5]
    assert env.reset(options={"prompts": 7})[1]["prompt"] == 7
    _, info = env.reset(seed=0, options={"split": "test"})
    prompts = [info["prompt"]] + [env.step(0)[-1]["prompt"] for _ in range(8)]
    assert min(prompts) >= 30
    assert env.reset(seed=0)[1]["prompt"] < 30  # options hold for one episode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wieghts": [1, 0, 0]}, r"unknown reset options \['wieghts'\]; known: user, weights"),
        ({"user": 0}, "needs a finite population; users of this one never recur"),
        ({"weights": [0.5, 0.2, 0.2]}, "must be non-negative and sum to 1; row 0 sums to 0.9"),
        ({"weights": [0.5, 0.5]}, r"must be one for all or have shape \(1, 3\), got \(2,\)"),
        ({"prompts": [60]}, r"options\['prompts'\] must be bank rows in 0\.\.59, got \[60\]"),
        ({"prompts": [-1]}, "must be bank rows"),
        ({"prompts": []}, "must be bank rows"),
        ({"prompts": [[1, 2]]}, "must be bank rows"),
        ({"prompts": [0.5]}, r"options\['prompts'\] must be integers, got \[0.5\]"),
        ({"user": 0.5}, r"options\['user'\] must be integers, got 0.5"),
        ({"split": "dev"}, "split must be 'train', 'test' or 'all', got 'dev'"),
        ({"user": 0, "weights": [1, 0, 0]}, "'user' and 'weights' exclude each other"),
        ({"prompts": [1], "split": "test"}, "'prompts' and 'split' exclude each other"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_options(options, message):
    env = env_of(TASKS["reward"])
    env.reset(seed=0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options=options)
    # A refused reset leaves the environment's place in its stream as it was.
    twin = env_of(TASKS["reward"])
    twin.reset(seed=0)
    twin.reset()
    same(env.step(1), twin.step(1))
    same(env.reset(), twin.reset())


def test_wrong_options_with_recognised_users():
    env = env_of(TASKS["reward"], population=finite(), recognise=True)
    with pytest.raises(ValueError, match=r"options\['user'\] must be in 0\.\.6, got \[7\]"):
        env.reset(options={"user": 7})
    with pytest.raises(ValueError, match="a user who is nobody in the population"):
        env.reset(options={"weights": [1, 0, 0]})


def test_negative_seeds():
    with pytest.raises(gym.error.Error, match="greater or equal to zero, actual value: -1"):
        env_of(TASKS["reward"]).reset(seed=-1)


# -- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": "pixels"}, "observation must be 'features' or 'ids', got 'pixels'"),
        ({"observation": "ids", "shuffle": True}, "does not tell the order of the responses"),
        ({"texts": True}, "texts=True needs a bank with texts; 'tiny' has none"),
        ({"recognise": True}, "recognise=True needs a finite population"),
        ({"drift": "slow"}, "drift must name one of gradual, sudden, got 'slow'"),
        ({"feedback": "smile"}, "unknown feedback 'smile'"),
        ({"feedback": []}, "feedback needs one or more different channels"),
        ({"feedback": "choice"}, "needs 2 shown responses; this task shows 1"),
        ({"render_mode": "3d"}, "render_mode must be one of ansi, human, rgb_array, got '3d'"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"split": "dev"}, "split must be"),
        ({"concentration": 0}, "concentration must be positive"),
        ({"concentration": []}, "concentration must be positive"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_settings(bank, settings, message):
    with pytest.raises(ValueError, match=message):
        PersonalEnv(**{"bank": bank} | settings).reset()


def test_a_misspelt_setting_is_an_error(bank):
    with pytest.raises(
        ValueError, match="unexpected keyword argument 'horizn'; did you mean 'horizon'"
    ):
        PersonalEnv(bank=bank, horizn=3)
    with pytest.raises(ValueError, match="unexpected keyword argument 'row'"):
        PersonalVectorEnv(2, bank=bank, row=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": 2.5}, "horizon must be an integer, got 2.5"),
        ({"prompts_per_episode": "1"}, "prompts_per_episode must be an integer, got '1'"),
        ({"concentration": "x"}, "concentration must be a number"),
        ({"user_split": "test"}, "user_split 'test' needs a population with a split"),
        ({"drift": {"sudden": {"rate": 1}}}, "drift 'sudden' takes a dict of probability; got"),
        ({"drift": {"gradual": 3}}, "drift 'gradual' takes a dict of share; got 3"),
        ({"split": "tset"}, "^split must be 'train', 'test' or 'all', got 'tset'"),
        ({"user_split": "tset"}, "^user_split must be 'train', 'test' or 'all', got 'tset'"),
        ({"population": 5}, r"population must be users: DirichletUsers\(\), .*; got 5"),
        ({"population": [[1.0, 0, 0]]}, r"or UserPopulation\(weights\); got \[\["),
        ({"population": DirichletUsers}, "population must be users: .*; got <class"),
        ({"drift": ["sudden"]}, "drift must name one of"),
    ],
)
def test_a_wrong_kind_of_setting_is_an_error(settings, words, bank, unchecked_shapes):
    with pytest.raises(ValueError, match=words):
        PersonalEnv(bank=bank, **settings)


def test_a_population_has_its_own_concentration(bank):
    with pytest.raises(ValueError, match="a population or a concentration, not both"):
        PersonalEnv(bank=bank, population=dirichlet_population(9), concentration=0.1)


# -- what observations and infos carry


@pytest.mark.parametrize("regret", [False, True])
def test_info_has_the_same_keys_in_reset_and_step(regret):
    env = env_of(TASKS["reward"], regret=regret)
    _, info = env.reset(seed=0)
    keys = {"utility", "prompt", "user"} | ({"regret"} if regret else set())
    assert set(info) == set(env.step(0)[-1]) == keys
    assert {type(value) for value in info.values()} == {int, float}
    assert {type(value) for value in env.step(0)[-1].values()} == {int, float}


def test_texts_are_in_the_order_shown(texts):
    env = env_of(TASKS["reward"], bank=texts, texts=True, split="all")
    for obs, *_, info in play(env, 30):
        prompt = info["prompt"]
        assert obs["prompt_text"] == texts.texts.prompts[prompt]
        for k in range(4):
            written = texts.texts.responses[prompt].index(obs["response_texts"][k])
            features = texts.response_features[prompt, written]
            assert np.array_equal(obs["response_features"][k], features)


def test_white_box_scores_are_those_of_the_candidates():
    task = replace(TASKS["reward"], white_box=True)
    env = env_of(task)
    hidden = {"scores", "weights", "utility", "regret"}
    assert not hidden & set(env.observation_space.spaces)
    weights = np.float32([0.2, 0.3, 0.5])
    obs, _ = env.reset(seed=0, options={"weights": weights})
    for k in range(4):
        utility = obs["privileged_scores"][k] @ weights
        obs, *_, info = env.step(k)
        assert info["utility"] == pytest.approx(float(utility), abs=1e-6)
    honest = env_of(TASKS["reward"])
    assert "privileged_scores" not in honest.reset(seed=0)[0]


def test_ids_find_the_features():
    env = env_of(replace(TASKS["reward"], shuffle=False), observation="ids")
    twin = env_of(replace(TASKS["reward"], shuffle=False))
    bank = env.task.bank
    for (obs, *_, info), (other, *_) in zip(play(env, 20), play(twin, 20), strict=True):
        assert obs["prompt"] == info["prompt"]
        assert np.array_equal(bank.response_features[obs["prompt"]], other["response_features"])
        assert "response_features" not in obs


def test_users_are_recognised_only_on_request():
    env = env_of(TASKS["reward"], population=finite())
    obs, info = env.reset(seed=0)
    assert "user" not in obs
    assert info["user"] in range(7)
    users = [env.reset()[1]["user"] for _ in range(100)]
    assert set(users) == set(range(7))
    test = env_of(TASKS["reward"], population=finite(), user_split="test")
    assert {test.reset()[1]["user"] for _ in range(50)} == {5, 6}


@pytest.mark.parametrize("kind", ["features", "ids"])
def test_observations_do_not_depend_on_what_is_hidden(kind):
    """Everything but what the user says: the same for other users and other scores."""
    task = replace(TASKS["reward"], shuffle=False)
    scores = np.random.default_rng(0).standard_normal(task.bank.scores.shape)
    other = replace(
        task,
        bank=replace(task.bank, scores=scores.astype(np.float32)),
        population=DirichletUsers(3, 9.0),
    )
    left, right = (play(env_of(t, observation=kind), 20) for t in (task, other))
    for (mine, *_), (theirs, *_) in zip(left, right, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name != "feedback":
                assert np.array_equal(mine[name], theirs[name]), name


# -- copies


@pytest.mark.parametrize("name", ["late", "duel with reward", "leaving"])
@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],
    ids=["copy", "pickle"],
)
def test_a_copy_in_the_middle_of_an_episode_goes_on_alike(name, clone):
    env = env_of(TASKS[name])
    env.reset(seed=5)
    env.step(env.action_space.sample())
    twin = clone(env)
    rng = np.random.default_rng(0)
    for _ in range(20):
        if env._t is None:
            same(env.reset(), twin.reset())
        action = rng.integers(4, size=env.action_space.shape)
        action = action if action.shape else int(action)
        same(env.step(action), twin.step(action))


def test_single_env_is_the_row_of_the_vector_env():
    """In every detail; ``test_vector`` has the same for all settings."""
    task = TASKS["silence"]
    vector = PersonalVectorEnv(3, **settings_of(task))
    singles = [env_of(task, row=b) for b in range(3)]
    obs, _ = vector.reset(seed=1)
    for b, env in enumerate(singles):
        same({k: v[b] for k, v in obs.items()}, env.reset(seed=1)[0])
    assert core.min_at(3, 2) == 2


@pytest.mark.parametrize("spec", ["slow", {}, {"gradual": {}, "sudden": {}}])
def test_a_drift_is_one_of_those_known(spec, bank):
    with pytest.raises(ValueError, match="drift must name one of gradual, sudden, got"):
        PersonalEnv(bank=bank, drift=spec)
