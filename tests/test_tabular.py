"""Tabular memory: posteriors in closed form, variances by moments, and when it pays."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from personalllm_env.agents.linear import LinearThompson, LinUCB, Popular
from personalllm_env.agents.tabular import ItemBelief, Spread, Tabular, estimate_spread
from personalllm_env.belief import Evidence
from personalllm_env.data.synthetic import synthetic_bank
from personalllm_env.database import Database, record_history
from personalllm_env.feedback import Reward, feedback_model
from personalllm_env.runner import Entrant, compare, prior_for, run
from personalllm_env.session import Session
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.testing import check_agent
from personalllm_env.types import Feedback, Observation, PriorKnowledge
from personalllm_env.users import DirichletUsers

EXPLORE = ("greedy", "ucb", "thompson")


def prior_of(num_responses=3, num_shown=1, feedback="reward", shuffled=False):
    return PriorKnowledge(
        num_responses=num_responses,
        num_shown=num_shown,
        num_features=2,
        num_reward_models=2,
        horizon=10,
        feedback=feedback_model(feedback),
        responders=tuple("abcdefgh"[:num_responses]),
        shuffled=shuffled,
    )


def look(prompt, features=None, num_responses=3):
    prompt = np.asarray(prompt)
    if features is None:
        features = np.arange(num_responses * 2).reshape(1, num_responses, 2)
        features = np.repeat(features, len(prompt), axis=0)
    features = np.asarray(features, np.float32)
    return Observation(prompt, np.zeros((len(prompt), 2), np.float32), features)


def hear(heard=None, **said):
    said = {name: np.asarray(value, np.float32) for name, value in said.items()}
    first = next(iter(said.values()))
    heard = np.ones(len(first), bool) if heard is None else np.asarray(heard)
    return Feedback(first, heard, said, np.zeros(len(first), bool))


# --- the posterior ----------------------------------------------------------------------------


def test_posterior_of_single_items_in_closed_form():
    """n reports of mean y: precision 1/4 + n/.25, mean that share of y."""
    belief = ItemBelief(2, 3, Spread(item=4.0, noise=0.25))
    reports = [(0, 1.0), (2, -1.0), (0, 2.0), (0, 3.0)]
    for item, y in reports:
        slot, _ = belief.slots(np.array([9, 5]))
        features = np.eye(3, dtype=np.float32)[[item, item]]
        known = np.array([True, False])
        belief.update(slot, Evidence(features, np.array([y, y], np.float32), known))
    variance = [1 / (1 / 4 + 3 / 0.25), 4.0, 1 / (1 / 4 + 1 / 0.25)]
    mean = [variance[0] * 6.0 / 0.25, 0.0, variance[2] * -1.0 / 0.25]
    np.testing.assert_allclose(belief.mean[0, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(belief.covariance[0, 0], np.diag(variance), atol=1e-12)
    np.testing.assert_array_equal(belief.mean[1, 0], 0)
    np.testing.assert_array_equal(belief.covariance[1, 0], 4 * np.eye(3))


def test_posterior_of_mixtures_is_gaussian_conditioning():
    """Several prompts at once, in an order of each user's own, against one dense solve."""
    rng = np.random.default_rng(0)
    belief = ItemBelief(3, 4, Spread(item=0.7, noise=0.3))
    prompts = rng.integers(5, size=(12, 3)) * 10
    a, y = rng.standard_normal((12, 3, 4)), rng.standard_normal((12, 3))
    seen_before = [set() for _ in range(3)]
    for t in range(12):
        slot, old = belief.slots(prompts[t])
        assert old.tolist() == [p in seen_before[b] for b, p in enumerate(prompts[t])]
        for b in range(3):
            seen_before[b].add(prompts[t, b])
        belief.update(slot, Evidence(a[t], y[t], np.ones(3, bool)))
    for b in range(3):
        for prompt in np.unique(prompts[:, b]):
            x, target = a[prompts[:, b] == prompt, b], y[prompts[:, b] == prompt, b]
            covariance = np.linalg.inv(np.eye(4) / 0.7 + x.T @ x / 0.3)
            ask = prompts[0].copy()
            ask[b] = prompt
            slot = belief.slots(ask)[0][b]
            np.testing.assert_allclose(belief.covariance[b, slot], covariance, atol=1e-10)
            mean = covariance @ x.T @ target / 0.3
            np.testing.assert_allclose(belief.mean[b, slot], mean, atol=1e-10)


def test_memory_grows_with_the_prompts_and_no_further():
    belief = ItemBelief(2, 3, Spread(1.0, 1.0))
    sizes = []
    for prompt in ([1, 1], [1, 2], [2, 2], [3, 1], [4, 3], [5, 2]):
        belief.slots(np.array(prompt))
        sizes.append(belief.mean.shape[1])
    assert sizes == [1, 2, 2, 4, 4, 8]


