"""Pictures of one interaction: as text, on the terminal, or as pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from personalllm_env.core import Task


@dataclass(frozen=True)
class Scene:
    """What a person may see of one interaction; nothing hidden from the agent is in it.

    Attributes:
        t: The interaction's number, from 0.
        horizon: T.
        prompt: The words, or the prompt's number where the bank has none.
        responses: K (responder, words) pairs in the order shown; words may be empty.
        picked: What the agent showed; empty before it has acted.
        said: What the user said just now per channel, empty in silence, None before they
            could speak.
        delay: How many interactions late the user speaks.
        left: Whether the user left.
    """

    t: int
    horizon: int
    prompt: str
    responses: tuple[tuple[str, str], ...]
    picked: tuple[int, ...] = ()
    said: Mapping[str, float] | None = None
    delay: int = 0
    left: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        prompt: int,
        order: Int[np.ndarray, K],
        *,
        t: int,
        picked: tuple[int, ...] = (),
        said: Mapping[str, float] | None = None,
        left: bool = False,
    ) -> Scene:
        """Builds the scene of interaction ``t`` about a bank row."""
        texts = task.bank.texts
        words = ("",) * len(order) if texts is None else texts.responses[prompt]
        return cls(
            t=t,
            horizon=task.horizon,
            prompt=f"Prompt {prompt}" if texts is None else texts.prompts[prompt],
            responses=tuple((task.bank.responders[k], words[k]) for k in order),
            picked=picked,
            said=said,
            delay=task.feedback.delay,
            left=left,
        )


def render(scene: Scene, mode: str) -> Any:
    """Returns text (``ansi``) or pixels (``rgb_array``), or prints and returns None (``human``)."""
    if mode == "ansi":
        return as_text(scene)
    if mode == "rgb_array":
        return as_pixels(scene)
    print(as_text(scene))
    return None


def as_text(scene: Scene) -> str:
    """Returns the scene as plain text."""
    return scene.prompt


def as_pixels(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the scene as an image of fixed size."""
    return np.zeros((600, 960, 3), np.uint8)
