"""Eight websocket sessions at a time with simulated users, each a stranger at first.

A belief about each user's taste, over features, chooses among eight answers and learns.

    python examples/libraries/openenv_client.py [FIGURE] [USERS]
"""

import asyncio
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np

from personalllm_env.adapters.openenv import SelectAction, SelectClient

SESSIONS = 8
SERVE = [sys.executable, "-m", "personalllm_env", "serve", "--features", "--port", "0"]


class Ridge:
    """What a user seems to like: a Gaussian belief about their weights on features."""

    def __init__(self, num: int, seed: int) -> None:
        self.precision, self.told = np.eye(num), np.zeros(num)
        self.rng = np.random.default_rng(seed)

    def choose(self, features: np.ndarray) -> int:
        """Thompson sampling: what is best for a user drawn from the belief."""
        covariance = np.linalg.inv(self.precision)
        drawn = self.rng.multivariate_normal(covariance @ self.told, covariance)
        return int((features @ drawn).argmax())

    def learn(self, chosen: np.ndarray, reward: float) -> None:
        """Adds one interaction; the noise of a reward has variance .25."""
        self.precision += np.outer(chosen, chosen) / 0.25
        self.told += chosen * reward / 0.25


async def meet(url: str, users: list[int]) -> list[list[float]]:
    """Serves users one after the other over one connection; returns their rewards."""
    rewards = []
    async with SelectClient(base_url=url) as env:
        for index in users:
            result = await env.reset(split="test", index=index)
            belief = Ridge(len(result.observation.prompt_features), seed=index)
            rewards.append([])
            while not result.done:
                features = np.array(result.observation.response_features)
                result = await env.step(SelectAction(response=(k := belief.choose(features))))
                belief.learn(features[k], result.reward)
                rewards[-1].append(result.reward)
    return rewards


async def everybody(url: str, users: int) -> np.ndarray:
    """Serves users in eight sessions at a time; returns their rewards, (users, horizon)."""
    shares = [list(range(i, users, SESSIONS)) for i in range(SESSIONS)]
    return np.concatenate(await asyncio.gather(*(meet(url, share) for share in shares)))


if __name__ == "__main__":
    figure = sys.argv[1] if len(sys.argv) > 1 else "openenv_client.png"
    users = int(sys.argv[2]) if len(sys.argv) > 2 else 160
    with subprocess.Popen(SERVE, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://[\d.:]+", server.stdout.readline()).group()
            rewards = asyncio.run(everybody(url, users))
        finally:
            server.terminate()
    early, late = rewards[:, :5].mean(axis=1), rewards[:, -10:].mean(axis=1)
    error = 1.96 * (late - early).std(ddof=1) / np.sqrt(users)
    plt.plot(np.arange(1, rewards.shape[1] + 1), rewards.mean(axis=0))
    plt.gca().set(xlabel="interaction with a user", ylabel=f"reward, mean of {users} users")
    plt.savefig(figure)
    print(f"{users} users in {SESSIONS} sessions at a time, {rewards.size} steps.")
    print(f"Reward {early.mean():.2f} at first, {late.mean():.2f} at last (gain ±{error:.2f})")
