"""Off-policy estimates: exact answers on small tables, laws, other libraries, the simulator."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env.belief import Evidence, RidgeBelief
from personalllm_env.database import record_history
from personalllm_env.logged import estimators as est
from personalllm_env.logged import off_policy as op
from personalllm_env.logged import off_policy_models as models
from personalllm_env.logged.off_policy_replay import Replayed, replay_agent
from personalllm_env.logged.record import record_log
from personalllm_env.registry import find_agent
from personalllm_env.runner import prior_for
from personalllm_env.types import Feedback

EXAMPLE = Path(__file__).parents[1] / "examples" / "libraries" / "off_policy.py"


def agent_for(name, task, fitted=True):
    _, agent_class, given_settings = find_agent(name)
    agent = agent_class(prior_for(agent_class, task), **given_settings)
    if fitted and hasattr(agent, "fit"):
        agent.fit(record_history(task, num_users=20, seed=3))
    return agent


# --- exact: every outcome of small tables -----------------------------------------------------

PI = np.array([[0.5, 0.25, 0.25], [0.0, 0.9, 0.1]])  # the target
MU = np.array([[0.2, 0.2, 0.6], [0.5, 0.25, 0.25]])  # the logger
REWARD = np.array([[1.0, -2.0, 0.5], [3.0, 1.0, 0.0]])
MODEL = np.array([[0.3, 0.1, 0.0], [-1.0, 2.0, 0.7]])  # wrong everywhere
VALUE = (PI * REWARD).sum() / 2
USER = np.array([0, 1])


def outcomes(mu=MU):
    """Yields every log of two interactions and how likely it is."""
    for action in itertools.product(range(3), repeat=2):
        a = np.array(action)
        if (chance := float(np.prod(mu[USER, a]))) > 0:
            yield a, REWARD[USER, a], mu[USER, a], chance


def expected(make, mu=MU):
    """Returns the mean of an estimate over all logs, and its variance."""
    found = [(make(a, r, p).value, chance) for a, r, p, chance in outcomes(mu)]
    value, chance = np.transpose(found)
    mean = value @ chance
    return mean, (value - mean) ** 2 @ chance


def weigh(a, p):
    return est.importance_weights(PI, a, p)


def test_ips_is_unbiased_exactly():
    mean, variance = expected(lambda a, r, p: est.ips(r, weigh(a, p), USER))
    assert mean == pytest.approx(VALUE, abs=1e-14)
    terms = [(MU[i] * (PI[i] / MU[i] * REWARD[i]) ** 2).sum() for i in (0, 1)]
    alone = [(PI[i] @ REWARD[i]) ** 2 for i in (0, 1)]
    assert variance == pytest.approx((sum(terms) - sum(alone)) / 4, abs=1e-14)


def test_dr_is_unbiased_exactly_whatever_the_model():
    for model in (MODEL, np.zeros_like(MODEL), REWARD + 7):
        mean, _ = expected(lambda a, r, p, q=model: est.dr(r, a, weigh(a, p), PI, q, USER))
        assert mean == pytest.approx(VALUE, abs=1e-13)


def test_dr_with_a_perfect_model_is_the_value_in_every_log():
    mean, variance = expected(lambda a, r, p: est.dr(r, a, weigh(a, p), PI, REWARD, USER))
    assert (mean, variance) == (pytest.approx(VALUE), pytest.approx(0, abs=1e-25))


def test_dr_with_a_perfect_model_varies_by_weighted_noise_alone():
    """Var = sum_i E[w^2] s^2 / N^2, here with noise +s or -s."""
    s, found = 0.5, []
    for a, r, p, chance in outcomes():
        for signs in itertools.product((-s, s), repeat=2):
            made = est.dr(r + np.array(signs), a, weigh(a, p), PI, REWARD, USER)
            found.append((made.value - VALUE, chance / 4))
    error, chance = np.transpose(found)
    assert error @ chance == pytest.approx(0, abs=1e-14)
    assert error**2 @ chance == pytest.approx((PI**2 / MU).sum() * s**2 / 4)


def test_dm_is_biased_by_the_models_error_exactly():
    mean, variance = expected(lambda a, r, p: est.dm(PI, MODEL, USER))
    assert mean - VALUE == pytest.approx((PI * (MODEL - REWARD)).sum() / 2)
    assert variance == pytest.approx(0, abs=1e-25)


def test_clipped_ips_is_biased_by_what_is_clipped_exactly():
    most = 1.3
    mean, _ = expected(lambda a, r, p: est.ips(r, est.clipped(weigh(a, p), most), USER))
    kept = MU * np.minimum(PI / MU, most)
    assert mean == pytest.approx((kept * REWARD).sum() / 2)


def test_switch_dr_believes_the_model_where_weights_are_large_exactly():
    most = 1.3
    mean, _ = expected(
        lambda a, r, p: est.dr(r, a, est.switched(weigh(a, p), most), PI, MODEL, USER)
    )
    small = most >= PI / MU
    assert small.any()
    assert not small.all()
    assert mean == pytest.approx((PI * np.where(small, REWARD, MODEL)).sum() / 2)


def test_without_support_ips_misses_exactly_what_is_never_shown():
    mu = np.array([[0.0, 0.4, 0.6], [0.5, 0.25, 0.25]])
    mean, _ = expected(lambda a, r, p: est.ips(r, weigh(a, p), USER), mu)
    assert mean - VALUE == pytest.approx(-PI[0, 0] * REWARD[0, 0] / 2)
    assert est.unsupported(PI, mu) == pytest.approx(0.25)
    assert est.unsupported(PI, MU) == 0


def test_a_logger_that_learns_leaves_ips_and_dr_unbiased_exactly():
    """The second law depends on the first outcome, and so does the target's and the model."""
    found = []
    for first in range(3):
        glad = REWARD[0, first] > 0
        mu = np.stack([MU[0], MU[1] if glad else MU[1][::-1]])
        pi = np.stack([PI[0], PI[1] if glad else PI[1][::-1]])
        model = np.stack([MODEL[0], MODEL[1] + REWARD[0, first]])
        value = (pi * REWARD).sum() / 2
        for second in range(3):
            a = np.array([first, second])
            r, p, user = REWARD[USER, a], mu[USER, a], np.zeros(2, dtype=int)
            w = est.importance_weights(pi, a, p)
            errors = (
                est.ips(r, w, user).value - value,
                est.dr(r, a, w, pi, model, user).value - value,
            )
            found.append((*errors, p.prod()))
    ips, dr, chance = np.transpose(found)
    assert chance.sum() == pytest.approx(1)
    assert ips @ chance == pytest.approx(0, abs=1e-14)
    assert dr @ chance == pytest.approx(0, abs=1e-14)


