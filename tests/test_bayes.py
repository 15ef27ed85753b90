"""Exact Bayes: quadrature and posteriors against brute force, drift over all change times."""

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logsumexp

from personalllm_env.agents.bayes import ParticleBayes
from personalllm_env.agents.feature_bayes import FeatureBayes
from personalllm_env.agents.particles import ParticleFilter
from personalllm_env.agents.residual import (
    Rule,
    blunted,
    click_slopes,
    difference,
    enough_nodes,
    gauss_rule,
    mean_of,
)
from personalllm_env.bank import ResponseBank
from personalllm_env.channels import Like, Reward
from personalllm_env.core import weights_at
from personalllm_env.data import load_bank
from personalllm_env.drift import GradualDrift, SuddenDrift
from personalllm_env.feedback import Click, FeedbackModel, feedback_model
from personalllm_env.registry import find_agent
from personalllm_env.runner import Entrant, compare, observe_for
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.testing import check_agent, tiny_bank
from personalllm_env.types import Feedback, Observation
from personalllm_env.users import DirichletUsers, UserPopulation

CROWD = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
DECODER = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])


def residuals(num, seed=0):
    """Returns (num, 3) residuals in two clusters, weak and good, correlated over models."""
    rng = np.random.default_rng(seed)
    weak = rng.random((num, 1)) < 0.4
    shared = np.where(weak, -0.9, 0.6) + 0.2 * rng.standard_normal((num, 1))
    return shared * [1.0, 0.9, 0.5] + 0.2 * rng.standard_normal((num, 3))


def linear_bank(num_prompts=2000, num_responses=4, seed=0):
    """Returns a bank whose residuals are independent draws, as the agent believes."""
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_responses)
    features = rng.standard_normal((*shape, 4)).astype(np.float32)
    left = residuals(num_prompts * num_responses, seed=seed + 1).reshape(*shape, 3)
    return ResponseBank(
        scores=(features @ DECODER + left).astype(np.float32),
        prompt_features=features.mean(axis=1),
        response_features=features,
        reward_models=("a", "b", "c"),
        responders=tuple("pqrs"),
        is_test=np.arange(num_prompts) >= num_prompts // 2,
        name="linear",
    )


BANK = linear_bank()


def crowd_task(feedback, num_shown=1, **settings):
    settings = {"horizon": 4, "shuffle": True, **settings}
    return Task(
        BANK,
        UserPopulation(CROWD),
        feedback_model(feedback),
        num_shown=num_shown,
        **settings,
    )


def feature_bayes(task, residual=None, population=CROWD, **settings):
    residual = residuals(2000, seed=7) if residual is None else residual
    prior = replace(
        task.prior_knowledge(), population=population, decoder=DECODER, residual=residual
    )
    return FeatureBayes(prior, **settings)


def score_bayes(task, population=CROWD, **settings):
    return ParticleBayes(replace(task.prior_knowledge(), population=population), **settings)


def random_play(agent, task, num_users, seed=0, steps=None):
    """Yields session, observation, action and feedback of random actions, after the update."""
    session = Session(task, np.arange(num_users))
    session.begin(seed)
    agent.reset(num_users, np.random.default_rng(0))
    rng, k = np.random.default_rng(1), task.bank.num_responses
    for _ in range(task.horizon if steps is None else steps):
        seen = observe_for(agent, session)
        action = rng.random((num_users, k)).argsort(axis=1)[:, : task.num_shown]
        feedback, _ = session.step(action)
        agent.update(seen, action, feedback)
        yield session, seen, action, feedback


def play(agent, task, num_users, seed=0):
    """Plays an episode out and returns the session."""
    return [session for session, *_ in random_play(agent, task, num_users, seed)][-1]


# --- quadrature -------------------------------------------------------------------------------


def test_gauss_rule_has_the_moments_of_the_sample():
    """G nodes are exact for polynomials up to degree 2 G - 1, and not beyond."""
    sample = residuals(500)
    rule = gauss_rule(sample, CROWD, 4)
    values = sample @ CROWD.T
    for degree in range(8):
        found = (rule.weights.astype(float) * rule.nodes.astype(float) ** degree).sum(axis=0)
        np.testing.assert_allclose(found, (values**degree).mean(axis=0), atol=2e-6)
    beyond = (rule.weights * rule.nodes**8).sum(axis=0)
    assert np.abs(beyond - (values**8).mean(axis=0)).min() > 1e-4
    assert rule.sd == pytest.approx(values.std(axis=0).mean(), rel=1e-5)


