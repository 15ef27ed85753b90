"""The one loop: any agent on any task, and what a report needs of it as columns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.database import Database, recorded_once
from personalllm_env.decoding import decoder_residual, linear_decoder
from personalllm_env.laws import checked_action
from personalllm_env.session import Session, hush
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.types import (
    PRIVILEGES,
    Action,
    Agent,
    LearnsFromHistory,
    Observation,
    PriorKnowledge,
)

_PRIOR_SAMPLE = 4096  # users shown to agents that may know the population
_RESIDUALS = 2000  # responses whose undecodable part is shown to agents that may know it


class Run(NamedTuple):
    """What one agent did for B users over T interactions."""

    utility: Float[np.ndarray, "B T"]  # of what was shown; 0 after the user has left
    regret: Float[np.ndarray, "B T"]  # best utility minus that; goes on after they have left
    present: Bool[np.ndarray, "B T"]  # whether the user was still there
    seconds: float  # spent inside the agent (act and update)
    fit_seconds: float = 0.0  # spent learning from the history
    memory_mb: float = float("nan")  # peak above what the process held before, if measured


Progress = Callable[[int], None]
"""Called with a number of interactions (of all users at once) that are done."""


def run(
    agent: Agent, task: Task, *, num_users: int, seed: int, progress: Progress | None = None
) -> Run:
    """Runs an agent on ``num_users`` fresh users, all at once.

    Users, prompts and noise are functions of ``seed`` alone, so agents given the same one are
    paired. A user who has left is served nothing, which is worth 0 (the average response) and
    counts among the options, so that regret is never negative.
    """
    session = Session(task, np.arange(num_users), regret=True)
    session.begin(derived_seed(seed, "evaluation"))
    agent.reset(num_users, np.random.default_rng(derived_seed(seed, "agent")))
    utility = np.empty((num_users, task.horizon))
    best, present = np.empty_like(utility), np.empty(utility.shape, dtype=bool)
    there, seconds = np.ones(num_users, dtype=bool), 0.0
    waiting: deque[tuple[Observation, Action]] = deque()
    for t in range(task.horizon):
        observation = observe_for(agent, session)
        start = time.perf_counter()
        action = agent.act(observation)
        seconds += time.perf_counter() - start
        action = checked_action(agent, action, observation, task.num_shown)
        feedback, diagnostics = session.step(action)
        stay = there & ~feedback.left
        waiting.append((observation, action))
        if len(waiting) > task.feedback.delay:
            then, did = waiting.popleft()
            heard = feedback if there.all() else hush(feedback, there)
            start = time.perf_counter()
            agent.update(then, did, heard)
            seconds += time.perf_counter() - start
        present[:, t] = there
        utility[:, t] = diagnostics.utility
        assert diagnostics.regret is not None, "the session was asked for regret"
        best[:, t] = diagnostics.utility + diagnostics.regret
        there = stay
        if progress is not None:
            progress(1)
    utility[~present] = 0.0
    best = np.where(present, best, np.maximum(best, 0.0))  # being served nothing is an option
    return Run(utility, best - utility, present, seconds)


def observe_for(agent: Agent, session: Session) -> Observation:
    """Returns what an agent sees now, including what it has declared to be privileged to."""
    granted = privileges_of(type(agent))  # the class's, which the report marks
    return session.observe(scores="scores" in granted, weights="weights" in granted)


def privileges_of(agent_class: type) -> frozenset[str]:
    """Returns what agents of a class see beyond an honest one.

    Raises:
        ValueError: If the class does not say it.
    """
    stated = getattr(agent_class, "privileges", None)
    if not isinstance(stated, Set):
        raise ValueError(
            f"{agent_class.__name__} does not state its privileges; an honest agent's class "
            "has `privileges = frozenset()`"
        )
    return frozenset(stated)


def prior_for(agent_class: type, task: Task, seed: int = 0) -> PriorKnowledge:
    """Returns what a class may know: the honest part, and the privileges it declares.

    Raises:
        ValueError: If none are declared, or one is unknown.
    """
    privileges = privileges_of(agent_class)
    if unknown := sorted(privileges - PRIVILEGES):
        raise ValueError(
            f"{agent_class.__name__} declares unknown privileges {unknown}; "
            f"known: {', '.join(sorted(PRIVILEGES))}"
        )
    prior = task.prior_knowledge()
    if "population" in privileges:
        rng = np.random.default_rng(derived_seed(seed, "prior sample"))
        prior = replace(prior, population=task.population.sample(_PRIOR_SAMPLE, rng))
    if "decoder" in privileges:
        decoder = linear_decoder(task.bank)
        rng = np.random.default_rng(derived_seed(seed, "residual sample"))
        residual = decoder_residual(task.bank, decoder, _RESIDUALS, rng)
        prior = replace(prior, decoder=decoder, residual=residual)
    return prior


class Entrant(NamedTuple):
    """An agent in a comparison."""

    name: str
    agent_class: type
    settings: dict[str, object]


def check_entrant(given: object) -> None:
    """Raises ValueError for what is no entrant, such as an agent's bare name."""
    if not isinstance(given, Entrant):
        raise ValueError(f"expected an Entrant: find_agent('linucb'); got {given!r:.60}")


