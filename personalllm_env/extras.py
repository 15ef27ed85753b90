"""Optional libraries: imported when needed, and named with the extra that brings them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from types import ModuleType

_US = "personalllm-env"
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the package is not called like the module
_APART: Mapping[str, str] = {
    "verifiers": "openenv cannot be installed beside it (they need different versions of mcp)",
    "openenv": "verifiers cannot be installed beside it (they need different versions of mcp)",
    "rllib": "it pins Gymnasium, so give it an environment of its own",
}
"""Extras that others cannot stand beside, and why."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional module, or says which extra brings it.

    Args:
        module: Its name, dotted or not.
        extra: Which of this package's extras names the library; its minimum version is read
            from there.

    Raises:
        ImportError: If the module is not installed, cannot be imported, or is too old.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        apart = f"; {_APART[extra]}" if extra in _APART else ""
        raise ImportError(
            f"{module} could not be imported ({error}); it comes with "
            f"pip install '{_US}[{extra}]'{apart}"
        ) from error
    if (wrong := _wrong_version(module.partition(".")[0], extra)) is not None:
        raise ImportError(wrong)
    return found


@cache
def _wrong_version(library: str, extra: str) -> str | None:
    """Returns what is wrong with the installed version, in a sentence, or None."""
    from packaging.utils import canonicalize_name

    name = canonicalize_name(_DISTRIBUTIONS.get(library, library))
    wanted = requirements(extra).get(name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:  # a module put on the path by hand
        return None
    if not wanted or _admits(wanted, version):
        return None
    return (
        f"{name} {version} is installed, but {_US} needs {wanted}: "
        f"pip install --upgrade '{_US}[{extra}]'"
    )


def _admits(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def requirements(extra: str) -> dict[str, str]:
    """Returns the libraries of an extra and which versions of them will do (">=2,<3").

    Extras that name others of this package's extras have their libraries too. Empty where
    the package's own metadata is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        lines = metadata.requires(_US) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        wanted = Requirement(line)
        marker = wanted.marker
        if marker is None or not marker.evaluate({"extra": extra}):
            continue
        if marker.evaluate({"extra": ""}):  # always installed, on this kind of machine
            continue
        if canonicalize_name(wanted.name) == _US:
            for other in sorted(wanted.extras):
                found |= requirements(other)
        else:
            found[canonicalize_name(wanted.name)] = str(wanted.specifier)
    return found
