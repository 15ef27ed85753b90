"""A policy does in the runner what it does in the environment it was trained in."""

import re

import numpy as np
import pytest

from personalllm_env.adapters.policies import PolicyAgent
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.envs.wrappers import Belief, History, VectorAugmented, VectorFlat
from personalllm_env.runner import prior_for, run
from personalllm_env.streams import derived_seed
from personalllm_env.testing import check_agent, tiny_tasks

TASKS = tiny_tasks()
NAMES = "bank population feedback horizon num_shown split prompts_per_episode shuffle drift"
NAMES += " recognise white_box user_split"
# After a user has left the environment begins with another, and the runner does not.
STAYING = [name for name, task in TASKS.items() if task.feedback.leave is None]
PARTS = {
    "nothing": list,
    "history": lambda: [History(6)],
    "both": lambda: [History(6), Belief(3.0)],
}


class Projection:
    """Acts by fixed pseudo-random projections of all that it sees; keeps what it saw."""

    def __init__(self, num_responses, num_shown):
        self.k, self.s = num_responses, num_shown
        self.seen = []

    def reset(self, num_users, rng):
        self.seen.clear()

    def act(self, seen):
        self.seen.append(seen)
        parts = [seen] if isinstance(seen, np.ndarray) else [seen[n] for n in sorted(seen)]
        flat = np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)
        directions = np.sin(np.arange(1, flat.shape[1] * self.k + 1)).reshape(-1, self.k)
        values = flat.astype(np.float64) @ directions
        chosen = values.argsort(axis=1)[:, : self.s]
        return chosen[:, 0] if self.s == 1 else chosen


def played(task, policy, parts, flat, num, seed):
    settings = {name: getattr(task, name) for name in NAMES.split()}
    env = PersonalVectorEnv(num, **settings)
    if parts:
        env = VectorAugmented(env, parts)
    if flat:
        env = VectorFlat(env)
    policy.reset(num, np.random.default_rng(0))
    obs, _ = env.reset(seed=derived_seed(seed, "evaluation"))
    utility = []
    for _ in range(task.horizon):
        obs, _, _, _, info = env.step(policy.act(obs))
        utility.append(info["utility"])
    return np.stack(utility, axis=1), list(policy.seen)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", STAYING)
def test_an_agent_sees_and_does_what_the_policy_does_in_its_environment(name, parts):
    task = TASKS[name]
    flat = not task.recognise
    policy = Projection(task.bank.num_responses, task.num_shown)
    utility, seen = played(task, policy, PARTS[parts](), flat, 5, seed=3)
    agent = PolicyAgent(
        prior_for(PolicyAgent, task), policy=policy, parts=PARTS[parts](), flat=flat
    )
    done = run(agent, task, num_users=5, seed=3)
    assert len(seen) == len(policy.seen) == task.horizon
    for expected, got in zip(seen, policy.seen, strict=True):
        if flat:
            np.testing.assert_array_equal(got, expected)
        else:
            assert sorted(got) == sorted(expected)
            for key in expected:
                np.testing.assert_array_equal(got[key], expected[key])
    np.testing.assert_array_equal(done.utility.astype(np.float32), utility)


class Greedy(PolicyAgent):
    """A policy agent as a third party writes it."""

    def __init__(self, prior):
        policy = Projection(prior.num_responses, prior.num_shown)
        super().__init__(prior, policy=policy, parts=[Belief(3.0)], flat=False)


def test_it_keeps_the_contract_of_agents():
    check_agent(Greedy)


def test_a_second_run_remembers_nothing():
    task = TASKS["reward"]
    agent = Greedy(prior_for(Greedy, task))
    first = run(agent, task, num_users=3, seed=0).utility
    np.testing.assert_array_equal(first, run(agent, task, num_users=3, seed=0).utility)


def test_too_few_responses_are_not_taken_for_fewer_users():
    policy = Projection(TASKS["duel"].bank.num_responses, 1)
    agent = PolicyAgent(prior_for(PolicyAgent, TASKS["duel"]), policy=policy, flat=True)
    with pytest.raises(ValueError, match=r"\(4,\); this task shows 2, expected \(4, 2\)"):
        run(agent, TASKS["duel"], num_users=4, seed=0)


class Fixed:
    """Returns the same at every interaction."""

    def __init__(self, chosen):
        self.chosen = chosen

    def reset(self, num_users, rng):
        pass

    def act(self, seen):
        return self.chosen


@pytest.mark.parametrize(
    ("name", "shape", "fits"),
    [
        ("reward", (4,), True),
        ("reward", (4, 1), True),
        ("reward", (4, 2), False),
        ("reward", (1, 4), False),
        ("duel", (4, 2), True),
        ("duel", (2, 4), False),
        ("duel", (8,), False),
    ],
)
def test_as_many_numbers_in_another_shape_are_not_an_action(name, shape, fits):
    policy = Fixed(np.zeros(shape, np.int64))
    agent = PolicyAgent(prior_for(PolicyAgent, TASKS[name]), policy=policy, flat=True)
    if fits:
        run(agent, TASKS[name], num_users=4, seed=0)
        return
    with pytest.raises(ValueError, match=f"the policy returned shape {re.escape(str(shape))}"):
        run(agent, TASKS[name], num_users=4, seed=0)


@pytest.mark.parametrize("parts", ["Belief", ["Belief"], Belief, None, [Belief(), 3]])
def test_parts_that_are_none(parts):
    prior = prior_for(PolicyAgent, TASKS["reward"])
    with pytest.raises(ValueError, match=r"parts must be Belief\(\), .* got "):
        PolicyAgent(prior, policy=Fixed(0), parts=parts)
