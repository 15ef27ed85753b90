"""How agents are found: by a name that a package announces, or by ``module:Class``."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from personalllm_env.runner import Entrant, prior_for
from personalllm_env.task import Task

GROUP = "personalllm_env.agents"
"""The entry-point group: a value is an agent class, or a mapping called AGENTS of names to
"module:Class", or "module:Class@setting=value" for a variant."""

REFERENCES = ("uniform", "popular", "oracle")
"""Take part in every comparison: without them a score has no scale."""

_REFERENCE = "personalllm_env.agents:AGENTS"


class UnknownAgentError(LookupError):
    """Says which names there are."""


def agent_names() -> dict[str, EntryPoint | str]:
    """Returns every announced agent name and where its class is; nothing heavy is loaded.

    The reference agents' names win over others': nobody else's package becomes the oracle by
    being installed.
    """
    found: dict[str, EntryPoint | str] = {}
    # Ours come last, and so win.
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.value == _REFERENCE):
        if point.attr == "AGENTS":  # a mapping of strings, cheap to load
            found.update(point.load())
        else:
            found[point.name] = point
    return found


def find_agent(spec: str) -> Entrant:
    """Finds an agent.

    Args:
        spec: A name (``linucb``) or ``module:Class``, with settings after an at sign:
            ``linucb@exploration=0.5,ridge=10``.

    Raises:
        UnknownAgentError: If nothing of that name is announced or importable.
        ValueError: If the settings cannot be read.
    """
    name, _, tail = spec.partition("@")
    where = name if ":" in name else agent_names().get(name)
    if where is None:
        known = sorted(agent_names())
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownAgentError(
            f"no agent is called {name!r}; {hint}known: {', '.join(known)}, or module:Class"
        )
    own: dict[str, object] = {}
    if isinstance(where, str):
        where, _, given = where.partition("@")  # a name may stand for a variant of a class
        own = _settings(spec, given)
    return Entrant(spec, _load(where), own | _settings(spec, tail))


def _load(where: EntryPoint | str) -> type:
    name = where if isinstance(where, str) else where.value
    try:
        if isinstance(where, EntryPoint):
            loaded = where.load()
        else:
            module, _, attribute = where.partition(":")
            loaded = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever happens when somebody's module is run
        raise UnknownAgentError(f"cannot load agent {name!r}: {error}") from error
    if not isinstance(loaded, type):
        raise UnknownAgentError(f"agent {name!r} is not a class but {loaded!r}")
    if not isinstance(getattr(loaded, "privileges", None), frozenset):
        raise UnknownAgentError(
            f"agent class {loaded.__name__} does not state its privileges; an honest agent has "
            "`privileges = frozenset()`"
        )
    return loaded


def _settings(spec: str, tail: str) -> dict[str, object]:
    settings: dict[str, object] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"agent {spec!r}: expected name=value, got {item!r}")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def check_settings(chosen: Iterable[Entrant], task: Task) -> None:
    """Raises ValueError naming the first agent that cannot be built with its settings."""
    for name, agent_class, settings in chosen:
        try:
            agent_class(prior_for(agent_class, task), **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"agent {name!r}: {error}") from error
