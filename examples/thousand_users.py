"""A thousand users at once: an optimistic ridge agent over the native vector environment."""

import gymnasium as gym
import numpy as np

from personalllm_env.envs.wrappers import Belief, VectorAugmented

USERS, HORIZON = 1000, 50
env = gym.make_vec("PersonalLLM/Select-v0", USERS, horizon=HORIZON, split="test", regret=True)
env = VectorAugmented(env, Belief(ridge=20.0))  # what a ridge regression knows of each user
obs, info = env.reset(seed=0)

regret = np.zeros(HORIZON)
for t in range(HORIZON):
    bound = obs["belief_value"] + 0.5 * obs["belief_width"]
    obs, reward, terminated, truncated, info = env.step(bound.argmax(axis=1))
    regret[t] = info["regret"].mean()

for first in range(0, HORIZON, 10):
    span = slice(first, first + 10)
    print(f"interactions {first + 1:2d} to {first + 10}: regret {regret[span].mean():.3f} each")
