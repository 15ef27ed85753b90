"""The contract kit: what every agent must hold to, checked in one call by anybody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from personalllm_env.bank import ResponseBank
from personalllm_env.database import record_history
from personalllm_env.feedback import feedback_model
from personalllm_env.laws import ask
from personalllm_env.runner import observe_for, prior_for, run
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.types import (
    Action,
    Agent,
    LearnsFromHistory,
    Observation,
    SaysProbabilities,
)
from personalllm_env.users import DirichletUsers


def tiny_bank(
    *,
    num_prompts: int = 60,
    num_responses: int = 4,
    num_reward_models: int = 3,
    num_features: int = 6,
    seed: int = 0,
) -> ResponseBank:
    """Returns a small bank whose scores are linear in the features plus a little noise."""
    rng = np.random.default_rng([seed, 0x7157])
    shape = (num_prompts, num_responses)
    features = rng.standard_normal((*shape, num_features)).astype(np.float32)
    readout = rng.standard_normal((num_features, num_reward_models)) / np.sqrt(num_features)
    scores = features @ readout + 0.3 * rng.standard_normal((*shape, num_reward_models))
    return ResponseBank(
        scores=scores.astype(np.float32),
        prompt_features=features.mean(axis=1),
        response_features=features,
        reward_models=tuple(f"model_{m}" for m in range(num_reward_models)),
        responders=tuple(f"responder_{k}" for k in range(num_responses)),
        is_test=np.arange(num_prompts) >= num_prompts // 2,
        name="tiny",
    )


def tiny_tasks() -> dict[str, Task]:
    """Returns small tasks that between them use every kind of feedback."""
    bank = tiny_bank()
    users = DirichletUsers(bank.num_reward_models, 0.1)
    specs: dict[str, tuple[int, Any]] = {
        "reward": (1, "reward"),
        "like": (1, "like"),
        "stars": (1, "stars"),
        "click": (1, "click"),
        "duel": (2, "choice"),
        "silence": (1, ["reward", {"silence": {"probability": 0.7}}]),
        "late": (1, ["like", {"delay": {"interactions": 2}}]),
        "leaving": (1, ["reward", {"leave": {"threshold": 0.0, "probability": 0.5}}]),
        "duel with reward": (2, ["choice", "reward", "silence"]),
    }
    return {
        name: Task(bank, users, feedback_model(spec), horizon=8, num_shown=shown, shuffle=True)
        for name, (shown, spec) in specs.items()
    }


def check_agent(agent_class: type, **settings: Any) -> None:
    """Checks an agent's class against the contract on every kind of feedback.

    It must be buildable from ``PriorKnowledge``, act within the action space, repeat itself
    under one seed, forget its users at ``reset`` (while what ``fit`` taught survives), use no
    randomness but the generator it is given, leave observations as they are, and serve any
    number of users. One with ``probabilities`` must say the law of what it shows, where it
    shows one response, and be no other for having been asked.

    Args:
        agent_class: The class to check.
        settings: For its constructor.

    Raises:
        AssertionError: Naming the task and the broken clause.
        ValueError: If declared privileges are unknown, actions leave the action space, or
            probabilities are none or contradict ``act``.
    """
    assert isinstance(getattr(agent_class, "privileges", None), frozenset), (
        f"{agent_class.__name__} must have privileges: a frozenset, empty for an honest agent"
    )
    for name, task in tiny_tasks().items():
        agent = agent_class(prior_for(agent_class, task), **settings)
        assert isinstance(agent, Agent), (
            f"{agent_class.__name__} must have privileges, reset, act and update"
        )
        if isinstance(agent, LearnsFromHistory):
            agent.fit(record_history(task, num_users=20, seed=7))
        _check_repeats(agent, task, name)
        _check_law(agent, task, name)
        _check_leaves_observation(agent, task, name)


def _check_repeats(agent: Agent, task: Task, name: str) -> None:
    state = np.random.get_state()  # noqa: NPY002 - the check is that nobody touches it
    first = run(agent, task, num_users=5, seed=0)
    # Of another size and length, so that no clock comes round; then of the same size, so that
    # state that is only made anew for another number of users is seen.
    run(agent, replace(task, horizon=task.horizon - 1), num_users=3, seed=1)
    run(agent, task, num_users=5, seed=1)
    again = run(agent, task, num_users=5, seed=0)
    assert np.array_equal(first.utility, again.utility), (
        f"{name}: a second run with the same seed differs; reset() must forget the users, and "
        "all randomness must come from the generator given to reset()"
    )
    after = np.random.get_state()  # noqa: NPY002
    untouched = np.array_equal(state[1], after[1]) and state[2] == after[2]  # type: ignore[index]
    assert untouched, f"{name}: the agent draws from NumPy's global generator"
    one = run(agent, task, num_users=1, seed=2)
    assert one.utility.shape == (1, task.horizon), f"{name}: one user must do"


def _check_law(agent: Agent, task: Task, name: str) -> None:
    """Checks what an agent says of itself along a run, and that asking changes nothing."""
    if task.num_shown > 1 or not isinstance(agent, SaysProbabilities):
        return

    class Asked:
        """The agent, asked for its law before it acts."""

        privileges: ClassVar[frozenset[str]] = type(agent).privileges
        reset, update = agent.reset, agent.update

        def act(self, observation: Observation) -> Action:
            return ask(agent, observation, task.num_shown)[0]

    unasked = run(agent, task, num_users=5, seed=0)
    asked = run(Asked(), task, num_users=5, seed=0)
    assert np.array_equal(unasked.utility, asked.utility), (
        f"{name}: a run in which probabilities() is asked differs; it must draw and change "
        "nothing"
    )


def _check_leaves_observation(agent: Agent, task: Task, name: str) -> None:
    session = Session(task, np.arange(4))
    session.begin(3)
    agent.reset(4, np.random.default_rng(0))
    observation, twin = (observe_for(agent, session) for _ in range(2))
    action = agent.act(observation)
    kept = action.copy()
    feedback, _ = session.step(action)
    agent.update(observation, action, feedback)
    for part, mine, theirs in zip(observation._fields, twin, observation, strict=True):
        same = mine is None or theirs is None or np.array_equal(mine, theirs)
        assert same, f"{name}: {part} was written to"
    assert np.array_equal(kept, action), f"{name}: the action was written to"
