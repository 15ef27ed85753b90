"""Empirical Bayes: exact posteriors, Laplace's against quadrature, planted priors found."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env.agents.empirical_bayes import EmpiricalBayes
from personalllm_env.agents.hearing import Heard, Histories, gather, make_lens, speakers
from personalllm_env.agents.linear import LinUCB
from personalllm_env.agents.mixture_belief import MixtureBelief
from personalllm_env.agents.taste import (
    Gaussian,
    TastePrior,
    condition,
    fit_taste,
    improve,
    quadratic,
    softmax_beside,
)
from personalllm_env.database import Database, record_history
from personalllm_env.drift import SuddenDrift
from personalllm_env.feedback import feedback_model
from personalllm_env.runner import Entrant, compare, observe_for, run
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.testing import check_agent, tiny_bank, tiny_tasks
from personalllm_env.types import Feedback, Observation, PriorKnowledge
from personalllm_env.users import DirichletUsers, UserPopulation

TASKS = tiny_tasks()


def random_prior(rng, *, components=3, inputs=5, rank=3, noise=0.4):
    roots = rng.standard_normal((components, rank, rank))
    return TastePrior(
        rng.standard_normal(inputs),
        rng.standard_normal((inputs, rank)),
        rng.dirichlet(np.full(components, 3.0)),
        rng.standard_normal((components, rank)),
        roots @ roots.swapaxes(1, 2) + 0.2 * np.eye(rank),
        noise,
    )


def ratings(lines, target, known=None):
    """Returns one rating per user of (B, A) lines."""
    known = np.ones(len(target), bool) if known is None else known
    return Heard(lines[:, None], target, known)


def picks(lines):
    """Returns one pick per user of (B, J, A) lines."""
    return Heard(lines, None, np.ones(len(lines), bool))


def started(prior, num_users=1, memory=None):
    belief = MixtureBelief(prior, memory)
    belief.reset(num_users)
    return belief


def prior_of(
    num_features=2, num_responses=3, num_shown=1, feedback="reward", horizon=10, **more
):
    return PriorKnowledge(
        num_responses=num_responses,
        num_shown=num_shown,
        num_features=num_features,
        num_reward_models=2,
        horizon=horizon,
        feedback=feedback_model(feedback),
        responders=tuple("abcdefgh"[:num_responses]),
        shuffled=False,
        **more,
    )


def look(features, user=None):
    features = np.asarray(features, np.float32)
    b, _, d = features.shape
    return Observation(np.zeros(b, np.int64), np.zeros((b, d), np.float32), features, user)


def said(heard=None, **channels):
    channels = {name: np.asarray(v, np.float32) for name, v in channels.items()}
    first = next(iter(channels.values()))
    heard = np.ones(len(first), bool) if heard is None else np.asarray(heard)
    return Feedback(first, heard, channels, np.zeros(len(first), bool))


# --- the belief: ratings ----------------------------------------------------------------------


def test_ratings_are_bayesian_linear_regression():
    rng = np.random.default_rng(1)
    prior = random_prior(rng, components=1)
    prior = prior._replace(centres=np.zeros((1, 3)), covariances=np.eye(3)[None])
    x, y = rng.standard_normal((4, 6, 5)), rng.standard_normal((4, 6))
    belief = started(prior, 4)
    for t in range(6):
        belief.update(ratings(x[:, t], y[:, t]))
    # theta ~ N(mean, axes axes'): singular, so in the form with the inverse of what is seen.
    spread = prior.axes @ prior.axes.T
    for b in range(4):
        gain = spread @ x[b].T @ np.linalg.inv(x[b] @ spread @ x[b].T + 0.4 * np.eye(6))
        mean = prior.mean + gain @ (y[b] - x[b] @ prior.mean)
        covariance = spread - gain @ x[b] @ spread
        np.testing.assert_allclose(prior.mean + prior.axes @ belief.mean()[b], mean)
        found = prior.axes @ belief.covariance()[b] @ prior.axes.T
        np.testing.assert_allclose(found, covariance, atol=1e-12)


def normal_log_density(y, mean, covariance):
    off = y - mean
    return -0.5 * (
        off @ np.linalg.solve(covariance, off)
        + np.linalg.slogdet(covariance)[1]
        + len(y) * np.log(2 * np.pi)
    )


def test_shares_are_marginal_likelihoods():
    rng = np.random.default_rng(2)
    prior = random_prior(rng)
    x, y = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4))
    belief = started(prior, 3)
    for t in range(4):
        belief.update(ratings(x[:, t], y[:, t]))
    for b in range(3):
        z = x[b] @ prior.axes
        log_mass = [
            np.log(w)
            + normal_log_density(y[b], x[b] @ prior.mean + z @ m, z @ s @ z.T + 0.4 * np.eye(4))
            for w, m, s in zip(prior.weights, prior.centres, prior.covariances, strict=True)
        ]
        mass = np.exp(np.array(log_mass) - max(log_mass))
        np.testing.assert_allclose(belief.share()[b], mass / mass.sum(), rtol=1e-9)


def test_conditioning_on_all_at_once_is_updating_one_by_one():
    rng = np.random.default_rng(3)
    prior = random_prior(rng)
    x, y = rng.standard_normal((4, 9, 5)), rng.standard_normal((4, 9))
    belief = started(prior, 4)
    for t in range(9):
        belief.update(ratings(x[:, t], y[:, t]))
    histories = Histories(x[:, :, None], y, np.ones((4, 9), bool))
    heard = quadratic(histories, np.tile(prior.mean, (4, 1)))
    heard = heard.onto(prior.mean, prior.axes, prior.noise)
    known = condition(prior.weights, prior.centres, prior.covariances, heard)
    np.testing.assert_allclose(known.share, belief.share(), rtol=1e-8)
    np.testing.assert_allclose(known.means, belief.means, atol=1e-10)
    np.testing.assert_allclose(known.covariances, belief.covariances, atol=1e-10)


def test_silence_and_users_beyond_a_block_are_kept_apart():
    rng = np.random.default_rng(4)
    prior, b = random_prior(rng), 250  # more than are worked on at once
    x, y, known = rng.standard_normal((b, 5)), rng.standard_normal(b), rng.random(b) < 0.5
    belief, alone = started(prior, b), started(prior, 1)
    belief.update(ratings(x, y, known))
    fresh = started(prior, 1)
    for i in range(b):
        alone.reset(1)
        alone.update(ratings(x[i : i + 1], y[i : i + 1]))
        expected = alone if known[i] else fresh
        np.testing.assert_allclose(belief.means[i], expected.means[0], atol=1e-12)
        np.testing.assert_allclose(belief.covariances[i], expected.covariances[0], atol=1e-12)
        np.testing.assert_allclose(belief.share()[i], expected.share()[0])


def test_moments_and_draws_agree():
    rng = np.random.default_rng(5)
    prior = random_prior(rng, components=4)
    belief = started(prior, 2)
    belief.update(ratings(rng.standard_normal((2, 5)), np.array([1.0, -2.0])))
    n = 200_000
    draws = belief.sample(np.random.default_rng(0), n)
    for b in range(2):
        sd = np.sqrt(np.diag(belief.covariance()[b]))
        assert (np.abs(draws[b].mean(axis=0) - belief.mean()[b]) < 4 * sd / n**0.5).all()
        # Of a covariance of two normals of sd 1 the error is at most sqrt(2 / n); a mixture's
        # tails make it less than twice that here.
        off = np.abs(np.cov(draws[b].T) - belief.covariance()[b]) / np.outer(sd, sd)
        assert off.max() < 4 * 2 * (2 / n) ** 0.5


# --- the belief: picks ------------------------------------------------------------------------


def laplace_errors(prior, lines):
    """Returns how far an updated component is from the mode and the inverse Hessian."""
    belief = started(prior, 1)
    belief.update(picks(lines[None]))
    inverse = np.linalg.inv(prior.covariances[0])
    z, z_mean = lines @ prior.axes, belief.means[0, 0]
    chance = softmax_beside(lines @ prior.mean + z @ z_mean)
    # d/dz of the log density: -inverse (z - centre) - z' chance; times the covariance.
    score = -(z_mean - prior.centres[0]) - prior.covariances[0] @ z.T @ chance
    curvature = z.T @ (np.diag(chance) - np.outer(chance, chance)) @ z
    covariance = np.linalg.inv(inverse + curvature)
    return np.abs(score).max(), np.abs(belief.covariances[0, 0] - covariance).max()


@given(
    others=st.sampled_from([1, 2, 7]),
    seed=st.integers(0, 10**6),
    scale=st.floats(-2, 2),
    far=st.floats(-2, 2.5),
)
@settings(max_examples=150, deadline=None)
def test_picks_end_at_the_mode(others, seed, scale, far):
    """Prior margins up to several hundred either way, of variances up to several thousand."""
    rng = np.random.default_rng(seed)
    prior = random_prior(rng, components=1)
    prior = prior._replace(mean=10**far * prior.mean)
    prior = prior._replace(covariances=10**scale * prior.covariances / 5)
    lines = rng.standard_normal((others, 5))
    with np.errstate(all="raise", under="ignore"):
        score, off = laplace_errors(prior, lines)
    size = 1 + 10**scale
    assert score < 1e-6 * size
    assert off < 1e-6 * size


def test_a_pick_against_all_expectation_is_believed():
    """Full Newton steps from a margin of 50 with variance 100 would swing for ever."""
    prior = TastePrior(
        np.array([50.0]),
        np.array([[10.0]]),
        np.ones(1),
        np.zeros((1, 1)),
        np.ones((1, 1, 1)),
        1.0,
    )
    belief = started(prior)
    belief.update(picks(np.ones((1, 1, 1))))
    margin = 50 + 10 * belief.means[0, 0, 0]
    assert margin == pytest.approx(50 - 100 / (1 + np.exp(-margin)), abs=1e-6)
    assert abs(margin) < 0.1


@pytest.mark.parametrize(("sd", "error"), [(0.3, 0.001), (1.0, 0.02), (3.0, 0.15)])
def test_evidence_of_one_pick(sd, error):
    """The more that is left open beforehand, the less normal the posterior is."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    for margin in (-3.0, -1.0, 0.0, 0.5, 2.0):
        prior = TastePrior(
            np.array([margin]),
            np.array([[sd]]),
            np.ones(1),
            np.zeros((1, 1)),
            np.ones((1, 1, 1)),
            1.0,
        )
        belief = started(prior)
        belief.update(picks(np.ones((1, 1, 1))))
        exact = np.log(weights / weights.sum() @ (1 / (1 + np.exp(margin + sd * nodes))))
        assert belief.log_share[0, 0] == pytest.approx(exact, abs=error)