def test_gauss_rule_finds_two_points_and_one():
    two = gauss_rule(np.array([[-1.0], [-1.0], [-1.0], [3.0]]), np.ones((1, 1)), 2)
    np.testing.assert_allclose(two.nodes[:, 0], [-1, 3], atol=1e-6)
    np.testing.assert_allclose(two.weights[:, 0], [0.75, 0.25], atol=1e-6)
    one = gauss_rule(np.zeros((1, 3)), CROWD, 8)
    np.testing.assert_array_equal(one.nodes, np.zeros((1, 5)))
    np.testing.assert_array_equal(one.weights, np.ones((1, 5)))


def test_gauss_rule_survives_more_nodes_than_the_sample_has_values():
    rule = gauss_rule(np.repeat([[-1.0], [2.0]], 20, axis=0), np.ones((1, 1)), 6)
    for degree, moment in enumerate([1.0, 0.5, 2.5, 3.5]):
        found = (rule.weights.astype(float) * rule.nodes.astype(float) ** degree).sum()
        assert found == pytest.approx(moment, abs=1e-4)


def test_gauss_rule_over_blocks_of_particles_is_the_same():
    many = np.random.default_rng(0).dirichlet(np.ones(3), size=300)
    whole, part = (gauss_rule(residuals(100), p, 3) for p in (many, many[250:]))
    np.testing.assert_allclose(whole.nodes[:, 250:], part.nodes, rtol=1e-6)


