"""A policy that was trained on a Gymnasium environment, as an agent of the runner.

Policies see Gymnasium's observations and agents see records; ``Sight`` makes the former of the
latter, equal bit for bit to what the wrapped vector environment would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, Protocol

import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int

from personalllm_env.envs.augmentations import Obs, Parts, several
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

    def __init__(self, prior: PriorKnowledge, parts: Parts = (), *, flat: bool = False) -> None:
        self._prior, self._flat = prior, flat
        self._parts = deepcopy(several(parts))

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
        parts: Parts = (),
        flat: bool = False,
    ) -> None:
        self._num_shown, self._policy = prior.num_shown, policy
        self._sight = Sight(prior, parts, flat=flat)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._sight.reset(num_users)
        self._policy.reset(num_users, rng)

    def act(self, observation: Observation) -> Action:
        """Returns what the policy shows.

        Raises:
            ValueError: If that is of another shape than this task's actions.
        """
        chosen = np.asarray(self._policy.act(self._sight.look(observation)))
        shape = (len(observation.prompt_features), self._num_shown)
        if chosen.shape != shape and (self._num_shown > 1 or chosen.shape != shape[:1]):
            raise ValueError(
                f"the policy returned shape {chosen.shape}; this task shows "
                f"{self._num_shown}, expected {shape}"
            )
        action = chosen.reshape(shape)
        self._sight.acted(action)
        return action

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Takes down what was said, for the policy to see next."""
        self._sight.heard(feedback)


def check_fit(
    expected: Any, chooses: Any, sight: Sight, prior: PriorKnowledge, path: str
) -> None:
    """Checks that a task is of the shape that a model was trained on.

    Args:
        expected: The space of the model's observations.
        chooses: The space of its actions.
        sight: What it would be shown.
        prior: What is known of the task.
        path: Where the model is, for the error.

    Raises:
        ValueError: If it is not.
    """
    k, s = prior.num_responses, prior.num_shown
    does = spaces.Discrete(k) if s == 1 else spaces.MultiDiscrete([k] * s)
    if chooses != does:
        raise ValueError(
            f"{path} was trained to choose from {chooses}; this task needs {does} "
            f"({k} responses, {s} shown)"
        )
    users = isinstance(expected, spaces.Dict) and "user" in expected.spaces
    sight.reset(1)
    seen = sight.look(_nothing(prior, recognise=users))
    wanted, there = _shapes(expected), _shapes(seen)
    if wanted != there:
        names = sorted(
            name for name in {*wanted, *there} if wanted.get(name) != there.get(name)
        )
        differ = "; ".join(
            f"{n}: {wanted.get(n, 'none')} trained, {there.get(n, 'none')} here" for n in names
        )
        raise ValueError(
            f"{path} was trained on observations of another shape than this task's; {differ}: "
            "the task is another one, or what observations carry besides (History, Belief)"
        )


def _nothing(prior: PriorKnowledge, *, recognise: bool) -> Observation:
    """Returns an observation of the task's shapes, one user's."""
    k, d = prior.num_responses, prior.num_features
    scores = np.zeros((1, k, prior.num_reward_models), np.float32) if prior.white_box else None
    one = np.zeros(1, np.int64)
    return Observation(
        one,
        np.zeros((1, d), np.float32),
        np.zeros((1, k, d), np.float32),
        one if recognise else None,
        scores,
    )


def _shapes(seen: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of one row's entries, from a space or a batch of one."""
    if isinstance(seen, spaces.Dict):
        return {name: space.shape or () for name, space in seen.spaces.items()}
    if isinstance(seen, Mapping):
        return {name: value.shape[1:] for name, value in seen.items()}
    return {"all": (seen.shape or ()) if isinstance(seen, spaces.Space) else seen.shape[1:]}
