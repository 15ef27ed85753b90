"""GRPO against simulated users: does a small model learn to write, and for whom?

Four users each listen to one reward model; each has a token in the system's turn. Every few
steps the model writes for held-out prompts: under each user's token, judged by that user and
by the others, and under the generic token, judged by held-out users. ``docs/training.md`` says
what came of it.

    pip install 'personalllm-env[train]'
    python examples/training/grpo.py                  # some minutes on one core
    python examples/training/grpo.py --contrast 1     # only what sets a user apart is rewarded
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personalllm_env.adapters.trl_rewards import personal_reward
from personalllm_env.adapters.trl_rows import grpo_rows
from personalllm_env.data import load_bank
from personalllm_env.generation.problem import WritingTask
from personalllm_env.language.chat import Sampling
from personalllm_env.rewards.heads import offline_heads
from personalllm_env.task import Task
from personalllm_env.users import UserPopulation, dirichlet_population
from personalllm_env.writing import held_out as look
from personalllm_env.writing import toy_models
from personalllm_env.writing import trainable as models

USERS = ("gemma_2b_head", "beaver_7b_head", "oasst_deberta_v3_head", "oasst_pythia_1b_head")


@dataclass(frozen=True)
class Size:
    """Settings that belong together."""

    steps: int
    groups: int  # per step
    rollouts: int  # per group
    tokens: int  # per text
    learning_rate: float
    every: int  # steps between looks
    prompts: int  # held-out ones per look
    kl: float = 0.02  # what holds the text to the language it began with
    rank: int = 16
    adapt: str | tuple[str, ...] = "all-linear"
    pretraining: int = 300  # steps, toy only


SIZES = {
    "quick": Size(2, 1, 4, 16, 1e-3, 1, 2, rank=4, pretraining=0),
    "cpu": Size(120, 4, 8, 48, 2e-3, 30, 16),
    "smollm2": Size(40, 2, 8, 40, 2e-3, 20, 12, adapt=("q_proj", "v_proj")),
    "gpu": Size(500, 16, 16, 256, 1e-4, 25, 48, rank=32),
}


def population(models: tuple[str, ...]) -> UserPopulation:
    """Returns four users who each listen to one reward model, and 64 held-out mixtures."""
    corners = np.eye(len(models))[[models.index(name) for name in USERS]]
    others = dirichlet_population(64, num_reward_models=len(models), concentration=0.1)
    weights = np.concatenate([corners, others.weights])
    return UserPopulation(weights, np.arange(len(weights)) >= len(corners))


def options(arguments: list[str] | None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy", help="toy, smollm2, a folder, a hub id")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument(
        "--contrast", type=float, default=0.0, help="times the mean user's utility is taken off"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("grpo"))
    for name in ("steps", "learning-rate", "kl"):
        parser.add_argument(f"--{name}", type=float, help="instead of the size's")
    return parser.parse_args(arguments)


def trainer_for(language, tokens, problem, named, chosen):
    """Returns TRL's trainer: rows name the users, and a reward is that of the row's user."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    size = SIZES[chosen.size]
    steps = int(chosen.steps or size.steps)
    rows = grpo_rows(
        problem,
        num_rows=steps * size.groups,
        seed=chosen.seed,
        user_tokens=True,
        anybody=0.2 * (chosen.contrast == 0),  # nobody is apart from everybody
    )
    return GRPOTrainer(
        language.model,
        personal_reward(problem, minus=chosen.contrast * named.mean(axis=0)),
        GRPOConfig(
            output_dir=os.fspath(chosen.out),
            per_device_train_batch_size=size.groups * size.rollouts,
            num_generations=size.rollouts,
            max_completion_length=size.tokens,
            max_steps=steps,
            learning_rate=chosen.learning_rate or size.learning_rate,
            beta=size.kl if chosen.kl is None else chosen.kl,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=2,
            gradient_checkpointing=chosen.size == "gpu",
            use_cpu=chosen.size != "gpu",
            bf16=chosen.size == "gpu",
            logging_steps=size.every,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=chosen.seed,
        ),
        train_dataset=rows,
        processing_class=language.tokenizer,
        peft_config=LoraConfig(
            r=size.rank, lora_alpha=size.rank, target_modules=size.adapt,
            trainable_token_indices={"embed_tokens": tokens}, task_type="CAUSAL_LM",
        ),
    )  # fmt: skip


def tell(curve, readers, chosen):
    """Prints what changed, shows some texts, and draws the curve."""
    size = SIZES[chosen.size]
    before, after = curve[0][1], curve[-1][1]
    for name in ("own", "other", "gap", "newcomers"):
        change = getattr(after, name) - getattr(before, name)
        print(f"{name}: change {look.interval(change)} over {len(change)} held-out prompts")
    for prompt, first, last in zip(
        readers.prompts[:2], before.texts, after.texts, strict=False
    ):
        print(f"\n{prompt}")
        for user, texts in zip((*USERS, "anybody"), zip(first, last, strict=True), strict=True):
            print(f"  {user}\n    before: {texts[0]!r}\n    after:  {texts[1]!r}")
    panels = {
        "utility, held-out prompts (0 = the bank's mean)": {
            "train users, own token": [look.interval(w.own) for _, w in curve],
            "held-out users, generic token": [look.interval(w.newcomers) for _, w in curve],
        },
        "gap: own user minus other users": {
            "same texts": [look.interval(w.gap) for _, w in curve]
        },
    }
    title = f"GRPO, {Path(chosen.model).name}, {size.groups} x {size.rollouts} texts per step"
    steps_done = np.array([step for step, _ in curve])
    look.draw_curves(chosen.out / "train-grpo.png", panels, steps_done, title=title)


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints what changed, and draws the curve."""
    chosen = options(arguments)
    size = SIZES[chosen.size]

    bank = load_bank("text")
    users = population(bank.reward_models)
    named = users.weights[users.users("train")]
    problem = WritingTask(Task(bank, users), offline_heads())
    language = toy_models.toy_or_real(chosen.model, bank, steps=size.pretraining)
    tokens = models.add_user_tokens(language, len(USERS), spread=1.0, seed=chosen.seed)
    trainer = trainer_for(language, tokens, problem, named, chosen)
    readers = look.held_out(problem, num_prompts=size.prompts)
    sampling = Sampling(size.tokens, temperature=1.0, top_p=1.0)
    policy = models.Trainable(trainer.model, language.tokenizer)
    curve: list[tuple[int, look.Written]] = []

    def write(step: int) -> None:
        texts = models.write_texts(policy, readers.chats, sampling, seed=chosen.seed, batch=32)
        curve.append((step, readers.judge(texts)))
        now = curve[-1][1]
        print(
            f"step {step:4d}: own {look.interval(now.own)}, gap {look.interval(now.gap)}, "
            f"newcomers {look.interval(now.newcomers)}, {now.words.mean():.0f} words",
            flush=True,
        )

    trainer.add_callback(look.every(size.every, write))
    trainer.train()
    tell(curve, readers, chosen)


if __name__ == "__main__":
    main()
