"""The bank: every prompt, response and reward-model score, in memory or mapped from disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Split = Literal["train", "test", "all"]

_ARRAYS = ("scores", "prompt_features", "response_features", "is_test")
_FORMAT = 1


class BankError(ValueError):
    """Says what was expected of a bank, what was found, and where."""


@dataclass(frozen=True)
class Texts:
    """The words behind a bank: P prompts and, for each, K responses."""

    prompts: tuple[str, ...]
    responses: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class ResponseBank:
    """Scores and features of P prompts with K candidate responses each.

    Arrays are made read-only; building a bank checks everything below.

    Attributes:
        scores: (P, K, M) float32, standardised per reward model over the train split;
            higher is better.
        prompt_features: (P, D) float32.
        response_features: (P, K, D) float32.
        reward_models: M names, in the order of the scores' last axis.
        responders: K names of who wrote the k-th response.
        is_test: (P,) bool, the test split of the prompts.
        texts: The words, or None for a bank without.
        name: What to call the bank in a report.
        facts: JSON-able notes on where the bank came from.

    Raises:
        BankError: If shapes, names, splits or values do not fit together.
    """

    scores: Float[np.ndarray, "P K M"]
    prompt_features: Float[np.ndarray, "P D"]
    response_features: Float[np.ndarray, "P K D"]
    reward_models: tuple[str, ...]
    responders: tuple[str, ...]
    is_test: Bool[np.ndarray, "P"]
    texts: Texts | None = None
    name: str = "bank"
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)
        for name in _ARRAYS:
            array = getattr(self, name)
            if array.flags.writeable:
                view = array.view()  # the caller's own array stays writeable
                view.setflags(write=False)
                object.__setattr__(self, name, view)

    def __deepcopy__(self, memo: dict[int, Any]) -> ResponseBank:
        """Returns itself: a bank is immutable, and ``gym.make`` deep-copies its arguments."""
        return self

    def __repr__(self) -> str:
        p, k, m = self.scores.shape
        return (
            f"ResponseBank({self.name!r}: {p} prompts ({int(self.is_test.sum())} test), "
            f"{k} responses, {m} reward models, {self.num_features} features)"
        )

    @property
    def num_prompts(self) -> int:
        """P."""
        return int(self.scores.shape[0])

    @property
    def num_responses(self) -> int:
        """K."""
        return int(self.scores.shape[1])

    @property
    def num_reward_models(self) -> int:
        """M."""
        return int(self.scores.shape[2])

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.response_features.shape[2])

    def prompts(self, split: Split) -> Int[np.ndarray, "p"]:
        """Returns the row numbers of a split's prompts, in increasing order."""
        if split == "all":
            return np.arange(self.num_prompts)
        if split not in ("train", "test"):
            raise BankError(f"split must be 'train', 'test' or 'all', got {split!r}")
        return np.flatnonzero(self.is_test == (split == "test"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the bank to a folder of ``.npy`` files and one JSON, whole or not at all.

        Raises:
            FileExistsError: If ``path`` exists and is not a bank.
        """
        target = Path(path)
        if target.exists() and not is_saved_bank(target):
            raise FileExistsError(f"{target} exists and holds no bank; choose another path")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for name in _ARRAYS:
                np.save(scratch / f"{name}.npy", getattr(self, name), allow_pickle=False)
            meta = {
                "format": _FORMAT,
                "name": self.name,
                "reward_models": self.reward_models,
                "responders": self.responders,
                "facts": self.facts,
                "texts": None
                if self.texts is None
                else {"prompts": self.texts.prompts, "responses": self.texts.responses},
            }
            (scratch / "bank.json").write_text(json.dumps(meta), encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def is_saved_bank(path: str | os.PathLike[str]) -> bool:
    """Says whether ``path`` is a folder that ``ResponseBank.save`` wrote."""
    return (Path(path) / "bank.json").is_file()


def open_bank(path: str | os.PathLike[str], *, mmap: bool | None = None) -> ResponseBank:
    """Loads a bank that ``ResponseBank.save`` wrote.

    Args:
        path: The folder.
        mmap: Whether to map the arrays from disk instead of reading them; by default when
            they exceed 1 GiB.

    Raises:
        BankError: If the folder's format is not known.
    """
    folder = Path(path)
    meta = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    if meta.get("format") != _FORMAT:
        raise BankError(
            f"{folder}/bank.json: expected format {_FORMAT}, got {meta.get('format')}"
        )
    size = sum((folder / f"{name}.npy").stat().st_size for name in _ARRAYS)
    mode: Literal["r"] | None = "r" if (size > 2**30 if mmap is None else mmap) else None
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False)
        for name in _ARRAYS
    }
    texts = meta["texts"] and Texts(
        tuple(meta["texts"]["prompts"]), tuple(tuple(r) for r in meta["texts"]["responses"])
    )
    return ResponseBank(
        **arrays,
        reward_models=tuple(meta["reward_models"]),
        responders=tuple(meta["responders"]),
        texts=texts,
        name=meta["name"],
        facts=meta["facts"],
    )


def _check_shapes(bank: ResponseBank) -> None:
    if bank.scores.ndim != 3 or 0 in bank.scores.shape:
        raise BankError(f"scores must be a non-empty (P, K, M) array, got {bank.scores.shape}")
    p, k, m = bank.scores.shape
    d = bank.response_features.shape[-1]
    expected = {"prompt_features": (p, d), "response_features": (p, k, d), "is_test": (p,)}
    for name, shape in expected.items():
        found = getattr(bank, name).shape
        if found != shape:
            raise BankError(
                f"{name} must have shape {shape} beside scores {(p, k, m)}, got {found}"
            )
    for name, num in (("reward_models", m), ("responders", k)):
        names = getattr(bank, name)
        if len(names) != num or len(set(names)) != num:
            raise BankError(f"{name} must be {num} different names, got {names}")
    if bank.texts is not None:
        _check_texts(bank.texts, bank.is_test, k)
    if bank.is_test.all() or not bank.is_test.any():
        empty = "train" if bank.is_test.all() else "test"
        raise BankError(
            f"the {empty} split is empty: {int(bank.is_test.sum())} of {p} are test"
        )


def _check_texts(texts: Texts, is_test: Bool[np.ndarray, "P"], num_responses: int) -> None:
    num_prompts = len(is_test)
    if len(texts.prompts) != num_prompts or len(texts.responses) != num_prompts:
        raise BankError(
            f"texts must hold {num_prompts} prompts and as many rows of responses, got "
            f"{len(texts.prompts)} and {len(texts.responses)}"
        )
    for row, responses in enumerate(texts.responses):
        if len(responses) != num_responses:
            raise BankError(
                f"texts: prompt {row} has {len(responses)} responses, expected {num_responses}"
            )
    if (twins := find_duplicates(texts.prompts, is_test)) is not None:
        raise BankError(
            f"prompt {texts.prompts[twins[0]][:60]!r} is in both splits: row {twins[0]} "
            f"(train) and row {twins[1]} (test)"
        )


def _check_values(bank: ResponseBank) -> None:
    for name in ("scores", "prompt_features", "response_features"):
        array = getattr(bank, name)
        if array.dtype != np.float32:
            raise BankError(f"{name} must be float32, got {array.dtype}")
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            label = (
                f" (reward model {bank.reward_models[where[2]]!r})" if name == "scores" else ""
            )
            raise BankError(
                f"{name} must be finite; found {array[where]} at index {where}{label}"
            )
    if bank.is_test.dtype != np.bool_:
        raise BankError(f"is_test must be bool, got {bank.is_test.dtype}")
    spread = np.ptp(bank.scores[~bank.is_test], axis=(0, 1))
    if (spread == 0).any():
        model = bank.reward_models[int(np.argmin(spread))]
        raise BankError(f"reward model {model!r} is constant over the train split")


def find_duplicates(
    prompts: Iterable[str], is_test: Bool[np.ndarray, "P"]
) -> tuple[int, int] | None:
    """Returns the first (train row, test row) that hold the same prompt, or None."""
    seen: dict[str, dict[bool, int]] = {}
    for row, (prompt, test) in enumerate(zip(prompts, is_test.tolist(), strict=True)):
        places = seen.setdefault(prompt.strip(), {})
        places.setdefault(test, row)
        if len(places) == 2:
            return places[False], places[True]
    return None
