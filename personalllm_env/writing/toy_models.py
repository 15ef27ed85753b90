"""Toy language models: random weights, or a few minutes of reading; to try things out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from personalllm_env.bank import ResponseBank
from personalllm_env.extras import require
from personalllm_env.generation.chats import chat_for
from personalllm_env.language.chat import Chat
from personalllm_env.writing.trainable import Trainable, load_trainable

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without a default system turn."""


def tiny_trainable(
    texts: Sequence[str],
    *,
    width: int = 32,
    layers: int = 2,
    vocabulary: int = 400,
    seed: int = 0,
) -> Trainable:
    """Returns a Llama with random weights and a tokenizer fitted to some texts, in seconds.

    Args:
        texts: What the tokenizer (byte-level BPE) is fitted to.
        width: Of the hidden states; heads are 16 wide.
        layers: How many.
        vocabulary: Number of tokens, at least 260.
        seed: Of the weights.
    """
    tokenizers, torch = require("tokenizers", "train"), require("torch", "train")
    transformers = require("transformers", "train")
    marks = ["<|im_end|>", "<|im_start|>"]
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, special_tokens=marks, show_progress=False
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=marks[0],
        pad_token=marks[0],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 16, 1),
        num_key_value_heads=max(width // 16, 1),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trainable(transformers.LlamaForCausalLM(config), tokenizer)


def pretrain(
    trainable: Trainable,
    chats: Sequence[Chat],
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Trains all weights to predict whole chats token by token, and returns the last loss."""
    torch = require("torch", "train")
    model, tokenizer = trainable
    texts = [tokenizer.apply_chat_template(list(chat), tokenize=False) for chat in chats]
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    loss = torch.tensor(float("nan"))
    for _ in range(steps):
        some = [texts[i] for i in rng.integers(len(texts), size=batch)]
        ids = tokenizer(
            some, padding=True, padding_side="right", return_tensors="pt", truncation=True,
            max_length=160, add_special_tokens=False,
        ).to(model.device)  # fmt: skip
        logits = model(input_ids=ids["input_ids"]).logits[:, :-1].float()
        seen = ids["attention_mask"][:, 1:].bool()
        loss = torch.nn.functional.cross_entropy(logits[seen], ids["input_ids"][:, 1:][seen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval()
    return float(loss.detach())


def toy(bank: ResponseBank, steps: int) -> Trainable:
    """Returns a model of about a million weights that has read the train side of a bank.

    It writes in the manner of the bank's responses, and little sense: for trying things out
    in minutes on one core.

    Args:
        bank: With texts.
        steps: Of ``pretrain``; 0 leaves the weights random.
    """
    assert bank.texts is not None, "the bank of a toy has texts"
    train = bank.prompts("train").tolist()
    answers = [(row, text) for row in train for text in bank.texts.responses[row]]
    made = tiny_trainable(
        [text for _, text in answers], width=128, layers=4, vocabulary=2000, seed=0
    )
    chats: list[Chat] = [
        [*chat_for(bank, row), {"role": "assistant", "content": text}] for row, text in answers
    ]
    if steps:
        pretrain(made, chats, steps=steps)
    return made


def toy_or_real(name: str, bank: ResponseBank, *, steps: int) -> Trainable:
    """Returns ``toy(bank, steps)`` for ``"toy"``, otherwise what ``load_trainable`` loads."""
    return toy(bank, steps) if name == "toy" else load_trainable(name)