# --- choosing ---------------------------------------------------------------------------------


def fitted(values, spread, **settings):
    """Returns an agent to whom the average user's values of the three responses are known."""
    prior = prior_of(**{k: settings.pop(k) for k in list(settings) if k in SETTINGS_OF_PRIOR})
    agent = Tabular(prior, **settings)
    agent._centre, agent.spread = np.array([1.0, 0.0]), spread
    agent.reset(1, np.random.default_rng(0))
    features = [[[v, i] for i, v in enumerate(values)]]
    return agent, look([4], features)


SETTINGS_OF_PRIOR = {"feedback", "num_shown", "shuffled"}


def test_ucb_by_hand():
    """Values .5, .4, 0; sd 2. After a report of .5 the first has sd 1 / sqrt(1/4 + 4) = .485.

    So with one sd added the bounds are .985, 2.4 and 2; greedy stays with the first.
    """
    for explore, exploration, expected in [
        ("ucb", 1.0, 1),
        ("ucb", 0.01, 0),
        ("greedy", 1.0, 0),
        ("ucb", 0.0, 0),
    ]:
        agent, seen = fitted(
            [0.5, 0.4, 0], Spread(4.0, 0.25), explore=explore, exploration=exploration
        )
        assert agent.act(seen).tolist() == [[0]], "at first as the average user"
        agent.update(seen, np.array([[0]]), hear(reward=[0.5]))
        assert agent.act(seen).tolist() == [[expected]]
        assert agent.act(seen._replace(prompt=np.array([5]))).tolist() == [[0]]


def test_reports_are_held_against_what_was_expected():
    agent, seen = fitted([2.0, 1.9, 0], Spread(1.0, 1.0), explore="greedy")
    agent.act(seen)
    agent.update(seen, np.array([[0]]), hear(reward=[1.9]))  # .1 less: shrinks to .05
    assert agent.act(seen).tolist() == [[0]]
    agent.update(seen, np.array([[0]]), hear(reward=[1.6]))  # in all -.5 / 3
    assert agent.act(seen).tolist() == [[1]]


def test_duels_by_hand():
    """Values 1, .9, 0 at sd 1, bounds at 2 sd of the difference: .9 + 2.8 is the highest.

    Once the first is known to be better than the second, the third is worth a look.
    """
    agent, seen = fitted(
        [1.0, 0.9, 0], Spread(1.0, 0.05), num_shown=2, feedback="choice", exploration=2.0
    )
    assert agent.act(seen).tolist() == [[0, 0]], "as popular does"
    assert agent.act(seen).tolist() == [[0, 1]]
    for _ in range(30):
        agent.update(seen, np.array([[0, 1]]), hear(choice=[1]))
    assert agent.act(seen).tolist() == [[0, 2]]
    for _ in range(30):
        agent.update(seen, np.array([[2, 0]]), hear(choice=[-1]))
    assert agent.act(seen).tolist() == [[0, 0]], "certain"


def test_thompson_draws_from_the_posterior():
    """The share of each response against integration over independent normals; alpha 1e-4."""
    agent = Tabular(prior_of(), explore="thompson", exploration=1.0)
    agent._centre, agent.spread = np.array([1.0, 0.0]), Spread(1.0, 0.5)
    num = 20_000
    agent.reset(num, np.random.default_rng(0))
    features = np.tile([[[0.5, 0], [0.0, 1], [-0.5, 2]]], (num, 1, 1))
    seen = look(np.zeros(num, int), features)
    agent.act(seen)
    agent.update(seen, np.zeros((num, 1), int), hear(reward=np.full(num, 1.1)))
    mean = [0.5 + 0.6 / 1.5, 0.0, -0.5]
    sd = np.sqrt([1 / (1 + 2), 1.0, 1.0])
    grid = np.linspace(-8, 8, 4001)
    cdf = [stats.norm.cdf(grid, m, s) for m, s in zip(mean, sd, strict=True)]
    share = []
    for k in range(3):
        others = np.prod([cdf[j] for j in range(3) if j != k], axis=0)
        share.append(np.trapezoid(stats.norm.pdf(grid, mean[k], sd[k]) * others, grid))
    counts = np.bincount(agent.act(seen)[:, 0], minlength=3)
    assert stats.chisquare(counts, num * np.array(share) / sum(share)).pvalue > 1e-4


def test_nothing_is_explored_where_users_click():
    agents = [Tabular(prior_of(feedback="click"), explore=e) for e in EXPLORE]
    for agent in agents:
        agent.reset(50, np.random.default_rng(0))
        seen = look([3] * 50)
        agent.act(seen)
        agent.update(seen, np.zeros((50, 1), int), hear(click=[2] * 50))
        assert agent.act(seen)[:, 0].tolist() == [2] * 50