# --- laws -------------------------------------------------------------------------------------


def problem(seed, n=30, k=4, users=6):
    rng = np.random.default_rng(seed)
    mu, pi = rng.dirichlet(np.ones(k), n), rng.dirichlet(np.ones(k), n)
    mu = 0.8 * mu + 0.2 / k
    action = np.array([rng.choice(k, p=row) for row in mu])
    reward, model = rng.normal(size=n), rng.normal(size=(n, k))
    user = rng.integers(users, size=n)
    user[:users] = np.arange(users)
    return reward, action, mu[np.arange(n), action], pi, model, user


def everything(reward, action, propensity, pi, model, user):
    w = est.importance_weights(pi, action, propensity)
    return {
        "ips": est.ips(reward, w, user),
        "snips": est.snips(reward, w, user),
        "dm": est.dm(pi, model, user),
        "dr": est.dr(reward, action, w, pi, model, user),
        "sndr": est.sndr(reward, action, w, pi, model, user),
    }


def values(made):
    return {name: estimate.value for name, estimate in made.items()}


SEEDS = st.integers(0, 10_000)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.floats(-5, 5), st.floats(0.1, 5))
def test_estimates_follow_shifted_and_scaled_rewards(seed, shift, scale):
    reward, action, p, pi, model, user = problem(seed)
    before = values(everything(reward, action, p, pi, model, user))
    after = values(
        everything(scale * reward + shift, action, p, pi, scale * model + shift, user)
    )
    for name in ("snips", "dm", "dr", "sndr"):  # not ips: its weights do not add up to N
        assert after[name] == pytest.approx(scale * before[name] + shift, abs=1e-9)
    mean_weight = est.importance_weights(pi, action, p).mean()
    assert after["ips"] == pytest.approx(scale * before["ips"] + shift * mean_weight, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_the_order_of_rows_and_the_names_of_users_do_not_matter(seed):
    reward, action, p, pi, model, user = problem(seed)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(reward)), 3 * rng.permutation(user.max() + 1)
    before = values(everything(reward, action, p, pi, model, user))
    rows = (reward, action, p, pi, model, names[user])
    assert values(everything(*(x[order] for x in rows))) == pytest.approx(before)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_one_is_another_in_special_cases(seed):
    reward, action, p, pi, model, user = problem(seed)
    without = values(everything(reward, action, p, pi, np.zeros_like(model), user))
    assert without["dr"] == pytest.approx(without["ips"])
    assert without["sndr"] == pytest.approx(without["snips"])
    same = values(everything(reward, action, pi[np.arange(30), action], pi, model, user))
    assert same["ips"] == pytest.approx(reward.mean())  # the logger's own law
    assert same["sndr"] == pytest.approx(same["dr"])
    constant = values(everything(np.full(30, 1.5), action, p, pi, model, user))
    assert constant["snips"] == pytest.approx(1.5)
    within = values(everything(reward, action, p, pi, model, user))["snips"]
    assert reward.min() <= within <= reward.max()


