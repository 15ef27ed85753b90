"""RLlib loses no interaction: episodes have their length, and training learns from all."""

import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# What ray[rllib] brings and ray alone does not. Ray itself is imported by the fixture: it
# reads where its token is when it is imported.
pytest.importorskip("tree")

from personalllm_env.adapters.rllib import Creator, ModulePolicy, RLlibAgent  # noqa: E402
from personalllm_env.envs.single import PersonalEnv  # noqa: E402
from personalllm_env.envs.vector import PersonalVectorEnv  # noqa: E402
from personalllm_env.envs.wrappers import Belief, Flat, VectorFlat  # noqa: E402
from personalllm_env.runner import run  # noqa: E402
from personalllm_env.testing import tiny_bank, tiny_tasks  # noqa: E402

ROOT = Path(__file__).parents[1]
# RLlib's own: deprecated classes of its own, Gymnasium's registry written to again for every
# runner, and sockets that it leaves to the collector.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::ResourceWarning",
        "ignore:.*Overriding environment rllib-single-agent",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "error:::personalllm_env",  # the last one counts: ours stay errors
    ),
]
LEAVE = {"leave": {"threshold": 0.5, "probability": 0.4}}
KINDS = {
    "one interaction": {"horizon": 1},
    "short": {"horizon": 3},
    "long": {"horizon": 50},
    "leaving": {"horizon": 7, "feedback": ["reward", LEAVE]},
    "duel": {"horizon": 3, "num_shown": 2, "feedback": "choice"},
}
NUM = 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "tiny"
    tiny_bank().save(path)
    return str(path)


