"""The contract kit's part on what agents say of themselves: their law."""

import numpy as np
import pytest

from personalllm_env.feedback import feedback_model
from personalllm_env.laws import ask, law_of
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.testing import check_agent, tiny_bank
from personalllm_env.users import DirichletUsers

K = 4


class Draws:
    """Shows each response with the probability it says."""

    privileges = frozenset()

    def __init__(self, prior):
        self.shown = prior.num_shown

    def reset(self, num_users, rng):
        self.b, self.rng = num_users, rng

    def probabilities(self, observation):
        return np.tile([0.5, 0.0, 0.25, 0.25], (self.b, 1))

    def act(self, observation):
        if self.shown == 2:
            return np.tile([0, 1], (self.b, 1))
        return self.rng.choice(K, size=(self.b, 1), p=[0.5, 0.0, 0.25, 0.25])

    def update(self, observation, action, feedback):
        pass


class SaysNan(Draws):
    def probabilities(self, observation):
        return np.full((self.b, K), np.nan)


class SaysNanOfOneUser(Draws):
    def probabilities(self, observation):
        law = super().probabilities(observation)
        law[1, 2] = np.nan
        return law


class SaysInfinities(Draws):
    def probabilities(self, observation):
        return np.tile([np.inf, -np.inf, 1, 0], (self.b, 1))


class SaysTooFew(Draws):
    def probabilities(self, observation):
        return np.full((self.b, 3), 1 / 3)


class SaysEight(Draws):
    def probabilities(self, observation):
        return np.full((self.b, K), 2.0)


class SaysLessThanNothing(Draws):
    def probabilities(self, observation):
        return np.tile([1.5, -0.5, 0, 0], (self.b, 1))


class ShowsWhatItNeverWould(Draws):
    def probabilities(self, observation):
        return np.eye(K)[np.ones(self.b, int)]


class DrawsToSay(Draws):
    def probabilities(self, observation):
        self.rng.random()
        return super().probabilities(observation)


def test_an_agent_that_says_its_law_passes():
    check_agent(Draws)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SaysNan, r"SaysNan\.probabilities must .*got \[nan, nan, nan, nan\] for user 0"),
        (SaysNanOfOneUser, r"got \[0\.5, 0\.0, nan, 0\.25\] for user 1"),
        (SaysInfinities, r"got \[inf, -inf"),
        (SaysTooFew, r"of shape \(5, 4\), got shape \(5, 3\)"),
        (SaysEight, r"for user 0, which add up to 8\.0"),
        (SaysLessThanNothing, r"numbers in \[0, 1\].*got \[1\.5, -0\.5"),
        (ShowsWhatItNeverWould, r"Would\.act shows response \d to user .* probability 0: got"),
        (DrawsToSay, r"reward: a run in which probabilities\(\) is asked differs"),
    ],
)
def test_the_kit_looks_at_laws(broken, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        check_agent(broken)


def test_who_shows_two_is_not_asked():
    bank = tiny_bank()
    users = DirichletUsers(bank.num_reward_models, 0.1)
    task = Task(bank, users, feedback_model("choice"), horizon=3, num_shown=2)
    session = Session(task, np.arange(5))
    session.begin(0)
    agent = SaysNan(task.prior_knowledge())
    agent.reset(5, np.random.default_rng(0))
    action, law = ask(agent, session.observe(), 2)
    assert law is None
    assert action.tolist() == [[0, 1]] * 5
    with pytest.raises(ValueError, match="nan"):
        law_of(agent, session.observe())
