"""Shared vocabulary: the records that cross module boundaries, and the agent's contract.

Axis letters used in every shape of this package:

  B  rows (episodes in parallel)   U  users          P  prompts
  K  responses per prompt          S  shown at once  M  reward models
  D  feature dimensions            T  interactions per episode (the horizon)
  I  inputs per response: D, or M in a white-box task
  N  interactions in a history of other users
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from personalllm_env.database import Database
    from personalllm_env.drift import Drift
    from personalllm_env.feedback import FeedbackModel

Action: TypeAlias = Int[np.ndarray, "B S"]
"""Which of the K responses each row shows; S is 1 in Select and 2 in Duel."""


class Observation(NamedTuple):
    """What an agent may see before it acts.

    ``scores`` and ``weights`` are None unless the task is white-box or the agent declares the
    privilege, in which case every report marks it.
    """

    prompt: Int[np.ndarray, "B"]  # row of the bank, for text look-up
    prompt_features: Float[np.ndarray, "B D"]
    response_features: Float[np.ndarray, "B K D"]
    user: Int[np.ndarray, "B"] | None = None  # identity, where users can be recognised
    scores: Float[np.ndarray, "B K M"] | None = None
    weights: Float[np.ndarray, "B M"] | None = None

    @property
    def inputs(self) -> Float[np.ndarray, "B K I"]:
        """What an honest agent judges candidates by: scores where it is shown them."""
        return self.response_features if self.scores is None else self.scores


class Feedback(NamedTuple):
    """What an agent may see after it acts."""

    reward: Float[np.ndarray, "B"]  # the number the user reports; 0 where silent
    heard: Bool[np.ndarray, "B"]  # whether the user said anything
    said: Mapping[str, Float[np.ndarray, "B"]]  # per channel, see feedback.py; 0 where silent
    left: Bool[np.ndarray, "B"]  # the user leaves for good now, however late they speak


class Diagnostics(NamedTuple):
    """What only the report may see."""

    utility: Float[np.ndarray, "B"]  # noise-free utility of what was shown (mean over S)
    regret: Float[np.ndarray, "B"] | None  # best utility among the K minus ``utility``


@dataclass(frozen=True)
class PriorKnowledge:
    """What an agent's constructor may know of the task.

    ``population`` and ``decoder`` are None unless the agent's class names them in
    ``privileges``; ``residual`` comes with the decoder.
    """

    num_responses: int
    num_shown: int
    num_features: int
    num_reward_models: int
    horizon: int
    feedback: FeedbackModel  # which channels there are, and how noisy
    responders: tuple[str, ...]
    shuffled: bool  # whether the responses come in a new order at each interaction
    white_box: bool = False  # whether everybody sees the scores of the candidates
    drift: Drift | None = None  # how users change within an episode
    population: Float[np.ndarray, "U M"] | None = None  # a sample of users from the prior
    decoder: Float[np.ndarray, "D M"] | None = None  # best linear map, features to scores
    residual: Float[np.ndarray, "n M"] | None = None  # a sample of scores - features @ decoder

    @property
    def num_inputs(self) -> int:
        """I: how many numbers ``Observation.inputs`` has per response."""
        return self.num_reward_models if self.white_box else self.num_features


PRIVILEGES = frozenset({"scores", "weights", "population", "decoder"})
"""What an agent can declare to see beyond an honest one."""


@runtime_checkable
class Agent(Protocol):
    """Chooses responses for B users at once and learns from their feedback.

    A class is built as ``Class(prior, **settings)``. ``privileges`` names what it needs to see
    that no real system could know; it is empty for an honest agent.
    """

    privileges: ClassVar[frozenset[str]]

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users; what was learnt across users survives.

        Args:
            num_users: B, the number of rows from now on.
            rng: The only source of randomness the agent may use until the next reset.
        """
        ...

    def act(self, observation: Observation) -> Action:
        """Returns S response indices in [0, K) per row."""
        ...

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Learns from one interaction per row.

        ``observation`` and ``action`` are those of the interaction that ``feedback`` is about,
        which lies in the past where feedback is late. Rows with ``heard`` False carry no
        information beyond the silence itself.
        """
        ...


@runtime_checkable
class SaysProbabilities(Protocol):
    """An agent that knows how likely it is to show each response."""

    def probabilities(self, observation: Observation) -> Float[np.ndarray, "B K"]:
        """Returns the law of what ``act`` will return for this observation.

        It is asked just before ``act``, of an agent that shows one response, and draws nothing.
        """
        ...


@runtime_checkable
class LearnsFromHistory(Protocol):
    """An agent that can be fitted on other users' interactions before it meets its own."""

    def fit(self, database: Database) -> None:
        """Learns across users; the effect survives every later ``reset``."""
        ...
