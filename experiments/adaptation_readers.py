"""What policies read of an observation: nothing, the history or the belief.

Axis letters: as there, B users, N interactions, K candidates, D features, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from personalllm_env.envs.augmentations import Augmentation, Belief, History

WIDTH = 64  # W, of contexts and of hidden layers
FEATURES = 32  # D, of the built-in bank
Known = dict[str, Tensor]
"""What is known at a decision: ``features`` (N, K, D), and what is remembered, (N, ...)."""


class Reader(Protocol):
    """Turns what an observation carries into a context."""

    width: int
    extras: int

    def parts(self) -> Sequence[Augmentation]:
        """Returns what observations must carry."""

    def look(self, obs: Any) -> Known:
        """Returns what it reads of an observation, fresh."""

    def __call__(self, known: Known) -> Float[Tensor, "N W"] | None:
        """Returns the context."""


class NoMemory(nn.Module):
    """Reads nothing: a policy with one taste for all."""

    width, extras = 0, 0

    def parts(self) -> Sequence[Augmentation]:
        """Observations are left as they are."""
        return ()

    def look(self, obs: Any) -> Known:
        """Returns nothing."""
        return {}

    def forward(self, known: Known) -> None:
        """Returns no context."""
        return


class HistoryReader(nn.Module):
    """Adds up what each answer in the history wrapper's window says (Zaheer et al., 2017).

    Args:
        length: How many interactions the wrapper remembers, answered or not.
    """

    width, extras = WIDTH, 0

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self.each = _mlp(2 * FEATURES + 1)
        self.all = nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def parts(self) -> Sequence[Augmentation]:
        """Returns the history."""
        return (History(self._length),)

    def look(self, obs: Any) -> Known:
        """Returns the window."""
        return {
            "shown": torch.from_numpy(obs["history_features"][:, :, 0]),
            "said": torch.from_numpy(obs["history_feedback"][:, :, 0]),
            "heard": torch.from_numpy(obs["history_heard"] > 0.5),
        }

    def forward(self, known: Known) -> Float[Tensor, "N W"]:
        """Returns a function of the sum over answers, whatever their order."""
        row, at = known["heard"].nonzero(as_tuple=True)  # one in ten: the others cost nothing
        said = self.each(statement(known["shown"][row, at], known["said"][row, at]))
        total = torch.zeros(len(known["heard"]), WIDTH).index_add(0, row, said)
        found: Tensor = self.all(0.3 * total)
        return found


class BeliefReader(nn.Module):
    """Reads the belief wrapper: the taste, and each candidate's value and uncertainty.

    Args:
        ridge: The prior's weight in interactions.
    """

    width, extras = WIDTH, 2

    def __init__(self, ridge: float = 30.0) -> None:
        super().__init__()
        self._ridge = ridge
        self.net = nn.Sequential(_mlp(FEATURES + 1), nn.Tanh())

    def parts(self) -> Sequence[Augmentation]:
        """Returns the belief."""
        return (Belief(self._ridge),)

    def look(self, obs: Any) -> Known:
        """Returns the belief."""
        extras = np.stack([obs["belief_value"], obs["belief_width"]], axis=-1)
        mean = np.concatenate([5 * obs["belief_mean"], obs["step"]], axis=1)
        return {"belief": torch.from_numpy(mean), "extras": torch.from_numpy(extras)}

    def forward(self, known: Known) -> Float[Tensor, "N W"]:
        """Returns a function of the believed taste and of time."""
        found: Tensor = self.net(known["belief"])
        return found


def statement(shown: Float[Tensor, "n D"], said: Float[Tensor, "n"]) -> Float[Tensor, "n A"]:
    """Returns what an answer tells: ridge regression needs the sum of the middle part."""
    return torch.cat([shown, shown * said[:, None], said[:, None]], dim=1)


def _mlp(num_inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