@pytest.mark.parametrize("explore", EXPLORE)
def test_ties_are_broken_uniformly(explore):
    """At the first visit and the second; chi-square at alpha 1e-4."""
    agent = Tabular(prior_of(num_responses=5), explore=explore)
    agent.reset(5000, np.random.default_rng(0))
    for _ in range(2):
        action = agent.act(look([1] * 5000, num_responses=5))
        assert stats.chisquare(np.bincount(action[:, 0], minlength=5)).pvalue > 1e-4


# --- shuffled responses -----------------------------------------------------------------------


@pytest.mark.parametrize("feedback", ["reward", "click", "like"])
@pytest.mark.parametrize("tied", [False, True])
def test_shuffled_responses_are_known_by_their_features(feedback, tied):
    """The same, response for response, as where the order is the bank's."""
    rng = np.random.default_rng(0)
    num, k = 6, 4
    table = rng.standard_normal((3, k, 2)).astype(np.float32)
    if tied:
        table[:, :, 0] = 1.0  # only the second feature tells them apart
    plain, mixed = (
        Tabular(prior_of(k, feedback=feedback, shuffled=s), explore="ucb")
        for s in (False, True)
    )
    for agent in (plain, mixed):
        agent._centre = np.array([0.3, -0.2])
        agent.reset(num, np.random.default_rng(1))
    for _ in range(25):
        prompt = rng.integers(3, size=num)
        order = rng.random((num, k)).argsort(axis=1)
        features = table[prompt]
        moved = np.take_along_axis(features, order[:, :, None], axis=1)
        action = plain.act(look(prompt, features))
        other = mixed.act(look(prompt, moved))
        assert np.take_along_axis(order, other, axis=1).tolist() == action.tolist()
        said = rng.standard_normal(num)
        there = said
        if feedback == "click":
            said = rng.integers(k, size=num)
            there = order.argsort(axis=1)[np.arange(num), said]
        elif feedback == "like":
            said = there = said > 0
        plain.update(look(prompt, features), action, hear(**{feedback: said}))
        mixed.update(look(prompt, moved), other, hear(**{feedback: there}))


# --- the variances ----------------------------------------------------------------------------


def test_spread_with_known_noise_by_hand():
    """Mean squared residual (1 + 9) / 2 = 5, noise 1: 4 for |features|^2 = 1/2 makes 8."""
    features = np.array([[0.5, 0.5], [0.5, -0.5], [1, 0]])
    known = np.array([True, True, False])
    seen = Evidence(features, np.array([1.0, 3.0, 50.0]), known)
    same = np.zeros((3, 0), int)
    assert estimate_spread(seen, np.array([1.0, -3.0, 50.0]), same, 1.0) == (8.0, 1.0)
    assert estimate_spread(seen, np.array([1.0, -3.0, 50.0]), same) == (5.0, 2.5)
    assert estimate_spread(seen, np.array([1.0, -3.0, 50.0]), same, 7.0) == (1e-4, 7.0)
    nobody = seen._replace(known=np.zeros(3, bool))
    assert estimate_spread(nobody, np.zeros(3), same, 0.25) == (1.0, 0.25)
    assert estimate_spread(nobody, np.zeros(3), same, 0.0) == (1.0, 1e-4)


@pytest.mark.parametrize("channel", ["reward", "repeats"])
def test_spread_recovers_what_made_the_data(channel):
    """3,000 items of variance .6, five reports each of variance .3: within 4 errors."""
    rng = np.random.default_rng(0)
    items, reports = 3000, 5
    value = np.sqrt(0.6) * rng.standard_normal(items)
    y = (value[:, None] + np.sqrt(0.3) * rng.standard_normal((items, reports))).ravel()
    features = np.zeros((len(y), 2))
    features[:, 1] = 1
    same = np.column_stack([np.repeat(np.arange(items), reports), np.ones(len(y), int)])
    seen = Evidence(features, y + 2.0, np.ones(len(y), bool))
    found = estimate_spread(seen, y, same, 0.3 if channel == "reward" else None)
    assert abs(found.noise - 0.3) < 4 * 0.3 * np.sqrt(2 / (items * (reports - 1)))
    assert abs(found.item - 0.6) < 4 * 0.7 * np.sqrt(2 / items)


