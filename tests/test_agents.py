"""The agents: the contract and who breaks it, exact answers, sampling laws, paired tests."""

import random
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from personalllm_env.agents import linear
from personalllm_env.agents.bayes import ParticleBayes
from personalllm_env.agents.choosing import (
    best,
    best_of_each,
    by_upper_bound,
    linear_sd,
    only_best,
)
from personalllm_env.agents.linear import (
    EpsilonGreedy,
    LinearThompson,
    LinUCB,
    Popular,
    average_taste,
    history_evidence,
    likely_ridge,
)
from personalllm_env.agents.privileged import DecoderOracle, Oracle
from personalllm_env.agents.simple import BestResponder, Uniform
from personalllm_env.agents.tabular import Tabular
from personalllm_env.database import Database, record_history
from personalllm_env.feedback import Reward, feedback_model
from personalllm_env.registry import agent_names, find_agent
from personalllm_env.runner import Entrant, compare, observe_for, prior_for, run
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.testing import check_agent, tiny_bank, tiny_tasks
from personalllm_env.types import Feedback, Observation, PriorKnowledge
from personalllm_env.users import DirichletUsers, UserPopulation

HONEST = frozenset()
EXPECTED_PRIVILEGES = {
    "uniform": HONEST,
    "best-responder": HONEST,
    "popular": HONEST,
    "epsilon-greedy": HONEST,
    "linucb": HONEST,
    "thompson": HONEST,
    **dict.fromkeys(("empirical-bayes", "eb-gaussian", "eb-thompson"), HONEST),
    **dict.fromkeys(("retrieval", "retrieval-winning", "retrieval-losing"), HONEST),
    **dict.fromkeys(("retrieval-self", "retrieval-everyone", "retrieval-steady"), HONEST),
    **dict.fromkeys(("tabular", "tabular-greedy", "tabular-thompson"), HONEST),
    "feature-bayes": {"population", "decoder"},
    "exact-bayes": {"scores", "population"},
    "popular-scores": {"scores", "population"},
    "decoder-oracle": {"weights", "decoder"},
    "oracle": {"scores", "weights"},
}
TASKS = tiny_tasks()


def prior_of(num_features=2, num_responses=2, num_shown=1, feedback="reward"):
    return PriorKnowledge(
        num_responses=num_responses,
        num_shown=num_shown,
        num_features=num_features,
        num_reward_models=2,
        horizon=10,
        feedback=feedback_model(feedback),
        responders=tuple("abcdefgh"[:num_responses]),
        shuffled=False,
    )


def look(features):
    """Returns an observation of (B, K, D) response features."""
    features = np.asarray(features, np.float32)
    b, _, d = features.shape
    return Observation(np.zeros(b, np.int64), np.zeros((b, d), np.float32), features)


def hear(reward):
    reward = np.asarray(reward, np.float32)
    everybody = np.ones(len(reward), bool)
    return Feedback(reward, everybody, {"reward": reward}, ~everybody)


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXPECTED_PRIVILEGES))
def test_contract(name):
    found = find_agent(name)
    check_agent(found.agent_class, **found.settings)


@pytest.mark.parametrize(
    "spec", ["exact-bayes@thompson=True", "linucb@ridge=3.0", "epsilon-greedy@epsilon=0.0"]
)
def test_contract_with_settings(spec):
    found = find_agent(spec)
    check_agent(found.agent_class, **found.settings)


def test_privileges_are_declared():
    names = set(agent_names()) & set(EXPECTED_PRIVILEGES)
    assert names == set(EXPECTED_PRIVILEGES)
    found = {name: find_agent(name).agent_class.privileges for name in names}
    assert found == EXPECTED_PRIVILEGES


def test_who_learns_from_a_history_says_so_by_its_class():
    """Nobody has to build an agent to know that it will want a history."""
    learners = {n for n in EXPECTED_PRIVILEGES if hasattr(find_agent(n).agent_class, "fit")}
    honest = {name for name, sees in EXPECTED_PRIVILEGES.items() if not sees}
    assert learners == honest - {"uniform"}


