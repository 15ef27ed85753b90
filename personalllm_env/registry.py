"""How agents are found: by a name that a package announces, or by ``module:Class``."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from personalllm_env.runner import Entrant, prior_for
from personalllm_env.task import Task

GROUP = "personalllm_env.agents"
"""The entry-point group: a value is an agent class, or a mapping called AGENTS of names to
"module:Class", or "module:Class@setting=value" for a variant."""

REFERENCES = ("uniform", "popular", "oracle")
"""Take part in every comparison: without them a score has no scale."""


class UnknownAgentError(LookupError):
    """Says which names there are."""


@dataclass(frozen=True)
class Group:
    """One kind of thing that packages announce, by an entry point each or as a mapping.

    Attributes:
        group: The entry-point group.
        mapping: What a mapping of names to "module:Class" is called.
        reference: Ours, "module:MAPPING"; its names win over others': nobody else's package
            becomes the oracle by being installed.
        kind: What errors call it.
        unknown: The error.
        aside: What a mapping beside it is called, of names that can be found and are not
            among ``names``; empty for none.
    """

    group: str
    mapping: str
    reference: str
    kind: str
    unknown: type[LookupError]
    aside: str = ""

    def names(self) -> dict[str, EntryPoint | str]:
        """Returns every announced name and where its class is; nothing heavy is loaded."""
        found: dict[str, EntryPoint | str] = {}
        # Ours come last, and so win.
        points = entry_points(group=self.group)
        for point in sorted(points, key=lambda p: p.value == self.reference):
            if point.attr == self.mapping:  # a mapping of strings, cheap to load
                found.update(point.load())
            else:
                found[point.name] = point
        return found

    def names_aside(self) -> dict[str, str]:
        """Returns the names of the mappings beside, where theirs are not taken."""
        found: dict[str, str] = {}
        points = [p for p in entry_points(group=self.group) if p.attr == self.mapping]
        for point in sorted(points, key=lambda p: p.value == self.reference):
            found.update(vars(importlib.import_module(point.module)).get(self.aside, {}))
        taken = self.names()
        return {name: where for name, where in found.items() if name not in taken}

    def find(self, spec: str) -> tuple[type, dict[str, object]]:
        """Returns the class and the settings of a name, or of ``module:Class``.

        Raises:
            LookupError: ``unknown``, if nothing of that name is announced or importable.
            ValueError: If the settings cannot be read.
        """
        name, _, tail = spec.partition("@")
        where = name if ":" in name else (self.names_aside() | self.names()).get(name)
        if where is None:
            known = sorted([*self.names(), *self.names_aside()])
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise self.unknown(
                f"no {self.kind} is called {name!r}; {hint}known: {', '.join(known)}, or "
                "module:Class"
            )
        own: dict[str, object] = {}
        if isinstance(where, str):
            where, _, given = where.partition("@")  # a name may stand for a variant of a class
            own = self._settings(spec, given)
        return self._load(where), own | self._settings(spec, tail)

    def _load(self, where: EntryPoint | str) -> type:
        name = where if isinstance(where, str) else where.value
        try:
            if isinstance(where, EntryPoint):
                loaded = where.load()
            else:
                module, _, attribute = where.partition(":")
                loaded = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever happens when somebody's module is run
            raise self.unknown(f"cannot load {self.kind} {name!r}: {error}") from error
        if not isinstance(loaded, type):
            raise self.unknown(f"{self.kind} {name!r} is not a class but {loaded!r}")
        if not isinstance(getattr(loaded, "privileges", None), frozenset):
            raise self.unknown(
                f"{self.kind} class {loaded.__name__} does not state its privileges; an "
                f"honest {self.kind} has `privileges = frozenset()`"
            )
        return loaded

    def _settings(self, spec: str, tail: str) -> dict[str, object]:
        settings: dict[str, object] = {}
        for item in filter(None, tail.split(",")):
            key, equals, value = item.partition("=")
            if not equals or not key.isidentifier():
                raise ValueError(f"{self.kind} {spec!r}: expected name=value, got {item!r}")
            try:
                settings[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                settings[key] = value
        return settings


_AGENTS = Group(
    GROUP,
    "AGENTS",
    "personalllm_env.agents:AGENTS",
    "agent",
    UnknownAgentError,
    aside="LIBRARY_AGENTS",
)


def agent_names() -> dict[str, EntryPoint | str]:
    """Returns every announced agent name and where its class is; nothing heavy is loaded."""
    return _AGENTS.names()


def library_agent_names() -> dict[str, str]:
    """Returns the names of agents made of other libraries, which are not among the others."""
    return _AGENTS.names_aside()


def missing_libraries(agent_class: type) -> list[str]:
    """Returns the libraries that a class names in ``libraries`` and that are not installed."""
    named: tuple[str, ...] = getattr(agent_class, "libraries", ())
    return [name for name in named if find_spec(name) is None]


def find_agent(spec: str) -> Entrant:
    """Finds an agent.

    Args:
        spec: A name (``linucb``) or ``module:Class``, with settings after an at sign:
            ``linucb@exploration=0.5,ridge=10``.

    Raises:
        UnknownAgentError: If nothing of that name is announced or importable.
        ValueError: If the settings cannot be read.
    """
    return Entrant(spec, *_AGENTS.find(spec))


def check_settings(chosen: Iterable[Entrant], task: Task) -> None:
    """Raises ValueError naming the first agent that cannot be built with its settings."""
    for name, agent_class, settings in chosen:
        try:
            agent_class(prior_for(agent_class, task), **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"agent {name!r}: {error}") from error
