"""Users: the simplex and its messages, moments against closed forms, splits, drift."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from personalllm_env.drift import GradualDrift, SuddenDrift
from personalllm_env.streams import stream_keys
from personalllm_env.users import (
    DirichletUsers,
    Population,
    UserPopulation,
    check_weights,
    clustered_population,
    dirichlet_population,
)


def keys_of(num, seed=0, episode=0):
    return stream_keys(seed, np.arange(num), np.full(num, episode))


# -- the simplex


def test_weights_are_kept_as_read_only_float32():
    given_weights = np.array([[0.25, 0.75], [1.0, 0.0]])
    checked = check_weights(given_weights)
    assert checked.dtype == np.float32
    assert np.array_equal(checked, given_weights)
    with pytest.raises(ValueError, match="read-only"):
        checked[0, 0] = 1
    given_weights[0, 0] = 9  # the caller's array stays theirs
    assert checked[0, 0] == 0.25


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 0.5], [0.7, 0.7]], "row 1 sums to 1.4 with minimum 0.7"),
        ([[0.5, 0.5], [0.5, 0.5], [1.5, -0.5]], "row 2 sums to 1 with minimum -0.5"),
        ([[np.nan, 1.0]], "row 0 sums to nan"),
        ([[0.5, 0.4998]], "row 0 sums to 0.9998"),
        ([[np.inf, 0.0]], "row 0 sums to inf"),
    ],
)
def test_rows_off_the_simplex_are_named(weights, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message) as caught:
        check_weights(np.array(weights))
    assert "must be non-negative and sum to 1" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (1, 2, 3)])
@pytest.mark.usefixtures("unchecked_shapes")
def test_weights_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"non-empty \(U, M\) array, got"):
        check_weights(np.zeros(shape))


@given(
    st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.integers(0, 4),
    st.floats(0.001, 0.5),
)
def test_a_row_is_on_the_simplex_or_refused(rows, which, off):
    weights = np.array(rows)
    weights /= weights.sum(axis=1, keepdims=True)
    assert np.allclose(check_weights(weights), weights, atol=1e-7)
    which %= len(weights)
    weights[which] *= 1 + off
    with pytest.raises(ValueError, match=f"row {which} sums"):
        check_weights(weights)


# -- finite populations


def finite():
    weights = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    return UserPopulation(weights, np.array([False, True, False, True, False, False]))


def test_splits_of_users():
    users = finite()
    assert users.users("all").tolist() == [0, 1, 2, 3, 4, 5]
    assert users.users("train").tolist() == [0, 2, 4, 5]
    assert users.users("test").tolist() == [1, 3]
    with pytest.raises(ValueError, match="no test users"):
        UserPopulation(np.eye(2)).users("test")


@pytest.mark.usefixtures("unchecked_shapes")
def test_unknown_split_and_wrong_shapes():
    with pytest.raises(ValueError, match="'train', 'test' or 'all', got 'validation'"):
        finite().users("validation")
    with pytest.raises(ValueError, match=r"is_test must have shape \(2,\), got \(3,\)"):
        UserPopulation(np.eye(2), np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"community must have shape \(2,\), got \(1,\)"):
        UserPopulation(np.eye(2), community=np.zeros(1, int))


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_users_are_drawn_uniformly_from_their_split(split):
    """Chi-square over 20,000 users; false alarm 1e-6."""
    users = finite()
    drawn = users.draw(keys_of(20_000), split)
    ids = users.users(split)
    assert np.isin(drawn.user, ids).all()
    assert np.array_equal(drawn.weights, users.weights[drawn.user])
    counts = np.bincount(drawn.user, minlength=6)[ids]
    assert stats.chisquare(counts).pvalue > 1e-6


def test_second_draw_is_independent_of_the_first():
    """20,000 pairs from 6 users; false alarm 1e-6."""
    users, keys = finite(), keys_of(20_000)
    first, second = (users.draw(keys, "all", second=s).user for s in (False, True))
    table = np.bincount(6 * first + second, minlength=36).reshape(6, 6)
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_writing_to_drawn_weights_leaves_the_population():
    users = finite()
    users.draw(keys_of(3), "all").weights[:] = 7
    assert users.weights.max() == 1


def test_sample_is_of_train_users():
    users = finite()
    seen = users.sample(500, np.random.default_rng(0))
    assert {tuple(row) for row in seen} == {tuple(row) for row in np.eye(4)[[0, 1, 2]]}


def test_populations_are_immutable_and_shared_by_copies():
    users = finite()
    assert copy.deepcopy(users) is users
    with pytest.raises(ValueError, match="read-only"):
        users.weights[0] = 0
    for population in (users, DirichletUsers(3)):
        assert isinstance(population, Population)


# -- Dirichlet users

MODELS = 10
NUM = 40_000


def moments(weights):
    """Per user: sum of squares, and the first weight."""
    return (weights.astype(float) ** 2).sum(axis=1), weights[:, 0].astype(float)


def share_of_largest(concentration, num_models):
    """E[max w]: gamma variables divided by their independent sum, so E[max g] / E[sum g].

    E[max g] is the integral of 1 - F(x)**M (by substitution x = e**s, for small alpha).
    """
    s = np.linspace(-60, 6, 200_001)
    tail = -np.expm1(num_models * stats.gamma(concentration).logcdf(np.exp(s)))
    return np.trapezoid(tail * np.exp(s), s) / (num_models * concentration)


def within(sample, exact, sds=5.5):
    """|mean - exact| below 5.5 standard errors: false alarm 4e-8."""
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - exact) < sds * error, (sample.mean(), exact, error)


@pytest.mark.parametrize("concentration", [0.01, 0.05, 0.1, 1.0, 20.0])
def test_moments_of_fresh_users(concentration):
    """E w_m = 1/M, E sum w^2 = (1 + a)/(1 + M a), E max w; 40,000 users."""
    users = DirichletUsers(MODELS, concentration)
    weights = users.draw(keys_of(NUM, seed=5), "train").weights
    assert weights.dtype == np.float32
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert weights.min() >= 0
    squares, first = moments(weights)
    within(squares, (1 + concentration) / (1 + MODELS * concentration))
    within(first, 1 / MODELS)
    within(first**2, (1 + concentration) / (MODELS * (1 + MODELS * concentration)))
    within(weights.max(axis=1).astype(float), share_of_largest(concentration, MODELS))


def test_largest_weights_of_the_paper():
    """The closed form itself, at the paper's three parameters (by simulation elsewhere)."""
    rng = np.random.default_rng(0)
    for concentration in (0.01, 0.05, 0.1):
        largest = rng.dirichlet(np.full(MODELS, concentration), 20_000).max(axis=1)
        within(largest, share_of_largest(concentration, MODELS))