class Honest:
    """A correct agent, which the broken ones below are small variations of."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior):
        self.shape = (prior.num_responses, prior.num_shown)

    def reset(self, num_users, rng):
        self.rng, self.num_users = rng, num_users
        self.total = np.zeros(num_users)

    def act(self, observation):
        k, s = self.shape
        order = self.rng.random((self.num_users, k)).argsort(axis=1)
        return (order[:, :s] + np.floor(np.abs(self.total))[:, None].astype(int)) % k

    def update(self, observation, action, feedback):
        self.total = self.total + feedback.reward


class GlobalGenerator(Honest):
    def act(self, observation):
        k, s = self.shape
        return np.random.rand(self.num_users, k).argsort(axis=1)[:, :s]  # noqa: NPY002


class SeedsGlobalGenerator(GlobalGenerator):
    def reset(self, num_users, rng):
        super().reset(num_users, rng)
        np.random.seed(0)  # noqa: NPY002


class StandardLibraryGenerator(Honest):
    def act(self, observation):
        k, s = self.shape
        return np.array([random.sample(range(k), s) for _ in range(self.num_users)])


class GeneratorOfItsOwn(Honest):
    def reset(self, num_users, rng):
        super().reset(num_users, np.random.default_rng())


class KeepsItsClock(Honest):
    """Takes turns, and does not begin anew at reset."""

    clock = 0

    def act(self, observation):
        self.clock += 1
        k, s = self.shape
        return np.tile((self.clock + np.arange(s)) % k, (self.num_users, 1))


class KeepsItsTotals(Honest):
    """Makes room for new users only when their number changes (as buffers often do)."""

    total = np.zeros(0)

    def reset(self, num_users, rng):
        kept = self.total
        super().reset(num_users, rng)
        if len(kept) == num_users:
            self.total = kept


class LearnsAcrossResets(Honest):
    """What one user says, the next one is served by."""

    liking = 0.0

    def act(self, observation):
        k, s = self.shape
        first = int(abs(self.liking) * 7)
        return np.tile((first + np.arange(s)) % k, (self.num_users, 1))

    def update(self, observation, action, feedback):
        self.liking += float(feedback.reward.sum())


class WritesToFeatures(Honest):
    def act(self, observation):
        x = observation.response_features
        x -= x.mean(axis=1, keepdims=True)
        return super().act(observation)


class WritesToPromptAtUpdate(Honest):
    def update(self, observation, action, feedback):
        observation.prompt[:] = 0


class WritesToAction(Honest):
    def update(self, observation, action, feedback):
        action += 1


class BeyondTheLast(Honest):
    def act(self, observation):
        return np.full((self.num_users, self.shape[1]), self.shape[0])


class CountsFromTheEnd(Honest):
    def act(self, observation):
        return np.full((self.num_users, self.shape[1]), -1)


class FlatAction(Honest):
    def act(self, observation):
        return super().act(observation)[:, 0]


class FloatAction(Honest):
    def act(self, observation):
        return super().act(observation).astype(float)


class ForFiveUsersOnly(Honest):
    def act(self, observation):
        k, s = self.shape
        return self.rng.random((5, k)).argsort(axis=1)[:, :s]


class UnknownPrivilege(Honest):
    privileges = frozenset({"scores", "telepathy"})


class CannotLearn:
    """Has no ``update``."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior):
        pass

    def reset(self, num_users, rng):
        pass

    def act(self, observation):
        return np.zeros((len(observation.prompt), 1), int)


class StatesNoPrivileges(CannotLearn):
    privileges = None


def test_contract_holds_for_a_minimal_agent():
    check_agent(Honest)


REPEATS = r"\w+: a second run with the same seed differs; reset\(\) must forget"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (GlobalGenerator, REPEATS + ".* generator given"),
        (SeedsGlobalGenerator, "reward: the agent draws from NumPy's global generator"),
        (StandardLibraryGenerator, REPEATS),
        (GeneratorOfItsOwn, REPEATS),
        (KeepsItsClock, REPEATS),
        (KeepsItsTotals, REPEATS),
        (LearnsAcrossResets, REPEATS),
        (WritesToFeatures, "reward: response_features was written to"),
        (WritesToPromptAtUpdate, "reward: prompt was written to"),
        (WritesToAction, "reward: the action was written to"),
        (BeyondTheLast, r"act must return integers in 0\.\.3 .*, got \[4\] for user 0"),
        (CountsFromTheEnd, r"act must return integers in 0\.\.3 .*, got \[-1\] for user 0"),
        (FlatAction, r"act must return integers in 0\.\.3 of shape \(5, 1\), got int64 \(5,\)"),
        (FloatAction, r"integers in 0\.\.3 of shape \(5, 1\), got float64"),
        (ForFiveUsersOnly, r"integers in 0\.\.3 of shape \(3, 1\), got int64 \(5, 1\)"),
        (UnknownPrivilege, r"UnknownPrivilege declares unknown privileges \['telepathy'\]"),
        (CannotLearn, "CannotLearn must have privileges, reset, act and update"),
        (StatesNoPrivileges, "StatesNoPrivileges must have privileges"),
    ],
)
def test_contract_kit_finds_what_is_broken(broken, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        check_agent(broken)


@pytest.mark.parametrize("name", sorted(EXPECTED_PRIVILEGES))
@pytest.mark.parametrize("kind", ["reward", "duel", "late"])
def test_run_another_run_again(name, kind):
    task = TASKS[kind]
    agent = find_agent(name).agent_class(prior_for(find_agent(name).agent_class, task))
    if hasattr(agent, "fit"):
        agent.fit(record_history(task, num_users=20, seed=0))
    first = run(agent, task, num_users=6, seed=1)
    run(agent, task, num_users=6, seed=2)
    again = run(agent, task, num_users=6, seed=1)
    for part in ("utility", "regret", "present"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))


