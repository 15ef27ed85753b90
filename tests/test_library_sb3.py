"""Stable-Baselines3 and sb3-contrib: the native ``VecEnv`` against SB3's own loop."""

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

# ruff: noqa: E402 - what follows needs the library
sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
import torch
from gymnasium.utils.env_checker import data_equivalence
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from personalllm_env.adapters.sb3 import SB3Agent, SB3VecEnv, make_sb3, save_agent
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.envs.wrappers import (
    Augmented,
    Belief,
    Flat,
    History,
    UtilityReward,
    VectorAugmented,
    VectorFlat,
)
from personalllm_env.runner import prior_for
from personalllm_env.testing import tiny_bank, tiny_tasks
from personalllm_env.users import dirichlet_population

TASKS = tiny_tasks()
TASKS["recognised"] = replace(
    TASKS["reward"],
    population=dirichlet_population(
        num_users=9, num_reward_models=3, concentration=0.1, seed=0
    ),
    recognise=True,
)
SELECT, DUEL = "PersonalLLM/Select-v0", "PersonalLLM/Duel-v0"
NAMES = "bank population feedback horizon num_shown split prompts_per_episode shuffle drift"
NAMES += " recognise white_box user_split"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_of(task, **extra):
    return {name: getattr(task, name) for name in NAMES.split()} | extra


def native(task, num=4, *, observation="features", **more):
    env = PersonalVectorEnv(
        num, autoreset_mode="SAME_STEP", observation=observation, **settings_of(task)
    )
    return SB3VecEnv(env, **more)


def dummy(task, num=4, *, observation="features", parts=(), flat=False, utility_reward=False):
    """SB3's own loop over the same users: rows of one root seed."""

    def one(row):
        env = PersonalEnv(row=row, observation=observation, **settings_of(task))
        env = UtilityReward(env) if utility_reward else env
        env = Augmented(env, parts) if parts else env
        return Flat(env) if flat else env

    return DummyVecEnv([lambda row=row: one(row) for row in range(num)])


def first(env, seed):
    """Resets with one root seed for all rows."""
    env.seed(seed)
    env.unwrapped._seeds = [seed] * env.num_envs  # DummyVecEnv adds the row
    return env.reset()