@pytest.mark.parametrize("concentration", [0.05, 1.0])
def test_law_of_one_weight_is_beta(concentration):
    """KS against Beta(a, (M-1) a) for 10,000 users; false alarm 1e-6."""
    weights = DirichletUsers(MODELS, concentration).draw(keys_of(10_000), "all").weights
    law = stats.beta(concentration, (MODELS - 1) * concentration)
    seen, floor = weights[:, 3].astype(float), 1e-12  # far below, float32 ends
    above, below = seen[seen > floor], law.cdf(floor)
    test = stats.ks_1samp(above, lambda x: (law.cdf(x) - below) / (1 - below))
    assert test.pvalue > 1e-6
    for cut in (floor, 0.01, 0.5, 0.9):
        share, exact = (seen <= cut).mean(), law.cdf(cut)
        error = np.sqrt(exact * (1 - exact) / len(seen))
        assert abs(share - exact) <= 5.5 * error + 1e-4


def test_several_concentrations_are_equally_frequent():
    """A user has one of the laws, each with equal probability: the mixture's moments."""
    laws = (0.01, 0.1, 5.0)
    weights = DirichletUsers(MODELS, laws).draw(keys_of(NUM, seed=2), "all").weights
    squares, first = moments(weights)
    within(squares, np.mean([(1 + a) / (1 + MODELS * a) for a in laws]))
    within(first, 1 / MODELS)
    flat = (squares < 0.25).mean()  # only the last law makes users this even
    alone = DirichletUsers(MODELS, 5.0).draw(keys_of(NUM, seed=3), "all").weights
    expected = (moments(alone)[0] < 0.25).mean() / 3
    assert abs(flat - expected) < 0.012  # 5 sd of a share of a third


def test_sample_follows_the_same_law():
    for users in (DirichletUsers(MODELS, 0.1), DirichletUsers(MODELS, (0.01, 5.0))):
        laws = users._concentrations
        squares, _ = moments(users.sample(20_000, np.random.default_rng(1)))
        within(squares, np.mean([(1 + a) / (1 + MODELS * a) for a in laws]))


def test_fresh_users_are_new_in_every_row_and_episode():
    users = DirichletUsers(3, 0.1)
    draws = [
        users.draw(keys_of(50, episode=e), "all", second=s)
        for e in (0, 1)
        for s in (False, True)
    ]
    weights = np.concatenate([d.weights for d in draws])
    assert len(np.unique(weights[:, 0])) > 190
    assert all((d.user == -1).all() for d in draws)


