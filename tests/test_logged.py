"""Logs and their propensities: exact ones, then laws, then frequencies with stated error."""

from dataclasses import replace

import numpy as np
import pytest

from personalllm_env.database import check_database
from personalllm_env.feedback import feedback_model
from personalllm_env.logged.log import check_log
from personalllm_env.logged.record import build_agent, record_duels, record_log
from personalllm_env.registry import find_agent
from personalllm_env.runner import run
from personalllm_env.streams import derived_seed
from personalllm_env.testing import check_agent, tiny_tasks
from personalllm_env.types import SaysProbabilities
from personalllm_env.users import UserPopulation

K = 4
SELECT = [name for name, task in tiny_tasks().items() if task.num_shown == 1]


def agent_for(name, task, history_users=0):
    return build_agent(find_agent(name), task, history_users=history_users)


def log_of(name, task, *, num_users=30, seed=0, history_users=0, **settings):
    agent = agent_for(name, task, history_users)
    return record_log(agent, task, num_users=num_users, seed=seed, **settings)


def by_user(values, users, num_users):
    """Returns the mean of each user's values: users are independent, their rows are not."""
    return np.bincount(users, values, num_users) / np.bincount(users, minlength=num_users)


class Spy:
    """Shows position 2 always, and remembers what it is told."""

    privileges = frozenset()

    def __init__(self):
        self.told, self.heard, self.seen = [], [], []

    def reset(self, num_users, rng):
        self.num_users = num_users

    def act(self, observation):
        self.seen.append(observation)
        return np.full((self.num_users, 1), 2)

    def update(self, observation, action, feedback):
        self.told.append(action[:, 0].copy())
        self.heard.append(feedback.reward.copy())


class Says(Spy):
    def __init__(self, law):
        super().__init__()
        self.law = law

    def probabilities(self, observation):
        return self.law(self.num_users)


# --- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECT)
@pytest.mark.parametrize("agent", ["linucb", "uniform", "thompson", "oracle"])
def test_every_log_is_sound(tasks, name, agent):
    log = log_of(agent, tasks[name])
    check_log(log, tasks[name].bank)
    check_database(log.database(), tasks[name].bank)
    assert log.num_users == 30
    assert log.num_responses == K


