"""What the agents of other libraries share: one linear learner of theirs per user.

Such a learner is a ridge regression with an upper bound. What other users said reaches it as
a few rows that stand for the whole history (``condensed``), so that each user has a learner of
their own, begun where the population is, and a history of any length costs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.agents.choosing import best
from personalllm_env.agents.linear import history_evidence
from personalllm_env.belief import evidence
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class Regression(Protocol):
    """One user's model of a candidate's value, of features alone."""

    def learn(self, x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n"]) -> None:
        """Adds pairs of features and what was said of them."""
        ...

    def bounds(self, x: Float[np.ndarray, "K I"]) -> Float[np.ndarray, "K"]:
        """Returns an upper bound on each candidate's value."""
        ...


class Bandit(Protocol):
    """One user's policy over arms without features, given a context."""

    def learn(
        self,
        context: Float[np.ndarray, "n C"],
        arm: Int[np.ndarray, "n"],
        y: Float[np.ndarray, "n"],
    ) -> None:
        """Adds what was said of arms in contexts."""
        ...

    def choose(self, context: Float[np.ndarray, "C"], num: int) -> Int[np.ndarray, "num"]:
        """Returns the best different arms in a context, best first."""
        ...


def condensed(
    x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n"], weight: float
) -> tuple[Float[np.ndarray, "m I"], Float[np.ndarray, "m"]]:
    """Returns at most I pairs that teach a ridge regression what n pairs of a weight teach it.

    With [X y] = Q R, the first I rows of R have the same X'X and X'y, which is all that a
    ridge regression learns (Golub & Van Loan, Matrix Computations, section 5.3); scaling a
    pair by the root of a weight gives it that weight.
    """
    r = np.linalg.qr(np.column_stack([x, y]).astype(np.float64), mode="r")[: x.shape[1]]
    r *= weight**0.5
    return r[:, :-1], r[:, -1]


class Said(NamedTuple):
    """What interactions say about single arms: R pairs of an arm and a target each."""

    arm: Int[np.ndarray, "B R"]
    target: Float[np.ndarray, "B R"]
    known: Bool[np.ndarray, "B"]  # False in silence


def said_of_arms(
    action: Int[np.ndarray, "B S"], feedback: Feedback, num_responses: int, num_stars: int
) -> Said:
    """Turns what was said into targets of single arms, scaled as in ``belief.evidence``.

    A reward, like or number of stars is a target of every arm shown; a choice is 1 for the
    arm preferred and -1 for the other; a click is K - 1 for the arm clicked and -1 for the
    others, divided by K.

    Raises:
        ValueError: If users speak through none of these channels.
    """
    said, shape = feedback.said, action.shape
    if "reward" in said:
        level = said["reward"]
    elif "click" in said:
        arms = np.tile(np.arange(num_responses), (shape[0], 1))
        clicked = arms == said["click"].astype(np.int64)[:, None]
        return Said(arms, clicked - 1.0 / num_responses, feedback.heard)
    elif "choice" in said:
        target = said["choice"][:, None] * np.array([1.0, -1.0])
        return Said(action, target, feedback.heard)
    elif "stars" in said:
        sd = ((num_stars**2 - 1) / 12) ** 0.5  # of a uniform number of stars
        level = (said["stars"] - (num_stars + 1) / 2) / sd
    elif "like" in said:
        level = 2.0 * said["like"] - 1.0
    else:
        raise ValueError(f"no reading of what is said through {', '.join(said)}")
    target = np.broadcast_to(level[:, None], shape).astype(np.float64)
    return Said(action, target, feedback.heard)


