"""Wrappers: what happened so far as arrays, a belief about the user, utility as reward, flat.

Each comes for the single and for the vector environment; what they add is computed by the same
code on a batch axis.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float

from personalllm_env.envs.augmentations import (
    Augmentation,
    Belief,
    History,
    Obs,
    Parts,
    several,
)
from personalllm_env.types import PriorKnowledge

__all__ = [
    "Augmentation",
    "Augmented",
    "Belief",
    "Flat",
    "History",
    "UtilityReward",
    "VectorAugmented",
    "VectorFlat",
    "VectorUtilityReward",
]

if TYPE_CHECKING:
    VectorWrapper = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:  # generic only since Gymnasium 1.4
    VectorWrapper = gym.vector.VectorWrapper


def _augmented_space(
    prior: PriorKnowledge, space: Any, parts: tuple[Augmentation, ...]
) -> spaces.Dict:
    if "response_features" not in space.spaces:
        raise ValueError("augmentations need an environment with observation='features'")
    added = {name: box for part in parts for name, box in part.spaces(prior).items()}
    return spaces.Dict({**space.spaces, **added})


class Augmented(gym.Wrapper[Obs, Any, Obs, Any], RecordConstructorArgs):
    """A single environment whose observations carry more.

    Args:
        env: A ``PersonalEnv``, wrapped or not, with feature observations.
        parts: One or several of ``History(...)``, ``Belief(...)`` or your own; copied, since
            they hold what happened.
    """

    def __init__(self, env: gym.Env[Obs, Any], parts: Parts) -> None:
        RecordConstructorArgs.__init__(self, parts=parts)
        gym.Wrapper.__init__(self, env)
        task = env.unwrapped.task  # type: ignore[attr-defined]
        self._prior: PriorKnowledge = task.prior_knowledge()
        self._parts = deepcopy(several(parts))
        self.observation_space = _augmented_space(
            self._prior, env.observation_space, self._parts
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begins an episode with nothing remembered."""
        obs, info = self.env.reset(seed=seed, options=options)
        for part in self._parts:
            part.begin(self._prior, 1)
        return self._extend(obs), info

    def step(self, action: Any) -> tuple[Obs, Any, bool, bool, dict[str, Any]]:
        """Steps and takes in what happened."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        acted = np.reshape(action, (1, self._prior.num_shown))
        now = _row(obs)
        for part in self._parts:
            part.push(self._before, acted, now)
        return self._extend(obs), reward, terminated, truncated, info

    def _extend(self, obs: Obs) -> Obs:
        self._before = _row(obs)
        added = {k: v[0] for part in self._parts for k, v in part.view(self._before).items()}
        return obs | added


def _row(obs: Obs) -> Obs:
    names = ("response_features", "feedback", "heard")
    return {name: obs[name][None].copy() for name in names}


class VectorAugmented(VectorWrapper):
    """A vector environment whose observations carry more, in every autoreset mode.

    Args:
        env: A ``PersonalVectorEnv``, wrapped or not, with feature observations.
        parts: As for ``Augmented``.
    """

    def __init__(self, env: gym.vector.VectorEnv[Obs, Any, Any], parts: Parts) -> None:
        super().__init__(env)
        task = env.unwrapped.task  # type: ignore[attr-defined]
        self._prior: PriorKnowledge = task.prior_knowledge()
        self._mode = env.metadata["autoreset_mode"]
        self._parts = deepcopy(several(parts))
        self.single_observation_space = _augmented_space(
            self._prior, env.single_observation_space, self._parts
        )
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._over = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begins episodes, of all rows or of those in ``options["reset_mask"]``."""
        obs, info = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        if mask is not None and mask.all():  # as a first one may be
            mask = None
        for part in self._parts:
            if mask is None:
                part.begin(self._prior, self.num_envs)
            else:
                part.clear(mask)
        self._over = np.zeros(self.num_envs, bool) if mask is None else self._over & ~mask
        return self._extend(obs), info

    def step(self, actions: Any) -> tuple[Obs, Any, Any, Any, dict[str, Any]]:
        """Steps and takes in what happened, row by row of its own episode."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        acted = np.reshape(actions, (self.num_envs, self._prior.num_shown))
        ended = terminated | truncated
        same = self._mode is AutoresetMode.SAME_STEP
        now = _with_final(obs, info, ended) if same and ended.any() else obs
        for part in self._parts:
            part.push(self._before, acted, now)
        begun = ended if same else self._over
        if same and ended.any():
            last = [part.view(now) for part in self._parts]
            for row in np.flatnonzero(ended):
                for added in last:
                    info["final_obs"][row].update({k: v[row] for k, v in added.items()})
        if begun.any():
            for part in self._parts:
                part.clear(begun)
        self._over = np.zeros_like(ended) if same else ended
        return self._extend(obs), reward, terminated, truncated, info

    def _extend(self, obs: Obs) -> Obs:
        # A copy: the caller may write to what they are given.
        self._before = {"response_features": obs["response_features"].copy()}
        return obs | {k: v for part in self._parts for k, v in part.view(obs).items()}


def _with_final(obs: Obs, info: dict[str, Any], ended: Bool[np.ndarray, "B"]) -> Obs:
    """Returns the observations before the same-step reset."""
    now = {name: obs[name].copy() for name in ("response_features", "feedback", "heard")}
    for row in np.flatnonzero(ended):
        for name, array in now.items():
            array[row] = info["final_obs"][row][name]
    return now


class UtilityReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Replaces the reported reward by the noise-free utility: the simulator's privilege."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns the utility of what was shown as reward."""
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, float(info["utility"]), terminated, truncated, info


