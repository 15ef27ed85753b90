"""What users say, as statements about a linear taste: rewards to regress, choices to explain.

A *rating* says target = inputs @ taste + noise. A *pick* of one alternative among several says
that it won a multinomial logit: P(pick) is proportional to exp(alternative @ taste) (Luce 1959;
of two, Bradley & Terry 1952). A like is a pick between the response and nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.belief import evidence
from personalllm_env.database import Database
from personalllm_env.types import Feedback, PriorKnowledge

_MOST_AXES = 64  # inputs are reduced to this many principal axes
_BLOCK = 8192  # interactions looked up at once


class Heard(NamedTuple):
    """One interaction per row: a rating (``target``) or a pick (``target`` None)."""

    lines: Float[np.ndarray, "B J A"]  # rated: the inputs; picked: each other minus the pick
    target: Float[np.ndarray, "B"] | None
    known: Bool[np.ndarray, "B"]  # False in silence


class Lens(NamedTuple):
    """How inputs are looked at: centred, on the axes along which responses differ most."""

    centre: Float[np.ndarray, "I"]
    axes: Float[np.ndarray, "I A"]
    level: bool  # whether a last coordinate 1 stands for the user's own level
    picks: bool  # whether users pick, or rate
    num_stars: int

    def see(self, inputs: Float[np.ndarray, "*B I"]) -> Float[np.ndarray, "*B A"]:
        """Returns the inputs' coordinates."""
        seen = (inputs - self.centre) @ self.axes
        if not self.level:
            return seen
        return np.concatenate([seen, np.ones((*seen.shape[:-1], 1))], axis=-1)

    def hear(
        self,
        inputs: Float[np.ndarray, "B K I"],
        action: Int[np.ndarray, "B S"],
        feedback: Feedback,
    ) -> Heard:
        """Reads what was said; rewards come before clicks, choices, stars and likes."""
        rows, said = np.arange(len(action)), feedback.said
        if not self.picks:
            rated = evidence(inputs, action, feedback, self.num_stars)
            lines = self.see(rated.features.astype(np.float64))[:, None]
            return Heard(lines, rated.target.astype(np.float64), rated.known)
        if "click" in said:
            seen = self.see(inputs.astype(np.float64))
            clicked = said["click"].astype(np.int64)
            others = (clicked[:, None] + np.arange(1, inputs.shape[1])) % inputs.shape[1]
            lines = (
                np.take_along_axis(seen, others[:, :, None], 1) - seen[rows, clicked][:, None]
            )
        elif "choice" in said:
            shown = self.see(inputs[rows[:, None], action].astype(np.float64))
            sign = np.where(said["choice"] > 0, -1.0, 1.0)  # the other minus the chosen
            lines = sign[:, None, None] * (shown[:, :1] - shown[:, 1:2])
        else:
            shown = self.see(inputs[rows[:, None], action].astype(np.float64).mean(axis=1))
            lines = np.where(said["like"] > 0.5, -1.0, 1.0)[:, None, None] * shown[:, None]
        return Heard(lines, None, feedback.heard)


def make_lens(prior: PriorKnowledge, database: Database | None) -> Lens:
    """Chooses how to look at inputs, from what is on offer in a history.

    Raises:
        ValueError: If users speak through no channel that says anything of a linear taste.
    """
    names = {channel.name for channel in prior.feedback.channels}
    if not names & {"reward", "click", "choice", "stars", "like"}:
        raise ValueError(f"no linear reading of what is said through {', '.join(names)}")
    picks = "reward" not in names and bool(names & {"click", "choice"} or "stars" not in names)
    level = not picks or not names & {"click", "choice"}
    centre, axes = np.zeros(prior.num_inputs), np.eye(prior.num_inputs)
    if database is not None:
        offered = database.inputs[np.unique(database.prompt)].reshape(-1, prior.num_inputs)
        centre = offered.mean(axis=0, dtype=np.float64)
        if prior.num_inputs > _MOST_AXES:
            spread = np.cov((offered - centre).T)
            axes = np.linalg.eigh(spread)[1][:, : -_MOST_AXES - 1 : -1]
    return Lens(centre, axes, level, picks, prior.feedback.num_stars)


class Histories(NamedTuple):
    """What U users said, without the silences, padded with zeros to whoever said most."""

    lines: Float[np.ndarray, "U N J A"]
    target: Float[np.ndarray, "U N"] | None
    known: Bool[np.ndarray, "U N"]


def speakers(database: Database) -> Int[np.ndarray, "U"]:
    """Returns who in a database ever said anything, in order."""
    return np.unique(database.user[database.heard])


def gather(database: Database, lens: Lens, users: Int[np.ndarray, "U"]) -> Histories:
    """Reads the histories of ``users``, who are speakers in order with none left out."""
    low, high = np.searchsorted(database.user, [users[0], users[-1] + 1])
    heard = database.heard[low:high]
    row = np.searchsorted(users, database.user[low:high][heard])
    nth = np.arange(len(row)) - np.searchsorted(row, row)  # silence takes no room
    shape = (len(users), int(nth.max()) + 1)
    known, target = np.zeros(shape, dtype=bool), None if lens.picks else np.zeros(shape)
    known[row, nth] = True
    parts, targets = [], []
    for start in range(low, high, _BLOCK):
        rows = slice(start, min(start + _BLOCK, high))
        inputs = database.inputs[database.prompt[rows]]
        part = lens.hear(inputs, database.action[rows], database.feedback(rows))
        parts.append(part.lines[part.known])
        if part.target is not None:
            targets.append(part.target[part.known])
    lines = np.zeros((*shape, *parts[0].shape[1:]))
    lines[known] = np.concatenate(parts)  # both by user and then by time
    if target is not None:
        target[known] = np.concatenate(targets)
    return Histories(lines, target, known)
