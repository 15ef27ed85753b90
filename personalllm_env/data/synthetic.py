"""A stand-in for PersonalLLM's data set: same sizes, names and disagreement, but no texts.

Scores. For prompt p, response k and reward model m, before standardisation::

    y[p, k, m] = c[m] * a[k] + t[p, k, m] - b[m] * q[p, k]

with ``a`` an offset per responder, ``t ~ N(0, R)`` the reward models' tastes, and ``q`` the
weakness of an answer: a fixed drop for a random minority of them. Weak answers are nobody's
favourites; without them too many responses would have a vote. The constants are fitted to
PersonalLLM's published figures by ``experiments/fit_synthetic.py``.

Features. A feature agent gets an orthogonal rotation of ::

    [ x , c * a + t + noise , topic of the prompt , nuisance ]

The Gaussian noise has ``(1 - share) / share`` times the covariance of ``c * a + t``, and x is
the probability that the answer is weak: Beta-distributed, with the mean of q > 0 and ``share``
of its variance. So the best guess of the scores is the best *linear* guess, and explains the
wanted share of the within-prompt variance, no more. (Only the fixed offsets, which are not
Gaussian, escape that argument by a hair.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.bank import ResponseBank
from personalllm_env.data.standardise import standardise
from personalllm_env.data.synthetic_law import Constants, load_constants, resize

_ON_TOPIC = 0.7  # variance that a response's, or a prompt's, topic axes owe to the shared topic


class Shares(NamedTuple):
    """How much of the variance of tastes (with offsets) and of weakness features tell."""

    taste: float
    weakness: float


DEFAULT_SHARES = Shares(taste=0.95, weakness=0.12)  # experiments/decodability.py says why


class _Parts(NamedTuple):
    """What the scores are made of."""

    taste: Float[np.ndarray, "P K M"]
    weakness: Float[np.ndarray, "P K"]


def synthetic_bank(
    *,
    num_prompts: int = 10_402,
    num_test: int = 1_000,
    num_responses: int = 8,
    num_reward_models: int = 10,
    num_features: int = 32,
    decodable: float | None = None,
    decodable_weakness: float | None = None,
    seed: int = 0,
) -> ResponseBank:
    """Draws a bank with PersonalLLM's diversity of preferences; a pure function.

    With fewer than PersonalLLM's 8 responders or 10 reward models the bank has the first of
    them. A responder beyond the eighth has offset 0; a reward model beyond the tenth echoes
    one of the ten: half of its taste's variance is that one's, half its own.

    Args:
        num_prompts: P. Prompts are independent, so the last ``num_test`` are the test split.
        num_test: How many prompts are held out.
        num_responses: K, at least 2.
        num_reward_models: M.
        num_features: D, at least M + 2.
        decodable: Share of the within-prompt score variance that the best linear map from
            within-prompt-centred features explains, the same for every reward model. By
            default tastes and weakness have shares of their own (``DEFAULT_SHARES``), chosen
            so that LoRe's experiment comes out near its published figures.
        decodable_weakness: Another share for the weakness q, which all reward models punish;
            ``decodable`` then holds for tastes and offsets alone, and the share of a reward
            model lies in between. By default the same, if ``decodable`` is given.
        seed: Root of all randomness.

    Raises:
        ValueError: If a size or share is out of range: says which and what was expected.
    """
    _check(num_prompts, num_test, num_responses, num_reward_models, num_features, seed)
    shares = _shares(decodable, decodable_weakness)
    law = resize(load_constants(), num_responses, num_reward_models)
    parts = draw_parts(law, num_prompts, np.random.default_rng([seed, 0]))
    is_test = np.arange(num_prompts) >= num_prompts - num_test
    raw = combine(law, parts)
    scores, used = standardise(raw, is_test, law.reward_models)
    signal = _signal(law, parts, shares, np.random.default_rng([seed, 1]))
    prompts, responses = _features(signal, num_features, np.random.default_rng([seed, 2]))
    return ResponseBank(
        scores=scores,
        prompt_features=prompts,
        response_features=responses,
        reward_models=law.reward_models,
        responders=law.responders,
        is_test=is_test,
        name="synthetic",
        facts={
            "source": "synthetic: fitted to PersonalLLM's published figures, no texts",
            "seed": seed,
            "decodable_taste": shares.taste,
            "decodable_weakness": shares.weakness,
            "decodable": [round(float(s), 4) for s in expected_shares(law, shares)],
            "standardised_by": "train split",
            "standardisation": {model: [*map(float, pair)] for model, pair in used.items()},
        },
    )


def draw_parts(law: Constants, num_prompts: int, rng: np.random.Generator) -> _Parts:
    """Draws tastes and weaknesses, independent over prompts and responses."""
    shape = (num_prompts, len(law.responders))
    white = rng.standard_normal((*shape, len(law.reward_models)))
    taste = white @ _root(law.taste_correlation)
    return _Parts(taste, law.weakness_size * (rng.random(shape) < law.weakness_rate))


def combine(law: Constants, parts: _Parts) -> Float[np.ndarray, "P K M"]:
    """Returns raw scores: offsets plus taste minus weakness."""
    return _liked(law, parts) - parts.weakness[..., None] * law.weakness_loading


def expected_shares(law: Constants, shares: Shares) -> Float[np.ndarray, "M"]:
    """Returns, per reward model, the share of within-prompt variance that features tell."""
    liked = np.diag(_liked_covariance(law))
    spread = law.weakness_size**2 * law.weakness_rate * (1 - law.weakness_rate)
    punished = law.weakness_loading**2 * spread
    return (shares.taste * liked + shares.weakness * punished) / (liked + punished)


def _liked_covariance(law: Constants) -> Float[np.ndarray, "M M"]:
    """Returns the covariance within a prompt of tastes and offsets, times K / (K - 1).

    An offset is the same for all prompts, so centring within a prompt takes nothing off its
    variance, while it takes 1 / K off a taste's: hence the factor.
    """
    num = len(law.responders)
    spread = law.responder_offset.var() * num / (num - 1)
    return law.taste_correlation + spread * np.outer(law.offset_loading, law.offset_loading)


def _liked(law: Constants, parts: _Parts) -> Float[np.ndarray, "P K M"]:
    return parts.taste + law.responder_offset[:, None] * law.offset_loading


def _signal(
    law: Constants, parts: _Parts, shares: Shares, rng: np.random.Generator
) -> Float[np.ndarray, "P K M+1"]:
    """Returns noisy weakness and tastes, each of unit variance and uncorrelated."""
    covariance = _liked_covariance(law)
    white = rng.standard_normal(parts.taste.shape)
    noise = np.sqrt((1 - shares.taste) / shares.taste) * white @ _root(covariance)
    mean = law.responder_offset.mean() * law.offset_loading
    taste = (_liked(law, parts) + noise - mean) @ np.linalg.inv(
        _root(covariance / shares.taste)
    )
    weak = _suspicion(parts.weakness > 0, law.weakness_rate, shares.weakness, rng)
    return np.concatenate([weak[..., None], taste], axis=2)


def _suspicion(
    weak: Bool[np.ndarray, "P K"], rate: float, share: float, rng: np.random.Generator
) -> Float[np.ndarray, "P K"]:
    """Draws x such that ``weak`` is Bernoulli(x) and x has ``share`` of weak's variance.

    x ~ Beta(rate * n, (1 - rate) * n) has variance rate * (1 - rate) / (1 + n). It is drawn
    from its posterior given ``weak``, then standardised.
    """
    if share < 1:
        count = (1 - share) / share
        x = rng.beta(rate * count + weak, (1 - rate) * count + ~weak)
    else:
        x = weak.astype(np.float64)
    return (x - rate) / np.sqrt(share * rate * (1 - rate))


def _features(
    signal: Float[np.ndarray, "P K S"], num_features: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P K D"]]:
    """Adds topic and nuisance, and rotates all so that no axis means anything by itself."""
    num_prompts, num_responses, num_signal = signal.shape
    num_topic = (num_features - num_signal + 1) // 2
    end = num_signal + num_topic
    responses = rng.standard_normal((num_prompts, num_responses, num_features))
    prompts = rng.standard_normal((num_prompts, num_features))
    topic = prompts[:, num_signal:end]
    responses[:, :, :num_signal] = signal
    # A response is not only about its prompt's topic. Besides, axes without any variance within
    # a prompt would make every regression on within-prompt-centred features degenerate.
    responses[:, :, num_signal:end] *= np.sqrt(1 - _ON_TOPIC)
    responses[:, :, num_signal:end] += np.sqrt(_ON_TOPIC) * topic[:, None]
    noise = rng.standard_normal(topic.shape)
    prompts[:, num_signal:end] = np.sqrt(_ON_TOPIC) * topic + np.sqrt(1 - _ON_TOPIC) * noise
    rotation, _ = np.linalg.qr(rng.standard_normal((num_features, num_features)))
    return (prompts @ rotation).astype(np.float32), (responses @ rotation).astype(np.float32)


def _root(covariance: Float[np.ndarray, "M M"]) -> Float[np.ndarray, "M M"]:
    """Returns the symmetric square root: unlike Cholesky's, no reward model comes first."""
    values, vectors = np.linalg.eigh(covariance)
    root: Float[np.ndarray, "M M"] = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _shares(decodable: float | None, decodable_weakness: float | None) -> Shares:
    """Fills in the defaults of the two shares and checks them."""
    if decodable is None:
        taste, weakness = DEFAULT_SHARES
    else:
        taste, weakness = decodable, decodable
    if decodable_weakness is not None:
        weakness = decodable_weakness
    for name, share in (("decodable", taste), ("decodable_weakness", weakness)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    return Shares(taste, weakness)


def _check(
    num_prompts: int, num_test: int, num_responses: int, num_models: int, dims: int, seed: int
) -> None:
    """Raises ValueError for sizes that no bank can have."""
    if not 0 < num_test < num_prompts:
        raise ValueError(
            f"num_test must be between 1 and num_prompts - 1 = {num_prompts - 1}, "
            f"got {num_test}"
        )
    if num_responses < 2:
        raise ValueError(f"num_responses must be at least 2, got {num_responses}")
    if num_models < 1:
        raise ValueError(f"num_reward_models must be at least 1, got {num_models}")
    if dims < num_models + 2:
        raise ValueError(
            f"num_features must be at least num_reward_models + 2 = {num_models + 2} (tastes, "
            f"weakness, topic), got {dims}"
        )
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
