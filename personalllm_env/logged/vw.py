"""A log as Vowpal Wabbit's text lines for ``--cb_explore_adf`` (and ``--cb_adf``).

An interaction is a block of K + 1 lines and an empty one:

    shared |u 17 |p 0:.31 1:-.2
    |r 0:.12 1:.4
    1:-.75:.85 |r 0:-.3 1:.9

The label ``action:cost:probability`` stands on the line of what was shown; the cost is the
negative reward. Namespace ``u`` has the user as a category, ``p`` the prompt's features and
``r`` the response's (its scores in a white-box task), so that ``-q ur`` gives every user a
taste. Source: https://github.com/VowpalWabbit/vowpal_wabbit/wiki, "Input format" and "Logged
Contextual Bandit Example".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from personalllm_env.files import written_whole
from personalllm_env.logged.log import Log, check_log


def vw_examples(log: Log, *, users: bool = True) -> Iterator[list[str]]:
    """Yields the K + 1 lines of each interaction at which something was said.

    Silent ones have no cost. Users are silent independently of what they are shown, so what is
    left is a fair sample. Numbers are written so that the same float32 is read back.

    Args:
        log: The interactions.
        users: Whether lines say whose they are, in namespace ``u``.

    Raises:
        ValueError: If the log does not fit together.
    """
    check_log(log)
    prompts: dict[int, str] = {}
    responses: dict[int, list[str]] = {}  # written once, however often they occur
    for i in np.flatnonzero(log.heard).tolist():
        prompt, shown = int(log.prompt[i]), int(log.action[i])
        if prompt not in prompts:
            [prompts[prompt]] = _numbers(log.prompt_features[prompt][None])
            responses[prompt] = _numbers(log.inputs[prompt])
        lines = [f"|r {responses[prompt][k]}" for k in log.order[i].tolist()]
        cost, propensity = -float(log.reward[i]), float(log.propensity[i])
        lines[shown] = f"{shown}:{_short(cost)}:{_short(propensity)} {lines[shown]}"
        who = f"|u {log.user[i]} " if users else ""
        yield [f"shared {who}|p {prompts[prompt]}", *lines]


def _numbers(values: Float[np.ndarray, "R n"]) -> list[str]:
    shortest = values.astype(np.float32).astype(str).tolist()  # that read back the same
    return [" ".join([f"{j}:{x}" for j, x in enumerate(row)]) for row in shortest]


def _short(value: float) -> str:
    """Returns the shortest text that is the same float32 again."""
    return str(np.float32(value))


def write_vw(log: Log, path: str | os.PathLike[str], *, users: bool = True) -> int:
    """Writes a file for ``vw --cb_explore_adf -d FILE``, whole or not at all.

    Args:
        log: The interactions.
        path: The file.
        users: As for ``vw_examples``.

    Returns:
        How many interactions were written.

    Raises:
        ValueError: If nothing was said, or the log does not fit together.
    """
    if not log.heard.any():
        raise ValueError(f"nothing was said in any of the {len(log)} interactions")
    num = 0
    with written_whole(path) as scratch, scratch.open("w", encoding="ascii") as file:
        for lines in vw_examples(log, users=users):
            file.write("\n".join(lines) + "\n\n")
            num += 1
    return num


class VwData(NamedTuple):
    """What a file of lines says, n interactions with K responses each."""

    user: Int[np.ndarray, "n"] | None
    prompts: Float[np.ndarray, "n D"]
    responses: Float[np.ndarray, "n K I"]
    action: Int[np.ndarray, "n"]
    cost: Float[np.ndarray, "n"]
    propensity: Float[np.ndarray, "n"]


def read_vw(path: str | os.PathLike[str]) -> VwData:
    """Reads what ``write_vw`` wrote; float32 numbers come back bit for bit.

    Raises:
        ValueError: Naming the file and the line (from 1) that does not fit.
    """
    users, prompts, responses, labels = [], [], [], []
    line = 1
    try:
        text = Path(path).read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected Vowpal Wabbit's lines, got {error}") from error
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        try:
            user, prompt = _shared(lines[0])
            label, offered = _offered(lines[1:])
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, in the block of line {line}: {error}") from error
        users.append(user)
        prompts.append(prompt)
        responses.append(offered)
        labels.append(label)
        line += len(lines) + 1
    action, cost, propensity = zip(*labels, strict=True)
    return VwData(
        None if None in users else np.array(users, dtype=np.int64),
        np.array(prompts, dtype=np.float32),
        np.array(responses, dtype=np.float32),
        np.array(action, dtype=np.int64),
        np.array(cost, dtype=np.float32),
        np.array(propensity, dtype=np.float32),
    )


def _shared(line: str) -> tuple[int | None, list[float]]:
    head, *spaces = line.split("|")
    parts = {space[0]: space[2:] for space in spaces}
    if head.strip() != "shared" or "p" not in parts:
        raise ValueError(f"expected 'shared |p ...', got {line[:40]!r}")
    return int(parts["u"]) if "u" in parts else None, _values(parts["p"])


def _offered(lines: list[str]) -> tuple[tuple[int, float, float], list[list[float]]]:
    labels, offered = [], []
    for position, line in enumerate(lines):
        label, _, features = line.partition("|r ")
        offered.append(_values(features))
        if label:
            _, cost, propensity = label.split(":")
            labels.append((position, float(cost), float(propensity)))
    if len(labels) != 1:
        raise ValueError(f"expected one labelled response, got {len(labels)}")
    return labels[0], offered


def _values(text: str) -> list[float]:
    return [float(item.partition(":")[2]) for item in text.split()]
