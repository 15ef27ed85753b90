"""What a result depends on, as a hash: settings, bank, code and versions.

The code is the modules reached by imports, read from the sources without running them, from
the runner, from ``cells`` and from the agent's class. Modules of this package, of the agent's
own package and loose files on the path count by their bytes; installed libraries by their
version, those of our agents where their class names them in ``libraries``. Not seen are modules
named only at run time (``importlib.import_module``) and data files that an agent reads.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from personalllm_env.benchmark import cells as cells_module
from personalllm_env.benchmark.cells import Cell, bank_of
from personalllm_env.registry import find_agent

_OURS = "personalllm_env"
_ROOTS = (f"{_OURS}.runner", f"{_OURS}.benchmark.cells")
# Code that makes banks counts through the bank, so that a new reader of tables does not
# throw results on the synthetic bank away.
_DOORS = frozenset({f"{_OURS}.data"})


class Fingerprint(NamedTuple):
    """The hash and what went into it."""

    hex: str
    parts: dict[str, Any]  # plain JSON


def fingerprint(cell: Cell) -> Fingerprint:
    """Returns what a cell's result depends on.

    Raises:
        UnknownAgentError: If there is no such agent.
        BankError: If the bank cannot be loaded.
    """
    agent = _agent(cell.agent)
    parts = {
        "settings": {
            **cell.track.definition(),
            "seed": cell.seed,
            "num_users": cell.num_users,
            "history_users": cell.history_users,
        },
        "agent": agent.identity,
        "bank": _bank(cell.bank),
        "code": agent.code,
        "versions": agent.versions,
    }
    text = json.dumps(parts)  # in the order given: a feedback's channels have one
    parts = json.loads(text)  # lists for tuples, as they come back from a file
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest(), parts)


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Says in a few words in what two fingerprints' parts differ; empty if in nothing."""
    found = []
    for kind in ("settings", "agent", "bank", "code", "versions"):
        old, new = theirs.get(kind), ours.get(kind)
        if old == new:
            continue
        if not isinstance(old, dict) or not isinstance(new, dict):
            found.append(f"other {kind}")
            continue
        keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        short = keys[:3] + [f"{len(keys) - 3} more"] * (len(keys) > 3)
        found.append(f"other {kind}: {', '.join(short) or 'their order'}")
    return "; ".join(found)


def forget() -> None:
    """Reads code and banks again at the next call: files may have changed."""
    importlib.invalidate_caches()
    for cached in (_agent, _bank, _spec, _read, _base, _distributions):
        cached.cache_clear()
    cells_module.forget()


def warm_up(cell: Cell) -> None:
    """Imports SciPy's modules that the agent may use: its clock and memory must not pay."""
    for name in _agent(cell.agent).scipy:
        with suppress(ImportError):
            importlib.import_module(name)


class _AgentCode(NamedTuple):
    identity: dict[str, Any]
    code: dict[str, str]
    versions: dict[str, str]
    scipy: tuple[str, ...]


@cache
def _agent(spec: str) -> _AgentCode:
    _, cls, settings = find_agent(spec)
    named = spec.partition("@")[0].partition(":")
    roots = {cls.__module__, named[0] if named[1] else cls.__module__}
    base = _base()
    agent = closure(roots, own={cls.__module__.partition(".")[0], _OURS})
    modules = base | agent
    outside = {
        name.partition(".")[0]
        for module, found in agent.items()
        if module.partition(".")[0] != _OURS
        for name in found.external
    }
    versions = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for name in ("numpy", "scipy"):
        versions[name] = version(name)
    for top in sorted(outside - {"numpy", "scipy"}):
        versions |= {name: version(name) for name in sorted(set(_distributions().get(top, ())))}
    for name in getattr(cls, "libraries", ()):  # what an agent of ours is made of
        installed = _distributions().get(name)
        versions[name] = version(installed[0]) if installed else "not installed"
    used = {name for found in modules.values() for name in found.external}
    return _AgentCode(
        {
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "settings": {k: repr(v) for k, v in settings.items()},
        },
        {name: modules[name].digest for name in sorted(modules)},
        versions,
        tuple(sorted(name for name in used if name.partition(".")[0] == "scipy")),
    )