def test_fit_finds_the_noise_of_rewards_without_being_told(monkeypatch):
    """A history of recurring prompts tells a reward's noise within 3 %: 1 per cent an error."""
    bank = synthetic_bank(num_prompts=600, num_test=100)
    task = Task(bank, DirichletUsers(10, 0.05), feedback_model("reward"), prompts_per_episode=2)
    history = record_history(task, num_users=600, seed=0)
    told = Tabular(prior_for(Tabular, task))
    told.fit(history)
    assert told.spread.noise == Reward().noise_sd ** 2
    untold = Tabular(prior_for(Tabular, task))
    untold._noise = None
    untold.fit(history)
    np.testing.assert_allclose(untold.spread.noise, told.spread.noise, rtol=0.03)
    np.testing.assert_allclose(untold.spread.item, told.spread.item, rtol=0.03)
    popular = Popular(prior_for(Popular, task))
    popular.fit(history)
    np.testing.assert_array_equal(told._centre, popular._centre)
    monkeypatch.setattr(Database, "blocks", lambda self: iter([slice(None)]))
    at_once = Tabular(prior_for(Tabular, task))
    at_once.fit(history)
    np.testing.assert_allclose(at_once.spread, told.spread, rtol=1e-6)


def test_in_a_duel_thompson_draws_twice():
    """Of three alike responses two draws agree in a third of 3,000 users, at alpha 1e-4."""
    agent = Tabular(prior_of(num_shown=2, feedback="choice"), explore="thompson")
    agent.reset(3000, np.random.default_rng(0))
    agent.act(look([7] * 3000))
    first, second = agent.act(look([7] * 3000)).T
    assert stats.binomtest(int((first == second).sum()), 3000, 1 / 3).pvalue > 1e-4


# --- the contract, and when it pays -----------------------------------------------------------


@pytest.mark.parametrize("explore", EXPLORE)
def test_contract(explore):
    check_agent(Tabular, explore=explore)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explore": "epsilon"}, "explore must be one of greedy, ucb, thompson, got 'epsilon'"),
        ({"exploration": -0.1}, "exploration"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Tabular(prior_of(), **changes)


def test_late_feedback_goes_to_the_prompt_it_is_about(tasks):
    task = replace(tasks["late"], prompts_per_episode=3, shuffle=False)
    agent = Tabular(prior_for(Tabular, task), explore="greedy")
    agent.reset(1, np.random.default_rng(0))
    features = np.zeros((1, 4, 6))
    first, second = look([7], features), look([8], features)
    agent.act(first)
    agent.act(second)
    agent.update(first, np.array([[2]]), hear(like=[1]))
    slot = agent.belief.slots(np.array([7]))[0]
    assert agent.belief.mean[0, slot].argmax() == 2
    assert not agent.belief.mean[0, agent.belief.slots(np.array([8]))[0]].any()


@pytest.fixture(scope="module")
def task():
    bank = synthetic_bank(num_prompts=3000, num_test=600)
    return Task(bank, DirichletUsers(10, 0.05), feedback_model("reward"))


@pytest.mark.parametrize("explore", EXPLORE)
@pytest.mark.parametrize("kind", ["reward", "choice"])
def test_on_prompts_that_never_recur_it_is_popular(task, explore, kind):
    """Exactly: of every user the interactions at which a prompt comes for the first time."""
    task = replace(
        task, feedback=feedback_model(kind), num_shown=2 if kind == "choice" else 1, horizon=12
    )
    history = record_history(task, num_users=100, seed=0)
    agents = [
        Tabular(prior_for(Tabular, task), explore=explore),
        Popular(task.prior_knowledge()),
    ]
    utility = []
    for agent in agents:
        agent.fit(history)
        utility.append(run(agent, task, num_users=60, seed=1).utility)
    session = Session(task, np.arange(60))
    session.begin(derived_seed(1, "evaluation"))
    prompt = session.episodes.prompt[: task.horizon].T
    new = np.array([[p not in row[:t] for t, p in enumerate(row)] for row in prompt])
    assert new.mean() > 0.9
    np.testing.assert_array_equal(utility[0][new], utility[1][new])


def test_memory_and_exploration_pay_where_prompts_recur(task):
    """One prompt, 50 interactions, 300 users: paired gaps of more than 2.5 standard errors."""
    entrants = [
        Entrant("popular", Popular, {}),
        Entrant("linucb", LinUCB, {}),
        Entrant("linear thompson", LinearThompson, {}),
        *(Entrant(explore, Tabular, {"explore": explore}) for explore in EXPLORE),
    ]
    runs = compare(
        entrants,
        replace(task, prompts_per_episode=1),
        seeds=(0,),
        num_users=300,
        history_users=300,
    ).runs
    mean = {name: done[0].utility.mean(axis=1) for name, done in runs.items()}
    order = [
        ("ucb", "popular"),
        ("greedy", "popular"),
        ("ucb", "greedy"),
        ("ucb", "linear thompson"),
        ("ucb", "linucb"),
    ]
    found = {}
    for better, worse in order:
        gap = mean[better] - mean[worse]
        found[better, worse] = float(gap.mean() / (gap.std() / np.sqrt(len(gap))))
    assert min(found.values()) > 2.5, found
