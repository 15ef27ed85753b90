"""Personalised DPO: one token per user, trained on what each user preferred (P-DPO's idea).

Ten users each listen to one reward model and have compared pairs of a library's responses. A
small model learns from these pairs, each under its user's token or the generic one. On
held-out prompts: does a user's own token order responses as that user does, better than the
generic token and better than other users' tokens? And are texts written under it liked more?

    pip install 'personalllm-env[train]'
    python examples/training/personal_dpo.py          # some minutes on one core
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personalllm_env.adapters.trl_rows import dpo_rows
from personalllm_env.data import load_bank
from personalllm_env.generation.chats import chat_for, user_token
from personalllm_env.generation.problem import WritingTask
from personalllm_env.language.chat import Sampling
from personalllm_env.rewards.heads import offline_heads
from personalllm_env.task import Task
from personalllm_env.users import UserPopulation, dirichlet_population
from personalllm_env.writing import held_out as look
from personalllm_env.writing import toy_models
from personalllm_env.writing import trainable as models


@dataclass(frozen=True)
class Size:
    """Settings that belong together."""

    pairs: int  # per user
    steps: int
    batch: int
    learning_rate: float
    every: int  # steps between looks
    prompts: int  # held-out ones per look
    tokens: int  # of a pair's answers that are read, and of a written text
    beta: float = 0.1
    rank: int = 16
    pretraining: int = 300  # steps, toy only


SIZES = {
    "quick": Size(4, 2, 4, 1e-3, 1, 2, 24, pretraining=0),
    "cpu": Size(240, 300, 8, 3e-3, 60, 24, 64),
    "smollm2": Size(40, 100, 4, 5e-4, 50, 6, 48),
    "gpu": Size(1000, 2000, 16, 5e-5, 200, 48, 256, rank=32),
}


def likelihoods(policy, problem, rows, users, size):
    """Returns log-likelihoods (p, N + 1, K) of the bank's responses under each token."""
    bank = problem.task.bank
    every = [
        (chat_for(bank, int(row), token=user_token(user)), answer)
        for row in rows
        for user in (*range(users), -1)
        for answer in bank.texts.responses[row]
    ]
    found = models.log_likelihoods(
        policy, *zip(*every, strict=True), max_tokens=size.tokens, batch=16
    )
    return found.reshape(len(rows), users + 1, -1)


def options(arguments: list[str] | None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy", help="toy, smollm2, a folder, a hub id")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("personal-dpo"))
    return parser.parse_args(arguments)


def trainer_for(language, tokens, problem, chosen):
    """Returns TRL's trainer on what the users preferred before."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    size = SIZES[chosen.size]
    return DPOTrainer(
        language.model,
        args=DPOConfig(
            output_dir=os.fspath(chosen.out),
            per_device_train_batch_size=size.batch,
            max_steps=size.steps,
            learning_rate=size.learning_rate,
            warmup_steps=5,
            beta=size.beta,
            max_length=96 + size.tokens,
            gradient_checkpointing=chosen.size == "gpu",
            use_cpu=chosen.size != "gpu",
            bf16=chosen.size == "gpu",
            logging_steps=size.every,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=chosen.seed,
        ),
        train_dataset=dpo_rows(problem, seed=chosen.seed, anybody=0.3),
        processing_class=language.tokenizer,
        peft_config=LoraConfig(
            r=size.rank, lora_alpha=size.rank, target_modules="all-linear",
            trainable_token_indices={"embed_tokens": tokens}, task_type="CAUSAL_LM",
        ),
    )  # fmt: skip


def tell(curve, before, after, readers, num_users, chosen):
    """Prints what changed, shows some texts, and draws the curve."""
    size = SIZES[chosen.size]
    last = curve[-1][1]
    print(f"own minus generic: {look.interval(last.own - last.generic)}; own minus others': "
          f"{look.interval(last.gap)}")  # fmt: skip
    for name in ("own", "other", "gap", "newcomers"):
        start, final = getattr(before, name), getattr(after, name)
        print(f"texts, {name}: {look.interval(start)} before, {look.interval(final)} after, "
              f"change {look.interval(final - start)}")  # fmt: skip
    print(f"{readers.prompts[0]}\n  before: {before.texts[0][0]!r}\n  after: {after.texts[0]}")
    found = [point for _, point in curve]
    panels = {
        "held-out accuracy of implicit rewards": {
            "own token": [look.interval(f.own) for f in found],
            "generic token": [look.interval(f.generic) for f in found],
            "other users' tokens": [look.interval(f.other) for f in found],
        },
        "what the own token adds": {
            "to the generic token": [look.interval(f.own - f.generic) for f in found],
            "to other users' tokens": [look.interval(f.gap) for f in found],
        },
    }
    steps_done = np.array([step for step, _ in curve])
    name = Path(chosen.model).name
    title = f"Personalised DPO, {name}, {num_users} users, {size.pairs} pairs each"
    look.draw_curves(chosen.out / "train-personal-dpo.png", panels, steps_done, title=title)


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints what changed, and draws the curve."""
    chosen = options(arguments)
    size = SIZES[chosen.size]

    bank = load_bank("text")
    num_users = len(bank.reward_models)
    others = dirichlet_population(64, num_reward_models=num_users, concentration=0.1)
    weights = np.concatenate([np.eye(num_users), others.weights])
    people = UserPopulation(weights, np.arange(len(weights)) >= num_users)
    problem = WritingTask(Task(bank, people), offline_heads(), past=size.pairs)
    language = toy_models.toy_or_real(chosen.model, bank, steps=size.pretraining)
    tokens = models.add_user_tokens(language, num_users, spread=1.0, seed=chosen.seed)
    trainer = trainer_for(language, tokens, problem, chosen)
    policy = models.Trainable(trainer.model, language.tokenizer)
    rows = bank.prompts("test")[: size.prompts]
    utility = np.swapaxes(bank.scores[rows] @ weights[:num_users].T, 1, 2)
    first, curve = [], []

    def measure(step: int) -> None:
        now = likelihoods(policy, problem, rows, num_users, size)
        first.append(now)  # before the first step the policy is its own reference
        found = look.preferences(utility, now - first[0])
        curve.append((step, found))
        print(f"step {step:4d}: accuracy on held-out prompts: own token "
              f"{look.interval(found.own)}, generic {look.interval(found.generic)}, other "
              f"users' {look.interval(found.other)}", flush=True)  # fmt: skip

    readers = look.held_out(problem, num_prompts=size.prompts)
    sampling = Sampling(size.tokens, temperature=1.0, top_p=1.0)

    def written() -> look.Written:
        return readers.judge(
            models.write_texts(policy, readers.chats, sampling, seed=chosen.seed, batch=32)
        )

    before = written()
    trainer.add_callback(look.every(size.every, measure))
    trainer.train()
    after = written()
    tell(curve, before, after, readers, num_users, chosen)


if __name__ == "__main__":
    main()
