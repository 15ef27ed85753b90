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
    tests: tuple[str, ...]
    measured: tuple[str, ...] = ()
    more: tuple[str, ...] = ()  # further requirements, such as another version


LIBRARIES = {
    "gymnasium": Library("text", ("gymnasium",), ("gymnasium",)),
    "gymnasium-1.1.1": Library("text", ("gymnasium",), more=("gymnasium==1.1.1",)),
    "gymnasium-1.2.2": Library("text", ("gymnasium",), more=("gymnasium==1.2.2",)),
    "sb3": Library("sb3,text", ("sb3",), ("sb3",)),
    "rllib": Library("rllib", ("rllib",), ("rllib",)),
    "torchrl": Library("torchrl,train", ("torchrl", "torchrl_chat"), ("torchrl",)),
    "tianshou": Library("tianshou", ("tianshou",), ("tianshou",)),
    "bandits": Library("bandits", ("bandits",), ("bandits",)),
    "trl": Library("train", ("trl",), ("trl",)),
    "openenv": Library("openenv", ("openenv",), ("openenv",)),
    "verifiers": Library("verifiers", ("verifiers",), ("verifiers",)),
}
_TOOLS = ("beartype>=0.19", "hypothesis>=6.100", "pytest>=8.2")


def announce(name: str, what: Library) -> None:
    """Makes one library's session, called by its name."""

    @nox.session(name=name)
    def session(session: nox.Session) -> None:
        session.install("-e", f".[{what.extras}]", *_TOOLS, *what.more)
        session.env["OMP_NUM_THREADS"] = "1"
        tests = [f"tests/test_library_{test}.py" for test in what.tests]
        session.run("pytest", "-q", "-p", "no:cacheprovider", *tests)
        if "measure" in session.posargs and what.measured:
            session.run("python", "benchmarks/libraries", "measure", *what.measured)


for _name, _what in LIBRARIES.items():
    announce(_name, _what)