@settings(deadline=None, max_examples=8)
@given(SEEDS, st.integers(2, 4))
def test_repeating_what_users_said_tells_nothing_new(seed, times):
    rows = problem(seed)
    again = [np.repeat(x, times, axis=0) for x in rows]
    once = est.confidence(list(everything(*rows).values()))
    np.testing.assert_allclose(est.confidence(list(everything(*again).values())), once)


def test_what_users_add_is_the_estimate_and_its_error():
    rows = problem(1)
    for name, made in everything(*rows).items():
        assert made.users.mean() == pytest.approx(made.value), name
        assert made.users.shape == (6,)
    reward, action, p, pi, model, _ = problem(2, n=400, users=400)
    made = everything(reward, action, p, pi, model, np.arange(400))["dr"]
    per_row = (pi * model).sum(1) + pi[np.arange(400), action] / p * (
        reward - model[np.arange(400), action]
    )
    np.testing.assert_allclose(made.users, per_row)
    value, low, high = made.interval()
    half = 1.966 * per_row.std(ddof=1) / 20  # t of 399 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)  # percentiles of 2,000 resamples
    assert value == pytest.approx(per_row.mean())


def test_intervals_cover_as_often_as_they_say():
    """500 logs of 80 users with tastes of their own, 6 dependent interactions each.

    The standard error of a coverage of 95 % is 1 point; we allow 3.5 of them, and 1.5 points
    for the bootstrap with 80 users and skewed weights.
    """
    rng, users, length, k, logs = np.random.default_rng(5), 80, 6, 3, 500
    user = np.repeat(np.arange(users), length)
    pi, mu = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.2, 0.6])
    mean, n = np.array([1.0, 0.0, -0.5]), users * length
    target = np.tile(pi, (n, 1))
    model = np.tile(mean + 0.3, (n, 1))
    inside = []
    for _ in range(logs):
        taste = mean + rng.normal(size=(users, k))
        action = rng.choice(k, p=mu, size=n)
        reward = taste[user, action] + 0.5 * rng.normal(size=n)
        made = everything(reward, action, mu[action], target, model, user)
        _, low, high = est.confidence([made[name] for name in ("ips", "snips", "dr", "sndr")]).T
        inside.append((low <= pi @ mean) & (pi @ mean <= high))
    covered = np.mean(inside, axis=0)
    assert (np.abs(covered - 0.95) < 3.5 * 0.01 + 0.015).all(), covered
    naive = est.ips(reward, est.importance_weights(target, action, mu[action]), np.arange(n))
    honest = est.ips(reward, est.importance_weights(target, action, mu[action]), user)
    width = [float(np.diff(e.interval()[1:])[0]) for e in (naive, honest)]
    assert width[0] < 0.9 * width[1]  # what interactions taken as independent would claim