def test_difference_and_mean():
    """Variances of independent sums, within 4 standard errors of the pairing (.02)."""
    sample = residuals(20_000)
    apart, both = difference(sample), mean_of(sample, 2)
    np.testing.assert_allclose(apart.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((apart**3).mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(apart.var(axis=0), 2 * sample.var(axis=0), rtol=0.03)
    np.testing.assert_allclose(both.mean(axis=0), sample.mean(axis=0))
    np.testing.assert_allclose(both.var(axis=0), sample.var(axis=0) / 2, rtol=0.03)


def test_blunted_channels_are_as_sharp_as_the_nodes_allow():
    rule = Rule(np.array([[-1.0], [1.0]]), np.array([[0.5], [0.5]]))  # sd 1, two nodes
    assert blunted(Reward(0.0), rule) == Reward(1.0)
    assert blunted(Reward(1.5), rule) == Reward(1.5)
    assert blunted(Like(0.5, 0.1), rule) == Like(0.5, 0.3)
    cloud = np.random.default_rng(0).standard_normal((4000, 1))  # sd 1
    for channels, nodes in [
        ([Reward(0.5)], 8),
        ([Reward(0.2), Like()], 10),
        ([Like(0, 0)], 16),
    ]:
        assert abs(enough_nodes(channels, cloud, np.ones((1, 1))) - nodes) <= 1
    nothing = Rule(np.zeros((1, 1)), np.ones((1, 1)))
    assert blunted(Reward(0.0), nothing) == Reward(0.0)


# --- posteriors against brute force -----------------------------------------------------------

LEVEL = {
    "reward": lambda said, u: stats.norm.logpdf(said, u, 0.5),
    "like": lambda said, u: np.log(expit((u - 0.5) / 0.25 * (1 if said else -1))),
    "stars": lambda said, u: np.log(
        stats.norm.cdf(_cut(said), u, 0.25) - stats.norm.cdf(_cut(said - 1), u, 0.25) + 1e-300
    ),
}


def _cut(star):
    return np.array([-np.inf, -0.8416, -0.2533, 0.2533, 0.8416, np.inf])[int(star)]


def brute_force(said, decoded, action, residual, crowd=CROWD):
    """Returns log p(said | user) for one row, averaging over every residual in the sample."""
    n = len(residual)
    logs = []
    for user in crowd:
        shown = (decoded[action] @ user).astype(float)
        left = residual @ user
        if "choice" in said:
            gap = left - np.roll(left, 1)
            margins = shown[0] - shown[1] + np.concatenate([gap, -gap])
            logs.append(np.log(expit(said["choice"] * margins / 0.25).mean()))
            continue
        if len(action) == 2:
            left = (left + np.roll(left, 1)) / 2
        each = sum(LEVEL[name](value, shown.mean() + left) for name, value in said.items())
        logs.append(logsumexp(each) - np.log(n))
    return np.array(logs)


@pytest.mark.parametrize(
    ("feedback", "num_shown"),
    [
        (["reward"], 1),
        (["like"], 1),
        (["stars"], 1),
        (["choice"], 2),
        (["reward"], 2),
        (["like", "reward"], 1),
        (["reward", {"silence": {"probability": 0.5}}], 1),
    ],
)
def test_feature_posterior_is_brute_force(feedback, num_shown):
    task, sample = crowd_task(feedback, num_shown), residuals(400, seed=3)
    agent = feature_bayes(task, sample, num_nodes=16)
    total = np.zeros((6, len(CROWD)))
    for _, seen, action, feedback_now in random_play(agent, task, 6):
        decoded = seen.response_features @ DECODER
        for row in np.flatnonzero(feedback_now.heard):
            said = {name: value[row] for name, value in feedback_now.said.items()}
            total[row] += brute_force(said, decoded[row], action[row], sample)
        expected = np.exp(total - logsumexp(total, axis=1, keepdims=True))
        np.testing.assert_allclose(agent.posterior(), expected, rtol=2e-3, atol=1e-4)


def test_normal_residuals_are_conjugate():
    """Reward given a N(m, s**2) residual is N(u + m, s**2 + noise**2), in closed form."""
    z = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    np.random.default_rng(0).shuffle(z)
    sample = 0.3 + 0.7 * np.repeat(z[:, None], 3, axis=1)  # every user has the same residual
    task = crowd_task("reward", horizon=3)
    agent = feature_bayes(task, sample, num_nodes=14)
    total = np.zeros((8, len(CROWD)))
    for _, seen, action, feedback in random_play(agent, task, 8):
        x = np.take_along_axis(seen.response_features, action[:, :, None], axis=1)[:, 0]
        mean, sd = x @ DECODER @ CROWD.T + 0.3, np.hypot(0.7, 0.5)
        total += stats.norm.logpdf(feedback.reward[:, None], mean, sd)
    expected = np.exp(total - logsumexp(total, axis=1, keepdims=True))
    np.testing.assert_allclose(agent.posterior(), expected, rtol=1e-3, atol=1e-4)


def test_a_response_beside_itself_has_one_residual():
    """A choice between the two says nothing; a reward for them is that for one."""
    observation = Observation(
        np.zeros(3, np.int64), BANK.prompt_features[:3], BANK.response_features[:3]
    )
    same = np.array([[1, 1], [0, 0], [2, 2]])
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    reward = np.array([1.0, -1.0, 0.3], np.float32)
    chooser = feature_bayes(crowd_task("choice", 2))
    chooser.reset(3, np.random.default_rng(0))
    chooser.update(observation, same, Feedback(reward, yes, {"choice": np.sign(reward)}, no))
    np.testing.assert_allclose(chooser.posterior(), 1 / len(CROWD))
    posteriors = []
    for num_shown in (1, 2):
        agent = feature_bayes(crowd_task("reward", num_shown))
        agent.reset(3, np.random.default_rng(0))
        heard = Feedback(reward, yes, {"reward": reward}, no)
        agent.update(observation, same[:, :num_shown], heard)
        posteriors.append(agent.posterior())
    np.testing.assert_allclose(*posteriors, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.25, 1.0])
def test_click_slopes_predict_clicks(temperature):
    """Within .04 nats of the truth (2e5 simulated residuals), and better than both extremes."""
    sample, k = residuals(2000), 4
    slopes = click_slopes(sample, CROWD, k, temperature)
    rng, tau = np.random.default_rng(1), max(temperature, 0.01)
    for slope, user in zip(slopes, CROWD, strict=True):
        left = sample @ user
        decoded = 0.7 * rng.standard_normal((40, k))
        race = (decoded[:, None] + rng.choice(left, size=(40, 5000, k))) / tau
        truth = np.exp(race - logsumexp(race, axis=2, keepdims=True)).mean(axis=1)

        def divergence(s, truth=truth, decoded=decoded):
            guess = s * decoded - logsumexp(s * decoded, axis=1, keepdims=True)
            return (truth * (np.log(truth + 1e-300) - guess)).sum(axis=1).mean()

        fitted = divergence(slope / tau)
        assert fitted < 0.04
        assert fitted < min(divergence(1 / tau), divergence(0.3 * slope / tau))


@pytest.mark.parametrize("temperature", [0.0, 0.05, 0.25, 1.0])
def test_without_a_residual_the_click_is_the_channels_own(temperature):
    slopes = click_slopes(np.zeros((5, 3)), CROWD, 4, temperature)
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("feedback", "num_shown"),
    [
        ("reward", 1),
        ({"reward": {"noise_sd": 0.1}}, 1),
        ("like", 1),
        ("stars", 1),
        ("choice", 2),
        ("click", 1),
    ],
)
def test_feature_posterior_is_calibrated(feedback, num_shown):
    """E[posterior of the true user] = E[sum of squared posteriors], within 4 standard errors.

    The users are drawn from the prior and speak in the environment, so that this holds only
    for the right law of features, residuals and what is said.
    """
    b, task = 3000, crowd_task(feedback, num_shown, horizon=3)
    agent = feature_bayes(task)
    session = play(agent, task, b, seed=3)
    posterior = agent.posterior()
    gap = posterior[np.arange(b), session.episodes.user] - (posterior**2).sum(axis=1)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(b)
    assert (posterior**2).sum(axis=1).mean() > 0.23, "something was learnt"