def test_propensities_of_an_agent_that_says_nothing_are_the_mixture(tasks):
    log = record_log(Spy(), tasks["reward"], num_users=50, seed=0, exploration=0.2)
    expected = np.full((len(log), K), 0.05)
    expected[:, 2] = 0.05 + 0.8
    np.testing.assert_allclose(log.probabilities, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(log.propensity, np.where(log.action == 2, 0.85, 0.05))


@pytest.mark.parametrize("exploration", [0.0, 0.3, 1.0])
def test_uniform_gives_one_in_k_exactly(tasks, exploration):
    log = log_of("uniform", tasks["reward"], exploration=exploration)
    assert (log.propensity == 1 / K).all()


def test_full_exploration_hides_the_agent(tasks):
    log = record_log(Spy(), tasks["reward"], num_users=50, seed=0, exploration=1)
    assert (log.probabilities == 1 / K).all()
    assert set(log.action) == set(range(K))


def test_no_exploration_shows_the_agent_alone(tasks):
    log = record_log(Spy(), tasks["reward"], num_users=5, seed=0, exploration=0)
    assert (log.action == 2).all()
    assert (log.propensity == 1).all()


@pytest.mark.parametrize("name", SELECT)
def test_without_exploration_an_agent_does_what_it_does(tasks, name):
    """The very run: the log's utilities are those that the runner reports."""
    task = tasks[name]
    log = log_of("thompson", task, exploration=0, seed=4)
    done = run(agent_for("thompson", task), task, num_users=30, seed=derived_seed(4, "log"))
    assert len(log) == done.present.sum()
    shown = np.take_along_axis(log.truth, log.action[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(shown, done.utility[done.present], atol=1e-6)
    assert np.array_equal(log.t, np.nonzero(done.present)[1])


def test_the_agent_is_told_what_was_shown(tasks):
    spy = Spy()
    log = record_log(spy, tasks["reward"], num_users=9, seed=0, exploration=0.5)
    assert np.array_equal(np.stack(spy.told, axis=1).ravel(), log.action)
    assert np.array_equal(np.stack(spy.heard, axis=1).ravel(), log.reward)


def test_late_feedback_is_beside_what_it_is_about(tasks):
    """What users say does not depend on when it arrives; agents hear it when it does."""
    late = tasks["late"]
    prompt = replace(late, feedback=replace(late.feedback, delay=0))
    spy = Spy()
    one = record_log(spy, late, num_users=20, seed=0)
    other = record_log(Spy(), prompt, num_users=20, seed=0)
    for name in ("action", "reward", "heard", "prompt"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    heard = np.stack(spy.heard, axis=1)
    assert np.array_equal(heard, one.reward.reshape(20, -1)[:, : late.horizon - 2])


def test_nothing_is_recorded_after_a_user_has_left(tasks):
    log = log_of("uniform", tasks["leaving"], num_users=200)
    assert (log.left <= log.ends).all()
    lengths = np.bincount(log.user)
    stayed = lengths == tasks["leaving"].horizon
    assert 0 < stayed.sum() < 200
    assert log.left[log.ends][~stayed].all()


def test_positions_are_those_of_the_order_shown(tasks):
    """A click at temperature 0 is on the best: at its position here, its place in the bank."""
    task = replace(tasks["click"], feedback=feedback_model({"click": {"temperature": 0}}))
    log = log_of("uniform", task, num_users=50)
    assert np.array_equal(log.said["click"], log.truth.argmax(axis=1))
    in_bank = np.take_along_axis(log.order, log.truth.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.array_equal(log.database().said["click"], in_bank)
    features = task.bank.response_features[log.prompt, log.shown]
    at = np.take_along_axis(log.candidates(), log.action[:, None, None], axis=1)[:, 0]
    assert np.array_equal(features, at)


def test_privileges_are_the_agents_own(tasks):
    spy = Spy()
    record_log(spy, tasks["reward"], num_users=2, seed=0)
    assert all(seen.weights is None and seen.scores is None for seen in spy.seen)
    log = log_of("oracle", tasks["reward"], exploration=0)
    assert np.array_equal(log.action, log.truth.argmax(axis=1))


def test_recognised_users_keep_their_identity(tasks):
    weights = np.eye(3)[[0, 1, 2, 0, 1]]
    task = replace(tasks["reward"], population=UserPopulation(weights), recognise=True)
    log = log_of("uniform", task, num_users=12)
    assert log.identity.shape == (12,)
    scores = task.bank.scores[log.prompt[:, None], log.order]
    expected = np.einsum("nkm,nm->nk", scores, weights[log.identity[log.user]])
    np.testing.assert_allclose(log.truth, expected, atol=1e-5)
    assert np.array_equal(log.database().identity, log.identity)


def test_a_log_repeats_itself_and_seeds_differ(tasks):
    first, again, other = (log_of("thompson", tasks["reward"], seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.action, again.action)
    assert np.array_equal(first.reward, again.reward)
    assert not np.array_equal(first.prompt, other.prompt)


def test_truth_can_be_taken_off(tasks):
    log = log_of("uniform", tasks["reward"])
    assert log.without_truth().truth is None
    assert "truth" not in {field for field in log.database().__dict__}


def test_rows_and_spoken(tasks):
    log = log_of("uniform", tasks["silence"])
    spoken = log.spoken()
    check_log(spoken, tasks["silence"].bank)
    assert len(spoken) == log.heard.sum() < len(log)
    assert np.array_equal(spoken.user, log.user[log.heard])
    assert np.array_equal(spoken.probabilities, log.probabilities[log.heard])
    blocks = [log.rows(rows) for rows in log.blocks(7)]
    assert np.array_equal(np.concatenate([b.action for b in blocks]), log.action)


def test_agents_learn_from_a_log(tasks):
    """LinUCB fitted on a log of LinUCB does better than one that starts from nothing."""
    task = tasks["reward"]
    log = log_of("linucb", task.side("train"), num_users=300)
    gained = []
    for fitted in (False, True):
        agent = agent_for("linucb", task)
        if fitted:
            agent.fit(log.database())
        gained.append(run(agent, task.side("test"), num_users=300, seed=0).utility.mean(axis=1))
    gap = gained[1] - gained[0]
    assert gap.mean() > 4.5 * gap.std() / np.sqrt(len(gap))


# --- duels ------------------------------------------------------------------------------------


def test_duels_are_a_database(tasks):
    for name in ("duel", "duel with reward"):
        agent = agent_for("thompson", tasks[name])
        duels = record_duels(agent, tasks[name], num_users=20, seed=0, exploration=0.5)
        check_database(duels, tasks[name].bank)
        assert duels.action.shape == (20 * tasks[name].horizon, 2)


def test_explored_duels_are_of_two_different_responses(tasks):
    agent = agent_for("oracle", tasks["duel"])  # shows the best beside itself
    alike = []
    for exploration in (0, 0.5, 1):
        settings = {"num_users": 200, "seed": 0, "exploration": exploration}
        shown = record_duels(agent, tasks["duel"], **settings).action
        alike.append((shown[:, 0] == shown[:, 1]).mean())
    assert alike[0] == 1
    assert alike[2] == 0
    assert abs(alike[1] - 0.5) < 4.5 * 0.5 / np.sqrt(1600)


# --- frequencies ------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["linucb", "epsilon-greedy@epsilon=0.4", "thompson"])
def test_what_is_shown_has_the_law_that_is_stated(tasks, agent):
    """Counts of each position, less their probabilities, are a martingale: 4.5 sd."""
    log = log_of(agent, tasks["reward"], num_users=1000, exploration=0.3)
    p = log.probabilities
    shown = log.action[:, None] == np.arange(K)
    z = (shown - p).sum(axis=0) / np.sqrt((p * (1 - p)).sum(axis=0))
    assert np.abs(z).max() < 4.5
    for level in np.unique(p.round(9)):  # where it is likely, and where it is not
        at = np.isclose(p, level)
        expected = level * at.sum()
        error = 4.5 * np.sqrt(level * (1 - level) * at.sum())
        assert abs(shown[at].sum() - expected) < error, level


def test_epsilon_greedy_says_its_own_law(tasks):
    log = log_of("epsilon-greedy@epsilon=0.4", tasks["reward"], exploration=0)
    first = log.t == 0  # all tie where nothing is known
    np.testing.assert_allclose(log.probabilities[first], 1 / K)
    later = log.probabilities[log.t == 5]
    np.testing.assert_allclose(np.sort(later), np.tile([0.1, 0.1, 0.1, 0.7], (30, 1)))
    assert isinstance(agent_for("epsilon-greedy", tasks["reward"]), SaysProbabilities)
    assert not isinstance(agent_for("linucb", tasks["reward"]), SaysProbabilities)


@pytest.mark.parametrize("name", ["uniform", "epsilon-greedy@epsilon=0.4"])
def test_saying_probabilities_draws_nothing(tasks, name):
    entrant = find_agent(name)
    check_agent(entrant.agent_class, **entrant.settings)
    task = tasks["reward"]
    silent = agent_for(name, task)
    done = run(silent, task, num_users=30, seed=derived_seed(0, "log"))
    log = log_of(name, task, exploration=0)
    shown = np.take_along_axis(log.truth, log.action[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(shown, done.utility.ravel(), atol=1e-6)


def weighted(log, target):
    """The importance-weighted value of a target's (N, K) law, as a mean and its error."""
    at = np.take_along_axis(target, log.action[:, None], axis=1)[:, 0]
    values = by_user(at / log.propensity * log.reward, log.user, log.num_users)
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("agent", ["linucb", "epsilon-greedy", "oracle"])
def test_importance_weighting_is_unbiased(tasks, agent):
    """Of the uniform agent and of the best choice, from a mixture that is neither: 4.5 sd."""
    log = log_of(agent, tasks["reward"], num_users=2000, exploration=0.2)
    uniform = np.full((len(log), K), 1 / K)
    best = np.eye(K)[log.truth.argmax(axis=1)]
    for target in (uniform, best):
        value, error = weighted(log, target)
        truth = (target * log.truth).sum(axis=1).mean()
        assert abs(value - truth) < 4.5 * error
        assert error < 0.05
    naive = by_user(log.reward, log.user, log.num_users)
    assert naive.mean() - log.truth.mean() > 4.5 * naive.std() / np.sqrt(2000)


def test_wrong_propensities_would_be_seen(tasks):
    """The test above has the power to see a propensity that is off."""
    log = log_of("oracle", tasks["reward"], num_users=2000, exploration=0.2)
    wrong = replace(log, propensity=np.where(log.propensity > 0.5, 0.8, 0.2 / 3))
    value, error = weighted(wrong, np.full((len(log), K), 1 / K))
    assert abs(value - log.truth.mean()) > 4.5 * error


# --- bad input --------------------------------------------------------------------------------


def test_what_cannot_be_logged_is_refused(tasks):
    spy = Spy()
    with pytest.raises(ValueError, match=r"shows 2.*record_duels"):
        record_log(spy, tasks["duel"], num_users=2, seed=0)
    with pytest.raises(ValueError, match="this one shows one"):
        record_duels(spy, tasks["reward"], num_users=2, seed=0)
    with pytest.raises(ValueError, match="exploration"):
        record_log(spy, tasks["reward"], num_users=2, seed=0, exploration=1.5)
    with pytest.raises(ValueError, match="num_users must be at least 1, got 0"):
        record_log(spy, tasks["reward"], num_users=0, seed=0)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (lambda b: np.full((b, K), 0.3), r"for user 0, which add up to 1\.2"),
        (lambda b: np.full((b, K - 1), 1 / 3), r"\(3, 4\), got shape \(3, 3\)"),
        (lambda b: np.tile([1.5, -0.5, 0, 0], (b, 1)), r"in \[0, 1\].*got \[1\.5"),
        (lambda b: np.full((b, K), np.nan), r"got \[nan"),
        (lambda b: np.eye(K)[[2, 2, 0]], r"act shows response 2 to user 2.*probability 0"),
    ],
)
def test_a_law_that_is_none_is_refused(tasks, law, words):
    with pytest.raises(ValueError, match=f"Says.*{words}"):
        record_log(Says(law), tasks["reward"], num_users=3, seed=0)


@pytest.mark.parametrize("action", [np.full((3, 1), 4), np.full((3, 1), -1), np.zeros((3, 1))])
def test_a_bad_action_is_refused_even_if_it_were_replaced(tasks, action):
    spy = Spy()
    spy.act = lambda observation: action
    with pytest.raises(ValueError, match=r"Spy\.act must return integers in 0\.\.3"):
        record_log(spy, tasks["reward"], num_users=3, seed=0, exploration=1)


def test_build_agent_names_the_agent(tasks):
    with pytest.raises(ValueError, match="epsilon") as caught:
        build_agent(find_agent("epsilon-greedy@epsilon=2"), tasks["reward"])
    assert "epsilon-greedy" in caught.value.__notes__[0]


def changed(log, name, row, value):
    column = getattr(log, name).copy()
    column[row] = value
    return replace(log, **{name: column})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("user", 99, "user, row 12: expected sorted"),
        ("t", 0, "t, row 11: expected rising"),
        ("prompt", 60, r"prompt, row 11: expected in 0\.\.59"),
        ("order", 0, r"order, row 11: expected a permutation .*, got \[0, 0, 0, 0\]"),
        ("action", 4, r"action, row 11: expected in 0\.\.3"),
        ("propensity", 0.0, r"propensity, row 11: expected in \(0, 1\], got 0\.0"),
        ("propensity", np.nan, r"propensity, row 11: expected in \(0, 1\], got nan"),
        ("propensity", 0.5, "propensity, row 11: expected the probability of what was shown"),
        ("probabilities", -0.1, "probabilities, row 11: expected not negative"),
        ("probabilities", 0.3, "probabilities, row 11: expected that add up to 1"),
        ("reward", np.inf, "reward, row 11: expected finite"),
        ("left", True, "left, row 11: expected at a user's last"),
    ],
)
def test_a_log_that_does_not_fit_together_is_refused(tasks, name, value, words):
    log = log_of("linucb", tasks["reward"])
    with pytest.raises(ValueError, match=f"log: {words}"):
        check_log(changed(log, name, 10, value), tasks["reward"].bank)


def test_columns_of_other_lengths_are_refused(tasks, unchecked_shapes):
    log = log_of("linucb", tasks["reward"])
    with pytest.raises(ValueError, match="reward has 3 rows beside 240 of user"):
        check_log(replace(log, reward=log.reward[:3]))
    with pytest.raises(ValueError, match="expected orders of 4 responses to 60 prompts"):
        check_log(replace(log, order=log.order[:, :3]))


def test_columns_cannot_be_written_to(tasks):
    log = log_of("linucb", tasks["reward"])
    for column in (log.reward, log.propensity, log.truth, log.said["reward"]):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0
