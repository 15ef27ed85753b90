"""Tianshou 2: its policies as policies of ours. Its environments need no adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.extras import require


class TianshouPolicy:
    """A policy of Tianshou as a ``Policy``, which acts without exploring.

    Args:
        policy: Such as ``algorithm.policy``, of an algorithm with discrete actions on flat
            observations; one that draws its actions is made with ``deterministic_eval=True``.
    """

    def __init__(self, policy: Any) -> None:
        self._policy, self._torch = policy, require("torch", "tianshou")
        self._batch = require("tianshou.data", "tianshou").Batch

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Has nothing to forget: the policy keeps no state, and nothing is drawn."""

    def act(self, seen: Float[np.ndarray, "B n"]) -> Int[np.ndarray, "B *S"]:
        """Returns the actions of the highest value, or the most probable ones."""
        training = self._policy.training
        self._policy.eval()
        with self._torch.no_grad():
            found = self._policy(self._batch(obs=seen, info={}))
        self._policy.train(training)
        return np.asarray(found.act)