# --- ties -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "agent_class", [Uniform, BestResponder, Popular, EpsilonGreedy, LinUCB, LinearThompson]
)
def test_ties_are_broken_uniformly(agent_class):
    """Five alike responses to 5,000 users: chi-square at alpha 1e-4."""
    agent = agent_class(prior_of(num_features=3, num_responses=5))
    agent.reset(5000, np.random.default_rng(0))
    action = agent.act(look(np.ones((5000, 5, 3))))
    assert stats.chisquare(np.bincount(action[:, 0], minlength=5)).pvalue > 1e-4


def test_ties_of_some_are_broken_among_them():
    """Binomial test at alpha 1e-4 between the two best of four."""
    values = np.tile([1.0, 7.0, -1.0, 7.0], (4000, 1))
    chosen = best(values, 1, np.random.default_rng(0))
    assert set(chosen[:, 0].tolist()) == {1, 3}
    assert stats.binomtest(int((chosen == 1).sum()), 4000).pvalue > 1e-4


def test_several_best_are_different_and_in_order():
    """Chi-square on the 12 ordered pairs of four alike candidates at alpha 1e-4."""
    pairs = best(np.zeros((6000, 4)), 2, np.random.default_rng(1))
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    assert not counts[[0, 5, 10, 15]].any(), "a candidate is chosen twice"
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    assert (counts > 0).sum() == 12
    values = np.random.default_rng(2).standard_normal((50, 6))
    ranked = best(values, 3, np.random.default_rng(3))
    np.testing.assert_array_equal(ranked, values.argsort(axis=1)[:, ::-1][:, :3])
    impossible = np.tile([0.0, -np.inf, -np.inf, -np.inf], (500, 1))
    three = np.sort(best(impossible, 3, np.random.default_rng(4)), axis=1)
    assert (np.diff(three, axis=1) > 0).all(), "a candidate is chosen twice"
    places = only_best(values, 2, np.random.default_rng(3))
    np.testing.assert_array_equal(places, values.argmax(axis=1)[:, None].repeat(2, axis=1))


def test_each_draw_has_its_best():
    draws = iter([np.array([[1.0, 2.0, 0.0]]), np.array([[3.0, 2.0, 0.0]])])
    assert best_of_each(draws, np.random.default_rng(0)).tolist() == [[1, 0]]
    assert next(draws, None) is None


@pytest.mark.parametrize(
    ("factor", "together", "shown"),
    [
        (0.4, 0.0, [0]),  # bounds 5.4 and 5.2
        (0.6, 0.0, [1]),  # 5.6 and 5.8
        (0.3, 0.0, [0, 0]),  # beside the first: 5 and 4 + .3 sqrt(10)
        (0.35, 0.0, [0, 1]),
        (0.35, 2.9, [0, 0]),  # sqrt(10 - 2 * 2.9): they differ by less
        (0.35, 0.0, [0, 1, 0]),
    ],
)
def test_a_bound_is_on_the_value_alone_and_on_the_lead_beside_another(factor, together, shown):
    """Means 5, 4, 0 and variances 1, 9, 0, of which the first two have this covariance."""
    covariance = np.array([[[1.0, together, 0], [together, 9, 0], [0, 0, 0]]])
    each, means = np.eye(3)[None], np.array([[5.0, 4.0, 0.0]])
    np.testing.assert_allclose(linear_sd(each, covariance), [[1, 3, 0]])
    found = by_upper_bound(
        means,
        each,
        lambda x: factor * linear_sd(x, covariance),
        len(shown),
        np.random.default_rng(0),
    )
    assert found.tolist() == [shown]
    assert means.tolist() == [[5, 4, 0]], "not written to"


