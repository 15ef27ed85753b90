"""Language models to train: loaded, given a token per user, asked for texts and likelihoods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from personalllm_env.extras import require
from personalllm_env.generation.chats import ANYBODY, user_token
from personalllm_env.language.chat import Chat, Sampling
from personalllm_env.language.smollm import load_smollm
from personalllm_env.language.weights import Weights


class Trainable(NamedTuple):
    """A causal language model of transformers' and its tokenizer."""

    model: Any
    tokenizer: Any


def load_trainable(name: str, *, torch_dtype: str = "bfloat16") -> Trainable:
    """Loads a folder or a hub id with a chat template; ``"smollm2"`` is ``load_smollm``'s.

    Weights that were quantised can be neither trained nor saved; SmolLM2's are dequantised
    when they are unpacked.

    Raises:
        LanguageModelError: If it cannot be loaded.
    """
    if name == "smollm2":
        weights = load_smollm(torch_dtype=torch_dtype)._weights
    else:
        weights = Weights(name, torch_dtype=torch_dtype)
    return Trainable(weights.network(), weights.tokenizer())


def add_user_tokens(
    trainable: Trainable, num_users: int, *, spread: float = 0.0, seed: int = 0
) -> list[int]:
    """Gives each of the users 0..num_users-1 a special token, and one to everybody else.

    Their embeddings begin at the mean of the vocabulary's. They are read, never written: input
    and output embeddings are untied first, since a tied row would also be moved by every text
    in which its token does not occur.

    Args:
        trainable: Changed in place.
        num_users: How many.
        spread: How far apart the users' rows begin, in standard deviations of the vocabulary.
        seed: Of that spread.

    Returns:
        The tokens' ids, ``ANYBODY``'s last: what ``LoraConfig(trainable_token_indices=)``
        takes, which trains these rows and no others.
    """
    torch, tokens = require("torch", "train"), require("tokenizers", "train")
    model, tokenizer = trainable
    names = [*map(user_token, range(num_users)), ANYBODY]
    tokenizer.add_tokens([tokens.AddedToken(name, special=True) for name in names])
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    old = model.get_input_embeddings().weight.detach().float()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    rng = np.random.default_rng(seed)
    apart = torch.tensor(rng.normal(size=(len(ids), rows.shape[1])), dtype=torch.float32)
    apart[-1] = 0.0
    with torch.no_grad():
        rows[ids] = (old.mean(0) + spread * old.std(0) * apart.to(old.device)).to(rows.dtype)
        written = rows.detach().clone() if output.weight is rows else output.weight.detach()
        written[ids] = 0.0
    output.weight = torch.nn.Parameter(written)
    model.config.tie_word_embeddings = False
    return ids


@contextlib.contextmanager
def _inference(model: Any, seed: int) -> Iterator[None]:
    torch = require("torch", "train")
    was = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        yield
    model.train(was)


def write_texts(
    trainable: Trainable, chats: Sequence[Chat], sampling: Sampling, *, seed: int, batch: int
) -> list[str]:
    """Samples one text per chat from a model as it stands in the midst of training.

    Unlike a ``LanguageModel``'s, a text depends on its batch. Global generators are left as
    they were.
    """
    model, tokenizer = trainable
    texts: list[str] = []
    with _inference(model, seed):
        for first in range(0, len(chats), batch):
            asked = tokenizer.apply_chat_template(
                [list(chat) for chat in chats[first : first + batch]],
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            ).to(model.device)
            drawn = model.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampling.temperature > 0,
                temperature=sampling.temperature or None,
                top_p=sampling.top_p,
                top_k=0,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = drawn[:, asked["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def log_likelihoods(
    trainable: Trainable,
    chats: Sequence[Chat],
    answers: Sequence[str],
    *,
    max_tokens: int,
    batch: int,
) -> Float[np.ndarray, "n"]:
    """Returns the log-probability of each answer's first ``max_tokens`` tokens."""
    torch = require("torch", "train")
    model, tokenizer = trainable
    rows = []
    for chat, answer in zip(chats, answers, strict=True):
        text = tokenizer.apply_chat_template(
            list(chat), add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows.append((asked, [*said, tokenizer.eos_token_id][:max_tokens]))
    found = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    with _inference(model, 0):
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            longest = max(sum(map(len, rows[i])) for i in some)
            ids = torch.full((len(some), longest), tokenizer.pad_token_id)
            said = torch.zeros((len(some), longest), dtype=torch.bool)
            for row, i in enumerate(some):
                begin, end = len(rows[i][0]), sum(map(len, rows[i]))
                ids[row, :end] = torch.tensor([*rows[i][0], *rows[i][1]])
                said[row, begin:end] = True
            ids, said = ids.to(model.device), said.to(model.device)
            logits = model(input_ids=ids).logits[:, :-1].float()  # padding is on the right
            each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            found[some] = (each * said[:, 1:]).sum(1).cpu().numpy()
    return found
