"""Gymnasium 1.1.1 to the newest: its wrappers, its films and its checker on our environments.

Spaces, seeds, autoreset, statistics and specifications are in test_envs, test_vector and
test_wrappers; here is what else people put around an environment.
"""

import re
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

import personalllm_env
from personalllm_env.testing import tiny_bank

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "libraries" / "gymnasium.md").read_text(encoding="utf-8")
SELECT, DUEL, GENERATE = (f"PersonalLLM/{n}-v0" for n in ("Select", "Duel", "Generate"))
OURS = personalllm_env.__name__


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "tiny"
    tiny_bank().save(path)
    return str(path)


def episode(env, seed=0):
    """One episode of fixed actions; returns observations, rewards, the last flags and info."""
    rng = np.random.default_rng(1)
    obs, info = env.reset(seed=seed)
    seen, rewards, over, cut = [obs], [], False, False
    while not (over or cut):
        action = rng.integers(4, size=env.action_space.shape)
        obs, reward, over, cut, info = env.step(action if action.shape else int(action))
        seen.append(obs)
        rewards.append(reward)
    return seen, rewards, (over, cut), info


# -- made and checked


@pytest.mark.parametrize("env_id", [SELECT, DUEL, GENERATE])
def test_checked_as_it_is_made(env_id, saved):
    """Warnings are errors; those about wrapped environments are asked for."""
    bank = "text" if env_id == GENERATE else saved
    env = gym.make(f"{OURS}:{env_id}", bank=bank, horizon=3)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec.id == env_id
    env.close()


def test_the_passive_checker_has_no_complaint(saved):
    """It watches every first step of what ``make`` returns; warnings are errors."""
    for env_id in (SELECT, DUEL):
        env = gym.make(env_id, bank=saved, horizon=3)
        assert "PassiveEnvChecker" in str(env)
        episode(env)


@pytest.mark.parametrize("kind", ["vector_entry_point", "sync", "async"])
def test_make_vec_with_wrappers(kind, saved):
    """Wrappers of single environments go round each of them; the native one refuses."""
    wrapped = [gym.wrappers.RecordEpisodeStatistics]
    made = dict(num_envs=2, vectorization_mode=kind, bank=saved, horizon=3, wrappers=wrapped)
    if kind == "vector_entry_point":
        with pytest.raises(gym.error.Error, match="wrappers"):
            gym.make_vec(SELECT, **made)
        return
    env = gym.make_vec(SELECT, **made)
    try:
        env.reset(seed=0)
        for _ in range(3):
            *_, truncated, info = env.step(np.zeros(2, int))
        assert truncated.all()
        assert info["episode"]["l"].tolist() == [3, 3]
    finally:
        env.close()


@pytest.mark.parametrize(
    ("env_id", "more"), [(GENERATE, {}), (SELECT, {"bank": "text", "texts": True})]
)
def test_texts_go_through_pipes_and_not_through_shared_memory(env_id, more):
    """Which would give back other texts; the error comes before a process is started."""
    made = dict(num_envs=2, vectorization_mode="async", horizon=2, **more)
    with pytest.raises(ValueError, match=r"^texts do not fit .*\{'shared_memory': False\}"):
        gym.make_vec(env_id, **made)
    env = gym.make_vec(env_id, **made, vector_kwargs={"shared_memory": False})
    try:
        seen, _ = env.reset(seed=0)
    finally:
        env.close()
    name = "prompt_text" if more else "prompt"
    for row in range(2):  # row b has the seed `seed + b`, as the page says
        assert seen[name][row] == gym.make(env_id, **more).reset(seed=row)[0][name]


# -- single wrappers


def test_time_limit_cuts_what_the_horizon_does_not(saved):
    env = gym.make(SELECT, bank=saved, horizon=8, max_episode_steps=5)
    _, rewards, flags, _ = episode(env)
    assert len(rewards) == 5
    assert flags == (False, True)
    # A limit beyond the horizon changes nothing.
    _, longer, flags, _ = episode(gym.make(SELECT, bank=saved, horizon=8, max_episode_steps=20))
    assert len(longer) == 8
    assert flags == (False, True)
    assert longer[:5] == rewards


def test_episode_statistics(saved):
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(SELECT, bank=saved, horizon=6))
    _, rewards, _, info = episode(env)
    assert info["episode"]["r"] == pytest.approx(sum(rewards))
    assert info["episode"]["l"] == 6
    assert list(env.length_queue) == [6]


def test_order_is_enforced(saved):
    env = gym.make(SELECT, bank=saved)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_flattened_and_normalised(saved):
    flat = gym.wrappers.FlattenObservation(gym.make(SELECT, bank=saved, horizon=30))
    plain = episode(gym.wrappers.FlattenObservation(gym.make(SELECT, bank=saved, horizon=30)))
    env = gym.wrappers.NormalizeObservation(flat)
    seen, rewards, *_ = episode(env)
    assert rewards == plain[1]
    assert all(env.observation_space.contains(np.float32(obs)) for obs in seen)
    fixed = np.stack(plain[0]).std(axis=0) == 0
    spread = np.stack(seen[10:])[:, ~fixed].std()
    assert 0.5 < spread < 2
    env = gym.wrappers.NormalizeReward(gym.make(SELECT, bank=saved, horizon=30), gamma=0.9)
    assert np.isfinite(episode(env)[1]).all()


