"""A policy that was trained on a Gymnasium environment, as an agent of the runner.

Policies see Gymnasium's observations and agents see records; ``Sight`` makes the former of the
latter, equal bit for bit to what the wrapped vector environment would have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.envs.augmentations import Augmentation, Obs
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class Policy(Protocol):
    """Chooses for B users from what a wrapped vector environment shows them."""

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users: forgets every recurrent state.

        Args:
            num_users: B.
            rng: The only source of randomness until the next reset.
        """
        ...

    def act(self, seen: Any) -> Int[np.ndarray, "B *S"]:
        """Returns Gymnasium's actions: (B,) to select, (B, 2) to duel.

        Args:
            seen: A batched observation: a dict of arrays with B in front or, where the
                environment was laid flat, one (B, n) array.
        """
        ...


class Sight:
    """What ``VectorFlat(VectorAugmented(PersonalVectorEnv(...), parts))`` would show now.

    Args:
        prior: What is known of the task.
        parts: What observations carry besides; copied, since they hold what happened.
        flat: Whether observations are laid flat, as by ``VectorFlat``.
    """

    def __init__(
        self, prior: PriorKnowledge, parts: Sequence[Augmentation] = (), *, flat: bool = False
    ) -> None:
        self._prior, self._flat = prior, flat
        self._parts = deepcopy(list(parts))

    def reset(self, num_users: int) -> None:
        """Begins an episode for B users."""
        self._t, width = 0, self._prior.feedback.width(self._prior.num_responses)
        self._said = np.zeros((num_users, width), np.float32)
        self._heard = np.zeros((num_users, 1), np.float32)
        self._done: tuple[Obs, Action] | None = None
        for part in self._parts:
            part.begin(self._prior, num_users)

    def look(self, observation: Observation) -> Any:
        """Returns the observation in Gymnasium's form."""
        share = np.float32(self._t) / np.float32(self._prior.horizon)
        obs: Obs = {
            "feedback": self._said,
            "heard": self._heard,
            "step": np.full_like(self._heard, share),
            "prompt_features": observation.prompt_features,
            "response_features": observation.response_features,
        }
        if observation.user is not None:
            obs["user"] = observation.user
        if observation.scores is not None:
            obs["privileged_scores"] = observation.scores
        for part in self._parts:
            if self._done is not None:
                before, action = self._done
                part.push(before, action, obs)
        added = {name: value for part in self._parts for name, value in part.view(obs).items()}
        self._before: Obs = {"response_features": observation.response_features.copy()}
        obs |= added
        return _laid_flat(obs) if self._flat else obs

    def acted(self, action: Action) -> None:
        """Takes down what is shown after ``look``."""
        self._done, self._t = (self._before, action.copy()), self._t + 1

    def heard(self, feedback: Feedback) -> None:
        """Takes down what is heard now, after ``acted``; late feedback comes from then on."""
        self._said = self._prior.feedback.encode(feedback, self._prior.num_responses)
        self._heard = feedback.heard.astype(np.float32)[:, None]


def _laid_flat(obs: Obs) -> Float[np.ndarray, "B n"]:
    # Gymnasium keeps the entries of a Dict space in the order of their names.
    parts = [obs[name].reshape(len(obs["step"]), -1) for name in sorted(obs)]
    return np.concatenate(parts, axis=1)


class PolicyAgent:
    """An agent that does what a policy does.

    Args:
        prior: What is known of the task.
        policy: Trained on a task of the same shape.
        parts: The augmentations that it was trained with, in their order.
        flat: Whether it was trained on flat observations.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        policy: Policy,
        parts: Sequence[Augmentation] = (),
        flat: bool = False,
    ) -> None:
        self._num_shown, self._policy = prior.num_shown, policy
        self._sight = Sight(prior, parts, flat=flat)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._sight.reset(num_users)
        self._policy.reset(num_users, rng)

    def act(self, observation: Observation) -> Action:
        """Returns what the policy shows."""
        chosen = self._policy.act(self._sight.look(observation))
        action = np.asarray(chosen).reshape(-1, self._num_shown)
        self._sight.acted(action)
        return action

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Takes down what was said, for the policy to see next."""
        self._sight.heard(feedback)
