"""Logs as Minari data sets, by the real library and without jax: vectors and words."""

import os
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

from personalllm_env.envs.wrappers import Flat  # noqa: E402
from personalllm_env.logged.minari_files import open_minari, write_minari  # noqa: E402
from personalllm_env.logged.record import build_agent, record_log  # noqa: E402
from personalllm_env.registry import find_agent  # noqa: E402

SETTINGS = {"horizon": 5, "shuffle": True, "feedback": ["reward", "silence", "delay"]}


def made(kind="Select", **settings):
    return gym.make(f"PersonalLLM/{kind}-v0", **({"horizon": 5} | settings))


def log_of(env, num_users=6, **settings):
    task = env.unwrapped.task
    agent = build_agent(find_agent("linucb"), task)
    return record_log(agent, task, num_users=num_users, seed=0, **settings)


def equal(one, other):
    """Compares observations, whatever they are made of."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return all(equal(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other)


def at(observations, t):
    """Returns the t-th of Minari's columns of observations."""
    if isinstance(observations, dict):
        return {name: at(values, t) for name, values in observations.items()}
    if isinstance(observations, tuple):
        return tuple(at(values, t) for values in observations)
    return observations[t]


def check_played(data, log, remake):
    """Acts in the recovered environment as the data set says, and compares everything."""
    assert data.total_episodes == log.num_users
    assert data.total_steps == len(log)
    for episode in data:
        env = remake(episode.id)
        obs, _ = env.reset(seed=log.seed)
        rows = np.flatnonzero(log.user == episode.id)
        for t, action in enumerate(episode.actions):
            assert equal(obs, at(episode.observations, t))
            obs, reward, terminated, truncated, _ = env.step(action)
            assert abs(reward - episode.rewards[t]) < 1e-4
            assert terminated == episode.terminations[t]
            assert truncated == episode.truncations[t]
        assert equal(obs, at(episode.observations, len(episode)))
        assert np.array_equal(episode.infos["propensity"][1:], log.propensity[rows])
        assert np.array_equal(episode.infos["probabilities"][1:], log.probabilities[rows])
        assert episode.infos["propensity"][0] == 0


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("flat", [False, True])
def test_vectors(tmp_path, data_format, flat):
    env = Flat(made(**SETTINGS)) if flat else made(**SETTINGS)
    log = log_of(env)
    data = write_minari(log, env, tmp_path / "vectors-v0", data_format=data_format)
    recovered = data.recover_environment()
    assert recovered.observation_space == env.observation_space
    assert isinstance(recovered, Flat) == flat
    wrap = Flat if flat else (lambda env: env)
    check_played(data, log, lambda row: wrap(made(row=row, **SETTINGS)))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_words_of_select(tmp_path, data_format):
    env = made(texts=True, shuffle=True)
    log = log_of(env, num_users=3)
    data = write_minari(log, env, tmp_path / "words-v0", data_format=data_format)
    assert data.recover_environment().unwrapped.task.bank.texts is not None
    check_played(data, log, lambda row: made(texts=True, shuffle=True, row=row))


def test_words_of_generate(tmp_path):
    """What was shown is taken to have been written; users say what they said in Select."""
    env = made("Generate", horizon=3)
    log = log_of(env, num_users=3)
    data = write_minari(log, env, tmp_path / "written-v0")
    bank = env.unwrapped.task.bank
    first = next(iter(data))
    words = [bank.texts.responses[p][k] for p, k in zip(log.prompt, log.shown, strict=True)]
    assert first.actions == words[:3]
    assert words[0] in first.observations["conversation"][1]
    assert data.recover_environment().action_space.max_length
    check_played(data, log, lambda row: made("Generate", horizon=3, row=row))


def test_episodes_end_when_users_leave(tmp_path):
    settings = {"feedback": ["reward", {"leave": {"threshold": 0.0, "probability": 0.5}}]}
    env = made(**settings)
    log = log_of(env, num_users=20)
    data = write_minari(log, env, tmp_path / "leaving-v0")
    lengths = [len(episode) for episode in data]
    assert lengths == np.bincount(log.user).tolist()
    assert min(lengths) < 5
    check_played(data, log, lambda row: made(row=row, **settings))


def test_minari_finds_it_by_name(tmp_path, monkeypatch):
    env = made()
    write_minari(log_of(env), env, tmp_path / "mine-v3", code_permalink="https://example.org")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = minari.load_dataset("mine-v3")
    assert data.storage.metadata["algorithm_name"] == "LinUCB"
    assert data.storage.metadata["code_permalink"] == "https://example.org"
    assert data.storage.metadata["description"].count("exploration: 0.2")
    assert list(minari.list_local_datasets()) == ["mine-v3"]
    assert [s["options"]["user"] for s in data.storage.get_episode_metadata(range(6))] == [
        *range(6)
    ]


def test_no_jax_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)  # an import of it is an ImportError
    env = made()
    assert len(write_minari(log_of(env), env, tmp_path / "mine-v0")) == 6


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    env = made()
    log = log_of(env)
    with pytest.raises(ValueError, match="another task"):
        write_minari(replace(log, seed=3), env, tmp_path / "mine-v0")
    assert not list(tmp_path.iterdir())
    write_minari(log, env, tmp_path / "mine-v0")
    assert [p.name for p in tmp_path.iterdir()] == ["mine-v0"]
    with pytest.raises(FileExistsError, match="choose another path"):
        write_minari(log, env, tmp_path / "mine-v0")
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"
    assert len(open_minari(tmp_path / "mine-v0")) == 6


def test_what_cannot_be_written_is_refused(tmp_path):
    env = made()
    log = log_of(env)
    with pytest.raises(ValueError, match="names such as linucb-v0, got 'mine'"):
        write_minari(log, env, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"must come from gym\.make"):
        write_minari(log, env.unwrapped.__class__(horizon=5), tmp_path / "mine-v0")
    with pytest.raises(ValueError, match="expected PersonalLLM/Select-v0"):
        write_minari(log, gym.make("CartPole-v1"), tmp_path / "mine-v0")
    ids = made(observation="ids")
    with pytest.raises(ValueError, match="cannot have, or lack"):
        write_minari(log, ids, tmp_path / "mine-v0")
    assert not list(tmp_path.iterdir())