def test_rewards_and_observations_transformed(saved):
    def made():
        return gym.make(SELECT, bank=saved, horizon=6)

    plain = episode(made())
    halved = episode(gym.wrappers.TransformReward(made(), lambda reward: reward / 2))
    np.testing.assert_allclose(halved[1], np.divide(plain[1], 2))
    clipped = episode(gym.wrappers.ClipReward(made(), -0.1, 0.1))
    np.testing.assert_allclose(clipped[1], np.clip(plain[1], -0.1, 0.1), rtol=1e-6)
    kept = gym.wrappers.FilterObservation(made(), ["response_features", "heard"])
    seen = episode(kept)[0]
    assert all(set(obs) == {"response_features", "heard"} for obs in seen)
    assert kept.observation_space.contains(seen[-1])


def test_observations_kept_and_stacked(saved):
    flat = gym.wrappers.FlattenObservation(gym.make(SELECT, bank=saved, horizon=6))
    stacked = gym.wrappers.FrameStackObservation(flat, 3)
    one = episode(gym.wrappers.FlattenObservation(gym.make(SELECT, bank=saved, horizon=6)))[0]
    three = episode(stacked)[0]
    assert all(stacked.observation_space.contains(obs) for obs in three)
    for t in range(2, 7):
        np.testing.assert_array_equal(three[t], np.stack(one[t - 2 : t + 1]))


def test_autoreset_of_a_single_environment(saved):
    env = gym.wrappers.Autoreset(gym.make(SELECT, bank=saved, horizon=2))
    first, _ = env.reset(seed=0)
    env.step(0)
    assert env.step(0)[3] is True
    again, reward, *ends, _ = env.step(0)
    assert (reward, *ends) == (0, False, False)
    assert again["step"] == 0
    assert not data_equivalence(first, again, exact=True)


# -- vector wrappers on the native environment


def test_vector_wrappers(saved):
    from gymnasium.wrappers import vector

    def made():
        return gym.make_vec(SELECT, num_envs=3, bank=saved, horizon=4)

    plain = made()
    plain.reset(seed=0)
    halved = vector.TransformReward(made(), lambda reward: reward / 2)
    halved.reset(seed=0)
    normal = vector.NormalizeObservation(vector.FlattenObservation(made()))
    normal.reset(seed=0)
    scaled = vector.NormalizeReward(made(), gamma=0.9)
    scaled.reset(seed=0)
    for t in range(10):
        action = np.full(3, t % 4)
        reward = plain.step(action)[1]
        np.testing.assert_allclose(halved.step(action)[1], reward / 2, rtol=1e-6)
        obs = normal.step(action)[0]
        assert obs.shape == normal.observation_space.shape
        assert np.isfinite(obs).all()
        assert np.isfinite(scaled.step(action)[1]).all()


def test_vector_arrays_for_torch(saved):
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers.vector import NumpyToTorch

    env = NumpyToTorch(gym.make_vec(SELECT, num_envs=3, bank=saved, horizon=4))
    obs, _ = env.reset(seed=0)
    assert isinstance(obs["response_features"], torch.Tensor)
    obs, reward, *_ = env.step(torch.zeros(3, dtype=torch.int64))
    assert reward.shape == (3,)
    assert obs["response_features"].shape == (3, 4, 6)


# -- pictures and films


@pytest.mark.parametrize("env_id", [SELECT, DUEL, GENERATE])
def test_every_frame_is_an_image_of_one_size(env_id):
    env = gym.make(env_id, horizon=3, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(3):
        action = "Go, but take the train." if env_id == GENERATE else env.action_space.sample()
        env.step(action)
        frames.append(env.render())
    for frame in frames:
        assert frame.shape == (720, 1280, 3)
        assert frame.dtype == np.uint8
    for before, after in pairwise(frames):
        assert not np.array_equal(before, after)


def test_frames_collected(saved):
    env = gym.make(SELECT, horizon=2, render_mode="rgb_array")
    env = gym.wrappers.RenderCollection(env)
    episode(env)
    assert len(env.render()) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of moviepy's libraries
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of moviepy 1
@pytest.mark.parametrize("env_id", [SELECT, GENERATE])
def test_an_episode_as_a_film(env_id, tmp_path):
    pytest.importorskip("moviepy")
    env = gym.make(env_id, horizon=3, render_mode="rgb_array")
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "films"), name_prefix="user")
    env.reset(seed=0)
    for _ in range(3):
        env.step("Go, but take the train." if env_id == GENERATE else 1)
    env.close()
    [film] = (tmp_path / "films").glob("user-episode-0.mp4")
    assert film.stat().st_size > 5000
    imageio = pytest.importorskip("imageio_ffmpeg")
    frames, seconds = imageio.count_frames_and_secs(str(film))
    assert frames == 4
    assert seconds == pytest.approx(4, abs=0.5)  # one interaction a second


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        if "RecordVideo" in block:
            pytest.importorskip("moviepy")
        exec(block, names)
