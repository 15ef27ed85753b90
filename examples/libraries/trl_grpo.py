"""TRL's GRPO learns to write what three users like, each with a token, on one core.

A toy of a million weights reads the built-in texts for a moment, then samples texts, which the
row's user values. It learns to please the reward heads, not to write.

    pip install 'personalllm-env[train]'
    python examples/libraries/trl_grpo.py [FIGURE] [STEPS]
"""

import sys
import tempfile

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer

from personalllm_env import UserPopulation, load_bank
from personalllm_env.adapters.trl import PersonalLLMSpec
from personalllm_env.language.chat import Sampling
from personalllm_env.writing.held_out import draw_curves, every, held_out, interval
from personalllm_env.writing.toy_models import toy
from personalllm_env.writing.trainable import Trainable, add_user_tokens, write_texts

# Each listens to one reward model.
USERS = ("gemma_2b_head", "oasst_deberta_v3_head", "oasst_pythia_1b_head")
SAMPLING = Sampling(24, temperature=1.0, top_p=1.0)


def main(figure: str, steps: int) -> None:
    """Trains, prints held-out utility before and after, and draws its curve."""
    torch.set_num_threads(1)
    bank = load_bank("text")
    weights = [np.eye(10)[bank.reward_models.index(name)] for name in USERS]
    weights = np.array([*weights, np.full(10, 0.1)])  # the last one is held out
    users = UserPopulation(weights, np.arange(4) == 3)
    spec = PersonalLLMSpec(population=users, num_rows=2 * steps, user_tokens=True)
    language = toy(bank, min(steps, 20))
    add_user_tokens(language, len(USERS), spread=1.0)
    spec.check(language.tokenizer)
    readers = held_out(spec.problem, num_prompts=12)
    curve = []

    def look(step: int) -> None:
        policy = Trainable(trainer.model, language.tokenizer)
        texts = write_texts(policy, readers.chats, SAMPLING, seed=0, batch=48)
        curve.append((step, readers.judge(texts)))
        print(f"step {step}: utility {interval(curve[-1][1].own)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            language.model,
            spec.reward_funcs,
            GRPOConfig(
                folder, per_device_train_batch_size=32, num_generations=16,
                max_completion_length=24, max_steps=steps, learning_rate=3e-3, use_cpu=True,
                bf16=False, disable_tqdm=True, report_to="none", save_strategy="no",
                logging_strategy="no", lr_scheduler_type="constant",
            ),
            train_dataset=spec.train_dataset,
            processing_class=language.tokenizer,
            callbacks=[every(max(steps // 4, 1), look)],
        )  # fmt: skip
        trainer.train()

    (_, before), *_, (_, after) = curve
    print(f"utility to the user: {interval(before.own)} before, {interval(after.own)} after")
    print(f"same texts, own user minus others: {interval(after.gap)}")
    print(f"{before.texts[0][0]!r} became {after.texts[0][0]!r}")
    lines = {"own user": [interval(w.own) for _, w in curve],
             "other users": [interval(w.other) for _, w in curve]}  # fmt: skip
    at, title = np.array([step for step, _ in curve]), "TRL GRPO, a toy"
    draw_curves(figure, {"utility, 12 held-out prompts": lines}, at, title=title)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["trl-grpo.png"], *map(int, sys.argv[2:3] or [60]))
