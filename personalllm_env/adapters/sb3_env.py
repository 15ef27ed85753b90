"""B users in lockstep as Stable-Baselines3's own ``VecEnv``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Int

from personalllm_env.adapters.sb3_checks import (
    GymVectorEnv,
    check_masks,
    check_taken,
    joined_options,
    sizes_of,
)
from personalllm_env.envs.augmentations import Parts, several
from personalllm_env.envs.wrappers import VectorAugmented, VectorFlat, VectorUtilityReward
from personalllm_env.extras import require

require("stable_baselines3", "sb3")  # says what to install where the next lines would fail

from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices  # noqa: E402

Masks: TypeAlias = Callable[[Any], Bool[np.ndarray, "B N"]]
"""What may be shown, from what the policy sees: True for each of the N = K allowed responses,
and in a duel for the K of the first and then the K of the second response."""


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as Stable-Baselines3 takes it: no loop over rows.

    What rows report when their episode is over is in ``infos``, as SB3's ``DummyVecEnv`` and
    ``Monitor`` have it: ``terminal_observation``, ``TimeLimit.truncated`` and ``episode``
    (return ``r``, length ``l``, seconds ``t``). Other rows' dicts are empty, and fresh, unless
    ``info`` names something.

    Args:
        env: A vector environment made with ``autoreset_mode="SAME_STEP"``, wrapped or not.
        parts: What observations carry besides, as for ``VectorAugmented``.
        flat: Whether observations are laid flat, for ``"MlpPolicy"``; else they are dicts, for
            ``"MultiInputPolicy"``.
        utility_reward: Whether the reward is the noise-free utility, the simulator's
            privilege, in place of what users report.
        info: Which of the environment's infos every row's dict carries at every step, such as
            ``"utility"``. It costs about as much as the step.
        masks: For ``MaskablePPO``, what may be shown; by default everything.
        monitor: Whether ``infos`` have ``episode``, which SB3's logs and evaluation read. Turn
            it off under a ``VecMonitor``, which writes a file.

    Attributes:
        env: The vector environment, wrapped as asked for.
        parts: As given, in a tuple.
        flat: As given.
        masks: As given.
        plain: Whether ``env`` came unwrapped, so that ``parts`` and ``flat`` tell all.

    Raises:
        TypeError: If ``env`` is no Gymnasium vector environment.
        ValueError: If it resets its rows in another way, or its actions are texts.
    """

    def __init__(
        self,
        env: GymVectorEnv,
        *,
        parts: Parts = (),
        flat: bool = False,
        utility_reward: bool = False,
        info: str | Sequence[str] = (),
        masks: Masks | None = None,
        monitor: bool = True,
    ) -> None:
        check_taken(env)
        self.parts, self.flat, self.masks = several(parts), flat, masks
        self.plain = env is env.unwrapped
        if utility_reward:
            env = VectorUtilityReward(env)
        if self.parts:
            env = VectorAugmented(env, self.parts)
        if flat:
            env = VectorFlat(env)
        self.env, self.spec = env, env.spec
        self._names = (info,) if isinstance(info, str) else tuple(info)
        self._monitor = monitor
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._sizes = sizes_of(env.single_action_space)
        self._began, self._seen = time.time(), None
        self._forget()

    def _forget(self) -> None:
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Sets the root seed of the next reset; rows share it and nothing else.

        Args:
            seed: Any non-negative integer; None for one from the operating system.
        """
        root = secrets.randbits(64) if seed is None else seed
        self._seeds = [root] * self.num_envs
        return self._seeds

    def reset(self) -> Any:
        """Begins an episode in every row, with the seed and the options set before."""
        seen, info = self.env.reset(seed=self._seeds[0], options=joined_options(self._options))
        self._reset_seeds()
        self._reset_options()
        if unknown := [name for name in self._names if name not in info]:
            known = ", ".join(name for name in info if name[0] != "_")
            raise ValueError(f"info has no {', '.join(unknown)}; it has {known}")
        self._forget()
        self._seen, self.reset_infos = seen, self._row_dicts(info)
        return seen

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions down; ``step_wait`` does them."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Shows every user what the actions say, and begins anew where an episode is over."""
        seen, reward, terminated, truncated, info = self.env.step(self._actions)
        over = terminated | truncated
        self._seen = seen
        self._returns += reward
        self._lengths += 1
        dicts = self._row_dicts(info)
        if np.count_nonzero(over):
            self._end(dicts, np.flatnonzero(over), terminated, info)
        return seen, np.asarray(reward, np.float32), over, dicts

    def _row_dicts(self, info: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._names:
            return [{} for _ in range(self.num_envs)]
        columns = [info[name].tolist() for name in self._names]
        return [dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _end(
        self,
        dicts: list[dict[str, Any]],
        rows: Int[np.ndarray, "n"],
        terminated: Bool[np.ndarray, "B"],
        info: Mapping[str, Any],
    ) -> None:
        """Writes down what SB3 reads of rows whose episode is over."""
        last = self._row_dicts(info["final_info"]) if self._names else dicts
        seconds = round(time.time() - self._began, 6)
        for row in rows.tolist():
            if self._names:  # the step's own dict is of the episode that has begun
                self.reset_infos[row], dicts[row] = dicts[row], last[row]
            dicts[row]["terminal_observation"] = info["final_obs"][row]
            dicts[row]["TimeLimit.truncated"] = not terminated[row]
            if self._monitor:
                total, length = float(self._returns[row]), int(self._lengths[row])
                dicts[row]["episode"] = {"r": total, "l": length, "t": seconds}
        self._returns[rows], self._lengths[rows] = 0, 0

    def action_masks(self) -> Bool[np.ndarray, "B N"]:
        """Returns what may be shown now.

        Raises:
            ValueError: If ``masks`` returns something else, or forbids all of a row.
        """
        if self.masks is None:
            return np.ones((self.num_envs, sum(self._sizes)), bool)
        return check_masks(self.masks(self._seen), self.num_envs, self._sizes)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the vector environment or of what it wraps, for each row."""
        held: Any = self if attr_name == "action_masks" else self._holder(attr_name)
        return [getattr(held, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute where it is, or else on the outermost wrapper; for all rows."""
        self._check_all(indices, f"set {attr_name}")
        try:
            held = self._holder(attr_name)
        except AttributeError:
            held = self.env
        setattr(held, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Calls a method of the vector environment once; its result stands for every row."""
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[row] for row in self._get_indices(indices)]
        self._check_all(indices, f"call {method_name}")
        method = getattr(self._holder(method_name), method_name)
        return [method(*method_args, **kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[Any], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Says whether a wrapper is there; ``Monitor``'s work is done here, so it is."""
        monitored = self._monitor and wrapper_class is Monitor
        there = monitored or any(isinstance(e, wrapper_class) for e in _layers(self.env))
        return [there for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Raises NotImplementedError: single environments draw, in a ``DummyVecEnv``."""
        raise NotImplementedError(
            "the vector environment does not draw; to record one user, put "
            "gym.make(..., render_mode='rgb_array') into a DummyVecEnv"
        )

    def close(self) -> None:
        """Closes the vector environment."""
        self.env.close()

    def _holder(self, name: str) -> GymVectorEnv:
        for env in _layers(self.env):
            try:
                getattr(env, name)
            except AttributeError:
                continue
            return env
        raise AttributeError(f"{type(self.env.unwrapped).__name__} has no attribute {name!r}")

    def _check_all(self, indices: VecEnvIndices, what: str) -> None:
        if sorted(set(self._get_indices(indices))) != list(range(self.num_envs)):
            raise ValueError(
                f"rows share one environment: {what} for all of them, not {indices}"
            )


def _layers(env: GymVectorEnv) -> Iterator[GymVectorEnv]:
    while isinstance(env, gym.vector.VectorWrapper):
        yield env
        env = env.env
    yield env
