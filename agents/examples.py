"""Examples: what interactions say about responses, and a history of them for retrieval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.belief import evidence
from personalllm_env.database import Database
from personalllm_env.types import Feedback


class Examples(NamedTuple):
    """What one interaction says: responses of length 1, times how much each won or lost."""

    win: Float[np.ndarray, "B I"]
    lose: Float[np.ndarray, "B I"]


def examples(
    inputs: Float[np.ndarray, "B K I"],
    action: Int[np.ndarray, "B S"],
    feedback: Feedback,
    *,
    num_stars: int = 5,
    average: float = 0.0,
) -> Examples:
    """Splits what was said into a winning and a losing side; both are 0 in silence.

    A choice has the chosen response win and the other lose; a click the clicked and the mean
    of the others. A reward, stars or a like have the response shown (the mean of those shown)
    win, or lose, by as much as they are above, or below, ``average`` on the scale of
    ``belief.evidence``, whose order of precedence among channels also holds here.

    Args:
        inputs: Of the candidates.
        action: What was shown.
        feedback: What was said.
        num_stars: How many stars a user can give.
        average: What users say on average.

    Raises:
        ValueError: If users speak through none of these channels.
    """
    x, said = unit(inputs), feedback.said
    rows, k = np.arange(len(action)), inputs.shape[1]
    if "reward" not in said and "click" in said:
        clicked = x[rows, said["click"].astype(np.int64)]
        win, lose = clicked, (x.sum(axis=1) - clicked) / max(k - 1, 1)
    elif "reward" not in said and "choice" in said:
        first = (said["choice"] > 0).astype(np.int64)
        win, lose = x[rows, action[rows, 1 - first]], x[rows, action[rows, first]]
    else:
        seen = evidence(x, action, feedback, num_stars)
        above = (seen.target - average).astype(x.dtype)[:, None]
        win = np.maximum(above, 0) * seen.features
        lose = np.maximum(-above, 0) * seen.features
    heard = feedback.heard[:, None]
    return Examples(win * heard, lose * heard)


def unit(vectors: Float[np.ndarray, "*any D"]) -> Float[np.ndarray, "*any D"]:
    """Returns the vectors at length 1, so that inner products are cosines; 0 stays 0."""
    length = np.sqrt(np.vecdot(vectors, vectors))[..., None]
    return vectors / np.where(length > 0, length, 1)


class Library(NamedTuple):
    """The history, with a row per user; L is the largest number of interactions of a user.

    Silence takes no room. Where a user said less than L times ``real`` is False, the vote 0.
    """

    prompts: Float[np.ndarray, "P D"]  # those asked, at length 1
    everyone: Float[np.ndarray, "P I"]  # all users' votes on each
    prompt: Int[np.ndarray, "U L"]  # row of ``prompts``
    real: Bool[np.ndarray, "U L"]
    vote: Float[np.ndarray, "U L I"]  # win - lose
    embedding: Float[np.ndarray, "U I"]  # a sum: cosines do not tell it from a mean
    average: float  # of what users say, on the scale of ``belief.evidence``
    identity: Int[np.ndarray, "U"] | None


def build_library(
    database: Database, embedding: str = "difference", num_stars: int = 5
) -> Library:
    """Arranges a history for retrieval."""
    average, u = _average(database, num_stars), database.num_users
    database = database.spoken()
    user, i = database.user, database.inputs.shape[2]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    length = int(place.max(initial=-1)) + 1
    asked, prompt_row = np.unique(database.prompt, return_inverse=True)
    vote, everyone = np.zeros((u, length, i), np.float32), np.zeros((len(asked), i))
    total = np.zeros((u, i))
    for rows in database.blocks():
        seen = examples(
            database.inputs[database.prompt[rows]],
            database.action[rows],
            database.feedback(rows),
            num_stars=num_stars,
            average=average,
        )
        vote[user[rows], place[rows]] = seen.win - seen.lose
        np.add.at(everyone, prompt_row[rows], seen.win - seen.lose)
        np.add.at(total, user[rows], embed(seen, embedding))
    prompt, real = np.zeros((u, length), np.int64), np.zeros((u, length), bool)
    prompt[user, place], real[user, place] = prompt_row, database.heard
    return Library(
        prompts=unit(database.prompt_features[asked]),
        everyone=everyone.astype(np.float32),
        prompt=prompt,
        real=real,
        vote=vote,
        embedding=total,
        average=average,
        identity=database.identity,
    )


def _average(database: Database, num_stars: int) -> float:
    """Returns the mean target of ``belief.evidence``, without looking at any features."""
    nothing = np.broadcast_to(np.float32(0), (len(database.user), database.inputs.shape[1], 1))
    seen = evidence(nothing, database.action, database.feedback(), num_stars)
    return float(seen.target[seen.known].mean()) if seen.known.any() else 0.0


def embed(seen: Examples, embedding: str) -> Float[np.ndarray, "B I"]:
    """Returns what one interaction adds to the embedding of its user."""
    if embedding == "difference":
        return seen.win - seen.lose
    return seen.win if embedding == "winning" else seen.lose
