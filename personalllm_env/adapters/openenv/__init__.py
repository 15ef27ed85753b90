"""OpenEnv: Select and Generate as environments, with a server, clients and rubrics."""

# ruff: noqa: E402 - what is missing is said before anything needs it
from personalllm_env.extras import require

require("openenv.core", "openenv")

from personalllm_env.adapters.openenv.client import GenerateClient, SelectClient
from personalllm_env.adapters.openenv.environment import SelectEnvironment
from personalllm_env.adapters.openenv.guard import Limits
from personalllm_env.adapters.openenv.models import (
    GenerateAction,
    GenerateObservation,
    PersonalState,
    SelectAction,
    SelectObservation,
)
from personalllm_env.adapters.openenv.rubrics import UserRubric
from personalllm_env.adapters.openenv.server import ServerSettings, build_app
from personalllm_env.adapters.openenv.writing import GenerateEnvironment

__all__ = [
    "GenerateAction",
    "GenerateClient",
    "GenerateEnvironment",
    "GenerateObservation",
    "Limits",
    "PersonalState",
    "SelectAction",
    "SelectClient",
    "SelectEnvironment",
    "SelectObservation",
    "ServerSettings",
    "UserRubric",
    "build_app",
]