def test_the_true_user_has_a_uniform_rank():
    """Simulation-based calibration (Talts et al. 2018): chi-square over 10 bins, level 1e-4.

    What is ranked is a user's weight on the first reward model among posterior draws.
    """
    b, draws = 3000, 99
    population = np.random.default_rng(5).dirichlet(np.full(3, 0.7), size=400)
    task = replace(crowd_task("reward", horizon=5), population=UserPopulation(population))
    agent = feature_bayes(task, population=population)
    session = play(agent, task, b)
    total = agent.posterior().cumsum(axis=1)
    spots = np.random.default_rng(2).random((b, draws)) * total[:, -1:]
    drawn = np.stack([np.searchsorted(t, s) for t, s in zip(total, spots, strict=True)])
    first = population[:, 0]
    rank = (first[drawn] < first[session.episodes.user][:, None]).sum(axis=1)
    tied = (drawn == session.episodes.user[:, None]).sum(axis=1)
    rank = rank + np.random.default_rng(3).integers(tied + 1)
    counts = np.bincount(rank // 10, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-4, counts


# --- drift ------------------------------------------------------------------------------------


def paths(drift, horizon, users):
    """Yields every course an episode can take: its probability, and the user at each time."""
    if isinstance(drift, SuddenDrift):
        for old in range(users):
            yield (1 - drift.probability) / users, [old] * horizon
        for change, old, new in product(range(1, horizon), range(users), range(users)):
            chance = drift.probability / (horizon - 1) / users**2
            yield chance, [old] * change + [new] * (horizon - change)


@pytest.mark.parametrize("probability", [1.0, 0.6])
@pytest.mark.parametrize("delay", [0, 1, 2])
@pytest.mark.parametrize("b", [8, 1])  # of one user, there are times when nobody speaks
def test_sudden_drift_is_brute_force(b, probability, delay):
    """Against all change times and pairs of users: T = 5, 3 users; also what is still to come.

    Before each act, all that was said up to ``delay`` interactions before the last is known.
    """
    horizon, users = 5, CROWD[:3]
    task = crowd_task(
        ["reward", {"delay": {"interactions": delay}}, {"silence": {"probability": 0.3}}],
        horizon=horizon,
        drift=SuddenDrift(probability),
    )
    agent = score_bayes(task, users)
    prompt = replace(task, feedback=replace(task.feedback, delay=0))
    session = Session(prompt, np.arange(b))  # what was said comes at once, to be handed on late
    session.begin(0)
    agent.reset(b, np.random.default_rng(0))
    past, log_likelihood = [], []
    for t in range(horizon):
        seen = session.observe(scores=True)
        joint = np.zeros((b, 3))
        for chance, path in paths(task.drift, horizon, 3):
            likelihood = np.ones(b)
            for s, each in enumerate(log_likelihood[: max(t - delay, 0)]):
                likelihood = likelihood * np.exp(each[:, path[s]])
            joint[:, path[t]] += chance * likelihood
        expected = joint / joint.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(agent.posterior(), expected, rtol=1e-4, atol=1e-7)
        action = agent.act(seen)
        feedback, _ = session.step(action)
        past.append((seen, action, feedback))
        shown = np.take_along_axis(seen.scores, action[:, :, None], axis=1)[:, 0]
        each = stats.norm.logpdf(feedback.reward[:, None], shown @ users.T, 0.5)
        log_likelihood.append(np.where(feedback.heard[:, None], each, 0.0))
        if t >= delay:
            agent.update(*past[t - delay])


@pytest.mark.parametrize("drift", [SuddenDrift(), SuddenDrift(0.5), GradualDrift(0.8)])
@pytest.mark.parametrize("make", [score_bayes, feature_bayes])
def test_posterior_is_calibrated_under_drift(drift, make):
    """As above, for the user at the next interaction, in the environment's own drift.

    Of gradual drift, for the utility of one response: the posterior mean has no bias against
    any forecast; here against itself: E[(u - m) m] = 0 within 4 standard errors.
    """
    b, task = 3000, crowd_task("reward", horizon=5, drift=drift)
    rng = np.random.default_rng(4)
    crowd = CROWD if isinstance(drift, SuddenDrift) else CROWD[rng.integers(5, size=1000)]
    agent = make(task, population=crowd)
    for step, (session, *_) in enumerate(random_play(agent, task, b, seed=5, steps=4)):
        posterior, truth = agent.posterior(), weights_at(session.episodes, step + 1)
        if isinstance(drift, SuddenDrift):
            at = np.abs(truth[:, None] - CROWD).sum(axis=2).argmin(axis=1)
            gap = posterior[np.arange(b), at] - (posterior**2).sum(axis=1)
        else:
            mean = posterior @ agent._filter.particles(step + 1)
            gap = ((truth - mean) * (mean - mean.mean(axis=0))).sum(axis=1)
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(b)


def test_gradual_drift_is_a_line_between_two_users():
    task = crowd_task("reward", horizon=5, drift=GradualDrift(0.5))
    particles = particle_filter(task)
    np.testing.assert_allclose(particles.particles(0), CROWD, atol=1e-7)
    to = np.roll(CROWD, 1, axis=0)
    np.testing.assert_allclose(particles.particles(4), (CROWD + to) / 2, atol=1e-7)
    np.testing.assert_allclose(particles.particles(2), 0.75 * CROWD + 0.25 * to, atol=1e-7)


@pytest.mark.parametrize(("feedback", "num_shown"), [("like", 1), ("choice", 2)])
def test_nodes_follow_gradual_drift(feedback, num_shown):
    """Brute force over pairs of users, and residuals of whoever they are at the time."""
    task = crowd_task(feedback, num_shown, drift=GradualDrift())
    sample, total = residuals(400, seed=3), np.zeros((6, len(CROWD)))
    agent = feature_bayes(task, sample, num_nodes=16)
    for t, (_, seen, action, feedback_now) in enumerate(random_play(agent, task, 6)):
        decoded = seen.response_features @ DECODER
        crowd = (1 - t / 3) * CROWD + t / 3 * np.roll(CROWD, 1, axis=0)
        for row in range(6):
            said = {name: value[row] for name, value in feedback_now.said.items()}
            total[row] += brute_force(said, decoded[row], action[row], sample, crowd)
        expected = np.exp(total - logsumexp(total, axis=1, keepdims=True))
        np.testing.assert_allclose(agent.posterior(), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("drift", [SuddenDrift(), GradualDrift()])
def test_an_episode_of_one_interaction_has_no_drift(drift):
    task = crowd_task("reward", horizon=1, drift=drift)
    moved, still = score_bayes(task), score_bayes(replace(task, drift=None))
    for agent in (moved, still):
        play(agent, task, 5)
    np.testing.assert_array_equal(moved.posterior(), still.posterior())


# --- what is shown ----------------------------------------------------------------------------


def particle_filter(task, population=CROWD, num_users=1, **settings):
    prior = replace(task.prior_knowledge(), population=population)
    found = ParticleFilter(prior, num_particles=2048, **settings)
    found.reset(num_users, np.random.default_rng(0))
    return found


def test_a_duel_is_between_the_best_and_the_one_that_may_be_better():
    """Means .5, .3, .4 and sds 0, .3, 0 make bounds of .5, .3 + .3 exploration and .4."""
    population = np.array([[1.0, 0.0], [0.0, 1.0]])
    values = np.array([[[0.5, 0.5], [0.6, 0.0], [0.4, 0.4]]], np.float32)
    task = crowd_task("choice", 2, horizon=10)
    for exploration, second in [(0.5, 0), (0.8, 1)]:
        found = particle_filter(task, population, exploration=exploration)
        assert found.choose(values).tolist() == [[0, second]]
    late = particle_filter(task, population, exploration=0.8)
    late.acted = 9  # a tenth of the episode is left
    assert late.choose(values).tolist() == [[0, 0]]


def test_the_best_is_shown_twice_once_it_is_known_or_where_nobody_compares():
    values = np.random.default_rng(0).standard_normal((50, 4, 3)).astype(np.float32)
    duel, rewards = crowd_task("choice", 2), crowd_task("reward", 2)
    for found in (
        particle_filter(duel, np.array([[1.0, 0, 0]]), num_users=50, exploration=100.0),
        particle_filter(rewards, num_users=50, exploration=100.0),
    ):
        mean = found.posterior() @ found.particles(0)
        shown = found.choose(values)
        best = (values * mean[:, None]).sum(axis=2).argmax(axis=1)
        np.testing.assert_array_equal(shown, np.stack([best, best], axis=1))


@pytest.mark.parametrize(
    ("feedback", "num_shown"), [("reward", 1), ("click", 1), ("choice", 2)]
)
def test_in_a_white_box_task_feature_bayes_is_exact_bayes(feedback, num_shown):
    task = crowd_task(feedback, num_shown, white_box=True)
    agents = [feature_bayes(task), score_bayes(task)]
    for agent in agents:
        play(agent, task, 20)
    np.testing.assert_allclose(*(agent.posterior() for agent in agents), rtol=1e-3, atol=1e-6)
    session = Session(task, np.arange(20))
    session.begin(1)
    seen = session.observe()
    np.testing.assert_array_equal(*(agent.act(seen) for agent in agents))


@pytest.mark.parametrize("settings", [{}, {"thompson": True, "num_nodes": 3}])
def test_contract(settings):
    check_agent(FeatureBayes, num_particles=50, **settings)


def test_what_feature_bayes_needs():
    task = crowd_task("reward")
    with pytest.raises(ValueError, match=r"prior\.population, \.decoder and \.residual"):
        FeatureBayes(task.prior_knowledge())
    for make in (score_bayes, feature_bayes):
        with pytest.raises(ValueError, match="num_particles must be finite and at least 1"):
            make(task, num_particles=0)
        with pytest.raises(ValueError, match="exploration must be finite and at least 0"):
            make(task, exploration=-1.0)
    with pytest.raises(ValueError, match="channel 'pick' has none"):
        feature_bayes(replace(task, feedback=FeedbackModel((Pick(),))))


@dataclass(frozen=True)
class Pick:
    """A click whose law has no temperature."""

    name: ClassVar[str] = "pick"
    needs_candidates: ClassVar[bool] = True
    num_shown: ClassVar[int | None] = None

    def __getattr__(self, attribute):
        if attribute == "temperature":
            raise AttributeError(attribute)
        return getattr(Click(), attribute)


# --- who is better ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feedback", "num_shown", "order"),
    [
        ("reward", 1, ["popular", "linucb", "feature-bayes", "decoder-oracle", "exact-bayes"]),
        ("choice", 2, ["popular", "feature-bayes", "decoder-oracle", "exact-bayes"]),
    ],
)
def test_the_limits_of_feature_agents_are_in_order(feedback, num_shown, order):
    """On the synthetic bank, paired over 150 users: each better by over 3 standard errors."""
    task = Task(
        load_bank("synthetic"),
        DirichletUsers(10, 0.05),
        feedback_model(feedback),
        num_shown=num_shown,
    )
    known = {name: find_agent(name).agent_class for name in order if name != "feature-bayes"}
    known["feature-bayes"] = FeatureBayes
    settings = {"feature-bayes": {"num_particles": 512}}
    entrants = [Entrant(name, known[name], settings.get(name, {})) for name in order]
    result = compare(entrants, task, seeds=(0,), num_users=150, history_users=500)
    total = {name: runs[0].utility.sum(axis=1) for name, runs in result.runs.items()}
    for i, worse in enumerate(order[:-1]):
        gain = total[order[i + 1]] - total[worse]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        assert gain.mean() > 3 * error, (
            f"{order[i + 1]} - {worse}: {gain.mean():.2f} {error:.2f}"
        )


def test_knowing_that_users_change_helps():
    """Half-way changes in 60 interactions: better by over 3 standard errors, 150 users."""
    task = Task(
        tiny_bank(num_prompts=600, num_responses=6),
        DirichletUsers(3, 0.1),
        feedback_model("reward"),
        horizon=60,
        drift=SuddenDrift(),
    )

    class Unaware(ParticleBayes):
        def __init__(self, prior):
            super().__init__(replace(prior, drift=None))

    result = compare(
        [Entrant("aware", ParticleBayes, {}), Entrant("unaware", Unaware, {})],
        task,
        seeds=(0,),
        num_users=150,
        history_users=0,
    )
    total = {name: runs[0].utility.sum(axis=1) for name, runs in result.runs.items()}
    gain = total["aware"] - total["unaware"]
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))
