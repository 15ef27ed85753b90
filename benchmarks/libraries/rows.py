"""One line of the table in docs/libraries.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What was run with a library, and what came of it.

    Attributes:
        library: Its name on the package index.
        version: What was installed, from ``importlib.metadata.version``.
        ran: What was run, in a few words: "PPO, 64 environments, native VecEnv".
        steps_per_second: Environment steps per second; None where that says nothing.
        against: What the speed is to be compared with, measured in the same run, in words
            ("10.4 x DummyVecEnv", ".31 of the bare vector environment"); empty for none.
        learnt: The learning result in words, with its error ("mean utility .12 to .31 ±.04
            over 200 users, 40,000 steps"); empty where nothing was learnt.
    """

    library: str
    version: str
    ran: str
    steps_per_second: float | None = None
    against: str = ""
    learnt: str = ""

    def record(self) -> dict[str, Any]:
        """Returns the row as plain JSON."""
        return asdict(self)
