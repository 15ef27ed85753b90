"""What goes over the wire: actions, observations and states of both kinds of environment."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from openenv.core.env_server.types import Action, Observation, State
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _whole(value: Any) -> Any:
    """Refuses what is no number (True, "3") and takes NumPy's integers."""
    if isinstance(value, bool | str):
        # Pydantic's own kind of error: the server can write it as JSON.
        raise PydanticCustomError("whole_number", "expected an integer")
    return int(value) if isinstance(value, np.integer) else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, also NumPy's; no bool and no text."""


class SelectAction(Action):
    """Shows one of the candidates."""

    response: Whole = Field(ge=0, description="Which candidate to show, counted from 0")


class GenerateAction(Action):
    """Writes a response, or two to be compared."""

    text: str = Field(description="The response to the prompt")
    other: str | None = Field(
        default=None, description="A second response, where the user compares two"
    )


def check_action(action: object, kind: type[Action]) -> None:
    """Raises TypeError for what is no action of a kind."""
    if not isinstance(action, kind):
        takes = ", ".join(f"{name}=" for name in kind.model_fields if name != "metadata")
        raise TypeError(f"expected {kind.__name__}({takes}), got {action!r:.60}")


class SelectObservation(Observation):
    """What is asked now, the candidates, and what the user said last."""

    prompt: str | None = Field(default=None, description="What the user asks")
    responses: list[str] | None = Field(default=None, description="The candidates, as shown")
    prompt_features: list[float] | None = Field(default=None, description="(D,) on request")
    response_features: list[list[float]] | None = Field(
        default=None, description="(K, D) on request"
    )
    said: dict[str, float] = Field(
        default_factory=dict, description="What the user said last, by channel; {} in silence"
    )
    heard: bool = Field(default=False, description="Whether the user said anything")
    step: int = Field(default=0, description="Interactions so far")
    horizon: int = Field(default=0, description="Interactions of a whole episode")
    user: int | None = Field(default=None, description="Who asks, where users are recognised")


class GenerateObservation(Observation):
    """What is asked now, the conversation so far, and what the user said last."""

    prompt: str = Field(default="", description="What the user asks")
    conversation: str = Field(
        default="", description="What was preferred before, asked, written and said, Markdown"
    )
    prompt_features: list[float] | None = Field(default=None, description="(D,) on request")
    said: dict[str, float] = Field(
        default_factory=dict, description="What the user said last, by channel; {} in silence"
    )
    heard: bool = Field(default=False, description="Whether the user said anything")
    step: int = Field(default=0, description="Interactions so far")
    horizon: int = Field(default=0, description="Interactions of a whole episode")
    user: int | None = Field(default=None, description="Who asks, where users are recognised")


class PersonalState(State):
    """Where an episode is; nothing of what is hidden, unless diagnostics are on."""

    horizon: int = Field(default=0, description="Interactions of a whole episode")
    done: bool = Field(default=True, description="Whether no episode is under way")
    weights: dict[str, float] | None = Field(
        default=None, description="The user's weights by reward model: with diagnostics only"
    )