def test_effective_size():
    assert est.effective_size(np.ones(7)) == pytest.approx(7)
    assert est.effective_size(np.array([0.0, 0.0, 5.0])) == pytest.approx(1)
    assert est.effective_size(np.zeros(3)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": np.array([0.5, 0.0])}, "propensity, row 1: expected in"),
        ({"propensity": np.array([1.5, 0.1])}, "propensity, row 0"),
        ({"propensity": np.array([0.5, np.nan])}, "propensity, row 1"),
        ({"target": np.array([[0.5, 0.5], [0.5, 0.4]])}, "target, row 1.*add up to 1"),
        ({"target": np.array([[1.5, -0.5], [0.5, 0.5]])}, "target, row 0"),
        ({"action": np.array([0, 2])}, "action, row 1: expected in 0..1, got 2"),
    ],
)
def test_what_is_no_probability_is_refused(change, message):
    good = {
        "target": np.full((2, 2), 0.5),
        "action": np.array([0, 1]),
        "propensity": np.array([0.5, 0.5]),
    }
    assert est.importance_weights(**good).tolist() == [1, 1]
    with pytest.raises(ValueError, match=message):
        est.importance_weights(**{**good, **change})


# --- other libraries --------------------------------------------------------------------------


def small_table():
    i, k = np.arange(7), np.arange(3)
    action = (2 * i) % 3
    mu = 1.0 + (i[:, None] + 2 * k) % 4
    mu /= mu.sum(axis=1, keepdims=True)
    pi = (1.0 + (3 * i[:, None] + k) % 5) ** 2
    pi /= pi.sum(axis=1, keepdims=True)
    model = ((5 * i[:, None] + 7 * k) % 11) / 10
    reward = ((4 * i) % 7) / 4 - 0.5
    return reward, action, mu[i, action], pi, model, i


def test_the_open_bandit_pipelines_numbers():
    """As computed by sb-obp 0.5.10 (the Open Bandit Pipeline for Python 3.11; numpy below 2).

    IPS and SNIPS also by vw-estimators 0.2.2. Neither can be installed beside this package's
    numpy and be asked here, so the numbers are written down.
    """
    rows = small_table()
    found = values(everything(*rows))
    reward, action, p, pi, model, user = rows
    w = est.importance_weights(pi, action, p)
    clipped, switched = est.clipped(w, 1.5), est.switched(w, 1.5)
    found["clipped ips"] = est.ips(reward, clipped, user).value
    found["clipped dr"] = est.dr(reward, action, clipped, pi, model, user).value
    found["switch-dr"] = est.dr(reward, action, switched, pi, model, user).value
    assert found == pytest.approx(
        {
            "ips": 0.24029928063179293,
            "snips": 0.19404805127152752,
            "dm": 0.4472526389866291,
            "dr": 0.15247880991477047,
            "sndr": 0.209214943048256,
            "clipped ips": 0.2018140589569161,
            "clipped dr": 0.21924810383923685,
            "switch-dr": 0.3478195324106653,
        },
        rel=1e-12,
    )


def test_contextualbandits_doubly_robust_and_ncis():
    """Its DR is of targets that choose for certain; its NCIS without caps is SNIPS."""
    evaluation = pytest.importorskip("contextualbandits.evaluation")
    reward, action, p, pi, model, user = problem(4, n=50)
    chosen = pi.argmax(axis=1)
    certain = np.eye(4)[chosen]
    w = est.importance_weights(certain, action, p)
    rows = np.arange(50)
    theirs = evaluation.evaluateDoublyRobust(
        chosen,
        np.zeros((50, 1)),
        action,
        reward,
        p,
        np.stack([model[rows, chosen], model[rows, action]], axis=1),
        handle_invalid=False,
    )
    assert est.dr(reward, action, w, certain, model, user).value == pytest.approx(theirs)
    theirs = evaluation.evaluateNCIS(pi[rows, action], reward, p)
    ours = est.snips(reward, est.importance_weights(pi, action, p), user)
    assert ours.value == pytest.approx(theirs)


# --- along a log ------------------------------------------------------------------------------


def greedy_part(log, exploration):
    """Returns what an agent that draws nothing chose, from the probabilities of its log."""
    return (log.probabilities - exploration / log.num_responses) / (1 - exploration)


@pytest.mark.parametrize("kind", ["reward", "silence", "leaving", "late", "stars"])
@pytest.mark.parametrize("name", ["linucb", "empirical-bayes", "popular"])
def test_along_its_own_log_an_agent_chooses_as_it_did(tasks, kind, name):
    task = tasks[kind]
    agent = agent_for(name, task)
    log = record_log(agent, task, num_users=25, seed=1, exploration=0.4)
    law = op.target_probabilities(
        agent, log, np.random.default_rng(0), delay=task.feedback.delay
    )
    np.testing.assert_allclose(law, greedy_part(log, 0.4), atol=1e-12)
    part = (log.user >= 5) & (log.user < 9)  # users do not know of each other
    some = op.target_probabilities(
        agent, log.rows(part), np.random.default_rng(0), delay=task.feedback.delay
    )
    np.testing.assert_allclose(some, law[part])