@settings(max_examples=25)  # each builds a table of quantiles
@given(
    concentration=st.floats(1e-4, 1e4),
    num_models=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_fresh_users_are_on_the_simplex(concentration, num_models, seed):
    weights = DirichletUsers(num_models, concentration).draw(keys_of(20, seed), "all").weights
    assert weights.shape == (20, num_models)
    check_weights(weights)


@pytest.mark.parametrize("wrong", [0, -1.0, (0.1, 0.0), (), float("nan"), float("inf")])
def test_concentration_must_be_positive(wrong):
    with pytest.raises(ValueError, match="concentration must be"):
        DirichletUsers(3, wrong)
    with pytest.raises(ValueError, match="concentration must be"):
        dirichlet_population(3, concentration=wrong)


# -- drawn populations


def test_dirichlet_population():
    """20,000 users: the same moments; the last users are the test split."""
    users = dirichlet_population(20_000, concentration=0.1, num_test=5, seed=1)
    within(moments(users.weights)[0], 1.1 / 2)
    assert users.users("test").tolist() == list(range(19_995, 20_000))
    again = dirichlet_population(20_000, concentration=0.1, num_test=5, seed=1)
    assert np.array_equal(users.weights, again.weights)
    other = dirichlet_population(20_000, concentration=0.1, seed=2)
    assert not np.isin(users.weights[:50, 0], other.weights[:50, 0]).all()
    mixed = dirichlet_population(20_000, concentration=[0.01, 5.0], seed=1)
    within(moments(mixed.weights)[0], np.mean([1.01 / 1.1, 6 / 51]))


@pytest.mark.parametrize("num_test", [-1, 4, 5])
def test_some_users_must_be_left_for_training(num_test):
    with pytest.raises(ValueError, match=rf"num_test must be in 0\.\.3, got {num_test}"):
        dirichlet_population(4, num_test=num_test)


def test_clustered_population():
    users = clustered_population(
        400, num_communities=4, cohesion=200.0, concentration=0.3, num_test=40, seed=3
    )
    assert set(users.community.tolist()) == {0, 1, 2, 3}
    assert len(users.users("test")) == 40
    centres = np.stack([users.weights[users.community == c].mean(axis=0) for c in range(4)])
    inside = np.linalg.norm(users.weights - centres[users.community], axis=1).mean()
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)[np.triu_indices(4, 1)]
    assert inside < 0.25 * apart.min()
    # A member's total variance is (1 - sum m^2) / (cohesion + 1).
    for c in range(4):
        members = users.weights[users.community == c].astype(float)
        spread = ((members - centres[c]) ** 2).sum(axis=1)
        exact = (1 - (centres[c] ** 2).sum()) / 201
        assert abs(spread.mean() - exact) < 5.5 * spread.std() / np.sqrt(len(spread))
    loose = clustered_population(
        400, num_communities=4, cohesion=2.0, concentration=0.3, seed=3
    )
    mean = np.stack([loose.weights[loose.community == c].mean(axis=0) for c in range(4)])
    assert np.linalg.norm(loose.weights - mean[loose.community], axis=1).mean() > 2 * inside


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_communities": 0}, r"num_communities must be in 1\.\.5, got 0"),
        ({"num_communities": 6}, r"num_communities must be in 1\.\.5, got 6"),
        ({"num_communities": 2, "cohesion": 0.0}, "cohesion must be positive, got 0"),
        ({"num_communities": 2, "num_test": 5}, "num_test must be"),
    ],
)
def test_clustered_population_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        clustered_population(5, **settings)


# -- drift


def test_gradual_drift_is_a_line():
    schedule = GradualDrift(0.8).schedule(keys_of(3), 5)
    assert schedule.dtype == np.float32
    line = np.array([0, 0.2, 0.4, 0.6, 0.8], np.float32)
    assert np.allclose(schedule, line[:, None], atol=1e-7)
    assert schedule.shape == (5, 3)
    assert (schedule[0] == 0).all()
    assert GradualDrift().schedule(keys_of(2), 1).tolist() == [[0, 0]]


@pytest.mark.parametrize("horizon", [1, 2, 3, 10])
def test_sudden_drift_is_one_step(horizon):
    schedule = SuddenDrift().schedule(keys_of(2000), horizon)
    assert schedule.shape == (horizon, 2000)
    assert set(np.unique(schedule)) <= {0.0, 1.0}
    assert (schedule[0] == 0).all()
    assert (np.diff(schedule, axis=0) >= 0).all()
    if horizon > 1:
        assert (schedule[-1] == 1).all()


def test_sudden_drift_is_uniform_in_time_and_as_likely_as_said():
    """20,000 rows; chi-square false alarm 1e-6, share within 5.5 sd."""
    schedule = SuddenDrift(0.3).schedule(keys_of(20_000), 7)
    changed = schedule[-1] == 1
    assert abs(changed.mean() - 0.3) < 5.5 * np.sqrt(0.3 * 0.7 / 20_000)
    when = 7 - schedule[:, changed].sum(axis=0).astype(int)
    counts = np.bincount(when, minlength=7)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6


@pytest.mark.parametrize("wrong", [0, -0.1, 1.1, float("nan")])
def test_drift_settings(wrong):
    with pytest.raises(ValueError, match="share must be in"):
        GradualDrift(wrong)
    with pytest.raises(ValueError, match="probability must be in"):
        SuddenDrift(wrong)


def test_a_split_is_of_bools_and_kept_as_it_was(unchecked_shapes):
    held = np.array([False, True, True])
    population = UserPopulation(np.eye(3), is_test=held)
    held[:] = False
    assert population.users("test").tolist() == [1, 2]
    with pytest.raises(ValueError, match="is_test must be bool, got int64"):
        UserPopulation(np.eye(3), is_test=np.array([0, 1, 1]))
