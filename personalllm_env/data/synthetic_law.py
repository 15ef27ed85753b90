"""The fitted constants of the synthetic bank's score law, and the law at other sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_ECHO = 0.5  # variance that a reward model beyond the tenth shares with the one it echoes


class Constants(NamedTuple):
    """The score law of K responders and M reward models.

    Attributes:
        reward_models: M names.
        responders: K names.
        taste_correlation: (M, M), R above.
        responder_offset: (K,), a above.
        offset_loading: (M,), c above.
        weakness_loading: (M,), b above.
        weakness_rate: How likely an answer is to be weak.
        weakness_size: The drop of a weak answer, the value of q.
    """

    reward_models: tuple[str, ...]
    responders: tuple[str, ...]
    taste_correlation: Float[np.ndarray, "M M"]
    responder_offset: Float[np.ndarray, "K"]
    offset_loading: Float[np.ndarray, "M"]
    weakness_loading: Float[np.ndarray, "M"]
    weakness_rate: float
    weakness_size: float


@lru_cache(maxsize=1)
def load_constants() -> Constants:
    """Reads the fitted constants that come with the package."""
    path = Path(__file__).with_name("synthetic_constants.json")
    return as_constants(json.loads(path.read_text(encoding="utf-8"))["constants"])


def as_constants(values: Mapping[str, Any]) -> Constants:
    """Returns constants from their JSON form."""
    fields: dict[str, Any] = dict(values)
    for name in ("reward_models", "responders"):
        fields[name] = tuple(values[name])
    for name in ("taste_correlation", "responder_offset", "offset_loading", "weakness_loading"):
        fields[name] = np.array(values[name])
    return Constants(**fields)


def resize(law: Constants, num_responses: int, num_reward_models: int) -> Constants:
    """Cuts or extends the law to K responders and M reward models (see ``synthetic_bank``)."""
    known_k, known_m = len(law.responders), len(law.reward_models)
    like = np.arange(num_reward_models) % known_m
    keep = np.where(np.arange(num_reward_models) < known_m, 1.0, np.sqrt(_ECHO))
    correlation = keep[:, None] * law.taste_correlation[np.ix_(like, like)] * keep
    np.fill_diagonal(correlation, 1.0)
    new_models = [
        f"echo_{j + 1}_of_{law.reward_models[like[j]]}" for j in range(num_reward_models)
    ]
    new_responders = [f"synthetic/responder-{k + 1}" for k in range(num_responses)]
    offset = np.pad(law.responder_offset, (0, max(0, num_responses - known_k)))
    return law._replace(
        reward_models=(law.reward_models + tuple(new_models[known_m:]))[:num_reward_models],
        responders=(law.responders + tuple(new_responders[known_k:]))[:num_responses],
        taste_correlation=correlation,
        responder_offset=offset[:num_responses],
        offset_loading=law.offset_loading[like],
        weakness_loading=law.weakness_loading[like],
    )
