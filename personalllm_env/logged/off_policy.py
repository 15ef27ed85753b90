"""What another agent would have shown at the interactions of a log, and what that is worth.

The *target* is taken along the log: at each interaction it sees what was offered, says with
which probability it would show each response, and is then told what was shown and said. So
what is estimated (``estimators``) is the value of its decision rule **along the logger's
histories**. For a target that does not learn within an episode that is its value, full stop:
users, prompts and noise do not depend on what is shown, as long as nobody leaves. For one that
learns it is the value of choosing from what somebody else has tried, which is not what it
would earn on its own: it may know more or less than its own choices would have taught it. For
that see ``off_policy_replay``.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from personalllm_env.core import weights_at
from personalllm_env.laws import checked_action, law_of
from personalllm_env.logged import estimators
from personalllm_env.logged.estimators import Estimate
from personalllm_env.logged.exploring import check_built
from personalllm_env.logged.log import Log, check_log
from personalllm_env.runner import Progress
from personalllm_env.session import Session, hush
from personalllm_env.task import Task
from personalllm_env.types import Action, Agent, Feedback, Observation

ESTIMATORS = ("IPS", "SNIPS", "DM", "DR", "SNDR")
"""What ``estimate`` returns, in this order."""
_NEGLIGIBLE = 1e-3  # a share of the target's choices of which a log need not know


class Hidden(NamedTuple):
    """What only privileged targets see, and only the simulator knows."""

    weights: Float[np.ndarray, "N M"]  # of the user, at each interaction of the log
    scores: Float[np.ndarray, "P K M"]  # the bank's table


def hidden_from(task: Task, log: Log) -> Hidden:
    """Returns what a simulated log hides, by drawing its episodes again.

    Args:
        task: On which the log was recorded.
        log: It must hold the seed of its episodes.

    Raises:
        ValueError: If it does not, or if its episodes are others.
    """
    check_log(log)
    if log.seed is None:
        raise ValueError(
            "expected a log of this simulator, which holds its seed, got seed=None"
        )
    session = Session(task, np.arange(log.num_users))
    session.begin(log.seed)
    at = (log.t, log.user)
    if not np.array_equal(session.episodes.prompt[at], log.prompt):
        raise ValueError(
            "the log's prompts are not those that this task draws from its seed: expected the "
            "task on which it was recorded, and the whole log or a selection of its rows"
        )
    return Hidden(weights_at(session.episodes, at), task.bank.scores)


class Moment(NamedTuple):
    """One interaction of all users side by side; who has no more repeats their last."""

    rows: Int[np.ndarray, "U"]  # of the log
    there: Bool[np.ndarray, "U"]  # whose interaction is not a repetition
    observation: Observation
    feedback: Feedback  # as it was said, to what was shown

    @property
    def of_log(self) -> Int[np.ndarray, "n"]:
        """The log's rows that are met here, in the order of the users."""
        return np.asarray(self.rows[self.there])


def moments(log: Log, hidden: Hidden | None = None) -> Iterator[Moment]:
    """Yields the log interaction by interaction, as agents see it: all users at once."""
    _, start, count = np.unique(log.user, return_index=True, return_counts=True)
    users = np.arange(len(start))
    for step in range(int(count.max(initial=0))):
        rows = start + np.minimum(step, count - 1)
        prompt, order = log.prompt[rows], log.order[rows]
        responses = log.response_features[prompt[:, None], order]
        scores = log.scores if hidden is None else hidden.scores
        observation = Observation(
            prompt,
            log.prompt_features[prompt],
            responses,
            user=None if log.identity is None else log.identity[log.user[rows]],
            scores=None if scores is None else scores[prompt[:, None], order],
            weights=None if hidden is None else hidden.weights[rows],
        )
        said = {name: values[rows] for name, values in log.said.items()}
        feedback = Feedback(log.reward[rows], log.heard[rows], said, log.left[rows])
        yield Moment(rows, step < count[users], observation, feedback)


def seen_by(agent: Agent, observation: Observation, white_box: bool) -> Observation:
    """Returns an observation without what the agent has not declared to be privileged to.

    Raises:
        ValueError: If it needs what the log does not hold.
    """
    granted = type(agent).privileges
    for name in ("weights", "scores"):
        if name in granted and getattr(observation, name) is None:
            raise ValueError(
                f"{type(agent).__name__} sees the {name}, which a log does not hold; "
                "expected hidden=hidden_from(task, log)"
            )
    return observation._replace(
        weights=observation.weights if "weights" in granted else None,
        scores=observation.scores if white_box or "scores" in granted else None,
    )