# --- Thompson sampling ------------------------------------------------------------------------

SIGMAS = 4.5  # two-sided false alarm 7e-6 per check


def check_samples_the_posterior(agent_class, num_shown=1, **settings):
    """Checks choice probabilities against the posterior's, in 20,000 rows that know the same.

    Two responses x1 and x2 have P(first is better) = Phi(d m / (v sqrt(d C d))), d = x1 - x2,
    for a posterior N(m, v^2 C), here by closed-form ridge.
    """
    ridge, scale, b = 2.0, 0.5, 20_000
    agent = agent_class(prior_of(num_shown=num_shown), ridge=ridge, **settings)
    agent.reset(b, np.random.default_rng(0))
    rng, precision, moment = np.random.default_rng(1), ridge * np.eye(2), np.zeros(2)
    expected = []
    for _ in range(5):
        x = rng.standard_normal((2, 2)).astype(np.float32)
        seen = look(np.broadcast_to(x, (b, 2, 2)).copy())
        action = agent.act(seen)
        assert action.shape == (b, num_shown)
        d = (x[0] - x[1]).astype(float)
        covariance = np.linalg.inv(precision)
        p = stats.norm.cdf(d @ covariance @ moment / (scale * np.sqrt(d @ covariance @ d)))
        expected.append(p)
        sd = np.sqrt(p * (1 - p) / b)
        for place in range(num_shown):
            share = (action[:, place] == 0).mean()
            assert abs(share - p) < SIGMAS * sd, f"first shown {share:.4f}, expected {p:.4f}"
        if num_shown == 2:
            alike = p**2 + (1 - p) ** 2
            share = (action[:, 0] == action[:, 1]).mean()
            assert abs(share - alike) < SIGMAS * np.sqrt(alike * (1 - alike) / b)
        shown, reward = x[:num_shown].astype(float).mean(axis=0), 1.0
        agent.update(seen, np.tile(np.arange(num_shown), (b, 1)), hear(np.full(b, reward)))
        precision += np.outer(shown, shown)
        moment += reward * shown
    assert np.ptp(expected) > 0.2, "the posterior must come to prefer something"


@pytest.mark.parametrize("num_shown", [1, 2])
def test_thompson_chooses_with_posterior_probability(num_shown):
    check_samples_the_posterior(LinearThompson, num_shown, scale=0.5)


@pytest.mark.parametrize(
    ("impostor", "settings"),
    [
        (EpsilonGreedy, {"epsilon": 0.0}),
        (EpsilonGreedy, {"epsilon": 0.3}),
        (LinUCB, {}),
        (LinearThompson, {"scale": 0.55}),
    ],
)
def test_impostors_do_not_pass_for_thompson(impostor, settings):
    with pytest.raises(AssertionError, match="expected"):
        check_samples_the_posterior(impostor, **settings)


def test_thompson_in_one_dimension():
    """Two arms of features 1 and -1: P(first) is the posterior's P(taste > 0)."""
    b = 20_000
    agent = LinearThompson(prior_of(num_features=1), scale=1.0, ridge=1.0)
    agent.reset(b, np.random.default_rng(5))
    seen = look(np.tile([[[1.0], [-1.0]]], (b, 1, 1)))
    agent.update(seen, np.zeros((b, 1), int), hear(np.full(b, 1.0)))
    share = (agent.act(seen) == 0).mean()
    p = stats.norm.cdf(0.5 / np.sqrt(0.5))  # the posterior is N(1/2, 1/2)
    assert abs(share - p) < SIGMAS * np.sqrt(p * (1 - p) / b)


def test_thompson_chooses_two_alike_responses_equally_often():
    """Also when what was heard favours them both; binomial test at alpha 1e-4."""
    b = 5000
    agent = LinearThompson(prior_of(num_features=2, num_responses=3))
    agent.reset(b, np.random.default_rng(6))
    seen = look(np.tile([[[1.0, 0.0], [-1.0, 0.5], [1.0, 0.0]]], (b, 1, 1)))
    for _ in range(3):
        agent.update(seen, np.zeros((b, 1), int), hear(np.full(b, 0.4)))
    counts = np.bincount(agent.act(seen)[:, 0], minlength=3)
    assert counts[0] + counts[2] > 0.6 * b
    assert stats.binomtest(int(counts[0]), int(counts[0] + counts[2])).pvalue > 1e-4


