"""An agent made of Vowpal Wabbit: one model of everybody, with weights of each user's own.

Each candidate is an action of ``--cb_explore_adf`` with its features in namespace r and the
user's name in namespace u; ``-q ur`` crosses them. Weights of r alone are the average taste,
learnt from the history and then on from everybody; those of u x r are how a user differs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.agents.choosing import best
from personalllm_env.agents.linear import history_evidence
from personalllm_env.belief import Evidence, evidence
from personalllm_env.channels import check_range
from personalllm_env.database import Database
from personalllm_env.extras import require
from personalllm_env.types import Action, Feedback, Observation, PriorKnowledge


class VowpalWabbit:
    """Vowpal Wabbit's ``--cb_explore_adf`` on candidates' features crossed with users.

    It chooses by Vowpal Wabbit's probabilities, drawn with the agent's own generator, and to
    duel draws two different ones. What is said teaches it as a regression pair
    (``belief.evidence``), an event with one action, so that likes, clicks and choices are
    read as by our linear agents.

    The history is replayed at every ``reset``, since a model cannot be copied in memory:
    one to four seconds for 50,000 interactions, which is in no report's time to fit.

    Args:
        prior: What is known of the task.
        options: How it explores, in Vowpal Wabbit's words: "--squarecb", "--epsilon 0.05",
            "--bag 5", "--softmax".
        learning_rate: Its ``-l``.
        bits: Its ``-b``: there are 2^bits weights.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()
    libraries: ClassVar[tuple[str, ...]] = ("vowpalwabbit",)

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        options: str = "--squarecb",
        learning_rate: float = 0.05,
        bits: int = 18,
    ) -> None:
        check_range("learning_rate", learning_rate, 0.0001)
        check_range("bits", bits, 8, 28)
        self._module = require("vowpalwabbit", "bandits")
        self._prior = prior
        self._arguments = (
            f"--cb_explore_adf {options} --noconstant -q ur -l {learning_rate} -b {bits} "
            "--quiet"
        )
        self._features = " ".join(f"{i}:%.6g" for i in range(prior.num_inputs))
        self._past: Evidence | None = None
        self._try_out()

    def fit(self, database: Database) -> None:
        """Keeps what others said, which ``reset`` replays."""
        self._past = history_evidence(database, self._prior.feedback.num_stars)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Starts B new users."""
        self._rng = rng
        self._model = self._workspace(int(rng.integers(2**31)))
        if self._past is not None:
            self._learn(self._past, None)

    def probabilities(self, observation: Observation) -> Float[np.ndarray, "B K"]:
        """Returns Vowpal Wabbit's probability of showing each response, when one is shown."""
        return self._law(observation.inputs)

    def _law(self, inputs: Float[np.ndarray, "B K I"]) -> Float[np.ndarray, "B L"]:
        line = "|u {0} |r " + self._features
        lines = "\n".join([line] * inputs.shape[1])
        chances = [
            self._model.predict(lines.format(b) % tuple(x.ravel().tolist()))
            for b, x in enumerate(inputs)
        ]
        return np.array(chances, dtype=np.float64)

    def act(self, observation: Observation) -> Action:
        """Returns responses drawn by these probabilities, all different."""
        chances = self.probabilities(observation)
        # Of independent exponential clocks, the first to ring is i with probability p_i.
        with np.errstate(divide="ignore", over="ignore"):
            waits = self._rng.exponential(size=chances.shape) / chances
        return best(-waits, self._prior.num_shown, self._rng)

    def update(self, observation: Observation, action: Action, feedback: Feedback) -> None:
        """Teaches it what was said, user by user."""
        num_stars = self._prior.feedback.num_stars
        seen = evidence(observation.inputs, action, feedback, num_stars)
        self._learn(seen, np.arange(len(action)))

    def _try_out(self) -> None:
        """Builds a model and asks it once: what it cannot do is found before work is lost.

        Raises:
            ValueError: If Vowpal Wabbit refuses the options, or says no law with them.
        """
        refused = f"Vowpal Wabbit does not take {self._arguments!r}: "
        if {"-h", "--help", "--version"} & set(self._arguments.split()):
            raise ValueError(f"{refused}it would end the process")
        num = self._prior.num_responses
        try:
            self._model = self._workspace(0)
            law = self._law(np.zeros((1, num, self._prior.num_inputs), np.float32))
            self._model.finish()
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{refused}{error}") from error
        if law.shape != (1, num):
            raise ValueError(f"{refused}expected {num} probabilities, got {law.tolist()}")

    def _workspace(self, seed: int) -> Any:
        return self._module.Workspace(f"{self._arguments} --random_seed {seed}")

    def _learn(self, seen: Evidence, user: Int[np.ndarray, "B"] | None) -> None:
        """Teaches it pairs of features and targets, as costs; without users the average."""
        names = [""] * len(seen.known) if user is None else [f"|u {b} " for b in user.tolist()]
        for i in np.flatnonzero(seen.known).tolist():
            features = self._features % tuple(seen.features[i].tolist())
            # Action 0, its cost, and probability 1: a pair, not a draw to be reweighted.
            self._model.learn(f"0:{-seen.target[i]:.6g}:1 {names[i]}|r {features}")
