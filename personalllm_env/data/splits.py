"""Which prompts of a table are held out: as the source says, or by the prompt's own text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Bool

from personalllm_env.bank import BankError, find_duplicates
from personalllm_env.data.sources import Part


def split_rows(
    parts: Sequence[Part], prompts: Sequence[str], test_share: float | None
) -> tuple[Bool[np.ndarray, "P"], str]:
    """Returns the test split and the rule that made it."""
    source = parts[0].where
    given = {part.split for part in parts}
    if len(given) == 1 and all("split" not in part.table.column_names for part in parts):
        return _split_by_prompt(prompts, 0.1 if test_share is None else test_share, source)
    if test_share is not None:
        raise BankError(f"{source}: test_share cannot be set, the table has splits of its own")
    if len(given) > 1:
        if given != {"train", "test"}:
            raise BankError(
                f"{source}: the splits must be train and test, "
                f"got {', '.join(sorted(map(str, given)))}"
            )
        values = [[str(part.split)] * part.table.num_rows for part in parts]
        rule = "given: train and test"
    else:
        values = [_split_column(part) for part in parts]
        rule = "given: column 'split'"
    is_test = np.array([value == "test" for value in chain.from_iterable(values)])
    if is_test.all() or not is_test.any():
        empty = "train" if is_test.all() else "test"
        raise BankError(f"{source}: column 'split': the {empty} split is empty")
    if (twins := find_duplicates(prompts, is_test)) is not None:
        train, test = (place(parts, row) for row in twins)
        raise BankError(
            f"column 'prompt': {train} (train) and {test} (test) hold the same prompt, "
            f"{prompts[twins[0]][:60]!r}"
        )
    return is_test, rule


def _split_column(part: Part) -> list[str]:
    if "split" not in part.table.column_names:
        raise BankError(f"{part.where}: no column 'split', though other tables have one")
    values: list[str] = part.table.column("split").to_pylist()
    for row, value in enumerate(values):
        if value not in ("train", "test"):
            raise BankError(
                f"{part.where}: column 'split', row {row + 1}: "
                f"expected 'train' or 'test', got {value!r}"
            )
    return values


def _split_by_prompt(
    prompts: Sequence[str], test_share: float, source: str
) -> tuple[Bool[np.ndarray, "P"], str]:
    """Sends the first prompts in the order of their hashes to test, with all of their rows."""
    if not 0 < test_share < 1:
        raise BankError(f"test_share must lie between 0 and 1, got {test_share}")
    keys = [prompt.strip() for prompt in prompts]
    ordered = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(ordered) < 2:
        raise BankError(
            f"{source}: column 'prompt': expected at least 2 different prompts to split into "
            f"train and test, got {len(ordered)}"
        )
    num_test = min(max(1, round(test_share * len(ordered))), len(ordered) - 1)
    test = set(ordered[:num_test])
    return np.array([key in test for key in keys]), f"by prompt text, test_share {test_share:g}"


def place(parts: Sequence[Part], row: int) -> str:
    """Returns where a row of all the tables stands, for an error."""
    for part in parts:
        if row < part.table.num_rows:
            return f"{part.where}, row {row + 1}"
        row -= part.table.num_rows
    raise IndexError(row)
