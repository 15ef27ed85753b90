"""Stable-Baselines3 takes the single environment, flat or as a dict."""

import gymnasium as gym
import numpy as np
import pytest

from personalllm_env.envs.wrappers import Augmented, Belief, Flat
from personalllm_env.testing import tiny_bank

sb3 = pytest.importorskip("stable_baselines3")


def make(bank, **settings):
    return gym.make("personalllm_env:PersonalLLM/Select-v0", bank=bank, horizon=8, **settings)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:Your observation response_features has an unconv")
@pytest.mark.parametrize("lay_flat", [False, True])
def test_its_checker_has_no_complaint(lay_flat):
    from stable_baselines3.common.env_checker import check_env

    env = make(tiny_bank()).unwrapped
    check_env(Flat(env) if lay_flat else env, warn=True)


def test_dqn_learns_whom_to_follow_from_a_belief():
    """A policy that sees each candidate's believed value does better than at first.

    The gain in mean utility over 40 users is asked to be above 2 standard errors of the
    paired difference; with this seed it is far above.
    """
    bank = tiny_bank()
    env = Flat(Augmented(make(bank), Belief(ridge=1.0)))
    model = sb3.DQN(
        "MlpPolicy",
        env,
        seed=0,
        learning_starts=100,
        learning_rate=3e-3,
        exploration_fraction=0.5,
        gamma=0.0,
        target_update_interval=200,
        policy_kwargs={"net_arch": [32]},
    )

    def utilities():
        found = np.empty((40, 8))
        for user in range(40):
            obs, _ = env.reset(seed=1000 + user)
            for t in range(8):
                action, _ = model.predict(obs, deterministic=True)
                obs, _, _, _, info = env.step(action)
                found[user, t] = info["utility"]
        return found.mean(axis=1)

    before = utilities()
    model.learn(2500)
    gain = utilities() - before
    assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain))
