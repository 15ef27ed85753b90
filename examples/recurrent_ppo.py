"""Recurrent PPO in one file (RL squared: Duan et al., 2016).

A GRU reads what was shown and said. From its state comes a taste, which judges candidates.
"""

from argparse import ArgumentParser

import gymnasium as gym
import numpy as np
import torch
from matplotlib import pyplot as plt

args = ArgumentParser(description=__doc__)
args.add_argument("steps", nargs="?", type=int, default=300_000, help="one rollout or more")
args.add_argument("figure", nargs="?", default="recurrent_ppo.png")
STEPS, FIGURE = vars(args.parse_args()).values()
USERS, HORIZON, EPOCHS, BATCH, GAMMA, LAMBDA = 128, 50, 3, 32, 0.5, 0.9
torch.set_num_threads(1), torch.manual_seed(0)
gru, head = torch.nn.GRU(65, 64), torch.nn.Linear(64, 33)
adam = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=3e-3, eps=1e-5)


def judge(told, features, state=None):
    """Returns policy and value after what was ``told`` (T, B, 65), and the last state."""
    memory, state = gru(told, state)
    taste, value = head(memory).split([32, 1], dim=-1)
    logits = torch.einsum("tbkd,tbd->tbk", features, taste)
    return torch.distributions.Categorical(logits=logits), value[..., 0], state


@torch.no_grad()
def play(env, seed=None, greedy=False):
    """Plays an episode; returns what was told, seen, done, thought and heard, (T, B, ...)."""
    (obs, _), told, state, steps = env.reset(seed=seed), torch.zeros(env.num_envs, 65), None, []
    for _ in range(HORIZON):
        features = torch.from_numpy(obs["response_features"])
        policy, value, state = judge(told[None], features[None], state)
        action = policy.logits.argmax(-1) if greedy else policy.sample()
        obs, reward, _, _, info = env.step(action[0].numpy())
        result = torch.from_numpy(np.stack([reward, info["utility"]]))
        steps.append((told, features, action[0], policy.log_prob(action)[0], value[0], *result))
        shown, said = features[torch.arange(env.num_envs), action[0]], result[0, :, None]
        told = torch.cat([shown, shown * said, said], dim=1)
    return [torch.stack(part) for part in zip(*steps, strict=True)]


task = {"id": "personalllm_env:PersonalLLM/Select-v0", "horizon": HORIZON}
task |= {"autoreset_mode": "DISABLED"}  # all episodes are of one length: we reset them
trained = gym.make_vec(num_envs=USERS, **task)
tested = gym.make_vec(num_envs=1000, split="test", **task)  # other users, other prompts
start, curve = play(tested, 1, greedy=True)[-1], []
for update in range(max(1, STEPS // (USERS * HORIZON))):
    told, seen, action, old, value, reward, utility = play(trained, None if update else 0)
    gain, ahead, after = torch.zeros_like(value), 0.0, 0.0
    for t in reversed(range(HORIZON)):  # generalised advantage estimation (Schulman, 2016)
        ahead = reward[t] + GAMMA * after - value[t] + GAMMA * LAMBDA * ahead
        gain[t], after = ahead, value[t]
    data = told, seen, action, old, gain, gain + value
    for users in torch.cat([torch.randperm(USERS) for _ in range(EPOCHS)]).split(BATCH):
        past, x, a, logp, adv, goal = (part[:, users] for part in data)
        policy, value, _ = judge(past, x)
        ratio, adv = (policy.log_prob(a) - logp).exp(), (adv - adv.mean()) / adv.std()
        loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        loss += (value - goal).square().mean() / 2 - 0.01 * policy.entropy().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 0.5)
        adam.step(), adam.zero_grad()
    curve.append(float(utility.mean()))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(np.arange(1, len(curve) + 1) * USERS * HORIZON, curve)
left.set(xlabel="training interactions", ylabel="mean utility (training users)")
for name, found in ("before", start), ("after", play(tested, 1, greedy=True)[-1]):
    first, last = found[:5].mean(0), found[-10:].mean(0)
    error = 1.96 * (last - first).std() / 1000**0.5
    print(f"{name} training: {first.mean():.3f} at interactions 1-5,")
    print(f"    {last.mean():.3f} at 41-50: learnt {(last - first).mean():+.3f} ±{error:.3f}")
right.plot(np.arange(3, HORIZON - 1), found.mean(1).unfold(0, 5, 1).mean(-1))
right.set(xlabel="interaction of the episode", ylabel="mean utility, 1,000 new users")
plt.savefig(FIGURE, dpi=150)
