"""An agent of one's own: checked against the contract, then compared with others."""

import numpy as np

from personalllm_env import load_bank
from personalllm_env.registry import find_agent
from personalllm_env.report import summarise
from personalllm_env.runner import Entrant, compare
from personalllm_env.task import Task
from personalllm_env.testing import check_agent


class RememberBest:
    """Shows the response nearest to the best one so far."""

    privileges = frozenset()  # sees nothing that a real system could not

    def __init__(self, prior):
        self.num_features, self.num_shown = prior.num_features, prior.num_shown

    def reset(self, num_users, rng):
        """Starts new users."""
        self.best = np.full(num_users, -np.inf)
        self.liked = np.zeros((num_users, self.num_features))

    def act(self, observation):
        """Returns the nearest responses."""
        closeness = np.einsum("bkd,bd->bk", observation.response_features, self.liked)
        return closeness.argsort(axis=1)[:, ::-1][:, : self.num_shown]

    def update(self, observation, action, feedback):
        """Remembers what was better than before."""
        better = feedback.heard & (feedback.reward > self.best)
        shown = observation.response_features[np.arange(len(action)), action[:, 0]]
        self.best = np.where(better, feedback.reward, self.best)
        self.liked[better] = shown[better]


check_agent(RememberBest)
others = [find_agent(name) for name in ("uniform", "popular", "linucb")]
mine = Entrant("remember-best", RememberBest, {})
result = compare([*others, mine], Task(load_bank()), seeds=[0], num_users=100)
for row in summarise(result):
    print(f"{row.agent:14s} regret {row.regret.value:5.1f}  score {row.score.value:.2f}")