# --- LinUCB and epsilon-greedy ----------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1.0, 5.0])
@pytest.mark.parametrize("exploration", [0.0, 0.4, 2.0])
def test_linucb_is_li_et_al(ridge, exploration):
    """Algorithm 1 (WWW 2010), one theta per user: theta x + alpha sqrt(x A^-1 x), from A, b."""
    b, k, d = 300, 6, 4
    rng = np.random.default_rng(0)
    agent = LinUCB(prior_of(d, k), exploration=exploration, ridge=ridge)
    agent.reset(b, np.random.default_rng(1))
    a, moment = np.tile(ridge * np.eye(d), (b, 1, 1)), np.zeros((b, d))
    for t in range(6):
        seen = look(rng.standard_normal((b, k, d)))
        x = seen.response_features.astype(float)
        inverse = np.linalg.inv(a)
        theta = np.einsum("bde,be->bd", inverse, moment)
        width = np.sqrt(np.einsum("bkd,bde,bke->bk", x, inverse, x))
        value = np.einsum("bkd,bd->bk", x, theta) + exploration * width
        action = agent.act(seen)
        if t or exploration:
            np.testing.assert_array_equal(action[:, 0], value.argmax(axis=1))
        reward = rng.standard_normal(b)
        agent.update(seen, action, hear(reward))
        shown = np.take_along_axis(x, action[:, :, None], axis=1)[:, 0]
        a += np.einsum("bd,be->bde", shown, shown)
        moment += reward.astype(np.float32)[:, None] * shown


def test_linucb_duels_the_best_with_the_best_challenger():
    """Second = highest (x_k - x_first) theta + alpha width(x_k - x_first), never the first."""
    b, k, d, ridge, alpha = 200, 5, 3, 2.0, 0.7
    rng = np.random.default_rng(0)
    agent = LinUCB(prior_of(d, k, 2, "choice"), exploration=alpha, ridge=ridge)
    agent.reset(b, np.random.default_rng(1))
    a, moment = np.tile(ridge * np.eye(d), (b, 1, 1)), np.zeros((b, d))
    for t in range(4):
        seen = look(rng.standard_normal((b, k, d)))
        x, rows = seen.response_features.astype(float), np.arange(b)
        action = agent.act(seen)
        if t:
            inverse = np.linalg.inv(a)
            value = np.einsum("bkd,bde,be->bk", x, inverse, moment)
            first = value.argmax(axis=1)
            ahead = x - x[rows, first][:, None]
            value += alpha * np.sqrt(np.einsum("bkd,bde,bke->bk", ahead, inverse, ahead))
            np.testing.assert_array_equal(action[:, 0], first)
            np.testing.assert_array_equal(action[:, 1], value.argmax(axis=1))
        said = np.where(rng.random(b) < 0.5, 1, -1).astype(np.float32)
        everybody = np.ones(b, bool)
        agent.update(seen, action, Feedback(said, everybody, {"choice": said}, ~everybody))
        apart = x[rows, action[:, 0]] - x[rows, action[:, 1]]
        a += np.einsum("bd,be->bde", apart, apart)
        moment += said[:, None] * apart


def test_epsilon_is_the_share_of_random_actions():
    """Off the best with probability epsilon (K - 1) / K, within 4.5 standard errors."""
    b, k, epsilon = 20_000, 4, 0.3
    agent = EpsilonGreedy(prior_of(1, k), epsilon=epsilon, ridge=1.0)
    agent.reset(b, np.random.default_rng(0))
    seen = look(np.tile(np.array([0.0, 1.0, 3.0, 2.0])[:, None], (b, 1, 1)))
    agent.update(seen, np.full((b, 1), 1), hear(np.full(b, 1.0)))
    counts = np.bincount(agent.act(seen)[:, 0], minlength=k) / b
    p = epsilon * (k - 1) / k
    assert abs(1 - counts[2] - p) < SIGMAS * np.sqrt(p * (1 - p) / b)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], got 1.5"):
        EpsilonGreedy(prior_of(), epsilon=1.5)


# --- what agents learn from a history ---------------------------------------------------------


