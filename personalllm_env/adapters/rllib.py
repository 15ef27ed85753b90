"""Ray RLlib: environments in the form its env runners ask for, and its modules as agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Float, Int

from personalllm_env.adapters.policies import PolicyAgent, Sight, check_fit
from personalllm_env.envs.augmentations import Augmentation, Belief, History, Parts, several
from personalllm_env.envs.lockstep import read_mode
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.envs.wrappers import (
    Augmented,
    Flat,
    UtilityReward,
    VectorAugmented,
    VectorFlat,
    VectorUtilityReward,
)
from personalllm_env.extras import require
from personalllm_env.types import PriorKnowledge

if TYPE_CHECKING:
    Env = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Creator:
    """Makes RLlib's environments: ``ray.tune.register_env("PersonalLLM", Creator())``.

    With ``gym_env_vectorize_mode="vector_entry_point"`` RLlib asks for ``num_envs`` users at
    once and gets the native vector environment, in mode NEXT_STEP; otherwise a single one. The
    rest of ``env_config`` are the settings of ``PersonalEnv``.

    Attributes:
        parts: What observations carry besides.
        flat: Whether they are laid flat, for RLlib's default networks.
        utility: Whether the noise-free utility is the reward: the simulator's privilege.

    Raises:
        ValueError: If the parts are none.
    """

    parts: Parts = ()
    flat: bool = True
    utility: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            raise ValueError(
                f"Creator takes no environment's id, got {self.parts!r:.60}: it makes "
                "PersonalLLM/Select-v0, and a duel of env_config={'num_shown': 2}"
            )
        several(self.parts)

    def __call__(self, config: Mapping[str, Any]) -> Env:
        """Returns the environment.

        Raises:
            ValueError: If a setting is unknown, or an autoreset mode is asked for in which
                RLlib counts wrongly.
        """
        settings = dict(config)
        mode, num = settings.pop("autoreset_mode", None), settings.pop("num_envs", None)
        if mode is not None and read_mode(mode) is not AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"RLlib needs autoreset_mode NEXT_STEP, got {read_mode(mode).name}: with any "
                "other, it takes the first interaction of each next episode for a reset and "
                "loses it without a word; leave the setting out"
            )
        return self._single(settings) if num is None else self._vector(num, settings)

    def _single(self, settings: dict[str, Any]) -> Env:
        env: Any = PersonalEnv(**settings)
        env = Augmented(env, self.parts) if self.parts else env
        env = UtilityReward(env) if self.utility else env
        return Flat(env) if self.flat else env

    def _vector(self, num: int, settings: dict[str, Any]) -> Env:
        env: Any = PersonalVectorEnv(num, autoreset_mode=AutoresetMode.NEXT_STEP, **settings)
        env = VectorAugmented(env, self.parts) if self.parts else env
        env = VectorUtilityReward(env) if self.utility else env
        return VectorFlat(env) if self.flat else env


class ModulePolicy:
    """An ``RLModule`` as a ``Policy``, which acts without exploring.

    Args:
        module: Of an algorithm with discrete actions, such as PPO or DQN, on flat
            observations, and without a memory of its own.

    Raises:
        ValueError: If the module is recurrent.
    """

    def __init__(self, module: Any) -> None:
        if module.is_stateful():
            raise ValueError(
                "a recurrent RLModule cannot be an agent: train one without a memory "
                "(use_lstm=False) on observations with History or Belief"
            )
        self._module = module
        self._torch = require("torch", "rllib")

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Has nothing to forget: the module keeps no state, and nothing is drawn."""

    def act(self, seen: Float[np.ndarray, "B n"]) -> Int[np.ndarray, "B *S"]:
        """Returns the most probable actions, or those of the highest value."""
        with self._torch.no_grad():
            found = self._module.forward_inference({"obs": self._torch.as_tensor(seen)})
        if "actions" in found:
            return np.asarray(found["actions"])
        space, logits = self._module.action_space, np.asarray(found["action_dist_inputs"])
        if isinstance(space, gym.spaces.Discrete):
            return logits.argmax(axis=-1)
        ends = np.cumsum(space.nvec)[:-1]
        return np.stack([part.argmax(-1) for part in np.split(logits, ends, axis=-1)], axis=-1)


class RLlibAgent(PolicyAgent):
    """An algorithm's checkpoint as an agent of the benchmark.

    As ``personalllm_env.adapters.rllib:RLlibAgent@path=CHECKPOINT,belief=10`` on the command
    line. Checkpoints hold pickles: load only your own.

    Args:
        prior: What is known of the task.
        path: What ``algorithm.save_to_path`` returned.
        belief: The ridge of the belief that observations carried in training; 0 for none.
        history: The length of the history that they carried; 0 for none.

    Raises:
        ImportError: If RLlib is missing or too old.
        ValueError: If there is no such checkpoint, its module is recurrent, or it was trained
            on a task of another shape or with other observations.
    """

    def __init__(
        self, prior: PriorKnowledge, *, path: str, belief: float = 0.0, history: int = 0
    ) -> None:
        modules = require("ray.rllib.core.rl_module", "rllib")
        folder = Path(path) / "learner_group" / "learner" / "rl_module" / "default_policy"
        if not folder.is_dir():
            raise ValueError(
                f"{path} is no checkpoint of an RLlib algorithm: it has no "
                f"{folder.relative_to(path)}; give what algorithm.save_to_path() returned"
            )
        module = modules.RLModule.from_checkpoint(folder.resolve())
        parts: list[Augmentation] = [History(history)] if history else []
        parts += [Belief(belief)] if belief else []
        policy, sight = ModulePolicy(module), Sight(prior, parts, flat=True)
        check_fit(module.observation_space, module.action_space, sight, prior, path)
        super().__init__(prior, policy=policy, parts=parts, flat=True)