def actions_of(env, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(4, size=(env.num_envs, *env.action_space.shape))


def near(mine, theirs):
    """Equal but for rounding, which differs between batched and single matrix products."""
    assert type(mine) is type(theirs) or isinstance(mine, dict)
    if isinstance(mine, dict):
        assert set(mine) == set(theirs)
        for name, value in mine.items():
            assert np.allclose(value, theirs[name], rtol=1e-4, atol=1e-5), name
    else:
        assert np.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


# -- the contract: as DummyVecEnv over single environments


KINDS = {
    "dict": {},
    "flat": {"flat": True},
    "utility": {"utility_reward": True},
    "parts": {"parts": [History(6), Belief(2.0)], "flat": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["reward", "leaving", "duel", "late", "recognised"])
def test_it_is_dummy_vec_env(name, kind):
    task = TASKS[name]
    if task.recognise and "flat" in KINDS[kind]:
        pytest.skip("only boxes can be laid flat")
    mine, theirs = native(task, **KINDS[kind]), dummy(task, **KINDS[kind])
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    near(first(mine, 5), first(theirs, 5))
    ends = {True: 0, False: 0}
    for _, action in zip(range(25), actions_of(mine), strict=False):
        obs, reward, done, infos = mine.step(action)
        seen, told, over, known = theirs.step(action)
        near(obs, dict(seen) if isinstance(obs, dict) else seen)
        np.testing.assert_allclose(reward, told, rtol=1e-6)
        assert reward.dtype == told.dtype
        assert done.dtype == over.dtype
        assert done.tolist() == over.tolist()
        for b in range(4):
            if not done[b]:
                assert infos[b] == {}
                continue
            near(infos[b]["terminal_observation"], known[b]["terminal_observation"])
            assert infos[b]["TimeLimit.truncated"] is known[b]["TimeLimit.truncated"]
            ends[infos[b]["TimeLimit.truncated"]] += 1
    assert ends[True] >= 4 or name == "leaving"
    assert (ends[False] > 0) is (name == "leaving")


def test_ids():
    task = replace(TASKS["reward"], shuffle=False)
    mine, theirs = (make(task, observation="ids") for make in (native, dummy))
    assert mine.observation_space == theirs.observation_space
    near(first(mine, 0), dict(first(theirs, 0)))
    for _, action in zip(range(15), actions_of(mine), strict=False):
        obs, _, done, infos = mine.step(action)
        seen, _, _, known = theirs.step(action)
        near(obs, dict(seen))
        for b in np.flatnonzero(done):
            near(infos[b]["terminal_observation"], known[b]["terminal_observation"])


def test_episodes_are_monitored_as_by_sb3():
    """Return, length and seconds of each episode; a VecMonitor counts the same."""
    mine = native(TASKS["leaving"])
    theirs = VecMonitor(native(TASKS["leaving"], monitor=False))
    first(mine, 0)
    first(theirs, 0)
    ends = []
    for _, action in zip(range(40), actions_of(mine), strict=False):
        infos, known = mine.step(action)[3], theirs.step(action)[3]
        for info, other in zip(infos, known, strict=True):
            assert ("episode" in info) is ("episode" in other) is bool(info)
            if info:
                assert info["episode"]["r"] == pytest.approx(float(other["episode"]["r"]))
                assert info["episode"]["l"] == other["episode"]["l"]
                assert info["episode"]["t"] >= 0
                ends.append(info["episode"]["l"])
    assert len(ends) > 10
    assert len(set(ends)) > 2
    mine.reset()
    assert not mine._returns.any()
    assert not mine._lengths.any()


def test_infos_on_request():
    env = native(TASKS["leaving"], info=["utility", "prompt"])
    plain = PersonalVectorEnv(4, autoreset_mode="SAME_STEP", **settings_of(TASKS["leaving"]))
    first(env, 3)
    info = plain.reset(seed=3)[1]
    assert [row["prompt"] for row in env.reset_infos] == info["prompt"].tolist()
    ends = 0
    for _, action in zip(range(20), actions_of(env), strict=False):
        _, _, done, infos = env.step(action)
        info = plain.step(action)[-1]
        for b, row in enumerate(infos):
            assert row["utility"] == info["utility"][b]
            if done[b]:
                ends += 1
                assert row["prompt"] == info["final_info"]["prompt"][b]
                assert env.reset_infos[b]["prompt"] == info["prompt"][b]
                assert "episode" not in env.reset_infos[b]
            else:
                assert row["prompt"] == info["prompt"][b]
                assert set(row) == {"utility", "prompt"}
    assert ends > 4
    assert native(TASKS["reward"], parts=Belief()).parts  # one will do, as for the wrappers
    wrong = native(TASKS["reward"], info="utlity")
    with pytest.raises(ValueError, match="info has no utlity; it has utility, prompt, user"):
        wrong.reset()


def test_what_it_returns_may_be_written_to():
    """SB3's algorithms add to rewards, wrappers write into infos and observations."""
    mine, twin = (native(TASKS["late"], parts=[History(5)]) for _ in range(2))
    first(mine, 1)
    first(twin, 1)
    kept = []
    for _, action in zip(range(25), actions_of(mine), strict=False):
        got, other = mine.step(action), twin.step(action)
        assert data_equivalence(dict(got[0]), dict(other[0]), exact=True)
        assert np.array_equal(got[1], other[1])
        assert got[2].tolist() == other[2].tolist()
        kept.append((other, copy.deepcopy(other)))
        for value in got[0].values():
            value[...] = 7
        got[1][:] = 99
        got[2][:] = True
        for info in got[3]:
            info["mine"] = 1
    for before, after in kept:
        assert data_equivalence(before[0], after[0], exact=True)
        assert np.array_equal(before[1], after[1])


# -- seeds and options


def played(env, num=12):
    seen = [env.reset()]
    for _, action in zip(range(num), actions_of(env), strict=False):
        seen.append(env.step(action)[:2])
    return seen


def test_seeds():
    """One root seed for all rows, used once; the same gives the same."""
    env = native(TASKS["reward"])
    assert env.seed(4) == [4] * 4
    one = played(env)
    two = played(env)  # without a seed: the next episodes
    env.seed(4)
    again = played(env)
    assert data_equivalence(one, again, exact=True)
    assert not np.allclose(one[1][1], two[1][1])
    assert len(set(env.seed())) == 1
    other = played(env)
    assert not np.allclose(one[1][1], other[1][1])
    made = make_sb3(num_envs=4, settings=settings_of(TASKS["reward"]), seed=4)
    assert data_equivalence(one, played(made), exact=True)


def test_options_are_used_once():
    env = native(TASKS["recognised"])
    env.set_options({"user": 3})
    assert env.reset()["user"].tolist() == [3] * 4
    env.set_options([{"user": b} for b in range(4)])
    assert env.reset()["user"].tolist() == [0, 1, 2, 3]
    env.seed(0)
    free = env.reset()["user"]
    env.seed(0)
    env.set_options()
    assert env.reset()["user"].tolist() == free.tolist()
    env.set_options([{"user": b, "prompts": [1, 2]} for b in range(4)])
    assert env.reset()["user"].tolist() == [0, 1, 2, 3]
    env.set_options([{"prompts": [b]} for b in range(4)])
    with pytest.raises(ValueError, match=r"'prompts'.* is shared by all rows"):
        env.reset()
    env.set_options([{"user": 1}, {}, {}, {}])
    with pytest.raises(ValueError, match="same names in every row"):
        env.reset()


# -- attributes, methods, wrappers


def test_attributes_and_methods():
    env = native(TASKS["reward"], parts=[Belief()], flat=True)
    assert env.render_mode is None
    assert env.get_attr("task", indices=[0, 2]) == [env.env.unwrapped.task] * 2
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="PersonalVectorEnv has no attribute 'no_such'"):
        env.get_attr("no_such")
    env.set_attr("note", 5)
    assert env.get_attr("note", indices=1) == [5]
    task = env.env.unwrapped.task
    env.set_attr("task", "other")
    assert env.env.unwrapped.task == "other"
    env.set_attr("task", task)
    assert len(env.env_method("reset", seed=3)) == 4
    for wrong in (
        lambda: env.set_attr("x", 1, indices=[0]),
        lambda: env.env_method("f", indices=2),
    ):
        with pytest.raises(ValueError, match="rows share one environment"):
            wrong()
    assert env.env_is_wrapped(VectorFlat) == [True] * 4
    assert env.env_is_wrapped(VectorAugmented, indices=[1]) == [True]
    assert env.env_is_wrapped(Monitor) == [True] * 4
    assert native(TASKS["reward"], monitor=False).env_is_wrapped(Monitor) == [False] * 4
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    with pytest.raises(NotImplementedError, match="DummyVecEnv"):
        env.get_images()
    with pytest.warns(UserWarning, match="no `render_mode`"):
        assert env.render() is None
    assert env.unwrapped is env
    assert make_sb3(num_envs=2, settings={"bank": tiny_bank()}).spec.id == SELECT
    env.close()


def test_what_is_no_native_environment():
    with pytest.raises(
        TypeError, match="takes a Gymnasium vector environment, got PersonalEnv"
    ):
        SB3VecEnv(PersonalEnv(bank=tiny_bank()))
    with pytest.raises(ValueError, match="autoreset_mode='SAME_STEP', got NEXT_STEP"):
        SB3VecEnv(PersonalVectorEnv(2, bank=tiny_bank()))
    with pytest.raises(ValueError, match="no policy for actions of"):
        make_sb3("PersonalLLM/Generate-v0", 2)
    with pytest.raises(
        ValueError, match="unexpected keyword argument 'horzon'; did you mean 'horizon'"
    ):
        make_sb3(num_envs=2, settings={"horzon": 3})
    for name in ("autoreset_mode", "num_envs", "vectorization_mode"):
        with pytest.raises(ValueError, match=f"make_sb3 chooses {name} .*: leave that out"):
            make_sb3(num_envs=2, settings={name: "NEXT_STEP"})
    for other in ("CartPole-v1", "MountainCar-v0"):  # one has a vector environment
        with pytest.raises(
            ValueError, match=f"{other} has no vector .* SB3's own make_vec_env"
        ):
            make_sb3(other, 2)
    with pytest.raises(ValueError, match=r"parts must be .* got \['Belief'\]"):
        make_sb3(parts=["Belief"])


def test_gymnasiums_own_vector_environments_are_taken():
    """Rows have Gymnasium's seeds there, seed + row."""
    kinds = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    settings = settings_of(TASKS["reward"])
    settings.pop("num_shown")
    env = SB3VecEnv(
        gym.make_vec(SELECT, 3, vectorization_mode="sync", vector_kwargs=kinds, **settings),
        parts=(),
        info=["utility"],
    )
    theirs = DummyVecEnv([lambda: gym.make(SELECT, **settings) for _ in range(3)])
    env.seed(2)
    theirs.seed(2)
    near(env.reset(), dict(theirs.reset()))
    for _, action in zip(range(15), actions_of(env), strict=False):
        got, other = env.step(action), theirs.step(action)
        near(got[0], dict(other[0]))
        np.testing.assert_allclose(got[1], other[1])
        for b in range(3):
            assert got[3][b]["utility"] == pytest.approx(other[3][b]["utility"])
            if got[2][b]:
                last = other[3][b]["terminal_observation"]
                near(got[3][b]["terminal_observation"], last)


@pytest.mark.filterwarnings("ignore:Your observation response_features has an unconv")
@pytest.mark.parametrize("lay_flat", [False, True])
def test_sb3s_checker_has_no_complaint_about_the_single_environment(lay_flat):
    env = gym.make(SELECT, bank=tiny_bank(), horizon=8).unwrapped
    check_env(Flat(env) if lay_flat else env, warn=True)


# -- masks


class Even:
    """Lets the responses be shown that have an even number."""

    def __call__(self, seen):
        masks = np.zeros((len(seen["step"]), 4), bool)
        masks[:, ::2] = True
        return masks


def test_masks():
    env = native(TASKS["reward"])
    assert env.action_masks().tolist() == [[True] * 4] * 4
    duel = native(TASKS["duel"])
    assert np.stack(duel.env_method("action_masks")).shape == (4, 8)
    env = native(TASKS["reward"], masks=Even())
    env.reset()
    assert env.action_masks().tolist() == [[True, False, True, False]] * 4
    masks = env.env_method("action_masks", indices=[1, 3])
    assert [mask.tolist() for mask in masks] == [[True, False, True, False]] * 2
    for wrong, words in {
        "shape": (np.ones((4, 3), bool), r"bools of shape \(4, 4\), got bool \(4, 3\)"),
        "kind": (np.ones((4, 4)), "bools of shape .* got float64"),
        "nothing": (np.arange(4)[:, None] != np.full(4, 2), "row 2 allows nothing"),
    }.values():
        env = native(TASKS["reward"], masks=lambda seen, wrong=wrong: wrong)
        env.reset()
        with pytest.raises(ValueError, match=words):
            env.action_masks()
    half = np.concatenate([np.ones((4, 4), bool), np.zeros((4, 4), bool)], axis=1)
    duel = native(TASKS["duel"], masks=lambda seen: half)
    duel.reset()
    with pytest.raises(ValueError, match="row 0 allows nothing"):
        duel.action_masks()


# -- SB3's algorithms


SMALL = {"n_steps": 8, "batch_size": 32, "n_epochs": 1}
ALGORITHMS = {
    "PPO": (sb3.PPO, SMALL, "Mlp"),
    "A2C": (sb3.A2C, {"n_steps": 5}, "Mlp"),
    "DQN": (sb3.DQN, {"learning_starts": 8, "buffer_size": 200}, "Mlp"),
    "RecurrentPPO": (contrib.RecurrentPPO, SMALL, "MlpLstm"),
    "MaskablePPO": (contrib.MaskablePPO, SMALL, "Mlp"),
}


def model_of(algorithm, env, seed=0, **more):
    made, settings, policy = ALGORITHMS[algorithm]
    if isinstance(env.observation_space, gym.spaces.Dict):
        policy = policy.replace("Mlp", "MultiInput")
    kwargs = {"net_arch": [16]} | ({"lstm_hidden_size": 8} if "Lstm" in policy else {})
    settings = {"policy_kwargs": kwargs, "device": "cpu", **settings, **more}
    return made(f"{policy}Policy", env, seed=seed, **settings)


@pytest.mark.parametrize("flat", [False, True], ids=["dict", "flat"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_learns_the_same(algorithm, flat):
    def learnt(seed):
        env = native(TASKS["leaving"], 8, parts=[Belief()], flat=flat)
        model = model_of(algorithm, env, seed).learn(160)
        values = [p.detach().numpy().copy() for p in model.policy.parameters()]
        return np.concatenate([v.ravel() for v in values]), list(model.ep_info_buffer)

    one, episodes = learnt(0)
    two, again = learnt(0)
    np.testing.assert_array_equal(one, two)
    strip = [{k: e[k] for k in "rl"} for e in episodes]
    assert strip == [{k: e[k] for k in "rl"} for e in again]
    assert len(episodes) > 10
    assert not np.array_equal(one, learnt(1)[0])


def test_a_duel_is_learnt_from_two_numbers():
    for flat in (False, True):
        for name in ("PPO", "A2C", "MaskablePPO"):
            env = native(TASKS["duel"], flat=flat)
            model = model_of(name, env).learn(64)
            action, _ = model.predict(env.reset())
            assert action.shape == (4, 2)


def test_dqn_is_told_which_episodes_were_cut_short():
    """Horizon 5 (of rows that nobody leaves): every fifth transition, with its last view."""
    env = native(replace(TASKS["reward"], horizon=5), 4, flat=True)
    model = model_of("DQN", env).learn(80)
    buffer = model.replay_buffer
    cut = np.arange(20) % 5 == 4
    assert np.array_equal(buffer.timeouts[:20], np.repeat(cut[:, None], 4, axis=1))
    assert np.array_equal(buffer.dones[:20], buffer.timeouts[:20])
    step = sorted(native(TASKS["reward"]).observation_space.spaces).index("step")
    at = sum(
        int(np.prod(space.shape))
        for space in list(native(TASKS["reward"]).observation_space.spaces.values())[:step]
    )
    np.testing.assert_allclose(buffer.next_observations[4, :, at], 1)
    np.testing.assert_allclose(buffer.observations[5, :, at], 0)


def test_a_masked_policy_shows_what_is_allowed():
    env = native(TASKS["reward"], 8, masks=Even())
    model = model_of("MaskablePPO", env).learn(64)
    assert set(np.unique(model.rollout_buffer.actions)) <= {0, 2}
    seen = env.reset()
    for _ in range(10):
        action, _ = model.predict(seen, action_masks=env.action_masks(), deterministic=False)
        assert not (action % 2).any()
        seen = env.step(action)[0]


# -- logs, evaluation, wrappers


def test_logs_and_evaluation(tmp_path):
    pytest.importorskip("tensorboard")
    from stable_baselines3.common.callbacks import EvalCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = native(TASKS["reward"], 8, flat=True)
    held_out = native(TASKS["reward"].side("test"), 8, flat=True, utility_reward=True)
    held_out.seed(1)
    model = model_of("PPO", env, tensorboard_log=str(tmp_path / "logs"))
    callback = EvalCallback(
        held_out,
        n_eval_episodes=16,
        eval_freq=8,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model.learn(192, callback=callback)
    [log] = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(log)).Reload()
    for tag in ("rollout/ep_rew_mean", "rollout/ep_len_mean", "eval/mean_reward"):
        assert tag in events.Tags()["scalars"], tag
    assert events.Scalars("rollout/ep_len_mean")[-1].value == TASKS["reward"].horizon
    kept = np.load(tmp_path / "evaluations.npz")
    assert kept["results"].shape == (3, 16)
    assert (kept["ep_lengths"] == TASKS["reward"].horizon).all()
    best = sb3.PPO.load(tmp_path / "best_model", env=env, device="cpu")
    save_agent(best, tmp_path / "best-agent")
    assert SB3Agent(prior_for(SB3Agent, TASKS["reward"]), path=str(tmp_path / "best-agent"))


def test_evaluation_counts_what_the_environment_counts():
    env = native(TASKS["leaving"], 4, flat=True)
    env.seed(7)
    model = model_of("PPO", env)
    env.seed(7)
    returns, lengths = evaluate_policy(
        model, env, n_eval_episodes=8, return_episode_rewards=True
    )
    plain = dummy(TASKS["leaving"], 4, flat=True)
    first(plain, 7)
    plain._seeds = [7] * 4
    others, theirs = evaluate_policy(
        model, plain, n_eval_episodes=8, return_episode_rewards=True, warn=False
    )
    np.testing.assert_allclose(returns, others, rtol=1e-5)
    assert lengths == theirs


def test_sb3s_wrappers(tmp_path):
    """They write into what they are given, and files and statistics come out right."""
    monitored = VecMonitor(
        native(TASKS["leaving"], 4, flat=True, monitor=False, info=["utility"]),
        str(tmp_path / "log"),
        info_keywords=("utility",),
    )
    checked = VecCheckNan(monitored, raise_exception=True)
    env = VecNormalize(checked)
    stacked = VecFrameStack(env, 3)
    for vec in (env, stacked):
        model = model_of("PPO", vec).learn(64)
        assert len(model.ep_info_buffer) > 4
    monitored.close()
    lines = (tmp_path / "log.monitor.csv").read_text().splitlines()
    assert lines[1] == "r,l,t,utility"
    assert len(lines) > 10
    with pytest.raises(ValueError, match="no agent is shown what VecFrameStack shows"):
        save_agent(model, tmp_path / "stacked")
