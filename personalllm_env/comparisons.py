"""Channels in which users compare: a choice between two, a click on the best of K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt64

from personalllm_env import streams
from personalllm_env.channels import (
    Served,
    answers_yes,
    check_range,
    column,
    log_sigmoid,
    only,
)
from personalllm_env.streams import Purpose


@dataclass(frozen=True)
class Choice:
    """Of two shown responses the user says which they prefer: +1 the first, -1 the second.

    P(first) = sigmoid((u_1 - u_2) / temperature) (Bradley & Terry, Biometrika 1952); exact at
    temperature 0, where equal utilities are decided by a fair coin. The reward is what is
    said. It informs and is no objective: it is largest for a good response shown beside a
    bad one. Train on utility (``UtilityReward``) or add a ``Reward`` channel before it.
    """

    temperature: float = 0.25

    name: ClassVar[str] = "choice"
    needs_candidates: ClassVar[bool] = False
    num_shown: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        check_range("choice: temperature", self.temperature, 0)

    def width(self, num_responses: int) -> int:
        """One number."""
        return 1

    def bounds(self, limit: float) -> tuple[float, float]:
        """-1 to 1."""
        return -1.0, 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns uniform numbers."""
        return streams.uniform(keys, Purpose.CHOICE, horizon)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns +1 for the first, -1 for the second."""
        margin = served.shown[:, 0] - served.shown[:, 1]
        first = answers_yes(margin, self.temperature, noise)
        return np.where(first, np.float32(1), np.float32(-1))

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns what is said."""
        return said

    encode = staticmethod(column)
    decode = staticmethod(only)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Bradley-Terry; at temperature 0, .01 stands in."""
        margin = (served.shown[:, 0] - served.shown[:, 1]) / max(self.temperature, 0.01)
        return log_sigmoid(said[:, None] * margin)


@dataclass(frozen=True)
class Click:
    """The user sees all K responses and clicks on one: its index in the order shown.

    P(k) is proportional to exp(u_k / temperature) (Luce 1959); at temperature 0 the best is
    clicked. The reward is 1 if what the agent put forward is clicked.
    """

    temperature: float = 0.25

    name: ClassVar[str] = "click"
    needs_candidates: ClassVar[bool] = True
    num_shown: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_range("click: temperature", self.temperature, 0)

    def width(self, num_responses: int) -> int:
        """One number per response."""
        return num_responses

    def bounds(self, limit: float) -> tuple[float, float]:
        """0 to 1."""
        return 0.0, 1.0

    def noise(self, keys: UInt64[np.ndarray, "B"], horizon: int) -> Float[np.ndarray, "T B"]:
        """Returns uniform numbers."""
        return streams.uniform(keys, Purpose.CLICK, horizon)

    def say(self, served: Served, noise: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Returns the index clicked, by inversion of the cumulative probabilities."""
        utility = _candidates(served)
        ahead = (utility - utility.max(axis=1, keepdims=True)).astype(np.float64)
        if self.temperature == 0:  # equals are decided by a fair draw, as in the limit
            mass = np.cumsum(ahead == 0, axis=1)
        else:
            mass = np.cumsum(np.exp(ahead / self.temperature), axis=1)
        clicked = (mass < noise[:, None] * mass[:, -1:]).sum(axis=1)
        return clicked.astype(np.float32)

    def reward(
        self, said: Float[np.ndarray, "B"], action: Int[np.ndarray, "B S"]
    ) -> Float[np.ndarray, "B"]:
        """Returns 1 where a shown response was clicked."""
        return (action == said[:, None]).any(axis=1).astype(np.float32)

    def encode(
        self, said: Float[np.ndarray, "B"], num_responses: int
    ) -> Float[np.ndarray, "B K"]:
        """One-hot."""
        return (said[:, None] == np.arange(num_responses)).astype(np.float32)

    def decode(self, encoded: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B"]:
        """Returns the index."""
        return encoded.argmax(axis=1).astype(np.float32)

    def log_likelihood(
        self, said: Float[np.ndarray, "B"], served: Served
    ) -> Float[np.ndarray, "B J"]:
        """Softmax; at temperature 0, .01 stands in."""
        logits = _candidates(served) / max(self.temperature, 0.01)
        top = logits.max(axis=1)
        log_total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return logits[np.arange(len(said)), said.astype(np.int64)] - log_total


def _candidates(served: Served) -> Float[np.ndarray, "B K *J"]:
    assert served.candidates is not None, "the caller honours needs_candidates"
    return served.candidates
