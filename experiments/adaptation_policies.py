"""Policies that differ only in what they remember of their user; trained by ``adaptation.py``.

Memory becomes a context, the context a taste, and one taste judges all candidates: logit_k =
taste(context) @ features_k. What a policy without memory can learn is the population's taste,
as ``popular`` does; the others start from there.

Axis letters: B users, N interactions that users answered, K candidates, D features, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from adaptation_readers import FEATURES, WIDTH, Known, Reader, statement
from jaxtyping import Float, Int
from torch import Tensor, nn

from personalllm_env.envs.augmentations import Augmentation


class Told(NamedTuple):
    """Interactions that users answered, in the order of users and then of time."""

    known: Known
    user: Int[Tensor, "N"]
    action: Int[Tensor, "N"]
    log_chance: Float[Tensor, "N"]  # of the action, when it was drawn
    said: Float[Tensor, "N"]  # the reward that was reported
    goal: Float[Tensor, "N"]  # what is trained for: the same, or the utility

    def pick(self, rows: Tensor) -> Told:
        """Returns some of them."""
        known = {name: value[rows] for name, value in self.known.items()}
        return Told(known, *(x[rows] for x in self[1:]))

    def shown(self) -> Float[Tensor, "N D"]:
        """Returns the features of what was shown."""
        return self.known["features"][torch.arange(len(self.action)), self.action]


class Judged(NamedTuple):
    """What a network says of the candidates."""

    logits: Float[Tensor, "N K"]  # of the policy
    values: Float[Tensor, "N K"]  # the reward it expects


class Net(Protocol):
    """A policy network, while acting and, again and with gradients, while learning."""

    def parts(self) -> Sequence[Augmentation]:
        """Returns what observations must carry for it."""

    def begin(self, num_users: int) -> None:
        """Forgets everybody, for B new users."""

    def look(self, obs: Any) -> Known:
        """Returns what is known at this decision, fresh."""

    def note(self, shown: Float[Tensor, "B D"]) -> None:
        """Takes down what is shown after ``look``."""

    def judge(self, known: Known) -> Judged:
        """Judges the candidates of this decision."""

    def judge_again(self, told: Told) -> Judged:
        """Judges the candidates of all interactions of whole episodes."""

    def parameters(self) -> Any:
        """Returns what is learnt."""


class Head(nn.Module):
    """From a context to two tastes, one that acts and one that expects rewards.

    Args:
        width: W, of the context; 0 for none.
        extras: E, numbers per candidate that are weighed besides its features.
    """

    def __init__(self, width: int, extras: int = 0) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(2 * FEATURES + 1))
        self.personal = nn.Linear(width, 2 * FEATURES + 1, bias=False) if width else None
        self.weights = nn.Parameter(torch.zeros(2, extras))
        if self.personal is not None:
            nn.init.normal_(self.personal.weight, std=0.02)

    def forward(self, known: Known, context: Float[Tensor, "N W"] | None) -> Judged:
        """Returns the candidates' logits and expected rewards."""
        x = known["features"]
        out = self.base.expand(len(x), -1)
        if self.personal is not None:
            out = out + self.personal(context)
        tastes = out[:, :-1].reshape(len(x), 2, -1)
        found = torch.einsum("nkd,ntd->tnk", x, tastes)
        if "extras" in known:
            found = found + torch.einsum("nke,te->tnk", known["extras"], self.weights)
        return Judged(found[0], found[1] + out[:, -1:])


class FeedForward(nn.Module):
    """A network whose memory is in the observation.

    Args:
        reader: What it reads there.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader, self.head = reader, Head(reader.width, reader.extras)

    def parts(self) -> Sequence[Augmentation]:
        """Returns what observations must carry for it."""
        return self.reader.parts()

    def begin(self, num_users: int) -> None:
        """There is nothing to forget."""

    def look(self, obs: Any) -> Known:
        """Returns the candidates and what is read."""
        return {"features": torch.from_numpy(obs["response_features"])} | self.reader.look(obs)

    def note(self, shown: Float[Tensor, "B D"]) -> None:
        """The wrapper takes it down."""

    def judge(self, known: Known) -> Judged:
        """Judges the candidates of this decision."""
        found: Judged = self.head(known, self.reader(known))
        return found

    def judge_again(self, told: Told) -> Judged:
        """Judges the candidates of all interactions."""
        return self.judge(told.known)


class Recurrent(nn.Module):
    """A GRU that reads every answer (RL squared; Duan et al., 2016); silence leaves its state.

    It sees the plain environment, and keeps for itself what it showed last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2 * FEATURES + 1, WIDTH), nn.Tanh())
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = Head(WIDTH)

    def parts(self) -> Sequence[Augmentation]:
        """Observations are left as they are."""
        return ()

    def begin(self, num_users: int) -> None:
        """Forgets everybody."""
        self._state, self._shown = torch.zeros(num_users, WIDTH), torch.zeros(num_users, 0)

    def look(self, obs: Any) -> Known:
        """Takes in what was said about what was shown last."""
        heard = torch.from_numpy(obs["heard"][:, 0] > 0.5)
        if heard.any():
            said = torch.from_numpy(obs["feedback"][:, 0])[heard]
            told = self.embed(statement(self._shown[heard], said))
            self._state = self._state.clone()  # the one before may be kept by whoever learns
            self._state[heard] = self.gru(told[:, None], self._state[heard][None])[1][0]
        return {"features": torch.from_numpy(obs["response_features"]), "state": self._state}

    def note(self, shown: Float[Tensor, "B D"]) -> None:
        """Keeps what is shown."""
        self._shown = shown

    def judge(self, known: Known) -> Judged:
        """Judges the candidates of this decision."""
        found: Judged = self.head(known, known["state"])
        return found

    def judge_again(self, told: Told) -> Judged:
        """Reads all answers of every user anew."""
        _, row, count = torch.unique(told.user, return_inverse=True, return_counts=True)
        at = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        answers = torch.zeros(len(count), int(count.max()), 2 * FEATURES + 1)
        answers[row, at] = statement(told.shown(), told.said)
        states = self.gru(self.embed(answers))[0]
        before = torch.cat([torch.zeros(len(count), 1, WIDTH), states], dim=1)
        found: Judged = self.head(told.known, before[row, at])
        return found