@pytest.mark.parametrize("name", ["oracle", "decoder-oracle"])
def test_privileged_targets_see_what_the_log_hides(tasks, name):
    task = tasks["reward"]
    agent = agent_for(name, task)
    own = record_log(agent, task, num_users=12, seed=2, exploration=0.0)
    log = record_log(agent_for("uniform", task), task, num_users=12, seed=2, exploration=1.0)
    hidden = op.hidden_from(task, log)
    law = op.target_probabilities(agent, log, np.random.default_rng(0), hidden=hidden)
    assert (law.argmax(axis=1) == own.action).all()
    if name == "oracle":
        np.testing.assert_allclose((law * log.truth).sum(1), log.truth.max(axis=1))
    with pytest.raises(ValueError, match=r"sees the weights.*hidden_from"):
        op.target_probabilities(agent, log, np.random.default_rng(0))


def test_targets_hear_as_late_as_the_logger_did(tasks):
    """The log knows how late that was; who is given another delay chooses otherwise."""
    task = tasks["late"]
    agent = agent_for("linucb", task)
    log = record_log(agent, task, num_users=25, seed=1, exploration=0.4)
    rng = np.random.default_rng(0)
    law = op.target_probabilities(agent, log, rng)
    np.testing.assert_allclose(law, greedy_part(log, 0.4), atol=1e-12)
    early = op.target_probabilities(agent, log, rng, delay=0)
    assert (early != law).any()
    foreign = op.target_probabilities(agent, replace(log, facts={}), rng)
    assert np.array_equal(foreign, early)


class Fixed:
    """Shows the same response always, and may say any law."""

    privileges = frozenset()

    def __init__(self, action, law=None):
        self.action = action
        if law is not None:
            self.probabilities = lambda observation: law

    def reset(self, num_users, rng):
        """Starts new users."""

    def act(self, observation):
        """Returns what it was given."""
        return self.action

    def update(self, observation, action, feedback):
        """Learns nothing."""


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (
            Fixed(None, np.full((5, 3), 1 / 3)),
            r"probabilities .*shape \(5, 4\), got .*\(5, 3\)",
        ),
        (Fixed(None, np.full((5, 4), np.nan)), r"probabilities .*got \[nan, nan"),
        (
            Fixed(None, np.ones((5, 4))),
            r"probabilities .*add up to 1, .* user 0, .* up to 4\.0",
        ),
        (Fixed(np.array([[0], [1], [9], [1], [0]])), r"act .*in 0\.\.3 .*got \[9\] for user 2"),
        (Fixed(np.zeros(5, int)), r"act must return .*shape \(5, 1\), got int64 \(5,\)"),
    ],
)
def test_targets_are_held_to_the_contract(tasks, agent, words):
    task = tasks["reward"]
    log = record_log(agent_for("uniform", task), task, num_users=5, seed=2, exploration=1.0)
    with pytest.raises(ValueError, match=f"Fixed.{words}"):
        op.target_probabilities(agent, log, np.random.default_rng(0))
    if "act" in words:
        with pytest.raises(ValueError, match=f"Fixed.{words}"):
            replay_agent(agent, log, np.random.default_rng(0))


@pytest.mark.parametrize("agent", ["linucb", Fixed])
def test_agents_must_be_built(tasks, unchecked_shapes, agent):
    task, rng = tasks["reward"], np.random.default_rng(0)
    log = record_log(agent_for("uniform", task), task, num_users=5, seed=2, exploration=1.0)
    for use in (
        lambda: op.target_probabilities(agent, log, rng),
        lambda: replay_agent(agent, log, rng),
        lambda: record_log(agent, task, num_users=2, seed=0),
    ):
        with pytest.raises(ValueError, match=r"expected an agent that is built, .* as Mine"):
            use()


