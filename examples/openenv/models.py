"""What goes over the wire."""

from personalllm_env.adapters.openenv import (
    GenerateAction,
    GenerateObservation,
    PersonalState,
    SelectAction,
    SelectObservation,
)

__all__ = [
    "GenerateAction",
    "GenerateObservation",
    "PersonalState",
    "SelectAction",
    "SelectObservation",
]
