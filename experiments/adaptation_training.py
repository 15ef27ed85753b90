"""How the policies of ``adaptation.py`` are trained: PPO, or regression of rewards.

Only interactions that were answered teach. Silence is as likely whatever is shown, so leaving
it out changes no expectation; counting it as a reward of 0 would only add noise. And an action
that nobody commented on changes no memory of what users like, so it has no later effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from adaptation_policies import Judged, Net, Told
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from personalllm_env.benchmark.track import Track
from personalllm_env.envs.wrappers import VectorAugmented
from personalllm_env.streams import derived_seed


class Learner(Protocol):
    """How a network acts while it learns, and what it learns from."""

    def logits(self, judged: Judged) -> Float[Tensor, "N K"]:
        """Returns the law of its actions, whose mode is what it does when it is measured."""
        ...

    def loss(self, judged: Judged, told: Told) -> Tensor:
        """Returns what is to be made small."""
        ...


@dataclass(frozen=True)
class PPO:
    """Clipped policy gradient (Schulman et al., 2017) with a critic, for one decision ahead.

    The advantage is the reward minus the mean reward that the critic expects under the policy.
    Prompts come at random, so what is shown hardly changes what comes next: gamma is 0.
    """

    clip: float = 0.2
    entropy: float = 0.01

    def logits(self, judged: Judged) -> Float[Tensor, "N K"]:
        """Returns the actor's."""
        return judged.logits

    def loss(self, judged: Judged, told: Told) -> Tensor:
        """Returns the sum of the actor's and the critic's."""
        log_law = F.log_softmax(judged.logits, dim=-1)
        law, action = log_law.exp(), told.action[:, None]
        expected = judged.values.gather(1, action)[:, 0]
        with torch.no_grad():
            gain = (told.goal - (law * judged.values).sum(dim=1)) / told.goal.std()
        ratio = (log_law.gather(1, action)[:, 0] - told.log_chance).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        actor = -torch.min(ratio * gain, clipped * gain).mean()
        entropy = -(law * log_law).sum(dim=1).mean()
        return actor + 0.5 * F.mse_loss(expected, told.goal) - self.entropy * entropy


@dataclass(frozen=True)
class Regression:
    """Q learning for one decision ahead: expects rewards, and acts by a softmax of them.

    Args:
        temperature: Of the softmax, in units of reward.
    """

    temperature: float = 0.1

    def logits(self, judged: Judged) -> Float[Tensor, "N K"]:
        """Returns the expected rewards in units of the temperature."""
        return judged.values / self.temperature

    def loss(self, judged: Judged, told: Told) -> Tensor:
        """Returns the mean squared error of what was expected of the response shown."""
        return F.mse_loss(judged.values.gather(1, told.action[:, None])[:, 0], told.goal)


@dataclass(frozen=True)
class Schedule:
    """How much is learnt from.

    Attributes:
        users: B, who are met at once.
        rounds: How many times B new users are met, for an episode each.
        epochs: How often each round is learnt from.
        batches: In how many groups of users.
        learning_rate: At first; it goes to 0.
        utility: Whether the simulator's noise-free utility is trained for, which no real
            system could do, in place of the reward that is reported.
    """

    users: int = 512
    rounds: int = 100
    epochs: int = 3
    batches: int = 5
    learning_rate: float = 3e-3
    utility: bool = False


class Greedy:
    """A network as a policy for ``PolicyAgent``: shows what it thinks best.

    Args:
        net: The network.
        learner: What it was trained by.
    """

    def __init__(self, net: Net, learner: Learner) -> None:
        self._net, self._learner = net, learner

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Forgets everybody."""
        self._net.begin(num_users)

    @torch.no_grad()
    def act(self, seen: Any) -> Int[np.ndarray, "B"]:
        """Returns the best responses."""
        known = self._net.look(seen)
        action = self._learner.logits(self._net.judge(known)).argmax(dim=-1)
        self._net.note(known["features"][torch.arange(len(action)), action])
        return action.numpy()


def build(make: Callable[[], Net], seed: int) -> Net:
    """Returns a new network whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "network") % 2**63)
        return make()


def train(
    net: Net,
    learner: Learner,
    schedule: Schedule,
    track: Track,
    seed: int,
    after: Callable[[int], None] = lambda done: None,
) -> None:
    """Trains a network on a track's train prompts, for users it meets once.

    Args:
        net: Trained in place.
        learner: What is learnt from.
        schedule: How much.
        track: Whose environment it is.
        seed: Of users, prompts, actions and batches.
        after: Called with the number of rounds done, after each.
    """
    rng = np.random.default_rng(derived_seed(seed, "training"))
    env: Any = gym.make_vec(
        "personalllm_env:PersonalLLM/Select-v0",
        schedule.users,
        autoreset_mode="DISABLED",
        **track.environment,
    )
    if parts := net.parts():
        env = VectorAugmented(env, parts)
    adam = torch.optim.Adam(net.parameters(), lr=schedule.learning_rate, eps=1e-5)
    root = derived_seed(seed, "training users")
    for done in range(schedule.rounds):
        obs, _ = env.reset(seed=None if done else root)
        told = play(env, obs, net, learner, rng, utility=schedule.utility)
        rate = schedule.learning_rate * (1 - done / schedule.rounds)
        adam.param_groups[0]["lr"] = rate
        for _ in range(schedule.epochs):
            group = torch.from_numpy(rng.permutation(schedule.users) % schedule.batches)
            for number in range(schedule.batches):
                some = told.pick((group[told.user] == number).nonzero()[:, 0])
                loss = learner.loss(net.judge_again(some), some)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                adam.step()
        after(done + 1)


@torch.no_grad()
def play(
    env: Any, obs: Any, net: Net, learner: Learner, rng: np.random.Generator, *, utility: bool
) -> Told:
    """Plays one episode of B users; returns what they answered."""
    net.begin(env.num_envs)
    steps, over = [], False
    while not over:
        known = net.look(obs)
        law = F.log_softmax(learner.logits(net.judge(known)), dim=-1)
        noise = torch.from_numpy(rng.gumbel(size=law.shape).astype(np.float32))
        action = (law + noise).argmax(dim=-1)
        net.note(known["features"][torch.arange(env.num_envs), action])
        obs, reward, terminated, truncated, info = env.step(action.numpy())
        said = torch.from_numpy(reward)
        goal = torch.from_numpy(info["utility"]) if utility else said
        chance = law.gather(1, action[:, None])[:, 0]
        everybody = Told(known, torch.arange(env.num_envs), action, chance, said, goal)
        steps.append(everybody.pick(torch.from_numpy(obs["heard"][:, 0] > 0.5).nonzero()[:, 0]))
        over = bool((terminated | truncated).all())
    known = {name: torch.cat([step.known[name] for step in steps]) for name in steps[0].known}
    rest = (torch.cat(column) for column in zip(*(step[1:] for step in steps), strict=True))
    told = Told(known, *rest)
    return told.pick(told.user.argsort(stable=True))