def test_estimates_warn_of_what_the_logger_would_never_show(tasks):
    task = tasks["reward"]
    log = record_log(Fixed(np.full((9, 1), 2)), task, num_users=9, seed=2, exploration=0.0)
    predicted = models.pooled_rewards(log)
    law = np.tile([0.25, 0.0, 0.75, 0.0], (len(log), 1))
    with pytest.warns(UserWarning, match=r"could never have shown 25\.0% of what"):
        op.estimate(log, law, predicted)
    op.estimate(log, np.tile([0.0, 0.0, 1.0, 0.0], (len(log), 1)), predicted)  # is silent
    op.estimate(replace(log, probabilities=None), law, predicted)  # nobody knows


def test_an_honest_target_is_not_shown_what_is_hidden(tasks):
    task = tasks["reward"]
    log = record_log(agent_for("uniform", task), task, num_users=3, seed=2, exploration=1.0)
    moment = next(op.moments(log, op.hidden_from(task, log)))
    seen = op.seen_by(agent_for("linucb", task), moment.observation, white_box=False)
    assert seen.weights is None
    assert seen.scores is None


def test_a_log_of_another_task_is_refused(tasks):
    task = tasks["reward"]
    log = record_log(agent_for("uniform", task), task, num_users=5, seed=2, exploration=1.0)
    with pytest.raises(ValueError, match="expected the task on which it was recorded"):
        op.hidden_from(task.side("test"), log)
    with pytest.raises(ValueError, match="seed=None"):
        op.hidden_from(task, replace(log, seed=None))


def test_an_agent_that_draws_is_asked_more_than_once(tasks):
    task = tasks["reward"]
    log = record_log(agent_for("uniform", task), task, num_users=20, seed=2, exploration=1.0)
    agent = agent_for("thompson", task)
    rng = np.random.default_rng(0)
    once = op.target_probabilities(agent, log, rng)
    assert set(np.unique(once)) == {0, 1}
    often = op.target_probabilities(agent, log, rng, draws=50)
    np.testing.assert_allclose(often.sum(axis=1), 1)
    assert len(np.unique(often)) > 10
    uniform = op.target_probabilities(agent_for("uniform", task), log, rng)
    assert (uniform == 0.25).all()  # it says its law


def test_estimates_of_a_log_hold_the_truth(tasks):
    """Every target from every log of 600 users: within 4 standard errors (20 z-scores)."""
    task, far = tasks["reward"], []
    for logger, exploration in (("uniform", 1.0), ("linucb", 0.4)):
        agent = agent_for(logger, task)
        log = record_log(agent, task, num_users=600, seed=9, exploration=exploration)
        predicted = models.pooled_rewards(log)
        for name in ("popular", "linucb"):
            law = op.target_probabilities(agent_for(name, task), log, np.random.default_rng(1))
            truth = (law * log.truth).sum() / len(log)
            made = op.estimate(log, law, predicted)
            assert tuple(made) == op.ESTIMATORS
            for kind in ("IPS", "SNIPS", "DR", "SNDR"):
                value, low, high = made[kind].interval()
                far.append((value - truth) / ((high - low) / 3.92))
    assert np.abs(far).max() < 4, far


def test_silent_interactions_are_left_out(tasks, unchecked_shapes):
    task = tasks["silence"]
    log = record_log(agent_for("uniform", task), task, num_users=30, seed=1, exploration=1.0)
    law, predicted = np.full((len(log), 4), 0.25), models.pooled_rewards(log)
    made = op.estimate(log, law, predicted)
    assert made["IPS"].value == pytest.approx(log.reward[log.heard].mean())
    assert made["IPS"].count.sum() == log.heard.sum()
    hole = law.copy()
    hole[7, 2] = np.nan
    for bad, found in ((law[1:], "239, 4"), (law[:, :3], "240, 3"), (hole, "nan at .7, 2.")):
        words = rf"expected finite numbers of shape \(240, 4\).* got .*{found}"
        with pytest.raises(ValueError, match=f"target: {words}"):
            op.estimate(log, bad, predicted)
        with pytest.raises(ValueError, match=f"predicted: {words}"):
            op.estimate(log, law, bad)
    with pytest.raises(ValueError, match="got silence"):
        op.estimate(replace(log, heard=np.zeros(len(log), dtype=bool)), law, predicted)


# --- models of the reward ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform_log(tasks):
    task = tasks["reward"]
    return record_log(agent_for("uniform", task), task, num_users=40, seed=4, exploration=1.0)