@cache
def _base() -> dict[str, Source]:
    return closure(set(_ROOTS), own={_OURS}, doors=_DOORS)


@lru_cache(maxsize=4)
def _bank(source: str) -> dict[str, str]:
    """Returns what identifies a bank: the synthetic one's code, any other's content."""
    if source == "synthetic":
        made_by = closure({f"{_OURS}.data.synthetic"}, own={_OURS})
        found = {name: made_by[name].digest for name in sorted(made_by)}
        for path in sorted(files(f"{_OURS}.data").iterdir(), key=lambda p: p.name):
            if path.name.endswith(".json"):
                found[path.name] = _digest(path.read_bytes())
        return {"source": "synthetic", "made by": _digest(json.dumps(found).encode())}
    bank = bank_of(source)
    content = hashlib.sha256(json.dumps([bank.reward_models, bank.responders]).encode())
    for part in (bank.scores, bank.prompt_features, bank.response_features, bank.is_test):
        content.update(f"{part.dtype.str} {part.shape}".encode())
        content.update(np.ascontiguousarray(part).data)
    return {"content": content.hexdigest()[:16]}


class Source(NamedTuple):
    """A module's source."""

    digest: str
    imports: tuple[str, ...]  # candidates: of ``from a import b`` both a and a.b
    external: tuple[str, ...] = ()  # imports that are of an installed library


def closure(
    roots: set[str], *, own: set[str], doors: frozenset[str] = frozenset()
) -> dict[str, Source]:
    """Returns the modules that can be reached by imports, those inside functions too.

    Args:
        roots: Where to start.
        own: Top-level packages whose modules count by their bytes.
        doors: Modules that count, but whose imports are not followed.
    """
    found: dict[str, Source] = {}
    waiting = sorted(roots)
    while waiting:
        name = waiting.pop()
        if name in found or (source := _read(name)) is None:
            continue
        imports = () if name in doors else source.imports
        followed = [other for other in imports if _counts(other, name, own)]
        top = {other.partition(".")[0] for other in followed}
        external = [
            other
            for other in imports
            if (first := other.partition(".")[0]) not in top | own | sys.stdlib_module_names
            and _spec(first) is not None
        ]
        found[name] = source._replace(external=tuple(external))
        waiting += followed
        if name.partition(".")[0] != _OURS:  # importing a.b runs a, which may be anything
            waiting += [parent] if (parent := name.rpartition(".")[0]) else []
    return found


def _counts(name: str, importer: str, own: set[str]) -> bool:
    top = name.partition(".")[0]
    if top in own:
        return True
    if top in sys.stdlib_module_names or importer.partition(".")[0] == _OURS:
        return False
    return top not in _distributions()  # a loose file, such as one beside the agent's


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@cache
def _read(name: str) -> Source | None:
    """Reads a module without running it; None if there is no such module or no file of it."""
    spec = _spec(name)
    read = None if spec is None else getattr(spec.loader, "get_data", None)
    if spec is None or spec.origin is None or read is None:
        return None
    data: bytes = read(spec.origin)
    if not spec.origin.endswith(".py"):
        return Source(_digest(data), ())
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    return Source(_digest(data), tuple(dict.fromkeys(_imports(ast.parse(data), package))))


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, package)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - child.level + 1] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            names = [f"{base}.{alias.name}" for alias in child.names]
            if not all(map(_spec, names)):  # something of ``base`` itself
                yield base
            yield from names
        else:
            yield from _imports(child, package)


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Finds a module without importing its parents, as ``importlib.util.find_spec`` would."""
    parent = name.rpartition(".")[0]
    if not parent:
        try:
            return find_spec(name)
        except ValueError:  # __main__ has none
            return None
    above = _spec(parent)
    if above is None or above.submodule_search_locations is None:
        return None
    for finder in sys.meta_path:
        if hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, above.submodule_search_locations)
            if spec is not None:
                return spec
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