def test_evidence_of_a_click():
    """Of three, two others' margins correlated; 40 x 40 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / weights.sum() ** 2
    prior = TastePrior(
        np.array([0.4, -0.3]),
        np.array([[0.8, 0.0], [0.3, 0.6]]),
        np.ones(1),
        np.zeros((1, 2)),
        np.eye(2)[None],
        1.0,
    )
    belief = started(prior)
    belief.update(picks(np.eye(2)[None]))
    s = prior.mean + grid @ prior.axes.T
    exact = np.log(mass @ (1 / (1 + np.exp(s).sum(axis=1))))
    assert belief.log_share[0, 0] == pytest.approx(exact, abs=0.01)


def test_a_pick_moves_weight_to_who_would_pick_it():
    prior = TastePrior(
        np.zeros(1),
        np.ones((1, 1)),
        np.full(2, 0.5),
        np.array([[2.0], [-2.0]]),
        np.full((2, 1, 1), 0.01),
        1.0,
    )
    belief = started(prior)
    belief.update(picks(np.ones((1, 1, 1))))  # the other was worth more to the first kind
    expected = 1 / (1 + np.exp(2.0))  # sigmoid(-2) / (sigmoid(-2) + sigmoid(2))
    assert belief.share()[0, 0] == pytest.approx(expected, abs=0.002)


def test_softmax_beside_does_not_overflow():
    margins = np.array([[0.0, 0.0], [800.0, 0.0], [-800.0, -900.0]])
    expected = [[1 / 3, 1 / 3], [1.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(softmax_beside(margins), expected, atol=1e-300)


# --- forgetting -------------------------------------------------------------------------------


def test_forgetting_returns_to_the_prior():
    rng = np.random.default_rng(6)
    prior = random_prior(rng)
    belief = started(prior, 2, memory=5.0)
    x = rng.standard_normal((2, 5))
    belief.update(ratings(x, np.array([3.0, -3.0])))
    after = np.linalg.inv(belief.covariances) - np.linalg.inv(prior.covariances)
    share, silence = belief.log_share.copy(), np.zeros(2, bool)
    for _ in range(5):
        belief.update(ratings(x, np.zeros(2), silence))
    left = np.linalg.inv(belief.covariances) - np.linalg.inv(prior.covariances)
    np.testing.assert_allclose(left, after / np.e, atol=1e-10)
    base = np.log(prior.weights)
    np.testing.assert_allclose(belief.log_share - base, (share - base) / np.e)
    for _ in range(200):
        belief.update(ratings(x, np.zeros(2), silence))
    np.testing.assert_allclose(belief.means, np.tile(prior.centres, (2, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(belief.covariances[1], prior.covariances, atol=1e-9)
    np.testing.assert_allclose(belief.share()[0], prior.weights)


def test_no_memory_is_nothing_forgotten():
    rng = np.random.default_rng(7)
    belief = started(random_prior(rng), 1)
    x = rng.standard_normal((1, 5))
    belief.update(ratings(x, np.ones(1)))
    kept = belief.means.copy(), belief.covariances.copy(), belief.log_share.copy()
    for _ in range(50):
        belief.update(ratings(x, np.zeros(1), np.zeros(1, bool)))
    for before, now in zip(
        kept, (belief.means, belief.covariances, belief.log_share), strict=True
    ):
        np.testing.assert_array_equal(before, now)


def test_users_who_drift_are_forgotten_over_half_the_horizon():
    agents = [
        EmpiricalBayes(prior_of(horizon=40, drift=SuddenDrift())),
        EmpiricalBayes(prior_of(horizon=40), memory=20.0),
        EmpiricalBayes(prior_of(horizon=40)),
    ]
    rng = np.random.default_rng(8)
    x = rng.standard_normal((20, 1, 3, 2))
    for agent in agents:
        agent.reset(1, np.random.default_rng(0))
        for t in range(20):
            agent.update(look(x[t]), np.zeros((1, 1), np.int64), said(reward=[float(t)]))
    means = [agent._belief.mean() for agent in agents]
    np.testing.assert_array_equal(means[0], means[1])
    assert np.abs(means[0] - means[2]).max() > 0.01


# --- what was said ----------------------------------------------------------------------------

X = np.array([[[1.0, 2.0], [3.0, 5.0], [-1.0, 0.0]]])  # one user, three candidates


def hear(feedback, action, spoken, num_shown=1, database=None):
    lens = make_lens(prior_of(num_shown=num_shown, feedback=feedback), database)
    return lens.hear(X.astype(np.float32), np.array([action]), spoken)


@pytest.mark.parametrize(
    ("feedback", "action", "spoken", "lines", "target"),
    [
        ("reward", [1], said(reward=[0.7]), [[3, 5, 1]], 0.7),
        ("stars", [0], said(stars=[5.0]), [[1, 2, 1]], 2 / 2**0.5),
        ("like", [1], said(like=[1.0]), [[-3, -5, -1]], None),
        ("like", [1], said(like=[0.0]), [[3, 5, 1]], None),
        ("choice", [0, 1], said(choice=[1.0]), [[2, 3]], None),
        ("choice", [0, 1], said(choice=[-1.0]), [[-2, -3]], None),
        ("click", [0], said(click=[1.0]), [[-4, -5], [-2, -3]], None),
        (["choice", "reward"], [0, 1], said(choice=[1.0], reward=[0.3]), [[2, 3.5, 1]], 0.3),
        (["like", "click"], [0], said(like=[1.0], click=[2.0]), [[2, 2], [4, 5]], None),
        (["like", "stars"], [0], said(like=[0.0], stars=[3.0]), [[1, 2, 1]], 0.0),
    ],
)  # fmt: skip
def test_hearing(feedback, action, spoken, lines, target):
    heard = hear(feedback, action, spoken, num_shown=len(action))
    np.testing.assert_allclose(heard.lines[0], lines)
    assert heard.known.tolist() == [True]
    assert (heard.target is None) == (target is None)
    if target is not None:
        assert heard.target[0] == pytest.approx(target)


def test_hearing_silence():
    for feedback, channels in (("reward", {"reward": [0.0]}), ("click", {"click": [0.0]})):
        assert not hear(feedback, [0], said(heard=[False], **channels)).known.any()


def make_database(user, features, heard=None, action=None, identity=None, **channels):
    n = len(user)
    heard = np.ones(n, bool) if heard is None else np.asarray(heard)
    action = np.zeros((n, 1), np.int64) if action is None else np.asarray(action)
    features = np.asarray(features, np.float32)
    channels = {name: np.asarray(v, np.float32) for name, v in channels.items()}
    return Database(
        user=np.asarray(user),
        prompt=np.arange(n) % len(features),
        action=action,
        reward=next(iter(channels.values())),
        heard=heard,
        said=channels,
        prompt_features=features.mean(axis=1),
        response_features=features,
        identity=None if identity is None else np.asarray(identity),
    )


@pytest.mark.parametrize("name", ["silence", "leaving", "click", "duel", "like"])
def test_gathering_is_a_loop_over_interactions(name, monkeypatch):
    monkeypatch.setattr("personalllm_env.agents.hearing._BLOCK", 7)
    task = TASKS[name]
    database = record_history(task, num_users=30, seed=3)
    lens = make_lens(task.prior_knowledge(), database)
    users = speakers(database)[3:20]
    histories = gather(database, lens, users)
    for row, user in enumerate(users):
        expected, targets = [], []
        for i in np.flatnonzero((database.user == user) & database.heard):
            one = slice(i, i + 1)
            inputs = database.inputs[database.prompt[one]]
            heard = lens.hear(inputs, database.action[one], database.feedback(one))
            expected.append(heard.lines[0])
            targets.append(None if heard.target is None else heard.target[0])
        n = len(expected)
        assert histories.known[row].sum() == histories.known[row, :n].sum() == n > 0
        np.testing.assert_allclose(histories.lines[row, :n], expected, atol=1e-12)
        assert not histories.lines[row, n:].any()
        if histories.target is not None:
            np.testing.assert_allclose(histories.target[row, :n], targets)
            assert not histories.target[row, n:].any()


def test_who_is_silent_or_left_is_left_out():
    database = make_database(
        [0, 0, 1, 3, 3, 3],
        np.arange(12.0).reshape(2, 3, 2),
        heard=[True, False, False, False, True, True],
        reward=[1.0, 0.0, 0.0, 0.0, 2.0, 3.0],
    )
    assert speakers(database).tolist() == [0, 3]
    histories = gather(database, make_lens(prior_of(), database), speakers(database))
    assert histories.known.tolist() == [[True, False], [True, True]]
    assert histories.target.tolist() == [[1.0, 0.0], [2.0, 3.0]]


def test_wide_inputs_are_seen_along_their_principal_axes():
    rng = np.random.default_rng(9)
    spread = np.concatenate([np.full(10, 3.0), np.full(90, 0.01)])
    turn = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    features = (rng.standard_normal((60, 3, 100)) * spread) @ turn + 5.0
    database = make_database(np.repeat(np.arange(6), 10), features, reward=np.ones(60))
    lens = make_lens(prior_of(num_features=100), database)
    assert lens.axes.shape == (100, 64)
    np.testing.assert_allclose(lens.axes.T @ lens.axes, np.eye(64), atol=1e-8)
    seen = lens.see(features)
    assert seen.shape == (60, 3, 65)
    assert (seen[..., -1] == 1).all()
    assert np.abs(seen[..., :64].mean(axis=(0, 1))).max() < 1e-5
    sd = seen[..., :64].std(axis=(0, 1))
    assert (np.diff(sd) < 1e-6).all()  # the widest first
    assert sd[9] > 1
    assert sd[10] < 0.1
    # An agent that is fitted on such a history acts.
    agent = EmpiricalBayes(prior_of(num_features=100))
    agent.fit(database)
    agent.reset(4, rng)
    assert agent.act(look(features[:4])).shape == (4, 1)


# --- the prior --------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [1, 3])
def test_the_quadratic_of_picks_has_the_derivatives_of_the_log_likelihood(others):
    rng = np.random.default_rng(10)
    lines = rng.standard_normal((70, 4, others, 3))  # more users than are expanded at once
    known = rng.random((70, 4)) < 0.8
    known[:, 0] = True
    lines *= known[:, :, None, None]
    at = rng.standard_normal((70, 3))
    found = quadratic(Histories(lines, None, known), at)

    def log_likelihood(theta):
        s = np.einsum("unja,ua->unj", lines, theta)
        return -(known * np.log1p(np.exp(s).sum(axis=2))).sum(axis=1)

    step = 1e-4 * np.eye(3)
    slope = np.stack(
        [(log_likelihood(at + d) - log_likelihood(at - d)) / 2e-4 for d in step], -1
    )
    np.testing.assert_allclose(
        found.linear - np.einsum("uab,ub->ua", found.precision, at), slope, atol=1e-6
    )
    for i, d in enumerate(step):
        for j, e in enumerate(step):
            bend = log_likelihood(at + d + e) - log_likelihood(at + d - e)
            bend -= log_likelihood(at - d + e) - log_likelihood(at - d - e)
            np.testing.assert_allclose(found.precision[:, i, j], -bend / 4e-8, atol=1e-5)


def plant(kind, rng, *, users=2000, each=20, centres=None):
    """Returns histories of users with planted tastes on 3 axes, and mean and covariance."""
    mean = np.array([0.5, -0.3, 0.8])
    root = np.array([[1.0, 0, 0], [0.5, 0.7, 0], [-0.2, 0.3, 0.4]])
    taste = mean + rng.standard_normal((users, 3)) @ root.T
    if centres is not None:
        which = rng.random(users) < 0.3
        taste = np.where(which[:, None], *centres) + 0.3 * rng.standard_normal((users, 3))
    known = np.ones((users, each), bool)
    if kind == "ratings":
        x = rng.standard_normal((users, each, 3))
        y = np.einsum("una,ua->un", x, taste) + 0.7 * rng.standard_normal((users, each))
        return Histories(x[:, :, None], y, known), mean, root @ root.T
    k = {"click": 8, "choice": 2}[kind]
    x = rng.standard_normal((users, each, k, 3))
    utility = np.einsum("unka,ua->unk", x, taste) + rng.gumbel(size=(users, each, k))
    order = np.argsort(-utility, axis=2)[..., None]
    x = np.take_along_axis(x, order, axis=2)
    return Histories(x[:, :, 1:] - x[:, :, :1], None, known), mean, root @ root.T


def log_evidence(prior, histories):
    """Returns the exact marginal log likelihood of ratings."""
    x, y = histories.lines[:, :, 0], histories.target
    total = 0.0
    for a, b in zip(x, y, strict=True):
        covariance = a @ prior.covariance @ a.T + prior.noise * np.eye(len(b))
        total += normal_log_density(b, a @ prior.mean, covariance)
    return total


@pytest.mark.parametrize("start", [0.001, 0.1, 10.0])
def test_a_step_never_makes_ratings_less_likely(start):
    rng = np.random.default_rng(11)
    histories, _, _ = plant("ratings", rng, users=40, each=6)
    heard = quadratic(histories, np.zeros((40, 3)))
    square, prior = (
        float((histories.target**2).sum()),
        Gaussian(np.zeros(3), start * np.eye(3), 1.0),
    )
    found = [log_evidence(prior, histories)]
    for _ in range(25):
        prior, _ = improve(prior, heard, (square, 240))
        found.append(log_evidence(prior, histories))
    assert (np.diff(found) > -1e-9 * abs(found[0])).all()
    assert found[-1] - found[0] > 5
    assert found[-1] - found[-2] < 0.01


def test_a_step_by_hand():
    """Two users, one rating each of the one input 1; shrinkage v / (v + noise) = 1 / 2."""
    histories = Histories(
        np.ones((2, 1, 1, 1)), np.array([[3.0], [-1.0]]), np.ones((2, 1), bool)
    )
    heard = quadratic(histories, np.zeros((2, 1)))
    found, own = improve(Gaussian(np.zeros(1), np.full((1, 1), 0.5), 0.5), heard, (10.0, 2))
    np.testing.assert_allclose(own, [[1.5], [-0.5]])  # each with variance 1 / 4
    factor = (3 * 1.5 + 1 * 0.5) / (1.5**2 + 0.5**2 + 2 / 4)
    assert found.mean[0] == pytest.approx(factor * 0.5)
    assert found.covariance[0, 0] == pytest.approx(factor**2 * (1 / 4 + 1.0))
    left = (3 - factor * 1.5) ** 2 + (-1 + factor * 0.5) ** 2 + factor**2 * 2 / 4
    assert found.noise == pytest.approx(left / 2)


@pytest.mark.parametrize(
    ("kind", "users", "each", "size", "spread"),
    [
        ("ratings", 2000, 20, (0.95, 1.05), (0.94, 1.06)),
        ("click", 2000, 20, (0.90, 0.99), (0.80, 0.90)),
        ("choice", 2000, 20, (0.75, 0.90), (0.50, 0.65)),
        ("click", 500, 100, (0.87, 1.05), (0.88, 1.05)),
        ("choice", 500, 100, (0.83, 1.00), (0.78, 0.95)),
    ],
)
def test_a_planted_prior_is_found(kind, users, each, size, spread):
    """Laplace's approximation draws picks' tastes towards 0, the less the more was said.

    As shares of what was planted, of the mean and of the trace of the covariance: sampling
    errors are .02 of either for 2,000 users and .05 for 500.
    """
    rng = np.random.default_rng(12)
    histories, mean, covariance = plant(kind, rng, users=users, each=each)
    prior = fit_taste(histories, rank=3, components=1)
    found = prior.axes @ prior.axes.T
    assert size[0] < prior.mean @ mean / (mean @ mean) < size[1]
    assert spread[0] < np.trace(found) / np.trace(covariance) < spread[1]
    cosine = prior.mean @ mean / np.linalg.norm(prior.mean) / np.linalg.norm(mean)
    assert cosine > 0.99
    shape = found / np.trace(found) - covariance / np.trace(covariance)
    assert np.abs(shape).max() < 0.06
    assert prior.noise == pytest.approx(0.49 if kind == "ratings" else 1.0, abs=0.02)


@pytest.mark.parametrize("kind", ["ratings", "click"])
def test_planted_clusters_are_found(kind):
    centres = np.array([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0]])
    histories, _, _ = plant(kind, np.random.default_rng(13), users=1000, centres=centres)
    prior = fit_taste(histories, rank=3, components=2)
    order = np.argsort(prior.weights)
    found = prior.mean + prior.centres[order] @ prior.axes.T
    np.testing.assert_allclose(prior.weights[order], [0.3, 0.7], atol=0.05)
    # Of picks the centres are drawn towards 0 (see above).
    np.testing.assert_allclose(found, centres, atol=0.05 if kind == "ratings" else 0.25)


def test_the_axes_kept_are_those_that_explain_most():
    """Users differ most along the first axis, which matters least: inputs hardly vary there."""
    rng = np.random.default_rng(14)
    taste = rng.standard_normal((500, 3)) * [3.0, 1.0, 0.1]
    x = rng.standard_normal((500, 20, 3)) * [0.01, 1.0, 1.0]
    y = np.einsum("una,ua->un", x, taste) + 0.3 * rng.standard_normal((500, 20))
    prior = fit_taste(
        Histories(x[:, :, None], y, np.ones((500, 20), bool)), rank=1, components=1
    )
    assert prior.axes.shape == (3, 1)
    assert abs(prior.axes[1, 0]) == pytest.approx(1.0, abs=0.1)


def test_constant_ratings_leave_nothing_to_learn():
    rng = np.random.default_rng(15)
    x = np.concatenate([rng.standard_normal((20, 5, 2)), np.ones((20, 5, 1))], -1)
    histories = Histories(x[:, :, None], np.full((20, 5), 2.0), np.ones((20, 5), bool))
    prior = fit_taste(histories, rank=3, components=3)
    np.testing.assert_allclose(prior.mean, [0, 0, 2.0], atol=0.01)
    assert np.isfinite(prior.covariances).all()


# --- the agent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"components": 1},
        {},
        {"explore": "thompson", "components": 2},
        {"explore": "ucb", "components": 2},
        {"memory": 5.0, "components": 2},
    ],
)
def test_contract(settings):
    check_agent(EmpiricalBayes, **settings)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("components", 0),
        ("components", 2.5),
        ("explore", "wildly"),
        ("width", -1.0),
        ("rank", 0),
        ("rank", 1.5),
        ("memory", 0.5),
        ("memory", float("nan")),
        ("most_users", 0),
        ("most_users", 1.5),
    ],
)
def test_bad_settings_are_named(setting, value, unchecked_shapes):
    with pytest.raises(ValueError, match=setting):
        EmpiricalBayes(prior_of(), **{setting: value})


def test_what_says_nothing_of_a_linear_taste_is_refused(unchecked_shapes):
    class Shout:
        name = "shout"

    prior = prior_of()
    feedback = replace(prior.feedback, channels=(Shout(),))
    with pytest.raises(ValueError, match="through shout"):
        EmpiricalBayes(replace(prior, feedback=feedback))


@pytest.mark.parametrize("name", ["reward", "click", "duel"])
def test_a_history_in_which_nobody_said_anything_teaches_nothing(name):
    task = replace(TASKS[name], feedback=replace(TASKS[name].feedback, silence=None))
    database = record_history(task, num_users=5, seed=0)
    mute = replace(
        database,
        heard=np.zeros_like(database.heard),
        reward=np.zeros_like(database.reward),
        said={c: np.zeros_like(v) for c, v in database.said.items()},
    )
    fitted, fresh = (EmpiricalBayes(task.prior_knowledge()) for _ in range(2))
    fitted.fit(mute)
    runs = [run(agent, task, num_users=4, seed=1) for agent in (fitted, fresh)]
    np.testing.assert_array_equal(runs[0].utility, runs[1].utility)


@pytest.mark.parametrize("name", ["reward", "click", "duel", "like", "stars"])
@pytest.mark.parametrize("said_once", [False, True])
def test_a_history_of_one_user(name, said_once):
    task = TASKS[name]
    database = record_history(task, num_users=1, seed=0)
    if said_once:
        database = replace(database, heard=np.arange(len(database.user)) == 3)
    agent = EmpiricalBayes(task.prior_knowledge())
    agent.fit(database)
    assert np.isfinite(run(agent, task, num_users=4, seed=1).utility).all()


def test_the_first_users_silent_do_not_count_among_the_most():
    task = TASKS["reward"]
    database = record_history(task, num_users=20, seed=0)
    late = replace(database, heard=database.user >= 10)
    only = replace(database, user=np.where(late.heard, database.user - 10, 0), heard=late.heard)
    few, all_of_them = (
        EmpiricalBayes(task.prior_knowledge(), most_users=10, components=2) for _ in range(2)
    )
    few.fit(late)
    order = np.argsort(only.user, kind="stable")
    keep = order[only.heard[order]]
    dense = replace(
        database,
        user=only.user[keep],
        prompt=database.prompt[keep],
        action=database.action[keep],
        reward=database.reward[keep],
        heard=np.ones(len(keep), bool),
        said={c: v[keep] for c, v in database.said.items()},
    )
    all_of_them.fit(dense)
    a, b = few._belief.prior, all_of_them._belief.prior
    assert a.noise == pytest.approx(b.noise, rel=0.05)  # only what they were offered differs
    np.testing.assert_allclose(a.mean[:-1], b.mean[:-1], atol=0.02)


def test_scores_are_what_a_white_box_agent_regresses_on():
    task = replace(TASKS["reward"], white_box=True)
    agent = EmpiricalBayes(task.prior_knowledge(), components=1)
    agent.fit(record_history(task, num_users=200, seed=0))
    assert agent._lens.axes.shape == (3, 3)
    # Rewards are exactly linear in scores, with noise of sd .5.
    assert agent._belief.prior.noise == pytest.approx(0.25, abs=0.03)
    assert np.isfinite(run(agent, task, num_users=4, seed=1).utility).all()


def test_unfitted_it_learns_from_its_user():
    task = replace(TASKS["reward"], horizon=60)
    agent = EmpiricalBayes(task.prior_knowledge())
    regret = run(agent, task, num_users=100, seed=0).regret
    early, late = regret[:, :5].mean(axis=1), regret[:, 40:].mean(axis=1)
    gain = early - late
    assert gain.mean() > 4 * gain.std() / 10


# --- returning users --------------------------------------------------------------------------


def returning(feedback, weights):
    users = UserPopulation(np.asarray(weights, np.float32))
    shown = 2 if feedback == "choice" else 1
    return Task(
        tiny_bank(), users, feedback_model(feedback), horizon=8, num_shown=shown, recognise=True
    )


def relive(agent, database, users):
    """Updates a fresh belief with what some historical users said, one at a time."""
    belief = MixtureBelief(agent._belief.prior)
    belief.reset(1)
    for i in np.flatnonzero(np.isin(database.user, users)):
        one = slice(i, i + 1)
        inputs = database.inputs[database.prompt[one]]
        belief.update(agent._lens.hear(inputs, database.action[one], database.feedback(one)))
    return belief


@pytest.mark.parametrize(
    ("feedback", "error"), [("reward", 1e-8), ("click", 0.15), ("choice", 0.15)]
)
def test_who_returns_is_known(feedback, error, monkeypatch):
    """Exact for ratings; picks are expanded at the end, not one by one (in sds)."""
    monkeypatch.setattr("personalllm_env.agents.empirical_bayes._USERS_AT_ONCE", 7)
    weights = np.random.default_rng(16).dirichlet(np.full(3, 0.3), size=20)
    task = returning(feedback, weights)
    database = record_history(task, num_users=30, seed=0)  # the first ten come twice
    np.testing.assert_array_equal(database.identity, np.arange(30) % 20)
    agent = EmpiricalBayes(task.prior_knowledge(), components=2)
    agent.fit(database)
    agent.reset(3, np.random.default_rng(0))
    user = np.array([2, 15, 77])  # twice, once, never
    rng = np.random.default_rng(1)
    agent.act(look(rng.standard_normal((3, 4, 6)), user))
    fresh = MixtureBelief(agent._belief.prior)
    fresh.reset(1)
    expected = [relive(agent, database, [2, 22]), relive(agent, database, [15]), fresh]
    for b, belief in enumerate(expected):
        sd = np.sqrt(np.diag(belief.covariance()[0]))
        off = np.abs(agent._belief.mean()[b] - belief.mean()[0]) / sd
        assert off.max() < error
    far = np.abs(agent._belief.mean()[1] - fresh.mean()[0]).max()
    assert far > 0.3  # what was remembered matters


def test_users_are_met_once():
    weights = np.random.default_rng(17).dirichlet(np.full(3, 0.3), size=5)
    task = returning("reward", weights)
    agent = EmpiricalBayes(task.prior_knowledge(), components=2)
    agent.fit(record_history(task, num_users=5, seed=0))
    agent.reset(1, np.random.default_rng(0))
    seen = look(np.random.default_rng(1).standard_normal((1, 4, 6)), np.array([3]))
    action = agent.act(seen)
    agent.update(seen, action, said(reward=[2.0]))
    learnt = agent._belief.mean().copy()
    agent.act(seen)
    np.testing.assert_array_equal(learnt, agent._belief.mean())


def test_history_of_strangers_forgets_who_was_known():
    weights = np.random.default_rng(18).dirichlet(np.full(3, 0.3), size=5)
    task = returning("reward", weights)
    agent = EmpiricalBayes(task.prior_knowledge(), components=2)
    database = record_history(task, num_users=5, seed=0)
    agent.fit(database)
    agent.fit(replace(database, identity=None))
    agent.reset(1, np.random.default_rng(0))
    agent.act(look(np.zeros((1, 4, 6)), np.array([3])))
    np.testing.assert_allclose(agent._belief.mean(), started(agent._belief.prior).mean())


# --- how it acts ------------------------------------------------------------------------------


def agent_that_believes(mean, variance, **how):
    """Returns an agent, unfitted, whose belief is N(mean, diag(variance)) on two features."""
    num_shown = how.pop("num_shown", 1)
    channel = "choice" if num_shown == 2 else "reward"
    agent = EmpiricalBayes(prior_of(num_shown=num_shown, feedback=channel), **how)
    a = agent._lens.axes.shape[1] + agent._lens.level
    centre, spread = np.zeros(a), np.full(a, 1e-12)
    centre[:2], spread[:2] = mean, variance
    prior = TastePrior(
        np.zeros(a), np.eye(a), np.ones(1), centre[None], np.diag(spread)[None], 1.0
    )
    agent._belief = MixtureBelief(prior)
    return agent


FEATURES = np.array([[[1.0, 0.0], [0.0, 1.0], [0.4, 0.4]]])


@pytest.mark.parametrize(
    ("explore", "width", "shown"), [("greedy", 9.0, 0), ("ucb", 0.1, 0), ("ucb", 1.0, 1)]
)
def test_upper_confidence_bounds(explore, width, shown):
    """Values 1, .5, .6 and sds .1, 2, .8: the second passes at a width of .5 / 1.9."""
    agent = agent_that_believes([1.0, 0.5], [0.01, 4.0], explore=explore, width=width)
    agent.reset(1, np.random.default_rng(0))
    assert agent.act(look(FEATURES)).tolist() == [[shown]]


@pytest.mark.parametrize(("width", "second"), [(0.0, 0), (0.2, 0), (0.26, 1)])
@pytest.mark.parametrize("explore", ["greedy", "ucb"])
def test_duels(explore, width, second):
    """The second is .5 behind, +- 2.0025, and passes at .2497; the third .4 behind, +- .88."""
    agent = agent_that_believes(
        [1.0, 0.5], [0.01, 4.0], explore=explore, width=width, num_shown=2
    )
    agent.reset(1, np.random.default_rng(0))
    assert agent.act(look(FEATURES)).tolist() == [[0, second]]


def test_thompson_shows_each_as_often_as_it_is_best():
    agent = agent_that_believes([0.3, 0.0], [1.0, 1.0], explore="thompson", num_shown=2)
    n = 20_000
    agent.reset(n, np.random.default_rng(1))
    features = np.tile([[[1.0, 0.0], [0.0, 1.0], [-9.0, -9.0]]], (n, 1, 1))
    features[:, 2] = [0.0, 0.0]
    draws = np.random.default_rng(2).normal([0.3, 0.0], 1.0, (10**6, 2))
    best = np.concatenate([draws, np.zeros((10**6, 1))], 1).argmax(axis=1)
    expected = np.bincount(best, minlength=3) / 10**6
    shown = agent.act(look(features))
    for s in range(2):  # both places, drawn independently
        share = np.bincount(shown[:, s], minlength=3) / n
        assert np.abs(share - expected).max() < 4 * 0.5 / n**0.5
    both = (shown[:, 0] == shown[:, 1]).mean()
    assert both == pytest.approx((expected**2).sum(), abs=4 * 0.5 / n**0.5)


@pytest.mark.parametrize("explore", ["greedy", "thompson", "ucb"])
@pytest.mark.parametrize("k", [3, 8])
def test_twins_are_shown_equally_often(explore, k):
    n, rng = 4000, np.random.default_rng(3)
    agent = EmpiricalBayes(prior_of(num_features=6, num_responses=k), explore=explore)
    agent.reset(n, rng)
    features = 0.01 * rng.standard_normal((n, k, 6))
    features[:, [0, k - 1]] = rng.standard_normal((n, 1, 6))
    action = np.zeros((n, 1), np.int64)
    agent.update(look(features), action, said(reward=np.full(n, 5.0)))
    shown = agent.act(look(features))[:, 0]
    first, last = (shown == 0).sum(), (shown == k - 1).sum()
    assert first + last > 0.5 * n
    assert abs(first - last) < 4 * (first + last) ** 0.5


def test_it_beats_linucb():
    from personalllm_env.data import load_bank

    bank = load_bank("synthetic")
    users = DirichletUsers(bank.num_reward_models, 0.05)
    task = Task(bank, users, feedback_model("reward"), horizon=30, shuffle=True)
    entrants = [
        Entrant("eb", EmpiricalBayes, {"components": 4}),
        Entrant("linucb", LinUCB, {}),
    ]
    done = compare(entrants, task, seeds=(0,), num_users=200, history_users=400)
    gain = (done.runs["eb"][0].utility - done.runs["linucb"][0].utility).mean(axis=1)
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


def test_late_feedback_meets_the_user_it_is_about():
    """The agent hears of the first interaction after it has acted at the second."""
    task = TASKS["late"]
    agent = EmpiricalBayes(task.prior_knowledge(), components=1)
    session = Session(task, np.arange(2))
    session.begin(0)
    agent.reset(2, np.random.default_rng(0))
    first = observe_for(agent, session)
    action = agent.act(first)
    before = agent._belief.mean().copy()
    agent.update(first, action, said(like=[1.0, 0.0]))
    moved = agent._belief.mean() - before
    shown = first.inputs[np.arange(2), action[:, 0]].astype(np.float64)
    along = np.vecdot(moved[:, :-1], shown)
    assert along[0] > 0 > along[1]