def test_pooled_predictions_are_ridge_on_the_other_folds(uniform_log):
    log, fold = uniform_log, models.fold_of(uniform_log.user)
    predicted = models.pooled_rewards(log)
    shown = log.inputs[log.prompt, log.shown].astype(np.float64)
    for f in range(models.FOLDS):
        x = np.hstack([shown, np.ones((len(log), 1))])[fold != f]
        gram = x.T @ x
        gram += 1e-3 * np.trace(gram) / 7 * np.eye(7)
        taste = np.linalg.solve(gram, x.T @ log.reward[fold != f])
        mine = log.candidates()[fold == f] @ taste[:-1] + taste[-1]
        np.testing.assert_allclose(predicted[fold == f], mine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [models.pooled_rewards, models.personal_rewards])
def test_predictions_do_not_see_what_they_predict(uniform_log, model):
    """A user's reward at t changes nobody's prediction in the fold, nor the user's up to t."""
    log, before = uniform_log, model(uniform_log)
    row = int(np.flatnonzero((log.user == 7) & (log.t == 3))[0])
    changed = log.reward.copy()
    changed[row] += 100
    after = model(replace(log, reward=changed))
    differs = (np.abs(before - after) > 1e-9).any(axis=1)  # of rounding, nothing
    fold = models.fold_of(log.user)
    assert not differs[(fold == fold[row]) & (log.user != 7)].any()
    assert not differs[(log.user == 7) & (log.t <= 3)].any()
    own_future = differs[(log.user == 7) & (log.t > 3)]
    assert own_future.all() if model is models.personal_rewards else not own_future.any()
    assert differs[fold != fold[row]].all()


def test_personal_predictions_are_the_belief_of_one_user(uniform_log):
    log = uniform_log
    predicted, pooled = models.personal_rewards(log, ridge=5.0), models.pooled_rewards(log)
    belief = RidgeBelief(6, ridge=5.0)
    belief.reset(1)
    for row in np.flatnonzero(log.user == 11):
        x = log.candidates(slice(row, row + 1))
        own = pooled[row] + belief.values(x)[0]
        np.testing.assert_allclose(predicted[row], own, rtol=1e-5, atol=1e-6)
        a = log.action[row]
        error = np.array([log.reward[row] - pooled[row, a]])
        belief.update(Evidence(x[:, a], error, np.ones(1, dtype=bool)))


def test_too_few_users_for_folds(uniform_log):
    with pytest.raises(ValueError, match="from 2 to the number of users, 3, got 5"):
        models.pooled_rewards(uniform_log.rows(uniform_log.user < 3))
    with pytest.raises(ValueError, match="expected 2 users or more, got 1"):
        models.personal_rewards(uniform_log.rows(uniform_log.user == 3))
    silent = replace(uniform_log, heard=np.zeros(len(uniform_log), dtype=bool))
    with pytest.raises(ValueError, match="got silence"):
        models.pooled_rewards(silent)


# --- replay -----------------------------------------------------------------------------------


class Remembers:
    """Shows the first response until someone speaks, and then the last; keeps what it hears."""

    privileges = frozenset()

    def reset(self, num_users, rng):
        """Starts new users."""
        self.rewards = [[] for _ in range(num_users)]

    def act(self, observation):
        """Returns the first response, or the last."""
        last = observation.response_features.shape[1] - 1
        return np.array([[last if heard else 0] for heard in self.rewards])

    def update(self, observation, action, feedback):
        """Remembers."""
        for mine, heard, reward in zip(
            self.rewards, feedback.heard, feedback.reward, strict=True
        ):
            if heard:
                mine.append(float(reward))


def test_only_what_an_agent_chose_happens_to_it(uniform_log):
    log, agent = uniform_log, Remembers()
    found = replay_agent(agent, log, np.random.default_rng(0))
    for user in range(log.num_users):
        rows, kept, wanted = np.flatnonzero(log.user == user), [], 0
        for row in rows:
            if log.action[row] == wanted:
                kept.append(float(log.reward[row]))
                wanted = 3
        assert agent.rewards[user] == kept
        assert found.reward[user, : len(kept)].tolist() == kept
        assert found.heard[user].sum() == len(kept)
        assert found.heard[user, : len(kept)].all()
    assert 0.5 < found.heard.sum() / (len(log) / 4) < 1.5


