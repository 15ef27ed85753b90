"""DQN in one file: what is a history of one's user good for?

One network values each candidate by its features, and by those times what was liked so far.
"""

from argparse import ArgumentParser
from copy import deepcopy

import gymnasium as gym
import numpy as np
import torch
from matplotlib import pyplot as plt

from personalllm_env.envs.wrappers import History, VectorAugmented

args = ArgumentParser(description=__doc__)
args.add_argument("steps", nargs="?", type=int, default=100_000, help="one rollout or more")
args.add_argument("figure", nargs="?", default="dqn.png")
STEPS, FIGURE = vars(args.parse_args()).values()
USERS, HORIZON, GAMMA, KEPT, BATCH, SYNC = 64, 30, 0.5, 600, 512, 50
torch.set_num_threads(1), torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
target = deepcopy(net).requires_grad_(False)
adam = torch.optim.Adam(net.parameters(), lr=2e-3)


def make(num_users, split):
    """Returns users in lockstep; the step that ends an episode begins the next."""
    settings = {"horizon": HORIZON, "split": split, "autoreset_mode": "SAME_STEP"}
    env = gym.make_vec("personalllm_env:PersonalLLM/Select-v0", num_users, **settings)
    return VectorAugmented(env, History(HORIZON))


def look(obs):
    """Returns what each candidate is valued by, (B, K, 64)."""
    liked = (obs["history_feedback"] * obs["history_features"][:, :, 0]).sum(axis=1)
    liked /= 10 + obs["history_heard"].sum(axis=1, keepdims=True)
    x = obs["response_features"]
    return torch.from_numpy(np.concatenate([x, x * liked[:, None]], axis=2))


@torch.no_grad()
def evaluate():
    """Returns the utility of greedy choices, (T, B), of users and prompts never met."""
    env = make(1000, "test")
    (obs, _), found = env.reset(seed=1), []
    for _ in range(HORIZON):
        obs, _, _, _, info = env.step(net(look(obs))[..., 0].argmax(-1).numpy())
        found.append(info["utility"])
    return np.stack(found)


start, env = evaluate(), make(USERS, "train")
(obs, _), curve = env.reset(seed=0), []
seen, action = torch.zeros(KEPT, USERS, 8, 64), torch.zeros(KEPT, USERS, dtype=torch.int64)
reward, going = torch.zeros(KEPT, USERS), torch.zeros(KEPT, USERS, dtype=torch.bool)
for step in range(total := max(2 * HORIZON, STEPS // USERS)):
    now, seen[step % KEPT] = step % KEPT, look(obs)
    curious = torch.rand(USERS) < max(0.05, 1 - 4 * step / total)
    action[now] = net(seen[now])[..., 0].argmax(-1).where(~curious, torch.randint(8, (USERS,)))
    obs, said, terminated, truncated, info = env.step(action[now].numpy())
    reward[now], going[now] = map(torch.from_numpy, (said, ~(terminated | truncated)))
    curve.append(info["utility"].mean())
    if step % SYNC == 0:
        target.load_state_dict(net.state_dict())
    if step < HORIZON:
        continue
    t, b = now - torch.randint(1, min(step + 1, KEPT), (BATCH,)), torch.randint(USERS, (BATCH,))
    goal = reward[t, b] + GAMMA * going[t, b] * target(seen[t + 1, b])[..., 0].amax(-1)
    loss = (net(seen[t, b, action[t, b]])[..., 0] - goal).square().mean()
    loss.backward()
    adam.step(), adam.zero_grad()
for name, found in ("before", start), ("after", end := evaluate()), ("gained", end - start):
    error, first, last = 1.96 * found.mean(0).std() / 1000**0.5, found[:5], found[-5:]
    print(f"mean utility {name}: {found.mean():.3f} ±{error:.3f} (1,000 new users),", end=" ")
    print(f"{first.mean():.3f} in interactions 1-5, {last.mean():.3f} in the last 5")
plt.plot(np.convolve(curve, np.ones(HORIZON) / HORIZON, mode="valid"))
plt.gca().set(xlabel=f"training steps of {USERS} users", ylabel="mean utility", title="DQN")
plt.savefig(FIGURE, dpi=150)
