"""Clients of the server: ``with SelectClient(base_url=url).sync() as env``, or with await."""

from __future__ import annotations

from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from pydantic import ValidationError

from personalllm_env.adapters.openenv.models import (
    GenerateAction,
    GenerateObservation,
    PersonalState,
    SelectAction,
    SelectObservation,
    check_action,
)


class SelectClient(EnvClient[SelectAction, SelectObservation, PersonalState]):
    """A session in which responses are shown."""

    def _step_payload(self, action: SelectAction) -> dict[str, Any]:
        check_action(action, SelectAction)
        return action.model_dump(exclude_defaults=True)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[SelectObservation]:
        return _result(SelectObservation, payload)

    def _parse_state(self, payload: dict[str, Any]) -> PersonalState:
        return PersonalState.model_validate(payload)


class GenerateClient(EnvClient[GenerateAction, GenerateObservation, PersonalState]):
    """A session in which responses are written."""

    def _step_payload(self, action: GenerateAction) -> dict[str, Any]:
        check_action(action, GenerateAction)
        return action.model_dump(exclude_defaults=True)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[GenerateObservation]:
        return _result(GenerateObservation, payload)

    def _parse_state(self, payload: dict[str, Any]) -> PersonalState:
        return PersonalState.model_validate(payload)


def _result(kind: Any, payload: dict[str, Any]) -> StepResult[Any]:
    reward, done = payload.get("reward"), payload.get("done", False)
    told = payload["observation"] | {"reward": reward, "done": done}
    try:
        observation = kind.model_validate(told)
    except ValidationError as error:
        other = {SelectObservation: "GenerateClient", GenerateObservation: "SelectClient"}[kind]
        raise TypeError(
            f"the server sent no {kind.__name__}: if it serves the other kind, use {other}"
        ) from error
    return StepResult(
        observation=observation, reward=reward, done=done, metadata=payload.get("metadata")
    )