class VectorUtilityReward(VectorWrapper):
    """``UtilityReward`` for the vector environment."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Returns the utilities of what was shown as rewards."""
        obs, _, terminated, truncated, info = self.env.step(actions)
        return obs, info["utility"].copy(), terminated, truncated, info


def _flat_space(space: Any) -> spaces.Box:
    boxes = list(space.spaces.values())
    if not all(isinstance(box, spaces.Box) for box in boxes):
        raise ValueError(
            "only boxes can be laid flat: make the environment with observation='features' and "
            f"without recognise or texts; got {', '.join(map(str, boxes))}"
        )
    low = np.concatenate([box.low.ravel() for box in boxes])
    high = np.concatenate([box.high.ravel() for box in boxes])
    return spaces.Box(low, high, dtype=np.float32)


class Flat(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Lays a dict of boxes flat, in the order of its keys, for MLP policies.

    Gymnasium's ``FlattenObservation`` does the same and takes any space; its vector form goes
    through the rows one by one, ``VectorFlat`` through all at once.
    """

    def __init__(self, env: gym.Env[Obs, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = _flat_space(env.observation_space)
        self._names = list(env.observation_space.spaces)  # type: ignore[attr-defined]

    def observation(self, observation: Obs) -> Float[np.ndarray, "n"]:
        """Returns one vector."""
        return np.concatenate([observation[name].ravel() for name in self._names])


class VectorFlat(VectorWrapper):
    """``Flat`` for the vector environment, in every autoreset mode."""

    def __init__(self, env: gym.vector.VectorEnv[Obs, Any, Any]) -> None:
        super().__init__(env)
        self.single_observation_space = _flat_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._names = list(env.single_observation_space.spaces)  # type: ignore[attr-defined]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[np.ndarray, "B n"], dict[str, Any]]:
        """Begins episodes and lays the observations flat."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps and lays the observations flat, final ones too."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        for row in np.flatnonzero(info.get("_final_obs", ())):
            final = info["final_obs"][row]
            info["final_obs"][row] = np.concatenate([final[n].ravel() for n in self._names])
        return self._flat(obs), reward, terminated, truncated, info

    def _flat(self, obs: Obs) -> Float[np.ndarray, "B n"]:
        parts = [obs[name].reshape(self.num_envs, -1) for name in self._names]
        return np.concatenate(parts, axis=1)