@pytest.mark.parametrize(("logger", "exploration"), [("uniform", 1.0), ("popular", 0.6)])
def test_replay_is_what_the_agent_earns_on_its_own(tasks, logger, exploration):
    """The first two interactions of 4,000 users: within 4 standard errors; kept 1/K or less."""
    task = replace(tasks["reward"], horizon=20)
    agent = agent_for(logger, task)
    log = record_log(agent, task, num_users=4000, seed=8, exploration=exploration)
    target = agent_for("linucb", task)
    found = replay_agent(target, log, np.random.default_rng(3))
    assert found.heard.sum() / len(log) == pytest.approx(exploration / 4, abs=0.005)
    own = record_log(target, task, num_users=4000, seed=8, exploration=0.0)
    for j, (value, low, high) in enumerate(found.curve(2)):
        truth = own.reward[own.t == j].mean()
        assert abs(value - truth) < 4 * (high - low) / 3.92, (j, value, truth)
    early = own.reward[own.t < 2].mean()
    value, low, high = found.value(2)
    assert low < value < high
    assert abs(value - early) < 4 * (high - low) / 3.92


def test_who_is_hushed_neither_speaks_nor_leaves():
    said, both = np.ones(2, dtype=np.float32), np.ones(2, dtype=bool)
    found = op.hushed(Feedback(said, both, {"like": said}, both), np.array([True, False]))
    assert found.left.tolist() == found.heard.tolist() == [True, False]
    assert found.reward.tolist() == found.said["like"].tolist() == [1, 0]


def test_replays_value_counts_interactions_alike():
    heard = np.array([[True, True], [True, False], [True, False]])
    reward = np.array([[1.0, 5.0], [2.0, 0.0], [3.0, 0.0]])
    found = Replayed(reward, heard)
    assert found.curve(2)[:, 0] == pytest.approx([2, 5])
    assert found.value(2)[0] == pytest.approx(3.5)


def test_a_log_that_cannot_be_replayed(tasks, uniform_log):
    task, rng = tasks["reward"], np.random.default_rng(0)
    agent = agent_for("popular", task)
    sure = record_log(agent, task, num_users=3, seed=1, exploration=0.0)
    with pytest.raises(ValueError, match="without exploration cannot be replayed"):
        replay_agent(agent, sure, rng)
    with pytest.raises(ValueError, match=r"at most the smallest probability.*0.25; got 0.5"):
        replay_agent(agent, uniform_log, rng, least=0.5)
    with pytest.raises(ValueError, match="expected least="):
        replay_agent(agent, replace(uniform_log, probabilities=None), rng)


# --- the example and the page -----------------------------------------------------------------


def test_the_pages_code_runs(capsys, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from personalllm_env.cli import app

    page = (EXAMPLE.parents[2] / "docs" / "off-policy.md").read_text(encoding="utf-8")
    in_memory, on_disk = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    [command] = re.findall(r"```\npersonalllm-env (.*?)\n```", page)
    monkeypatch.chdir(tmp_path)
    mine = "from personalllm_env.agents.linear import LinUCB as Mine\n"
    Path("mymodule.py").write_text(mine, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {}
    exec(compile(in_memory, "off-policy.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(op.ESTIMATORS)
    logged = CliRunner().invoke(app, command.split())
    assert logged.exit_code == 0, logged.output
    exec(compile(on_disk, "off-policy.md", "exec"), names)
    effective, never, replayed = capsys.readouterr().out.splitlines()
    assert 0 < float(effective.split()[0]) < 4000
    assert float(never) == 0
    value, low, high = (float(x) for x in replayed.strip("[]").split())
    assert low < value < high


def test_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "figure.png")],
        cwd=tmp_path,
        env={name: v for name, v in os.environ.items() if name != "PYTHONWARNINGS"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 5000
    truths = re.findall(r"^(\S+): truth +(\S+),", done.stdout, flags=re.MULTILINE)
    found = re.findall(
        r"^  (\w+) +(\S+)  \[ *(\S+), *(\S+)\]$", done.stdout, flags=re.MULTILINE
    )
    assert [name for name, _ in truths] == ["popular", "uniform", "linucb", "empirical-bayes"]
    assert [name for name, *_ in found] == 4 * list(op.ESTIMATORS)
    for i, (name, *numbers) in enumerate(found):
        value, low, high = map(float, numbers)
        assert low <= value <= high
        assert name == "DM" or abs(value - float(truths[i // 5][1])) < 1.25 * (high - low)