def measure(
    entrant: Entrant,
    task: Task,
    history: Callable[[], Database | None],
    *,
    num_users: int,
    seed: int,
    prior: PriorKnowledge | None = None,
    progress: Progress | None = None,
) -> Run:
    """Builds an agent, lets it learn from others' history if it can, and runs it.

    Args:
        entrant: The agent.
        task: What it is measured on.
        history: Called if the agent has ``fit``; None for no history.
        num_users: Users it meets.
        seed: Of the users, and of the agent.
        prior: What the agent may know, where that was computed before: ``prior_for`` its class.
        progress: As for ``run``.

    Raises:
        ValueError: If that is no entrant.
        Exception: The agent's own, with a note that names it.
    """
    check_entrant(entrant)
    try:
        if prior is None:
            prior = prior_for(entrant.agent_class, task, seed)
        agent = entrant.agent_class(prior, **entrant.settings)
        fit_seconds = 0.0
        if isinstance(agent, LearnsFromHistory) and (database := history()) is not None:
            start = time.perf_counter()
            agent.fit(database)
            fit_seconds = time.perf_counter() - start
        done = run(agent, task, num_users=num_users, seed=seed, progress=progress)
    except Exception as error:
        error.add_note(f"agent {entrant.name!r}; testing.check_agent tells more")
        raise
    return done._replace(fit_seconds=fit_seconds)


@dataclass(frozen=True)
class Comparison:
    """What several agents did for the same users, prompts and noise.

    Attributes:
        runs: Per agent name, one ``Run`` per seed.
        privileges: Per agent name, what it saw beyond an honest agent.
        seeds: The seeds.
    """

    runs: dict[str, list[Run]]
    privileges: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]


def compare(
    entrants: Iterable[Entrant],
    task: Task,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    num_users: int = 200,
    history_users: int = 1000,
    progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Runs several agents on the test side of a task, after a history of its train side.

    Args:
        entrants: The agents.
        task: The decision problem; agents with ``fit`` learn from its train prompts (and train
            users), and all are measured on its test prompts (and test users).
        seeds: One independent repetition each: another history, other users and prompts.
        num_users: Users per seed.
        history_users: How many other users agents with ``fit`` learn from; 0 for none.
        progress: Called with an agent's name and a number of interactions done.

    Raises:
        ValueError: If there are no seeds or no agents, or two agents of one name.
    """
    entrants, seeds = tuple(entrants), tuple(seeds)
    if not (entrants and seeds):
        raise ValueError(f"nothing to compare: {len(entrants)} agents, {len(seeds)} seeds")
    for entrant in entrants:
        check_entrant(entrant)
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise ValueError(f"entrants must have different names, got {names}")
    test = task.side("test")
    runs: dict[str, list[Run]] = {entrant.name: [] for entrant in entrants}
    for seed in seeds:
        history = recorded_once(task, num_users=history_users, seed=seed)
        for entrant in entrants:
            tick = None if progress is None else partial(progress, entrant.name)
            done = measure(
                entrant, test, history, num_users=num_users, seed=seed, progress=tick
            )
            runs[entrant.name].append(done)
    privileges = {e.name: tuple(sorted(privileges_of(e.agent_class))) for e in entrants}
    return Comparison(runs, privileges, seeds)