@pytest.fixture(scope="module")
def cluster(only_ray):
    """Ray on the loopback with two cores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.rllib")
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False,
            object_store_memory=80 * 2**20, _node_ip_address="127.0.0.1",
        )  # fmt: skip
    yield
    ray.shutdown()


def config(creator, settings, mode="vector_entry_point", base="PPO", remote=0, **more):
    from ray.tune import register_env

    register_env("PersonalLLM", creator)
    return (
        getattr(import_module(f"ray.rllib.algorithms.{base.lower()}"), f"{base}Config")()
        .environment("PersonalLLM", env_config=settings)
        .env_runners(
            num_env_runners=remote, num_envs_per_env_runner=NUM, gym_env_vectorize_mode=mode,
            **more,
        )
        .debugging(seed=3, log_level="ERROR")
    )  # fmt: skip


def sampled(creator, settings, num, mode="vector_entry_point"):
    """Returns the episodes that an env runner makes of so many random interactions."""
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    with np.errstate(all="ignore"):
        runner = SingleAgentEnvRunner(config=config(creator, settings, mode))
        try:
            return runner.sample(num_timesteps=num, random_actions=True)
        finally:
            runner.stop()


def whole(episode, horizon):
    """Says whether the clock in the observations runs from 0, one interaction at a time."""
    elapsed = np.array(episode.get_observations())[:, -1]
    expected = np.arange(len(episode) + 1, dtype=np.float32) / np.float32(horizon)
    return np.array_equal(elapsed, expected)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_interaction_is_lost(kind, mode, saved, cluster):
    settings = {"bank": saved, **KINDS[kind]}
    horizon = settings["horizon"]
    episodes = sampled(Creator(), settings, 240, mode)
    assert 240 <= sum(map(len, episodes)) < 240 + NUM
    done = [episode for episode in episodes if episode.is_done]
    assert len(done) >= 3
    assert all(whole(episode, horizon) for episode in episodes)
    for episode in done:
        assert episode.is_truncated == (len(episode) == horizon)
        assert episode.is_terminated or len(episode) == horizon
    if kind == "leaving":
        assert len({len(episode) for episode in done}) > 3
    elif mode == "vector_entry_point":  # every row's users in their order, each once
        firsts = Counter(episode.get_observations(0).tobytes() for episode in episodes)
        assert firsts == first_observations(settings, len(episodes) // NUM)


def first_observations(settings, num):
    """Returns what the first so many users that rows 0.. of this seed meet ask first."""
    found = Counter()
    for row in range(NUM):
        env = Flat(PersonalEnv(row=row, **settings))
        found[env.reset(seed=3)[0].tobytes()] += 1
        found.update(env.reset()[0].tobytes() for _ in range(num - 1))
    return found


def test_without_the_creator_same_step_loses_interactions(saved, cluster):
    """Why it insists: RLlib accepts the other mode and says nothing."""

    def careless(settings):
        settings = dict(settings)
        num = settings.pop("num_envs")
        return VectorFlat(PersonalVectorEnv(num, autoreset_mode="SAME_STEP", **settings))

    episodes = sampled(careless, {"bank": saved, "horizon": 3}, 60)
    lengths = [len(episode) for episode in episodes if episode.is_done]
    assert set(lengths) == {2, 3}
    assert not all(whole(episode, 3) for episode in episodes)


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_other_modes_are_refused(mode):
    for more in ({}, {"num_envs": 2}):
        with pytest.raises(
            ValueError, match=f"RLlib needs autoreset_mode NEXT_STEP, got {mode}"
        ):
            Creator()({"autoreset_mode": mode, "bank": tiny_bank(), **more})
    env = Creator()({"autoreset_mode": "NEXT_STEP", "bank": tiny_bank(), "num_envs": 2})
    assert env.num_envs == 2


def test_a_creator_takes_no_id():
    with pytest.raises(ValueError, match=r"no environment's id, .*env_config={'num_shown': 2}"):
        Creator("PersonalLLM/Duel-v0")
    with pytest.raises(ValueError, match=r"parts must be Belief\(\)"):
        Creator(parts=["Belief"])
    duel = Creator()({"bank": tiny_bank(), "num_shown": 2})
    assert duel.action_space == PersonalEnv(bank=tiny_bank(), num_shown=2).action_space


def test_a_creator_travels_and_keeps_nothing(saved):
    creator = pickle.loads(pickle.dumps(Creator(parts=[Belief()], utility=True)))
    one, two = (creator({"bank": saved, "num_envs": 2}) for _ in range(2))
    single = creator({"bank": saved})
    assert single.observation_space == one.single_observation_space
    first, again = one.reset(seed=0)[0], two.reset(seed=0)[0]
    for action in range(4):
        first, reward, _, _, info = one.step(np.array([action, 0]))
        np.testing.assert_array_equal(reward, info["utility"])
    assert not np.array_equal(first, two.step(np.array([0, 0]))[0])
    np.testing.assert_array_equal(one.reset(seed=0)[0], again)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.rllib.core.rl_module", None)
    with pytest.raises(ImportError, match=r"'personalllm-env\[rllib\]'; it pins Gymnasium"):
        RLlibAgent(tiny_tasks()["reward"].prior_knowledge(), path="anywhere")


def test_a_recurrent_module_is_refused():
    class Recurrent:
        def is_stateful(self):
            return True

    with pytest.raises(ValueError, match="a recurrent RLModule cannot be an agent"):
        ModulePolicy(Recurrent())


SIZES = {"train_batch_size_per_learner": 120, "minibatch_size": 60, "num_epochs": 1}


def test_ppo_with_a_remote_runner_and_its_checkpoint_as_an_agent(saved, cluster, tmp_path):
    settings = {"bank": saved, "horizon": 5}
    with np.errstate(all="ignore"):
        algorithm = (
            config(Creator(parts=[Belief(3.0)]), settings, remote=1, rollout_fragment_length=30)
            .training(**SIZES)
            .build_algo()
        )
        try:
            found = algorithm.train()["env_runners"]
            path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
            module = algorithm.get_module()
        finally:
            algorithm.stop()
    assert found["num_env_steps_sampled_lifetime"] >= 120
    assert found["episode_len_mean"] == found["episode_len_max"] == 5
    task = tiny_tasks()["reward"]
    agent = RLlibAgent(task.prior_knowledge(), path=str(path), belief=3.0)
    done = run(agent, task, num_users=4, seed=0)
    assert np.isfinite(done.utility).all()
    # The agent does what the trained module does, not what a fresh one does.
    seen = np.random.default_rng(0).normal(size=(50, algorithm_inputs(module))).astype("f")
    with torch.no_grad():
        logits = module.forward_inference({"obs": torch.as_tensor(seen)})["action_dist_inputs"]
    np.testing.assert_array_equal(agent._policy.act(seen), logits.argmax(-1).numpy())
    duel = tiny_tasks()["duel"].prior_knowledge()
    for prior, belief, wrong in (
        (task.prior_knowledge(), 0.0, r"another shape than this task's.*\(History, Belief\)"),
        (duel, 3.0, "was trained to choose from Discrete"),
    ):
        with pytest.raises(ValueError, match=wrong):
            RLlibAgent(prior, path=str(path), belief=belief)
    with pytest.raises(ValueError, match="is no checkpoint of an RLlib algorithm"):
        RLlibAgent(task.prior_knowledge(), path=str(tmp_path))


def algorithm_inputs(module):
    return module.observation_space.shape[0]


def test_dqn_with_a_remote_runner(saved, cluster, tmp_path):
    settings = {"bank": saved, "horizon": 1}
    with np.errstate(all="ignore"):
        algorithm = (
            config(Creator(), settings, base="DQN", remote=1, rollout_fragment_length=10)
            .training(
                num_steps_sampled_before_learning_starts=40, train_batch_size_per_learner=32
            )
            .reporting(min_sample_timesteps_per_iteration=40)
            .build_algo()
        )
        try:
            for _ in range(3):
                result = algorithm.train()
            path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        finally:
            algorithm.stop()
    assert result["env_runners"]["episode_len_mean"] == 1
    assert result["learners"]["default_policy"]["num_module_steps_trained_lifetime"] > 0
    task = tiny_tasks()["reward"]
    done = run(RLlibAgent(task.prior_knowledge(), path=str(path)), task, num_users=3, seed=0)
    assert np.isfinite(done.utility).all()


def test_dict_observations_through_its_own_connector(saved, cluster):
    from ray.rllib.connectors.env_to_module import FlattenObservations

    with np.errstate(all="ignore"):
        algorithm = (
            config(
                Creator(parts=[Belief()], flat=False), {"bank": saved, **KINDS["duel"]},
                env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
            )
            .training(**SIZES)
            .build_algo()
        )  # fmt: skip
        try:
            found = algorithm.train()["env_runners"]
        finally:
            algorithm.stop()
    assert found["episode_len_mean"] == 3


@pytest.mark.parametrize("name", ["Select", "Duel"])
def test_by_id(name, saved, cluster):
    from ray.rllib.connectors.env_to_module import FlattenObservations

    settings = config(Creator(), {"bank": saved, "horizon": 3}).training(**SIZES)
    settings.environment(f"personalllm_env:PersonalLLM/{name}-v0")
    with np.errstate(all="ignore"):
        with pytest.raises(ValueError, match="No default encoder config for obs space=Dict"):
            settings.copy(copy_frozen=False).build_algo()
        settings.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        )
        algorithm = settings.build_algo()
        try:
            found = algorithm.train()["env_runners"]
        finally:
            algorithm.stop()
    assert found["episode_len_mean"] == found["episode_len_max"] == 3


def test_the_page_runs(cluster):
    page = (ROOT / "docs" / "libraries" / "rllib.md").read_text("utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    names["config"].validate()
    assert names["config"].num_envs_per_env_runner == 64


@pytest.mark.slow
def test_the_example_learns(tmp_path, only_ray):
    script = ROOT / "examples" / "libraries" / "rllib_ppo.py"
    assert len(script.read_text("utf-8").splitlines()) < 80
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(script), "curve.png", "8"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gain, error = map(float, re.search(r"\+([\d.]+) ± ([\d.]+)", done.stdout).groups())
    assert gain > 3 * error
    assert (tmp_path / "curve.png").stat().st_size > 1000
