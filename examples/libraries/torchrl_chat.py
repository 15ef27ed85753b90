"""GRPO with TorchRL's ChatEnv: a toy model learns what sets two users apart.

Needs pip install 'personalllm-env[torchrl,train]'; arguments: the figure's path, the steps.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import tensordict
import torch
from torchrl.modules.llm import TransformersWrapper
from torchrl.objectives.llm import GRPOLoss

from personalllm_env.adapters.torchrl_chat import personal_chat_env
from personalllm_env.data import load_bank
from personalllm_env.generation.problem import WritingTask
from personalllm_env.rewards.heads import offline_heads
from personalllm_env.task import Task
from personalllm_env.users import UserPopulation
from personalllm_env.writing.toy_models import tiny_trainable
from personalllm_env.writing.trainable import add_user_tokens

GROUP, BATCH = 8, 32
HEADS = "gemma_2b_head", "beaver_7b_head"  # one likes lines and lists, the other few lines
SAMPLING = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.0}


def write(env, policy):
    """Writes 32 texts; returns them, and both users' mean reward."""
    with torch.no_grad():
        data = env.step(policy(env.reset()))
    each = data["next", "reward"].flatten()
    return data, [each[data["user"] == user].mean().item() for user in (0, 1)]


def main(figure="torchrl-chat.png", steps=40):
    """Trains on what each user likes more than the other does, and draws the curves."""
    torch.manual_seed(0), torch.set_num_threads(1)
    tensordict.set_list_to_stack(True).set()  # as TorchRL's language models ask for
    bank = load_bank("text")
    users = np.eye(bank.num_reward_models)[[bank.reward_models.index(name) for name in HEADS]]
    problem = WritingTask(Task(bank, UserPopulation(users, np.zeros(2, bool))), offline_heads())
    toy = tiny_trainable([x for y in bank.texts.responses[:200] for x in y], width=64)
    add_user_tokens(toy, len(HEADS), spread=1.0)
    env = personal_chat_env(
        problem, 1000, seed=0, num_envs=BATCH, group=GROUP, tokens=True,
        tokenizer=toy.tokenizer, minus=users.mean(axis=0),
    )  # fmt: skip
    how = {"tokenizer": toy.tokenizer, "return_log_probs": True}
    policy = TransformersWrapper(toy.model, generate_kwargs=SAMPLING, **how)
    how |= {"input_mode": "tokens", "generate": False, "pad_output": False}
    reader = TransformersWrapper(toy.model, **how)
    loss_of, optimiser = GRPOLoss(reader), torch.optim.Adam(toy.model.parameters(), lr=3e-3)
    looks = [write(env, policy)[1] for _ in range(8)]
    for _ in range(int(steps)):
        data, look = write(env, policy)
        looks.append(look)
        reward = data["next", "reward"].view(-1, GROUP)  # texts for one user and prompt
        apart = reward - reward.mean(1, keepdim=True)
        data["advantage"] = (apart / (reward.std(1, keepdim=True) + 1e-3)).view(-1, 1, 1)
        with torch.no_grad():
            data["log_probs"] = reader(data.select("tokens"))["log_probs"]
        loss_of(data).loss_objective.backward()
        optimiser.step(), optimiser.zero_grad()
    looks = np.array(looks + [write(env, policy)[1] for _ in range(8)])
    means = [np.nanmean(part, axis=0).sum() for part in (looks[:8], looks[-8:])]
    error = 1.96 * np.sqrt((np.nanvar(looks[-8:], axis=0, ddof=1) / 8).sum() * 2)
    print("utility to the own user minus utility to the other, of the same texts:")
    print(f"{means[0]:+.2f}, and after {steps} steps {means[1] - means[0]:+.2f} ± {error:.2f}")
    plt.plot(looks, label=HEADS)
    plt.legend(), plt.xlabel(f"{BATCH} texts"), plt.ylabel("what sets the user apart")
    plt.savefig(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
