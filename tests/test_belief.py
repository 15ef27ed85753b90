"""The Gaussian belief: exact against closed-form ridge, and what each channel says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env.belief import Evidence, RidgeBelief, evidence
from personalllm_env.types import Feedback

B, D, K = 5, 3, 4


def some_evidence(rng, num, b=B, d=D):
    return [
        Evidence(rng.standard_normal((b, d)), rng.standard_normal(b), rng.random(b) < 0.6)
        for _ in range(num)
    ]


def closed_form(seen, ridge, centre, row):
    """Returns ridge regression towards ``centre`` and its inverse precision, from scratch."""
    kept = [e for e in seen if e.known[row]]
    x = np.array([e.features[row] for e in kept]).reshape(-1, len(centre))
    y = np.array([e.target[row] for e in kept])
    precision = ridge * np.eye(len(centre)) + x.T @ x
    return np.linalg.solve(precision, ridge * centre + x.T @ y), np.linalg.inv(precision)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("centred", [True, False])
def test_sequential_posterior_is_closed_form_ridge(ridge, centred):
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(D) if centred else np.zeros(D)
    belief = RidgeBelief(D, ridge=ridge, centre=centre if centred else None)
    belief.reset(B)
    np.testing.assert_allclose(belief.covariance, np.tile(np.eye(D) / ridge, (B, 1, 1)))
    np.testing.assert_array_equal(belief.mean, np.tile(centre, (B, 1)))
    seen = some_evidence(rng, 20)
    for i, one in enumerate(seen, 1):
        belief.update(one)
        for row in range(B):
            mean, covariance = closed_form(seen[:i], ridge, centre, row)
            np.testing.assert_allclose(belief.mean[row], mean, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(
                belief.covariance[row], covariance, rtol=1e-8, atol=1e-10
            )


@settings(max_examples=40, deadline=None)
@given(ridge=st.floats(0.05, 1000), scale=st.floats(0.01, 30), seed=st.integers(0, 2**32 - 1))
def test_order_of_evidence_does_not_matter(ridge, scale, seed):
    rng = np.random.default_rng(seed)
    seen = [e._replace(features=scale * e.features) for e in some_evidence(rng, 6)]
    one, two = RidgeBelief(D, ridge=ridge), RidgeBelief(D, ridge=ridge)
    one.reset(B)
    two.reset(B)
    for forward, backward in zip(seen, reversed(seen), strict=True):
        one.update(forward)
        two.update(backward)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-5, atol=1e-7 / ridge)


def test_silence_changes_nothing_and_rows_do_not_mix():
    rng = np.random.default_rng(1)
    belief = RidgeBelief(D, ridge=2.0, centre=np.arange(3.0))
    belief.reset(B)
    for one in some_evidence(rng, 4):
        belief.update(one)
    mean, covariance = belief.mean.copy(), belief.covariance.copy()
    only_third = np.arange(B) == 2
    belief.update(some_evidence(rng, 1)[0]._replace(known=only_third))
    np.testing.assert_array_equal(belief.mean[~only_third], mean[~only_third])
    np.testing.assert_array_equal(belief.covariance[~only_third], covariance[~only_third])
    assert (belief.mean[2] != mean[2]).all()


def test_forget_and_reset_return_to_the_prior():
    belief = RidgeBelief(D, ridge=4.0, centre=np.array([1.0, -2.0, 0.5]))
    belief.reset(B)
    for one in some_evidence(np.random.default_rng(2), 8):
        belief.update(one)
    kept = belief.mean[1:].copy()
    belief.forget(np.arange(B) == 0)
    np.testing.assert_array_equal(belief.mean[0], [1.0, -2.0, 0.5])
    np.testing.assert_array_equal(belief.covariance[0], np.eye(D) / 4)
    np.testing.assert_array_equal(belief.mean[1:], kept)
    belief.reset(2)
    np.testing.assert_array_equal(belief.mean, [[1.0, -2.0, 0.5]] * 2)
    np.testing.assert_array_equal(belief.covariance, [np.eye(D) / 4] * 2)


def test_values_and_widths_by_definition():
    rng = np.random.default_rng(3)
    belief = RidgeBelief(D, ridge=0.7)
    belief.reset(B)
    for one in some_evidence(rng, 3):
        belief.update(one)
    x = rng.standard_normal((B, K, D)).astype(np.float32)
    values, widths = belief.values(x), belief.widths(x)
    for b in range(B):
        for k in range(K):
            assert values[b, k] == pytest.approx(x[b, k] @ belief.mean[b], abs=1e-6)
            variance = x[b, k].astype(float) @ belief.covariance[b] @ x[b, k].astype(float)
            assert widths[b, k] == pytest.approx(np.sqrt(variance), rel=1e-9)
    belief.reset(1)
    assert belief.widths(np.array([[[3.0, 4.0, 0.0]]]))[0, 0] == pytest.approx(5 / 0.7**0.5)


def test_samples_have_the_posterior_mean_and_covariance():
    """Every mean and covariance within 4.5 standard errors: 36 checks, false alarm 2e-4."""
    rng = np.random.default_rng(4)
    belief = RidgeBelief(D, ridge=2.0, centre=np.array([0.0, 1.0, -1.0]))
    belief.reset(2)
    for one in some_evidence(rng, 4, b=2):
        belief.update(one)
    num, scale = 20_000, 0.5
    drawn = belief.sample(scale, rng, num)
    assert drawn.shape == (2, num, D)
    for b in range(2):
        expected = scale**2 * belief.covariance[b]
        error = drawn[b].mean(axis=0) - belief.mean[b]
        assert (np.abs(error) < 4.5 * np.sqrt(np.diag(expected) / num)).all()
        spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / num)
        assert (np.abs(np.cov(drawn[b].T) - expected) < 4.5 * spread).all()
    # Draws, and users, are independent of each other.
    centred = (drawn - belief.mean[:, None])[:, :, 0] / scale
    centred /= np.sqrt(belief.covariance[:, 0, 0])[:, None]
    assert abs((centred[0] * centred[1]).mean()) < 4.5 / np.sqrt(num)
    assert abs((centred[0, ::2] * centred[0, 1::2]).mean()) < 4.5 / np.sqrt(num / 2)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_ridge_must_be_positive(ridge):
    with pytest.raises(ValueError, match="ridge must be a positive number"):
        RidgeBelief(D, ridge=ridge)


ROOT = 2**0.5
CANDIDATES = np.array(
    [[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[3.0, 1.0], [5.0, 5.0], [1.0, 3.0]]], np.float32
)
HEARD = np.array([True, False])


def said(**channels):
    arrays = {name: np.array(value, np.float32) for name, value in channels.items()}
    return Feedback(np.zeros(2, np.float32), HEARD, arrays, np.zeros(2, bool))


@pytest.mark.parametrize(
    ("action", "channels", "features", "target"),
    [
        # a number: about what was shown, or the mean of the two
        ([[2], [0]], {"reward": [1.5, -2]}, [[2, 2], [3, 1]], [1.5, -2]),
        ([[0, 2], [0, 2]], {"reward": [1.5, -2]}, [[1.5, 1], [2, 2]], [1.5, -2]),
        # yes is +1, no is -1
        ([[2], [0]], {"like": [1, 0]}, [[2, 2], [3, 1]], [1, -1]),
        # three stars of five is nothing special; five are 1.4
        ([[2], [0]], {"stars": [5, 3]}, [[2, 2], [3, 1]], [ROOT, 0]),
        # a choice is about the difference, first minus second
        ([[0, 2], [2, 1]], {"choice": [1, -1]}, [[-1, -2], [-4, -2]], [1, -1]),
        # a click: the clicked minus the mean of all, whatever was shown
        ([[0], [0]], {"click": [2, 1]}, [[1, 1], [2, 2]], [1, 1]),
        # the most informative channel is used, whatever the order
        ([[0, 2], [0, 2]], {"choice": [1, -1], "reward": [4, 5]}, [[1.5, 1], [2, 2]], [4, 5]),
        ([[2], [0]], {"like": [1, 0], "click": [2, 1]}, [[1, 1], [2, 2]], [1, 1]),
        (
            [[2], [0]],
            {"like": [1, 0], "stars": [1, 4]},
            [[2, 2], [3, 1]],
            [-ROOT, ROOT / 2],
        ),
    ],
)
def test_evidence_by_hand(action, channels, features, target):
    seen = evidence(CANDIDATES, np.array(action), said(**channels))
    np.testing.assert_allclose(seen.features, features, rtol=1e-6)
    np.testing.assert_allclose(seen.target, target, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(seen.known, HEARD)
