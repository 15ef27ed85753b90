"""Tianshou 2 collects what our environments did, and its policies are agents."""

import os
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # what numba and others of its dependencies deprecate
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("tianshou")
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

from personalllm_env.adapters.policies import PolicyAgent  # noqa: E402
from personalllm_env.adapters.tianshou import TianshouPolicy  # noqa: E402
from personalllm_env.envs.single import PersonalEnv  # noqa: E402
from personalllm_env.envs.vector import PersonalVectorEnv  # noqa: E402
from personalllm_env.envs.wrappers import (  # noqa: E402
    Augmented,
    Belief,
    Flat,
    VectorAugmented,
    VectorFlat,
)
from personalllm_env.runner import run  # noqa: E402
from personalllm_env.streams import derived_seed  # noqa: E402
from personalllm_env.testing import tiny_bank, tiny_tasks  # noqa: E402

ROOT = Path(__file__).parents[1]
NUM = 4
LEAVE = {"leave": {"threshold": 0.5, "probability": 0.4}}
KINDS = {
    "one interaction": {"horizon": 1},
    "short": {"horizon": 3},
    "leaving": {"horizon": 7, "feedback": ["reward", LEAVE]},
}


def make(row, **settings):
    return Flat(Augmented(PersonalEnv(bank=tiny_bank(), row=row, **settings), Belief(3.0)))


class Linear(torch.nn.Module):
    """Values each candidate by a fixed pseudo-random projection of all that is seen."""

    def forward(self, obs, state=None, info=None):
        seen = torch.as_tensor(np.asarray(obs), dtype=torch.float64)
        size = seen.shape[1]
        directions = torch.sin(torch.arange(1, 4 * size + 1, dtype=torch.float64))
        return seen @ directions.reshape(size, 4), state


def linear_policy(env, **more):
    return DiscreteQLearningPolicy(
        model=Linear(),
        action_space=env.action_space,
        observation_space=env.observation_space,
        **more,
    )


def collected(kind, num):
    """Returns each row's transitions, in order."""
    envs = DummyVectorEnv([partial(make, row, **KINDS[kind]) for row in range(NUM)])
    policy = linear_policy(make(0))
    buffer = VectorReplayBuffer(num, NUM)
    collector = Collector(policy, envs, buffer)
    collector.reset(gym_reset_kwargs={"seed": 3})
    collector.collect(n_step=num)
    return [rows.sample(0)[0] for rows in buffer.buffers]


@pytest.mark.parametrize("kind", KINDS)
def test_the_collector_has_every_interaction(kind):
    """Against the same rows stepped by hand: observations, rewards, ends, next ones too."""
    ends = 0
    for row, batch in enumerate(collected(kind, 160)):
        env, policy = make(row, **KINDS[kind]), linear_policy(make(0))
        obs, _ = env.reset(seed=3)
        assert len(batch) == 40
        for t in range(len(batch)):
            np.testing.assert_array_equal(batch.obs[t], obs)
            action = int(TianshouPolicy(policy).act(obs[None])[0])
            assert batch.act[t] == action
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(batch.obs_next[t], obs)
            assert batch.rew[t] == pytest.approx(reward)
            assert (batch.terminated[t], batch.truncated[t]) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                obs, _ = env.reset()
    assert ends >= 4 * 5


def test_without_rows_everybody_is_the_same_user():
    """Tianshou gives one seed to all of its environments: the row tells them apart."""
    alike = DummyVectorEnv([partial(make, 0) for _ in range(3)])
    obs, _ = alike.reset(seed=3)
    assert (obs == obs[0]).all()
    apart = DummyVectorEnv([partial(make, row) for row in range(3)])
    obs, _ = apart.reset(seed=3)
    assert len({row.tobytes() for row in obs}) == 3


def test_a_policy_is_an_agent():
    task = tiny_tasks()["reward"]
    names = ["bank", "population", "feedback", "horizon", "split", "shuffle"]
    plain = PersonalVectorEnv(5, **{name: getattr(task, name) for name in names})
    env = VectorFlat(VectorAugmented(plain, Belief(3.0)))
    policy = linear_policy(make(0))
    agent = PolicyAgent(
        task.prior_knowledge(),
        policy=TianshouPolicy(policy),
        parts=[Belief(3.0)],
        flat=True,
    )
    done = run(agent, task, num_users=5, seed=2)
    obs, _ = env.reset(seed=derived_seed(2, "evaluation"))
    for t in range(task.horizon):
        with torch.no_grad():
            action = Linear()(obs)[0].argmax(1).numpy()
        obs, _, _, _, info = env.step(action)
        np.testing.assert_array_equal(info["utility"], done.utility[:, t].astype(np.float32))


def test_it_acts_without_exploring_and_leaves_the_policy_as_it_was():
    policy = linear_policy(make(0), eps_training=1.0, eps_inference=1.0)
    seen = np.random.default_rng(0).normal(size=(100, make(0).observation_space.shape[0]))
    policy.train()
    chosen = TianshouPolicy(policy).act(seen.astype(np.float32))
    np.testing.assert_array_equal(chosen, Linear()(seen)[0].argmax(1).numpy())
    assert policy.training


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tianshou.data", None)
    with pytest.raises(ImportError, match=r"pip install 'personalllm-env\[tianshou\]'"):
        TianshouPolicy(linear_policy(make(0)))


def test_the_native_environment_is_refused_by_tianshou():
    with pytest.raises(TypeError, match="has no len"):
        Collector(linear_policy(make(0)), PersonalVectorEnv(2, bank=tiny_bank()))


@pytest.mark.slow
def test_the_example_learns(tmp_path):
    """Within 8,000 steps utility rises by far more than its error."""
    script = ROOT / "examples" / "libraries" / "tianshou_dqn.py"
    assert len(script.read_text("utf-8").splitlines()) < 80
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(script), "curve.png", "8000"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gain, error = map(float, re.search(r"\+([\d.]+) ± ([\d.]+)", done.stdout).groups())
    assert gain > 3 * error
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_page_runs():
    page = (ROOT / "docs" / "libraries" / "tianshou.md").read_text("utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