def target_probabilities(
    agent: Agent,
    log: Log,
    rng: np.random.Generator,
    *,
    hidden: Hidden | None = None,
    draws: int = 1,
    delay: int | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N K"]:
    """Takes an agent along a log; returns how likely it was to show each response.

    An agent that says its law is asked for it. Of others one action is drawn (or several, whose
    frequencies are returned): given that draw, and all that it knows, its law is that action.
    Estimators stay unbiased, since the draw does not depend on what is said; they are noisier
    than with the law itself.

    Args:
        agent: Built, and fitted on others if it should be; not on the log's own users.
        log: Whose interactions it meets, and hears the feedback to what was shown in them.
        rng: The agent's only source of randomness.
        hidden: What a privileged agent sees: ``hidden_from``.
        draws: How often an agent that does not say its law is asked to act; 1 will do for who
            draws nothing.
        delay: After how many more interactions it hears what was said. By default as the logger
            did, if the log's facts know, and else at once.
        progress: As for ``runner.run``.

    Raises:
        ValueError: If the agent is privileged to what is not given, if what it shows or says of
            itself is not as ``laws.ask`` has it, if it is not built, or if the log does not
            fit together.
    """
    check_built(agent)
    check_log(log)
    delay = int(log.facts.get("delay", 0)) if delay is None else delay
    agent.reset(len(np.unique(log.user)), rng)
    law = np.zeros((len(log), log.num_responses))
    waiting: deque[tuple[Observation, Action, Feedback]] = deque()
    for moment in moments(log, hidden):
        observation = seen_by(agent, moment.observation, log.scores is not None)
        law[moment.of_log] = _law(agent, observation, draws)[moment.there]
        heard = hushed(moment.feedback, moment.there)  # some have no more interactions
        waiting.append((observation, log.action[moment.rows, None], heard))
        if len(waiting) > delay:
            agent.update(*waiting.popleft())
        if progress is not None:
            progress(1)
    return law


def _law(agent: Agent, observation: Observation, draws: int) -> Float[np.ndarray, "U K"]:
    if (said := law_of(agent, observation)) is not None:
        return said
    law = np.zeros(observation.response_features.shape[:2])
    for _ in range(draws):
        drawn = checked_action(agent, agent.act(observation), observation, 1)
        law[np.arange(len(law)), drawn[:, 0]] += 1 / draws
    return law


def hushed(feedback: Feedback, keep: Bool[np.ndarray, "U"]) -> Feedback:
    """Returns feedback in which only some users speak, and nobody leaves who does not."""
    return hush(feedback, keep)._replace(left=feedback.left & keep)


def estimate(
    log: Log, target: Float[np.ndarray, "N K"], predicted: Float[np.ndarray, "N K"]
) -> dict[str, Estimate]:
    """Returns every estimate of a target's mean reward, by name (``ESTIMATORS``).

    Interactions at which nobody spoke say nothing of the reward and are left out, which is
    right where silence does not depend on what is shown (``feedback.Silence``).

    Args:
        log: The interactions.
        target: ``target_probabilities``, or a law known otherwise.
        predicted: The reward a model predicts for each response: ``reward_models``.

    Raises:
        ValueError: If these are of another log, are no probabilities or numbers, if nobody
            spoke, or if the log does not fit together.

    Warns:
        UserWarning: If the log holds its probabilities and the target shows what the logger
            never would have: propensities cannot carry that.
    """
    check_log(log)
    for name, values in (("target", target), ("predicted", predicted)):
        _check_table(name, values, (len(log), log.num_responses))
    spoken = log.heard
    if not spoken.any():
        raise ValueError("expected a log in which somebody says something, got silence")
    log, target, predicted = log.spoken(), target[spoken], predicted[spoken]
    reward, action, user = log.reward.astype(np.float64), log.action, log.user
    weights = estimators.importance_weights(target, action, log.propensity)
    _warn_of_unsupported(log, target)
    given = reward, action, weights, target, predicted, user
    found = (
        estimators.ips(reward, weights, user),
        estimators.snips(reward, weights, user),
        estimators.dm(target, predicted, user),
        estimators.dr(*given),
        estimators.sndr(*given),
    )
    return dict(zip(ESTIMATORS, found, strict=True))


def _check_table(
    name: str, values: Float[np.ndarray, "N K"], expected: tuple[int, int]
) -> None:
    wanted = (
        f"{name}: expected finite numbers of shape {expected}, one per interaction and "
        "response of the log"
    )
    if values.shape != expected:
        raise ValueError(f"{wanted}, got shape {values.shape}")
    if not (finite := np.isfinite(values)).all():
        row, response = np.unravel_index(int(finite.argmin()), expected)
        raise ValueError(f"{wanted}, got {values[row, response]} at [{row}, {response}]")


def _warn_of_unsupported(log: Log, target: Float[np.ndarray, "N K"]) -> None:
    if log.probabilities is None:
        return
    share = estimators.unsupported(target, log.probabilities)
    if share > _NEGLIGIBLE:
        warnings.warn(
            f"the logger could never have shown {share:.1%} of what the target would: there "
            "IPS and SNIPS are blind, and DR and SNDR believe the model. Expected a log with "
            "exploration above 0",
            stacklevel=3,
        )