def history(tastes, num_each, noise_sd, rng, num_responses=4):
    """Returns a database of rewards that are linear in features, with the tastes given."""
    num_users, d = tastes.shape
    n = num_users * num_each
    features = rng.standard_normal((n, num_responses, d)).astype(np.float32)
    user, action = np.repeat(np.arange(num_users), num_each), np.zeros((n, 1), np.int64)
    reward = np.einsum("nd,nd->n", features[:, 0], tastes[user])
    reward = (reward + noise_sd * rng.standard_normal(n)).astype(np.float32)
    return Database(
        user=user,
        prompt=np.arange(n),
        action=action,
        reward=reward,
        heard=np.ones(n, bool),
        said={"reward": reward},
        prompt_features=features.mean(axis=1),
        response_features=features,
    )


def test_popular_is_least_squares():
    rng = np.random.default_rng(0)
    data = history(rng.standard_normal((30, 3)), 20, 0.5, rng)
    heard = rng.random(600) < 0.7
    data = replace(data, heard=heard)
    x, y = data.response_features[heard, 0].astype(float), data.reward[heard]
    by_hand = np.linalg.inv(x.T @ x + 1e-3 * len(x) / 3 * np.eye(3)) @ (x.T @ y)
    centre = average_taste(history_evidence(data))
    np.testing.assert_allclose(centre, by_hand, rtol=1e-6)
    np.testing.assert_allclose(centre, np.linalg.lstsq(x, y, rcond=None)[0], atol=2e-3)
    popular = Popular(prior_of(3, 5))
    popular.fit(data)
    popular.reset(400, np.random.default_rng(1))
    seen = look(rng.standard_normal((400, 5, 3)))
    expected = (seen.response_features @ by_hand).argmax(axis=1)
    np.testing.assert_array_equal(popular.act(seen)[:, 0], expected)


def taste_and_ridge(data):
    seen = history_evidence(data)
    centre = average_taste(seen)
    return centre, likely_ridge(seen, data.user, centre)


def test_ridge_grows_when_users_are_alike():
    """It estimates noise variance over taste variance: within a factor of 2.5 of the truth."""
    found = []
    for taste_sd in (0.5, 0.2, 0.1, 0.05):
        rng = np.random.default_rng(3)
        tastes = np.array([1.0, -1.0, 0.5, 0.0]) + taste_sd * rng.standard_normal((200, 4))
        centre, ridge = taste_and_ridge(history(tastes, 30, 0.5, rng))
        found.append(ridge)
        truth = 0.5**2 / taste_sd**2
        assert truth / 2.5 < ridge < truth * 2.5
        np.testing.assert_allclose(centre, tastes.mean(axis=0), atol=0.1)
    assert found == sorted(set(found))
    rng = np.random.default_rng(4)
    alike = np.tile([1.0, -1.0, 0.5, 0.0], (200, 1))
    assert taste_and_ridge(history(alike, 30, 0.5, rng))[1] > found[-1]


def test_nothing_heard_is_no_taste_and_the_usual_ridge():
    rng = np.random.default_rng(0)
    data = history(rng.standard_normal((3, 2)), 5, 0.5, rng)
    centre, ridge = taste_and_ridge(replace(data, heard=np.zeros(15, bool)))
    assert centre.tolist() == [0, 0]
    assert ridge == 10.0
    late = replace(data, user=data.user + 1000)  # none of those who choose the ridge
    assert taste_and_ridge(late)[1] == 10.0


def test_only_who_needs_a_ridge_pays_for_it(monkeypatch):
    def never(*_):
        raise AssertionError("it takes two thirds of the time to fit")

    monkeypatch.setattr(linear, "likely_ridge", never)
    rng = np.random.default_rng(0)
    data = history(rng.standard_normal((3, 2)), 5, 0.5, rng)
    prior = prior_of(2, data.response_features.shape[1])
    for agent in (Popular(prior), Tabular(prior), LinUCB(prior, ridge=3.0)):
        agent.fit(data)
    with pytest.raises(AssertionError, match="two thirds"):
        LinUCB(prior).fit(data)


def test_what_fit_teaches_survives_reset():
    rng = np.random.default_rng(5)
    data = history(np.tile([1.0, -2.0], (20, 1)), 20, 0.1, rng)
    seen = look(rng.standard_normal((300, 3, 2)))
    expected = (seen.response_features @ np.array([1.0, -2.0])).argmax(axis=1)
    for agent in (
        EpsilonGreedy(prior_of(2, 3), epsilon=0.0),
        LinUCB(prior_of(2, 3), exploration=0.0),
        Popular(prior_of(2, 3)),
    ):
        agent.fit(data)
        for seed in range(2):
            agent.reset(300, np.random.default_rng(seed))
            assert (agent.act(seen)[:, 0] == expected).mean() > 0.98
            agent.update(seen, np.zeros((300, 1), int), hear(np.full(300, -50.0)))


