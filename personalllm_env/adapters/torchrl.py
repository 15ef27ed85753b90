"""TorchRL: the vector environment as TorchRL reads it, and its actors as policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Int

from personalllm_env.extras import require

if TYPE_CHECKING:
    from torchrl.envs import GymWrapper

    VectorWrapper = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:  # generic only since Gymnasium 1.4
    VectorWrapper = gym.vector.VectorWrapper


def torchrl_env(
    env: gym.vector.VectorEnv[Any, Any, Any], *, info: str | Sequence[str] = ("utility",)
) -> GymWrapper:
    """Returns a vector environment, wrapped or not, as TorchRL's environment of B rows.

    Actions are numbers, not one-hot vectors. TorchRL resets the rows whose episodes are over.

    Args:
        env: Made with ``autoreset_mode="DISABLED"``.
        info: Which numbers of ``info`` come along, such as ``("next", "utility")``: for the
            report, not for the policy.

    Raises:
        ImportError: If TorchRL is missing or too old.
        ValueError: If the environment resets its rows by itself, has no such info, or its
            actions are texts.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.DISABLED:
        raise ValueError(
            "TorchRL resets rows by itself: make the environment with "
            f"autoreset_mode='DISABLED', got {getattr(mode, 'name', mode)}. (With SAME_STEP, "
            "TorchRL 0.14 takes zeros for the last observation of an episode where "
            "observations are dicts; with NEXT_STEP it refuses.)"
        )
    if not isinstance(env.single_action_space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        raise ValueError(
            f"torchrl_env has no actions of {env.single_action_space}: texts are written in "
            "personalllm_env.adapters.torchrl_chat.personal_chat_env"
        )
    info = [info] if isinstance(info, str) else info
    libs = require("torchrl.envs", "torchrl")
    data, torch = require("torchrl.data", "torchrl"), require("torch", "torchrl")
    wrapped = libs.GymWrapper(_Moded(env), categorical_action_encoding=True)
    if info:
        known = env.reset()[1]  # unseeded, so that later episodes are as new as ever
        for name in info:
            if name not in known:
                names = ", ".join(n for n in known if n[0] != "_")
                raise ValueError(f"info has no {name!r}; it has {names}")
        spec = {
            name: data.Unbounded(known[name].shape, dtype=torch.as_tensor(known[name]).dtype)
            for name in info
        }
        composite = data.Composite(spec, shape=(env.num_envs,))
        wrapped.set_info_dict_reader(libs.default_info_dict_reader(list(info), composite))
    return wrapped


class _Moded(VectorWrapper):
    """Says its autoreset mode in an attribute, where TorchRL looks; wrappers do not."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.autoreset_mode = AutoresetMode.DISABLED


class ActorPolicy:
    """A TorchRL actor as a ``Policy``, which acts without exploring.

    Args:
        actor: A module that reads ``observation``, or the entries of a dict observation, and
            writes ``action``, numbers or one-hot.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._torch = require("torch", "torchrl")
        self._tensordict = require("tensordict", "torchrl")
        self._envs = require("torchrl.envs.utils", "torchrl")

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Has nothing to forget: the actor keeps no state, and nothing is drawn."""

    def act(self, seen: Any) -> Int[np.ndarray, "B *S"]:
        """Returns the most probable actions."""
        parts = seen if isinstance(seen, dict) else {"observation": seen}
        tensors = {name: self._torch.as_tensor(value) for name, value in parts.items()}
        num = len(next(iter(tensors.values())))
        kind = self._envs.ExplorationType.DETERMINISTIC
        with self._torch.no_grad(), self._envs.set_exploration_type(kind):
            read = self._tensordict.TensorDict(tensors, batch_size=[num])
            action = self._actor(read)["action"]
        return np.asarray(action.numpy())
