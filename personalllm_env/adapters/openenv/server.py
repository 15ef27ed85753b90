"""The server: one bank and one ensemble, shared by sessions that share nothing else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from openenv.core.env_server.http_server import create_fastapi_app

from personalllm_env.adapters.openenv.environment import SelectEnvironment
from personalllm_env.adapters.openenv.guard import Guard, Limits
from personalllm_env.adapters.openenv.models import (
    GenerateAction,
    GenerateObservation,
    PersonalState,
    SelectAction,
    SelectObservation,
)
from personalllm_env.adapters.openenv.resets import RequestError
from personalllm_env.adapters.openenv.writing import GenerateEnvironment
from personalllm_env.data import load_bank
from personalllm_env.generation.problem import check_words
from personalllm_env.rewards.ensemble import Ensemble, Scorer
from personalllm_env.rewards.for_bank import ensemble_for

VARIABLE = "PERSONALLLM_OPENENV"
NAME = "personalllm"


@dataclass(frozen=True)
class ServerSettings:
    """What a server serves; all of it may be plain JSON.

    Attributes:
        kind: ``"select"`` or ``"generate"``.
        settings: Those of the Gymnasium environment.
        features: Whether observations hold features; None: where there are no texts.
        diagnostics: Whether clients are told what is hidden.
        utility_reward: Whether the reward is the noise-free utility.
        num_tasks: How many tasks each split lists.
        web: Whether there is a page at ``/web`` (one episode, shared by all who look).
        limits: How much the server takes.

    Raises:
        ValueError: If there is no such kind.
    """

    kind: str = "select"
    settings: Mapping[str, Any] = field(default_factory=dict)
    features: bool | None = None
    diagnostics: bool = False
    utility_reward: bool = False
    num_tasks: int = 1000
    web: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if not 1 <= self.num_tasks <= 100_000:
            raise ValueError(f"num_tasks must be in 1..100,000, got {self.num_tasks!r}")


def read_settings(text: str) -> ServerSettings:
    """Reads a server's settings from JSON; ``limits`` is an object of its own.

    Raises:
        ValueError: If it is none, or a name is unknown.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON of a server's settings: {error}") from None
    known = _known("settings", given, ServerSettings)
    if "limits" in known:
        known["limits"] = Limits(**_known("limits", known["limits"], Limits))
    return ServerSettings(**known)


def _known(what: str, given: Any, kind: type) -> dict[str, Any]:
    names = [entry.name for entry in fields(kind)]
    if not isinstance(given, dict) or not set(given) <= set(names):
        raise ValueError(f"{what}: expected a JSON object of {', '.join(names)}; got {given!r}")
    return dict(given)


class OneAtATime:
    """A scorer that sessions share: tokenizers and networks may not be used by two at once.

    Args:
        scorer: What scores.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._lock = scorer, threading.Lock()

    @property
    def reward_models(self) -> tuple[str, ...]:
        """The names of its columns."""
        return self._scorer.reward_models

    @property
    def identity(self) -> str:
        """What stored scores are filed under."""
        return self._scorer.identity

    def raw_scores(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> Float[np.ndarray, "n m"]:
        """Scores n responses, once nobody else does."""
        with self._lock:
            return self._scorer.raw_scores(prompts, responses)


def _select(server: ServerSettings) -> Callable[[], SelectEnvironment]:
    bank = load_bank(server.settings.get("bank", "text"))
    return partial(
        SelectEnvironment,
        {**server.settings, "bank": bank},
        features=server.features,
        diagnostics=server.diagnostics,
        utility_reward=server.utility_reward,
        num_tasks=server.num_tasks,
    )


def _generate(server: ServerSettings) -> Callable[[], GenerateEnvironment]:
    bank = load_bank(server.settings.get("bank", "text"))
    check_words(bank)
    found = ensemble_for(bank, server.settings.get("ensemble"), check=False)
    shared: Ensemble = replace(found, scorers=tuple(map(OneAtATime, found.scorers)))
    settings = {**server.settings, "bank": bank, "ensemble": shared}
    # That an ensemble scores as the bank says can take minutes to check: once, not per session.
    rest: dict[str, Any] = {"problem": GenerateEnvironment(settings).problem}
    if "max_conversation" in settings:
        rest["max_conversation"] = settings["max_conversation"]
    return partial(
        GenerateEnvironment,
        rest,
        features=bool(server.features),
        diagnostics=server.diagnostics,
        utility_reward=server.utility_reward,
        num_tasks=server.num_tasks,
    )


_KINDS: dict[str, tuple[Callable[[ServerSettings], Callable[[], Any]], type, type]] = {
    "select": (_select, SelectAction, SelectObservation),
    "generate": (_generate, GenerateAction, GenerateObservation),
}


def build_app(server: ServerSettings) -> Guard:
    """Returns the ASGI application of a server.

    Raises:
        ValueError: If a setting is unknown or does not fit; before anything is served.
    """
    factory_of, action, observation = _KINDS[server.kind]
    factory = factory_of(server)
    factory().reset(seed=0)  # what does not fit is said now, and not to the first client
    create = create_fastapi_app
    if server.web:
        from openenv.core.env_server.web_interface import create_web_interface_app

        create = create_web_interface_app
    app = create(
        factory,
        action,
        observation,
        env_name=NAME,
        max_concurrent_envs=server.limits.max_sessions,
        state_cls=PersonalState,
    )
    _answer_errors(app)
    return Guard(app, server.limits)


def _answer_errors(app: Any) -> None:
    """Gives requests that cannot be met a status of their own, and says why."""
    from fastapi.responses import JSONResponse
    from gymnasium.error import ResetNeeded
    from pydantic import ValidationError

    async def unmet(_: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    async def too_early(_: Any, error: Exception) -> JSONResponse:
        hint = "over plain HTTP every request meets a new environment: use the websocket /ws"
        return JSONResponse({"detail": f"{error}; {hint}"}, status_code=409)

    app.add_exception_handler(RequestError, unmet)
    app.add_exception_handler(ValidationError, unmet)  # of an action from the page
    app.add_exception_handler(ResetNeeded, too_early)


def app_from_environment() -> Guard:
    """Returns the application that the variable PERSONALLLM_OPENENV describes, in JSON.

    ``ENABLE_WEB_INTERFACE``, which a Space sets, adds the page at ``/web``.
    """
    server = read_settings(os.environ.get(VARIABLE, "{}"))
    if os.environ.get("ENABLE_WEB_INTERFACE", "").lower() in ("true", "1", "yes"):
        server = replace(server, web=True)
    return build_app(server)
