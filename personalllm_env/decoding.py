"""How far features tell the scores: the best linear map, and the share it explains."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float

from personalllm_env.bank import ResponseBank, Split

# A bank is immutable and equal to itself only; its decoder goes when it goes.
_DECODERS: WeakKeyDictionary[ResponseBank, Float[np.ndarray, "D M"]] = WeakKeyDictionary()


def linear_decoder(bank: ResponseBank) -> Float[np.ndarray, "D M"]:
    """Returns the least-squares map from features to scores, both centred within a prompt.

    It is fitted on the train prompts. Features minus their prompt's mean, times this map, is
    the best linear guess of the scores minus their prompt's mean: what a perfect feature
    agent could know. It is computed once per bank, and read-only.
    """
    if (known := _DECODERS.get(bank)) is not None:
        return known
    rows = bank.prompts("train")
    x = _centred(bank.response_features[rows])
    y = _centred(bank.scores[rows])
    decoder: Float[np.ndarray, "D M"] = np.linalg.lstsq(x, y, rcond=1e-6)[0]
    decoder.setflags(write=False)  # it is everybody's
    _DECODERS[bank] = decoder
    return decoder


def decoder_residual(
    bank: ResponseBank, decoder: Float[np.ndarray, "D M"], num: int, rng: np.random.Generator
) -> Float[np.ndarray, "n M"]:
    """Returns what ``decoder`` leaves of the scores of up to ``num`` random train responses.

    It is ``scores - features @ decoder``, the prompts' own level included: what somebody who
    knows the decoder still does not know of a score.
    """
    rows = bank.prompts("train")
    k = bank.num_responses
    flat = rng.choice(len(rows) * k, size=min(num, len(rows) * k), replace=False)
    prompt, response = rows[flat // k], flat % k
    known = bank.response_features[prompt, response].astype(np.float64) @ decoder
    return np.asarray(bank.scores[prompt, response] - known)


def decodable_share(
    bank: ResponseBank, decoder: Float[np.ndarray, "D M"], split: Split = "test"
) -> Float[np.ndarray, "M"]:
    """Returns the share of within-prompt score variance that ``decoder`` explains."""
    rows = bank.prompts(split)
    y = _centred(bank.scores[rows])
    error = y - _centred(bank.response_features[rows]) @ decoder
    return 1.0 - (error**2).mean(axis=0) / (y**2).mean(axis=0)


def _centred(values: Float[np.ndarray, "p K C"]) -> Float[np.ndarray, "p*K C"]:
    centred = values - values.mean(axis=1, keepdims=True, dtype=np.float64)
    return centred.reshape(-1, values.shape[2])
