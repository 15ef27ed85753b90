"""What an agent that learns would earn on its own, from a log: the replay estimator.

An agent is taken along the log and acts. Where the log shows what it chose, the interaction
happens to it: it hears what was said, and learns. All others never happened. What remains of a
user is a shorter episode with the law of one that the agent had itself (Li, Chu, Langford and
Wang, "Unbiased offline evaluation of contextual-bandit-based news article recommendation
algorithms", WSDM 2011, for a logger that chooses uniformly). Where the logger prefers some
responses, a match is kept with probability least / propensity, so that each has the same chance
(rejection sampling; Dudik, Erhan, Langford and Li, UAI 2012).

An episode shrinks to a share ``least`` of its interactions: 1/K at best.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.estimates import Design, intervals, mean_ratio, ratio
from personalllm_env.laws import checked_action
from personalllm_env.logged.exploring import check_built
from personalllm_env.logged.log import Log, check_log
from personalllm_env.logged.off_policy import Hidden, hushed, moments, seen_by
from personalllm_env.runner import Progress
from personalllm_env.types import Agent

_EQUAL = 1e-9


class Replayed(NamedTuple):
    """What happened to an agent in a replay: interactions j = 0, 1, ... of its own."""

    reward: Float[np.ndarray, "U T"]  # what users reported; 0 where it did not happen
    heard: Bool[np.ndarray, "U T"]  # whether it happened and the user spoke

    def curve(self, num: int) -> Float[np.ndarray, "num 3"]:
        """Returns the mean reward at each of the first interactions, with 95 % intervals.

        Args:
            num: How many; NaN for those that happened to nobody.
        """
        design, heard = Design((len(self.reward),)), self.heard[:, :num].T.astype(np.float64)
        return intervals(design, ratio(design, self.reward[:, :num].T, heard))

    def value(self, num: int) -> Float[np.ndarray, "3"]:
        """Returns the mean reward over the first ``num`` interactions, with its interval.

        Every interaction counts the same, however many users got so far.
        """
        design, heard = Design((len(self.reward),)), self.heard[:, :num].astype(np.float64)
        found = mean_ratio(design, self.reward[None, :, :num], heard)
        return np.asarray(intervals(design, found)[0])


def replay_agent(
    agent: Agent,
    log: Log,
    rng: np.random.Generator,
    *,
    least: float | None = None,
    hidden: Hidden | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Takes an agent along a log, in which only what it chose itself happens to it.

    Unbiased where no response was less likely than ``least`` to be shown, users do not change
    within an episode, and prompts come independently of each other: interactions that did not
    happen are left out, not waited for. An agent hears silence there, and what is said at once,
    also where the logger heard it late.

    Args:
        agent: Built, and fitted on others if it should be; not on the log's own users.
        log: The interactions.
        rng: Of the agent, and of what is kept.
        least: The share of interactions that happen: at most the probability of any response
            anywhere. By default the smallest that the log holds.
        hidden: What a privileged agent sees: ``off_policy.hidden_from``.
        progress: As for ``runner.run``.

    Raises:
        ValueError: If ``least`` is not above 0, or above a probability in the log, if the log
            does not fit together, or if the agent is not built or shows none of its responses.
    """
    check_built(agent)
    check_log(log)
    least = _least(log, least)
    choosing, keeping = rng.spawn(2)
    num_users = len(np.unique(log.user))
    agent.reset(num_users, choosing)
    rewards: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    heard: list[np.ndarray] = []
    for moment in moments(log, hidden):
        observation = seen_by(agent, moment.observation, log.scores is not None)
        action = checked_action(agent, agent.act(observation), observation, 1)
        chance = least / log.propensity[moment.rows]
        lucky = keeping.random(num_users) < chance
        happens = moment.there & lucky & (action[:, 0] == log.action[moment.rows])
        feedback = hushed(moment.feedback, happens)
        agent.update(observation, action, feedback)
        rewards.append(feedback.reward)
        kept.append(happens)
        heard.append(feedback.heard)
        if progress is not None:
            progress(1)
    # What happened comes first in each row, in its order.
    order = np.argsort(~np.stack(kept, axis=1), axis=1, kind="stable")
    columns = (np.stack(rewards, axis=1).astype(np.float64), np.stack(heard, axis=1))
    return Replayed(*(np.take_along_axis(values, order, axis=1) for values in columns))


def _least(log: Log, given: float | None) -> float:
    known = log.propensity if log.probabilities is None else log.probabilities
    smallest = float(known.min(initial=1.0))
    if given is None and log.probabilities is None:
        raise ValueError(
            "the log does not hold the probabilities of what was not shown; expected least=, "
            "the smallest that any response ever had"
        )
    least = smallest if given is None else given
    if not 0 < least <= smallest * (1 + _EQUAL):
        raise ValueError(
            f"least must be above 0 and at most the smallest probability in the log, "
            f"{smallest:.3g}; got {least:.3g}. A log without exploration cannot be replayed"
        )
    return least