@pytest.mark.parametrize(
    ("feedback", "num_shown"),
    [
        ("reward", 1),
        ("like", 1),
        ("click", 1),
        ("choice", 2),
        (["choice", "reward"], 2),
        (["reward", "choice"], 2),
    ],
)
def test_best_responder_finds_who_is_liked_best(feedback, num_shown):
    """Each responder in turn is a whole unit better than the others in everybody's eyes."""
    bank = tiny_bank()
    for k in range(4):
        scores = bank.scores.copy()
        scores[:, k] += 1.0
        task = Task(
            replace(bank, scores=scores),
            DirichletUsers(3, 1.0),
            feedback_model(feedback),
            horizon=10,
            num_shown=num_shown,
        )
        agent = BestResponder(prior_for(BestResponder, task))
        agent.fit(record_history(task, num_users=100, seed=0))
        agent.reset(50, np.random.default_rng(0))
        action = agent.act(look(np.zeros((50, 4, 6))))
        np.testing.assert_array_equal(action, np.full((50, num_shown), k))


# --- privileged references --------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_oracle_has_exactly_zero_regret(kind):
    task = TASKS[kind]
    done = run(Oracle(prior_for(Oracle, task)), task, num_users=50, seed=0)
    assert not done.regret[done.present].any()
    rest = run(Uniform(prior_for(Uniform, task)), task, num_users=50, seed=0)
    both = done.present & rest.present
    assert (rest.regret[both] >= 0).all()
    assert rest.regret[both].mean() > 0.1
    np.testing.assert_allclose(
        done.utility[both], (rest.utility + rest.regret)[both], atol=1e-5
    )


