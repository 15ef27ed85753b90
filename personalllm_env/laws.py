"""What an agent shows, and how likely it says that was: asked for, and checked."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from personalllm_env.types import Action, Agent, Observation, SaysProbabilities

_NEAR_ONE = 1e-6  # how far from 1 probabilities may add up


def ask(
    agent: Agent, observation: Observation, num_shown: int
) -> tuple[Action, Float[np.ndarray, "B K"] | None]:
    """Returns what an agent shows, and its law if it says it and shows one response.

    Raises:
        ValueError: If either is none, or if it shows what its law says it never does.
    """
    law = law_of(agent, observation) if num_shown == 1 else None
    action = checked_action(agent, agent.act(observation), observation, num_shown)
    if law is not None:
        chance = np.take_along_axis(law, action, axis=1)[:, 0]
        if not chance.all():
            user, who = int(chance.argmin()), type(agent).__name__
            raise ValueError(
                f"{who}.act shows response {action[user, 0]} to user {user}, and "
                f"{who}.probabilities gave it probability 0: got {law[user].tolist()}"
            )
    return action, law


def law_of(agent: Agent, observation: Observation) -> Float[np.ndarray, "B K"] | None:
    """Returns how likely an agent says it is to show each response; None if it says nothing.

    Raises:
        ValueError: Naming the agent and the user (from 0) whose law is none.
    """
    if not isinstance(agent, SaysProbabilities):
        return None
    expected = observation.response_features.shape[:2]
    law = np.asarray(agent.probabilities(observation), dtype=np.float64)
    what = f"{type(agent).__name__}.probabilities must return numbers in [0, 1]"
    if law.shape != expected:
        raise ValueError(f"{what} of shape {expected}, got shape {law.shape}")
    total = np.where(law >= 0, law, np.inf).sum(axis=1)  # NaN is not above 0
    amiss = np.abs(total - 1) > _NEAR_ONE
    if amiss.any():
        user = int(amiss.argmax())
        numbers = law[user].tolist()
        raise ValueError(
            f"{what} that add up to 1, got {numbers} for user {user}, which add up to "
            f"{sum(numbers)}"
        )
    return law


def checked_action(
    agent: Agent, action: object, observation: Observation, num_shown: int
) -> Action:
    """Returns what an agent shows, a copy: it may use its array again.

    Raises:
        ValueError: If that is not so many of the responses for each user.
    """
    num_users, k = observation.response_features.shape[:2]
    array, expected = np.asarray(action), (num_users, num_shown)
    what = f"{type(agent).__name__}.act must return integers in 0..{k - 1} of shape {expected}"
    if array.shape != expected or array.dtype.kind not in "iu":
        raise ValueError(f"{what}, got {array.dtype} {array.shape}")
    if (array < 0).any() or (array >= k).any():
        user = int(((array < 0) | (array >= k)).any(axis=1).argmax())
        raise ValueError(f"{what}, got {array[user].tolist()} for user {user}")
    return array.astype(np.int64)
