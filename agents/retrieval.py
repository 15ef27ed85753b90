"""Retrieval across users, as in PersonalLLM's meta-learning experiment (arXiv 2409.20296).

The paper finds the historical users most like the present one by an embedding of what they
liked and disliked, and shows a language model their examples on similar prompts. Here the
examples vote on the candidates instead.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.agents.choosing import best
from personalllm_env.agents.examples import Library, build_library, embed, examples, unit
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge

_KNOWN = {
    "embedding": ("winning", "losing", "difference"),
    "pool": ("similar", "self", "everyone", "random"),
}
_BLOCK = 2**21  # numbers gathered at a time: 8 MB, which stay in the cache


def nearest(similarity: Float[np.ndarray, "B n"], num: int) -> Int[np.ndarray, "B num"]:
    """Returns the ``num`` most similar of each row, in no order; all where there are fewer."""
    n = similarity.shape[1]
    if num >= n:
        return np.tile(np.arange(n), (len(similarity), 1))
    return np.argpartition(similarity, n - num, axis=1)[:, n - num :]


def weigh(similarity: Float[np.ndarray, "B n"], num: int | None) -> Float[np.ndarray, "B n"]:
    """Returns the positive part of the similarity, of the ``num`` highest only.

    What ties with the last of them counts too: an order among equals would be arbitrary.
    """
    if num is not None and num < (n := similarity.shape[1]):
        least = np.partition(similarity, n - num, axis=1)[:, n - num, None]
        similarity = np.where(similarity >= least, similarity, 0)
    return np.maximum(similarity, 0)


class _Own:
    """What B users have said so far."""

    def __init__(
        self, num_users: int, horizon: int, num_features: int, num_inputs: int
    ) -> None:
        self.prompt = np.zeros((num_users, horizon, num_features), np.float32)
        self.vote = np.zeros((num_users, horizon, num_inputs), np.float32)
        self.real = np.zeros((num_users, horizon), bool)
        self.embedding = np.zeros((num_users, num_inputs))
        self.num = 0

    def add(self, prompt: np.ndarray, vote: np.ndarray, real: np.ndarray) -> None:
        if self.num == self.real.shape[1]:  # longer than the horizon
            for name in ("prompt", "vote", "real"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)], axis=1))
        self.prompt[:, self.num], self.vote[:, self.num] = prompt, vote
        self.real[:, self.num] = real
        self.num += 1


class Retrieval:
    """Lets examples of similar users on similar prompts vote (PersonalLLM's meta-learning).

    A candidate's votes are the sum over examples of (cosine of the prompts, 0 where that is
    negative) x (how much the example won) x (cosine of the responses). Until something is
    known of a user everybody's examples vote. Of a user who comes back the examples in the
    history are their own. To duel, the two with the most votes are shown.

    Args:
        prior: What is known of the task.
        embedding: What users are compared by: the sum of the responses that won
            ("winning"), of those that lost ("losing"), or their "difference".
        pool: Whose examples vote: those of "similar" users and one's own; one's own alone
            ("self"); those of as many "random" users and one's own; or "everyone"'s, so that
            nothing is personal.
        num_neighbours: How many users are similar. The paper has 20.
        num_examples: How many examples vote, those on the most similar prompts (of
            everyone's: how many prompts). The paper shows a language model 3. None for all,
            which is best where, as in the synthetic bank, topics tell nothing of tastes.
        background: As how many of the similar users everybody together counts. The paper
            has 0; as many as there are neighbours steadies a vote of few.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        embedding: str = "difference",
        pool: str = "similar",
        num_neighbours: int = 20,
        num_examples: int | None = None,
        background: float = 0.0,
    ) -> None:
        for name, value in (("embedding", embedding), ("pool", pool)):
            if value not in _KNOWN[name]:
                known = ", ".join(_KNOWN[name])
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        check_range("num_neighbours", num_neighbours, 1)
        check_range("num_examples", 1 if num_examples is None else num_examples, 1)
        check_range("background", background, 0)
        self._prior, self._embedding, self._pool = prior, embedding, pool
        self._num_neighbours, self._num_examples = num_neighbours, num_examples
        self._background = background
        self._library: Library | None = None

    def fit(self, database: Database) -> None:
        """Arranges other users' interactions for retrieval."""
        num_stars = self._prior.feedback.num_stars
        self._library = build_library(database, self._embedding, num_stars)
        self._directions = unit(self._library.embedding)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        prior, self._rng, self._met = self._prior, rng, False
        self._sources = self._num_neighbours  # most users whose examples are gathered
        self._own = _Own(num_users, prior.horizon, prior.num_features, prior.num_inputs)
        self._self: Bool[np.ndarray, "B U"] | None = None  # who in the history is the user
        if self._library is not None and self._pool == "random":
            u, n = len(self._library.embedding), self._num_neighbours
            draws = [nearest(rng.random((1, u)), n) for _ in range(num_users)]
            self._drawn = np.concatenate(draws)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Adds the interactions to the users' own examples."""
        seen = examples(
            observation.inputs,
            action,
            feedback,
            num_stars=self._prior.feedback.num_stars,
            average=0.0 if self._library is None else self._library.average,
        )
        prompts = unit(observation.prompt_features)
        self._own.add(prompts, seen.win - seen.lose, feedback.heard)
        self._own.embedding += embed(seen, self._embedding)

    def act(self, observation: Observation) -> Action:
        """Returns the candidates with the most votes."""
        if not self._met:
            self._meet(observation.user)
        tastes = self._tastes(unit(observation.prompt_features))
        votes = np.vecdot(unit(observation.inputs), tastes[:, None])
        return best(votes, self._prior.num_shown, self._rng)

    def _meet(self, user: Int[np.ndarray, "B"] | None) -> None:
        """Looks up who is in the history already."""
        self._met, lib = True, self._library
        if user is not None and lib is not None and lib.identity is not None:
            self._self = lib.identity == user[:, None]
            self._own.embedding += self._self @ lib.embedding
            self._sources += int(self._self.sum(axis=1).max(initial=0))

    def _tastes(self, prompts: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "B I"]:
        """Returns the voting examples as one vector each: a candidate's votes are a product."""
        tastes = np.zeros((len(prompts), self._prior.num_inputs), np.float32)
        known = self._own.embedding.any(axis=1) & (self._pool != "everyone")
        for rows in self._blocks(np.flatnonzero(known)):
            tastes[rows] = self._personal(prompts[rows], rows)
        if (lib := self._library) is not None:
            for rows in self._blocks(np.flatnonzero(~known)):
                tastes[rows] = self._everyones(prompts[rows] @ lib.prompts.T, lib)
        return tastes

    def _blocks(self, rows: Int[np.ndarray, "b"]) -> list[Int[np.ndarray, "c"]]:
        """Splits users so that what is gathered for a block of them is bounded."""
        each = 1
        if self._library is not None:
            each = self._sources * self._library.vote[:1].size + len(self._library.prompts)
        size = max(_BLOCK // each, 1)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _everyones(self, near: Float[np.ndarray, "b P"], lib: Library) -> np.ndarray:
        return weigh(near, self._num_examples) @ lib.everyone

    def _personal(
        self, prompts: Float[np.ndarray, "b D"], rows: Int[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b I"]:
        own, lib, n = self._own, self._library, self._own.num
        similar = np.matmul(own.prompt[rows, :n], prompts[:, :, None])[:, :, 0]
        similar = np.where(own.real[rows, :n], similar, -1)
        if lib is None:
            return _sum(weigh(similar, self._num_examples), own.vote[rows, :n])
        near = prompts @ lib.prompts.T
        who, counts = self._who(rows)
        asked, real = lib.prompt[who], lib.real[who] & counts[:, :, None]
        theirs = np.take_along_axis(near, asked.reshape(len(rows), -1), axis=1)
        theirs = np.where(real.reshape(theirs.shape), theirs, -1)
        weight = weigh(np.concatenate([similar, theirs], axis=1), self._num_examples)
        example = lib.vote[who].reshape(*theirs.shape, lib.vote.shape[2])
        taste = _sum(weight[:, :n], own.vote[rows, :n]) + _sum(weight[:, n:], example)
        if self._background:
            taste += self._background / len(lib.prompt) * self._everyones(near, lib)
        return taste

    def _who(
        self, rows: Int[np.ndarray, "b"]
    ) -> tuple[Int[np.ndarray, "b R"], Bool[np.ndarray, "b R"]]:
        """Returns whose examples vote, and which of these do count."""
        oneself = np.zeros((1, 1), bool) if self._self is None else self._self[rows]
        who, counts = np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), bool)
        if self._pool == "similar":
            similarity = self._own.embedding[rows] @ self._directions.T
            nobodys = oneself | ~self._directions.any(axis=1)  # nothing is known of these
            similarity = np.where(nobodys, -np.inf, similarity)
            who = nearest(similarity, self._num_neighbours)
            counts = np.isfinite(np.take_along_axis(similarity, who, axis=1))
        elif self._pool == "random":
            who = self._drawn[rows]
            strangers = np.broadcast_to(~oneself, (len(rows), len(self._directions)))
            counts = np.take_along_axis(strangers, who, axis=1)
        past = np.argsort(~oneself, axis=1, kind="stable")[:, : oneself.sum(axis=1).max()]
        if past.size:
            counts = np.hstack([counts, np.take_along_axis(oneself, past, axis=1)])
            who = np.hstack([who, past])
        return who, counts


def _sum(weight: Float[np.ndarray, "b n"], example: Float[np.ndarray, "b n I"]) -> np.ndarray:
    return np.matmul(weight[:, None].astype(np.float32, copy=False), example)[:, 0]
