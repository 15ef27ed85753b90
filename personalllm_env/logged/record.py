"""Any agent, made to explore by a known amount, and what it showed with which probability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from personalllm_env.channels import check_range
from personalllm_env.core import candidates, utilities, weights_at
from personalllm_env.database import Database, clicks_in_bank, record_history
from personalllm_env.logged.exploring import explorer
from personalllm_env.logged.log import Log
from personalllm_env.runner import Entrant, Progress, check_entrant, prior_for, run
from personalllm_env.session import Session
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.types import Action, Agent, LearnsFromHistory

__all__ = ["build_agent", "record_duels", "record_log"]

_PURPOSE = "log"  # users of a log are not those of an evaluation with the same seed


def build_agent(
    entrant: Entrant, task: Task, *, seed: int = 0, history_users: int = 0
) -> Agent:
    """Builds an agent for a task and lets it learn from a history of others, if it can.

    Args:
        entrant: For example ``find_agent("linucb")``.
        task: The decision problem.
        seed: Of the history, and of the sample of users that a privileged agent sees.
        history_users: How many others it learns from.

    Raises:
        ValueError: If that is no entrant.
        Exception: The agent's own, with a note that names it.
    """
    check_entrant(entrant)
    try:
        prior = prior_for(entrant.agent_class, task, seed)
        agent: Agent = entrant.agent_class(prior, **entrant.settings)
        if isinstance(agent, LearnsFromHistory) and history_users:
            agent.fit(record_history(task, num_users=history_users, seed=seed))
    except Exception as error:
        error.add_note(f"agent {entrant.name!r}")
        raise
    return agent


def record_log(
    agent: Agent,
    task: Task,
    *,
    num_users: int,
    seed: int,
    exploration: float = 0.2,
    name: str | None = None,
    progress: Progress | None = None,
) -> Log:
    """Runs an agent on fresh users and records what it showed, and how likely that was.

    At each interaction, independently of everything else, a uniformly random response is shown
    instead of the agent's with probability ``exploration``. The agent is told what was shown.
    The propensity of response a is then exactly

        p(a) = exploration / K + (1 - exploration) * q(a),

    where q is the agent's own law if it says it (``SaysProbabilities``), and else 1 at the
    response that it chose and 0 elsewhere.

    That p may be conditional on the agent's own draw does not bias importance weighting.
    Whatever the agent drew and learnt until then, the response shown has the law p, so

        E[ 1[shown = a] / p(a) * reward | what it drew and learnt ] = E[reward of a | the same]

    wherever p(a) > 0, and the mean over draws is what is wanted (the tower property; Horvitz &
    Thompson, JASA 1952). Weights are larger than with the agent's law averaged over its draws,
    up to K / exploration. Only ``exploration > 0`` gives every response a chance; without it
    the log says nothing about what the agent would not show.

    Args:
        agent: Any agent, built and, if it should be, fitted: see ``build_agent``.
        task: Shows one response; its sides are as they are: ``task.side("train")`` for a log
            to learn from.
        num_users: U; each has an episode. Interactions after a user has left are not recorded.
            Late feedback is recorded with what it is about, even if it would have arrived
            after the episode; the agent hears it late, or never.
        seed: Of users, prompts, noise, the agent and the exploration.
        exploration: In [0, 1].
        name: What the log's facts call the agent; by default its class.
        progress: As for ``runner.run``.

    Raises:
        ValueError: If the task shows more than one response, a number is out of range, or what
            the agent shows or says of itself is not as ``laws.ask`` has it, or if it is not
            built.
    """
    if task.num_shown != 1:
        raise ValueError(
            f"a log with propensities is of tasks that show one response; this one shows "
            f"{task.num_shown}. For pairs in which users choose, record_duels"
        )
    played = _play(agent, task, num_users, seed, exploration, progress)
    action, probabilities = played["action"][:, 0], played["probabilities"]
    return Log(
        user=played["user"],
        t=played["t"],
        prompt=played["prompt"],
        order=played["order"],
        action=action,
        propensity=np.take_along_axis(probabilities, action[:, None], axis=1)[:, 0],
        reward=played["reward"],
        heard=played["heard"],
        said={c.name: played[f"said {c.name}"] for c in task.feedback.channels},
        left=played["left"],
        prompt_features=task.bank.prompt_features,
        response_features=task.bank.response_features,
        probabilities=probabilities,
        scores=task.bank.scores if task.white_box else None,
        identity=_first_of_each(played) if task.recognise else None,
        truth=played["truth"],
        seed=derived_seed(derived_seed(seed, _PURPOSE), "evaluation"),
        facts=_facts(task, name or type(agent).__name__, exploration, seed),
    )


def record_duels(
    agent: Agent,
    task: Task,
    *,
    num_users: int,
    seed: int,
    exploration: float = 0.2,
    progress: Progress | None = None,
) -> Database:
    """Runs an agent on fresh users and records which two it showed and what users chose.

    Two random different responses are shown instead of the agent's with probability
    ``exploration``. Otherwise as ``record_log``; without propensities, since choices between
    two are for learning what users prefer and not for judging other agents.

    Args:
        agent: Any agent.
        task: Shows two responses.
        num_users: As for ``record_log``.
        seed: As for ``record_log``.
        exploration: As for ``record_log``.
        progress: As for ``runner.run``.

    Raises:
        ValueError: If the task shows one response, a number is out of range, or what the agent
            shows is none of the responses, or if it is not built.
    """
    if task.num_shown < 2:
        raise ValueError("duels are of tasks that show two responses; this one shows one")
    played = _play(agent, task, num_users, seed, exploration, progress)
    said = {c.name: played[f"said {c.name}"] for c in task.feedback.channels}
    if "click" in said:
        said["click"] = clicks_in_bank(said["click"], played["order"], played["heard"])
    return Database(
        user=played["user"],
        prompt=played["prompt"],
        action=np.take_along_axis(played["order"], played["action"], axis=1),
        reward=played["reward"],
        heard=played["heard"],
        said=said,
        prompt_features=task.bank.prompt_features,
        response_features=task.bank.response_features,
        identity=_first_of_each(played) if task.recognise else None,
        scores=task.bank.scores if task.white_box else None,
    )


def _play(
    agent: Agent,
    task: Task,
    num_users: int,
    seed: int,
    exploration: float,
    progress: Progress | None,
) -> dict[str, NDArray[Any]]:
    """Runs the agent, then looks at what happened; returns a row per interaction."""
    if num_users < 1:
        raise ValueError(f"num_users must be at least 1, got {num_users}")
    check_range("exploration", exploration, 0, 1)
    root = derived_seed(seed, _PURPOSE)
    exploring = explorer(agent, task, exploration, derived_seed(seed, "exploration"))
    done = run(exploring, task, num_users=num_users, seed=root, progress=progress)
    moments = list(_moments(task, num_users, root, exploring.shown))
    for moment, law in zip(moments, exploring.probabilities, strict=False):
        moment["probabilities"] = law
    rows = done.present.ravel()
    return {name: _by_user([moment[name] for moment in moments])[rows] for name in moments[0]}


def _by_user(columns: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns T columns of U rows as U * T rows, by user and then by time."""
    stacked = np.stack(columns, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def _moments(
    task: Task, num_users: int, root: int, shown: Sequence[Action]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields what each of T interactions was, with all that was ever said about it.

    Episodes are a function of their seed and of what is shown. So the run's are drawn again,
    and their users speak without delay.
    """
    now = replace(task, feedback=replace(task.feedback, delay=0))
    session = Session(now, np.arange(num_users))
    session.begin(derived_seed(root, "evaluation"))  # as run() does
    k = task.bank.num_responses
    for t, action in enumerate(shown):
        episodes = session.episodes
        offered = candidates(now, episodes, t)
        truth = utilities(now.flat_scores.take(offered, axis=0), weights_at(episodes, t))
        feedback, _ = session.step(action)
        yield {
            "user": np.arange(num_users),
            "identity": episodes.user,
            "t": np.full(num_users, t),
            "prompt": episodes.prompt[t],
            "order": offered % k,
            "action": action,
            "reward": feedback.reward,
            "heard": feedback.heard,
            "left": feedback.left,
            "truth": truth,
            **{f"said {name}": values for name, values in feedback.said.items()},
        }


def _first_of_each(played: Mapping[str, NDArray[Any]]) -> Int[np.ndarray, "U"]:
    """Returns each user's row in the population."""
    return played["identity"][np.unique(played["user"], return_index=True)[1]]


def _facts(task: Task, agent: str, exploration: float, seed: int) -> dict[str, Any]:
    """Returns, as plain JSON, how a log comes about."""
    feedback = task.feedback
    modifiers = [part for part in (feedback.silence, feedback.leave) if part is not None]
    return {
        "agent": agent,
        "exploration": exploration,
        "seed": seed,
        "horizon": task.horizon,
        "split": task.split,
        "feedback": [repr(part) for part in (*feedback.channels, *modifiers)],
        "delay": feedback.delay,
        "population": repr(task.population),
        "prompts_per_episode": task.prompts_per_episode,
        "shuffle": task.shuffle,
        "drift": None if task.drift is None else repr(task.drift),
    }
