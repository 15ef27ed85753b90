"""Histories of other users: whose, of what, in which order, and what silence leaves in them."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from personalllm_env.database import record_history, recorded_once
from personalllm_env.feedback import Click, Delay, Leave, Reward, Silence, feedback_model
from personalllm_env.session import Session
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.testing import tiny_bank, tiny_tasks
from personalllm_env.users import UserPopulation

BANK = tiny_bank()
WEIGHTS = np.array([0.5, 0.3, 0.2])
ALIKE = UserPopulation(WEIGHTS[None])
EXACT = Reward(noise_sd=0.0)


def task_of(*feedback, population=ALIKE, **settings):
    return Task(BANK, population, feedback_model(list(feedback)), **{"horizon": 6, **settings})


def utility(database, weights=WEIGHTS):
    shown = BANK.scores[database.prompt[:, None], database.action]
    return (shown @ weights).mean(axis=1)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_only_train_prompts_and_train_users(split):
    one_hot = UserPopulation(np.eye(3), is_test=np.array([True, False, False]))
    task = task_of(EXACT, population=one_hot, split=split, user_split=split)
    database = record_history(task, num_users=60, seed=0)
    assert not BANK.is_test[database.prompt].any()
    assert len(np.unique(database.prompt)) > 20
    scores = BANK.scores[database.prompt, database.action[:, 0]]
    by_model = np.isclose(scores, database.reward[:, None], atol=1e-5)
    by_user = by_model.reshape(60, 6, 3).all(axis=1)
    assert not by_user[:, 0].any(), "user 0 is held out"
    assert by_user[:, 1].any()
    assert by_user[:, 2].any()
    assert by_user.any(axis=1).all()


def test_recorded_once_and_only_if_asked(monkeypatch):
    from personalllm_env import database as module

    calls = []

    def counting(task, **settings):
        calls.append(settings)
        return record_history(task, **settings)

    monkeypatch.setattr(module, "record_history", counting)
    history = recorded_once(task_of(EXACT), num_users=3, seed=5)
    assert calls == []
    assert history() is history()
    assert calls == [{"num_users": 3, "seed": 5}]
    np.testing.assert_array_equal(
        history().prompt, record_history(task_of(EXACT), num_users=3, seed=5).prompt
    )
    assert recorded_once(task_of(EXACT), num_users=0, seed=5)() is None
    assert len(calls) == 1, "no users, no history"


def test_sorted_by_user_and_then_by_time():
    task = task_of(EXACT, shuffle=True)
    database = record_history(task, num_users=9, seed=3)
    np.testing.assert_array_equal(database.user, np.repeat(np.arange(9), 6))
    assert database.num_users == 9
    session = Session(task, np.arange(9))
    session.begin(derived_seed(3, "history"))
    expected = session.episodes.prompt[:6].T
    np.testing.assert_array_equal(database.prompt.reshape(9, 6), expected)
    np.testing.assert_array_equal(database.inputs, BANK.response_features)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_shown", [1, 2])
def test_actions_are_in_the_banks_order(shuffle, num_shown):
    task = task_of(EXACT, shuffle=shuffle, num_shown=num_shown)
    database = record_history(task, num_users=30, seed=0)
    assert database.action.shape == (180, num_shown)
    np.testing.assert_allclose(database.reward, utility(database), atol=1e-5)
    if num_shown == 2:
        assert (database.action[:, 0] != database.action[:, 1]).all()


def test_responses_are_shown_uniformly():
    """Chi-square on 6,000 actions at alpha 1e-4."""
    database = record_history(task_of(EXACT, shuffle=True), num_users=1000, seed=0)
    assert stats.chisquare(np.bincount(database.action[:, 0])).pvalue > 1e-4


@pytest.mark.parametrize("delay", [1, 3, 50])
def test_late_feedback_is_attributed_to_what_it_is_about(delay):
    feedback = (EXACT, "like", Silence(0.3))
    prompt = record_history(task_of(*feedback), num_users=20, seed=1)
    late = record_history(task_of(*feedback, Delay(delay)), num_users=20, seed=1)
    for name in ("user", "prompt", "action", "reward", "heard"):
        np.testing.assert_array_equal(getattr(late, name), getattr(prompt, name))
    np.testing.assert_array_equal(late.said["like"], prompt.said["like"])
    heard = late.heard
    np.testing.assert_allclose(late.reward[heard], utility(late)[heard], atol=1e-5)


@pytest.mark.parametrize("shuffle", [False, True])
def test_clicks_are_in_the_banks_order(shuffle):
    task = task_of(Click(temperature=0.0), Silence(0.4), shuffle=shuffle)
    database = record_history(task, num_users=40, seed=2)
    best = (BANK.scores[database.prompt] @ WEIGHTS).argmax(axis=1)
    expected = np.where(database.heard, best, 0)
    np.testing.assert_array_equal(database.said["click"], expected)
    np.testing.assert_array_equal(
        database.reward, database.heard & (database.action[:, 0] == best)
    )


def test_silent_rows_are_zero():
    """The share of silent rows within 4 binomial standard errors."""
    task = task_of(EXACT, "stars", Click(), Silence(0.7), shuffle=True)
    database = record_history(task, num_users=300, seed=0)
    silent = ~database.heard
    assert abs(silent.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 1800)
    assert not database.reward[silent].any()
    for values in database.said.values():
        assert not values[silent].any()
    assert set(database.said) == {"reward", "stars", "click"}
    assert (database.said["stars"][database.heard] >= 1).all()


def test_nothing_is_recorded_after_a_user_has_left():
    task = task_of(EXACT, Leave(threshold=0.0, probability=1.0), horizon=10)
    database = record_history(task, num_users=100, seed=0)
    unhappy = database.reward < 0
    last = np.append(np.diff(database.user) > 0, True)
    lengths = np.bincount(database.user, minlength=100)
    assert (lengths >= 1).all(), "the interaction at which they leave is recorded"
    assert not unhappy[~last].any(), "they leave at the first bad response"
    assert unhappy[last & (lengths[database.user] < 10)].all(), "nobody leaves without one"
    assert len(set(lengths.tolist())) > 3


def test_leaving_drops_rows_and_changes_none():
    everything = record_history(task_of(EXACT), num_users=50, seed=4)
    fewer = record_history(task_of(EXACT, Leave(0.0, 0.5)), num_users=50, seed=4)
    rows = np.concatenate(
        [np.arange(6 * u, 6 * u + n) for u, n in enumerate(np.bincount(fewer.user))]
    )
    assert len(rows) < 300
    np.testing.assert_array_equal(fewer.reward, everything.reward[rows])
    np.testing.assert_array_equal(fewer.action, everything.action[rows])


def test_seeds():
    task = task_of("like", shuffle=True)
    one, same, other = (record_history(task, num_users=20, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.action, same.action)
    np.testing.assert_array_equal(one.reward, same.reward)
    assert (one.action != other.action).any()
    assert (one.prompt != other.prompt).any()


@pytest.mark.parametrize(
    ("name", "digest"),
    [("reward", "69660cf6ea0f124c"), ("duel", "8f6f22b36577ec75")],
)
def test_a_seeds_history_stays_what_it_was(name, digest):
    """Whole numbers only, which are the same on every machine."""
    database = record_history(tiny_tasks()[name], num_users=9, seed=5)
    numbers = np.concatenate([database.user, database.prompt, database.action.ravel()])
    found = hashlib.blake2b(numbers.astype("<i8").tobytes(), digest_size=8).hexdigest()
    assert found == digest


def test_what_is_recorded_is_read_only():
    database = record_history(task_of(EXACT, "like"), num_users=2, seed=0)
    for array in (database.prompt, database.action, database.reward, *database.said.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
