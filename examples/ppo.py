"""PPO in one file: what is a belief about one's user good for?

One network judges each candidate, by its features and what a ridge belief says of it.
"""

from argparse import ArgumentParser

import gymnasium as gym
import numpy as np
import torch
from matplotlib import pyplot as plt

from personalllm_env.envs.wrappers import Belief, VectorAugmented

args = ArgumentParser(description=__doc__)
args.add_argument("steps", nargs="?", type=int, default=200_000, help="one rollout or more")
args.add_argument("figure", nargs="?", default="ppo.png")
STEPS, FIGURE = vars(args.parse_args()).values()
USERS, HORIZON, EPOCHS, BATCH, GAMMA, LAMBDA = 256, 30, 3, 960, 0.5, 0.9
torch.set_num_threads(1), torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(35, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
adam = torch.optim.Adam(net.parameters(), lr=3e-3, eps=1e-5)


def make(num_users, split):
    """Returns users in lockstep, whose episodes begin at ``reset``."""
    how = {"horizon": HORIZON, "split": split, "autoreset_mode": "DISABLED"}
    env = gym.make_vec("personalllm_env:PersonalLLM/Select-v0", num_users, **how)
    return VectorAugmented(env, Belief(ridge=30.0))


def judge(seen):
    """Returns the policy over K candidates and the value of what is seen, (..., K, 35)."""
    logits, values = net(seen).unbind(-1)
    return torch.distributions.Categorical(logits=logits), values.mean(-1)


@torch.no_grad()
def play(env, seed=None, greedy=False):
    """Plays an episode; returns what was seen, done, thought and heard, (T, B, ...) each."""
    (obs, _), steps = env.reset(seed=seed), []
    for _ in range(HORIZON):
        more = np.broadcast_arrays(obs["belief_value"], obs["belief_width"], obs["step"])
        x = np.concatenate([obs["response_features"], np.stack(more, axis=2)], axis=2)
        policy, value = judge(seen := torch.from_numpy(x))
        action = policy.logits.argmax(-1) if greedy else policy.sample()
        obs, reward, _, _, info = env.step(action.numpy())
        said = torch.from_numpy(np.stack([reward, info["utility"]]))
        steps.append((seen, action, policy.log_prob(action), value, *said))
    return [torch.stack(part) for part in zip(*steps, strict=True)]


tested = make(1000, "test")  # users and prompts that training never meets
start, trained, curve = play(tested, 1, greedy=True)[-1], make(USERS, "train"), []
for update in range(max(1, STEPS // (USERS * HORIZON))):
    seen, action, old, value, reward, utility = play(trained, seed=None if update else 0)
    gain, ahead, after = torch.zeros_like(value), 0.0, 0.0
    for t in reversed(range(HORIZON)):  # generalised advantage estimation (Schulman, 2016)
        ahead = reward[t] + GAMMA * after - value[t] + GAMMA * LAMBDA * ahead
        gain[t], after = ahead, value[t]
    data = [x.flatten(0, 1) for x in (seen, action, old, gain, gain + value)]
    for rows in torch.randperm(EPOCHS * USERS * HORIZON).split(BATCH):
        x, a, logp, adv, target = (part[rows % len(part)] for part in data)
        policy, value = judge(x)
        ratio, adv = (policy.log_prob(a) - logp).exp(), (adv - adv.mean()) / adv.std()
        loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        loss += (value - target).square().mean() / 2 - 0.01 * policy.entropy().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        adam.step(), adam.zero_grad()
    curve.append(float(utility.mean()))
end = play(tested, 1, greedy=True)[-1]
for name, found in ("before", start), ("after", end), ("gained", end - start):
    error, first, last = 1.96 * found.mean(0).std() / 1000**0.5, found[:5], found[-5:]
    print(f"mean utility {name}: {found.mean():.3f} ±{error:.3f} (1,000 new users),", end=" ")
    print(f"{first.mean():.3f} in interactions 1-5, {last.mean():.3f} in the last 5")
plt.plot(np.arange(1, len(curve) + 1) * USERS * HORIZON, curve)
plt.gca().set(xlabel="training interactions", ylabel="mean utility", title="PPO with a belief")
plt.savefig(FIGURE, dpi=150)