def with_constant(prompt_features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n C"]:
    """Returns contexts: the prompt's features and a 1, so that an arm has a level."""
    return np.column_stack([prompt_features, np.ones(len(prompt_features))]).astype(np.float64)


class CandidateAgent:
    """One regression per user, on the features of what was shown; the highest bounds win.

    Args:
        prior: What is known of the task.
        worth: As how many interactions of the user's own the whole history counts.
        make: Makes a user's learner, from a seed.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, worth: float, make: Callable[[int], Regression]
    ) -> None:
        check_range("worth", worth, 0)
        self._prior, self._worth, self._make = prior, worth, make
        self._past: tuple[np.ndarray, np.ndarray] | None = None

    def fit(self, database: Database) -> None:
        """Learns what the average user likes."""
        seen = history_evidence(database, self._prior.feedback.num_stars)
        self._past = None
        if self._worth and (num := np.count_nonzero(seen.known)):
            x, y = seen.features[seen.known], seen.target[seen.known]
            self._past = condensed(x, y, self._worth / num)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng
        self._learners = [self._make(int(s)) for s in rng.integers(2**31, size=num_users)]
        if self._past is not None:
            for learner in self._learners:
                learner.learn(*self._past)

    def act(self, observation: Observation) -> Action:
        """Returns the responses with the highest bounds."""
        inputs = observation.inputs.astype(np.float64)
        pairs = zip(self._learners, inputs, strict=True)
        bounds = np.stack([learner.bounds(x) for learner, x in pairs])
        return best(bounds, self._prior.num_shown, self._rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Regresses what was said on what was shown, as our linear agents do."""
        num_stars = self._prior.feedback.num_stars
        seen = evidence(observation.inputs, action, feedback, num_stars)
        x, y = seen.features.astype(np.float64), seen.target.astype(np.float64)
        for b in np.flatnonzero(seen.known):
            self._learners[b].learn(x[b : b + 1], y[b : b + 1])


class ResponderAgent:
    """One policy per user whose arms are the responders and whose context is the prompt.

    It never sees a response. Where the order of the responses is shuffled, arm k is another
    responder each time, and there is nothing to learn.

    Args:
        prior: What is known of the task.
        worth: As how many interactions of the user's own the whole history counts.
        make: Makes a user's policy, from a seed.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, prior: PriorKnowledge, worth: float, make: Callable[[int], Bandit]
    ) -> None:
        check_range("worth", worth, 0)
        self._prior, self._worth, self._make = prior, worth, make
        self._past: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def fit(self, database: Database) -> None:
        """Learns which responder other users liked on which prompts."""
        spoken = database.spoken()
        said = self._said(spoken.action, spoken.feedback())
        self._past = []
        if not self._worth or not len(spoken.user):
            return
        rows, weight = with_constant(database.prompt_features), self._worth / len(spoken.user)
        for arm in range(self._prior.num_responses):
            at, place = np.nonzero(said.arm == arm)
            x, y = condensed(rows[spoken.prompt[at]], said.target[at, place], weight)
            self._past.append((x, np.full(len(y), arm), y))

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._learners = [self._make(int(s)) for s in rng.integers(2**31, size=num_users)]
        if self._past:
            past = [np.concatenate(column) for column in zip(*self._past, strict=True)]
            for learner in self._learners:
                learner.learn(*past)

    def act(self, observation: Observation) -> Action:
        """Returns what each user's policy chooses."""
        pairs = zip(self._learners, with_constant(observation.prompt_features), strict=True)
        num_shown = self._prior.num_shown
        return np.stack([learner.choose(context, num_shown) for learner, context in pairs])

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Adds what was said of the arms shown, or of all where users click."""
        said, contexts = (
            self._said(action, feedback),
            with_constant(observation.prompt_features),
        )
        for b in np.flatnonzero(said.known):
            arm = said.arm[b]
            context = np.tile(contexts[b], (len(arm), 1))
            self._learners[b].learn(context, arm, said.target[b].astype(np.float64))

    def _said(self, action: Int[np.ndarray, "B S"], feedback: Feedback) -> Said:
        prior = self._prior
        return said_of_arms(action, feedback, prior.num_responses, prior.feedback.num_stars)