@pytest.mark.parametrize("num_shown", [1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_decoder_oracle_is_the_oracle_where_scores_are_linear(num_shown, shuffle):
    bank = tiny_bank(num_prompts=80)
    readout = np.random.default_rng(9).standard_normal((6, 3)).astype(np.float32)
    linear = replace(bank, scores=bank.response_features @ readout)
    for chosen, alike in ((linear, True), (bank, False)):
        task = Task(
            chosen,
            DirichletUsers(3, 0.5),
            feedback_model("reward"),
            horizon=10,
            num_shown=num_shown,
            shuffle=shuffle,
            split="test",
        )
        regret = [
            run(c(prior_for(c, task)), task, num_users=100, seed=0).regret
            for c in (DecoderOracle, Oracle)
        ]
        assert np.array_equal(*regret) is alike


# --- exact Bayes ------------------------------------------------------------------------------

CROWD = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
BRUTE = {
    "reward": lambda said, shown, every: stats.norm.pdf(said, shown.mean(), 0.5),
    "like": lambda said, shown, every: _yes_or_no(said, (shown.mean() - 0.5) / 0.25),
    "choice": lambda said, shown, every: _yes_or_no(said > 0, (shown[0] - shown[1]) / 0.25),
    "click": lambda said, shown, every: (np.exp(every / 0.25) / np.exp(every / 0.25).sum())[
        int(said)
    ],
    "stars": lambda said, shown, every: np.diff(
        stats.norm.cdf(
            np.array([-np.inf, -0.8416, -0.2533, 0.2533, 0.8416, np.inf]), shown.mean(), 0.25
        )
    )[int(said) - 1],
}


def _yes_or_no(yes, margin):
    return expit(margin) if yes else expit(-margin)


def crowd_task(feedback, num_shown, **settings):
    settings = {"horizon": 6, "shuffle": True, **settings}
    return Task(
        tiny_bank(),
        UserPopulation(CROWD),
        feedback_model(feedback),
        num_shown=num_shown,
        **settings,
    )


def bayes_among(population, task, **settings):
    prior = replace(task.prior_knowledge(), population=population)
    return ParticleBayes(prior, **settings)


@pytest.mark.parametrize(
    ("feedback", "num_shown"),
    [
        (["reward"], 1),
        (["like"], 1),
        (["stars"], 1),
        (["click"], 1),
        (["choice"], 2),
        (["reward"], 2),
        (["like", "click"], 1),
        (["choice", "stars", "silence"], 2),
        (["reward", {"silence": {"probability": 0.5}}], 1),
    ],
)
def test_posterior_is_brute_force(feedback, num_shown):
    """Against densities from scipy, multiplied user by user, interaction by interaction."""
    b, task = 12, crowd_task(feedback, num_shown)
    agent, session = bayes_among(CROWD, task), Session(task, np.arange(b))
    session.begin(0)
    agent.reset(b, np.random.default_rng(0))
    rng, weight = np.random.default_rng(1), np.ones((b, len(CROWD)))
    for _ in range(task.horizon):
        seen = session.observe(scores=True)
        action = rng.random((b, 4)).argsort(axis=1)[:, :num_shown]
        feedback_now, _ = session.step(action)
        agent.update(seen, action, feedback_now)
        for row in np.flatnonzero(feedback_now.heard):
            for j, user in enumerate(CROWD):
                every = seen.scores[row].astype(float) @ user
                for name, value in feedback_now.said.items():
                    weight[row, j] *= BRUTE[name](value[row], every[action[row]], every)
        expected = weight / weight.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(agent.posterior(), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("feedback", "num_shown"),
    [("reward", 1), ("like", 1), ("stars", 1), ("click", 1), ("choice", 2)],
)
def test_posterior_is_calibrated(feedback, num_shown):
    """E[posterior of the true user] = E[sum of squared posteriors], within 4 standard errors.

    That holds for users drawn from the prior if, and only if, what the users say is drawn from
    the likelihood the agent believes in.
    """
    b, task = 4000, crowd_task(feedback, num_shown, horizon=3)
    agent, session = bayes_among(CROWD, task), Session(task, np.arange(b))
    session.begin(3)
    agent.reset(b, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(task.horizon):
        seen = session.observe(scores=True)
        action = rng.random((b, 4)).argsort(axis=1)[:, :num_shown]
        agent.update(seen, action, session.step(action)[0])
    posterior = agent.posterior()
    gap = posterior[np.arange(b), session.episodes.user] - (posterior**2).sum(axis=1)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(b)
    assert (posterior**2).sum(axis=1).mean() > 0.25, "something was learnt"


def test_posterior_finds_the_user():
    """Noise-free rewards single out one of 20 users within 8 interactions."""
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    task = Task(
        tiny_bank(), UserPopulation(weights), feedback_model(Reward(noise_sd=0.0)), horizon=8
    )
    agent, session = bayes_among(weights, task), Session(task, np.arange(30))
    session.begin(0)
    agent.reset(30, np.random.default_rng(0))
    np.testing.assert_allclose(agent.posterior(), 1 / 20)
    for _ in range(8):
        seen = observe_for(agent, session)
        action = agent.act(seen)
        agent.update(seen, action, session.step(action)[0])
    right = agent.posterior()[np.arange(30), session.episodes.user]
    assert right.min() > 0.99


def test_bayes_thompson_draws_from_the_posterior():
    """Before anything is heard each particle's favourite is shown in turn; chi-square, 1e-4."""
    task = crowd_task("reward", 1)
    agent = bayes_among(np.eye(3), task, thompson=True)
    agent.reset(6000, np.random.default_rng(0))
    scores = np.zeros((6000, 4, 3), np.float32)
    scores[:, [0, 1, 3], [0, 1, 2]] = 1.0
    seen = look(np.zeros((6000, 4, 6)))._replace(scores=scores)
    counts = np.bincount(agent.act(seen)[:, 0], minlength=4)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3]]).pvalue > 1e-4


def test_bayes_needs_a_population():
    with pytest.raises(ValueError, match=r"prior\.population"):
        ParticleBayes(prior_of())


# --- who is better ----------------------------------------------------------------------------


def test_linucb_beats_uniform_and_popular():
    """Paired over 2 x 100 users and 50 interactions: better by more than 6 standard errors."""
    task = Task(
        tiny_bank(num_prompts=600, num_responses=6),
        DirichletUsers(3, 0.1),
        feedback_model("reward"),
        horizon=50,
    )
    classes = {"uniform": Uniform, "popular": Popular, "linucb": LinUCB, "bayes": ParticleBayes}
    result = compare(
        [Entrant(name, c, {}) for name, c in classes.items()],
        task,
        seeds=(0, 1),
        num_users=100,
        history_users=200,
    )
    total = {
        name: np.concatenate([r.utility.sum(axis=1) for r in runs])
        for name, runs in result.runs.items()
    }
    for better, worse in (
        ("popular", "uniform"),
        ("linucb", "uniform"),
        ("linucb", "popular"),
        ("bayes", "linucb"),
    ):
        gain = total[better] - total[worse]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        assert gain.mean() > 6 * error, f"{better} - {worse}: {gain.mean():.3f} +- {error:.3f}"
