"""Every library in an environment of its own: ``nox``, ``nox -s rllib``, ``nox -- measure``.

Tests skip where a library is absent; here each is present, at a version its extra admits.
"measure" after the dashes also runs the library's measurements for docs/libraries.md.
On a machine without a GPU set PIP_CONSTRAINT to the full path of .ci/constraints.txt.
"""

from __future__ import annotations

from typing import NamedTuple

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


class Library(NamedTuple):
    """What an environment has, and what is run in it."""

    extras: str
    tests: tuple[str, ...]  # files tests/test_NAME.py
    measured: tuple[str, ...] = ()  # files benchmarks/libraries/measure_NAME.py
    more: tuple[str, ...] = ()  # further requirements, such as another version


_GYMNASIUM = ("library_gymnasium",)
_ALL_OF_IT = ("torch", "array-api-compat>=1.11")  # for Gymnasium's wrappers
LIBRARIES = {
    "gymnasium": Library("text,video", _GYMNASIUM, ("gymnasium",), _ALL_OF_IT),
    "gymnasium-1.1.1": Library(
        "text,video", _GYMNASIUM, more=("gymnasium==1.1.1", *_ALL_OF_IT)
    ),
    "gymnasium-1.2.2": Library(
        "text,video", _GYMNASIUM, more=("gymnasium==1.2.2", *_ALL_OF_IT)
    ),
    "sb3": Library("sb3,text", ("library_sb3", "library_sb3_agents"), ("sb3",)),
    "rllib": Library("rllib", ("library_rllib", "logged_rllib"), ("rllib",)),
    "torchrl": Library(
        "torchrl,train", ("library_torchrl", "library_torchrl_chat"), ("torchrl",)
    ),
    "tianshou": Library("tianshou", ("library_tianshou",), ("tianshou",)),
    "bandits": Library("bandits", ("library_bandits", "logged_vw"), ("bandits",)),
    "minari": Library("minari,text", ("logged_minari",), ("logged",)),
    "trl": Library("train", ("library_trl",), ("trl",)),
    "openenv": Library("openenv", ("library_openenv", "library_openenv_server"), ("openenv",)),
    "verifiers": Library("verifiers", ("library_verifiers",), ("verifiers",)),
}
_TOOLS = ("beartype>=0.19", "hypothesis>=6.100", "pytest>=8.2")


def announce(name: str, what: Library) -> None:
    """Makes one library's session, called by its name."""

    @nox.session(name=name)
    def session(session: nox.Session) -> None:
        session.install("-e", f".[{what.extras}]", *_TOOLS, *what.more)
        session.env["OMP_NUM_THREADS"] = "1"
        tests = [f"tests/test_{test}.py" for test in what.tests]
        session.run("pytest", "-q", "-p", "no:cacheprovider", *tests)
        if "measure" in session.posargs and what.measured:
            session.run("python", "benchmarks/libraries", "measure", *what.measured)


for _name, _what in LIBRARIES.items():
    announce(_name, _what)
