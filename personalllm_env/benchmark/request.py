"""What a run of the benchmark is asked for, kept beside its results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from personalllm_env.benchmark.cells import SIZES, Cell, Size, make_cells
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import find_tracks
from personalllm_env.data import load_bank
from personalllm_env.files import write_whole
from personalllm_env.registry import (
    REFERENCES,
    agent_names,
    check_settings,
    find_agent,
    library_agent_names,
    missing_libraries,
)

_REQUEST = "benchmark.json"  # what was asked for, beside the results
_LIBRARIES = "libraries"  # stands for all agents made of other libraries


class Request:
    """What a run of the benchmark is asked for.

    Args:
        tracks: Names, or ``module:NAME``; all of them for none.
        agents: As for ``registry.find_agent``; ``all`` for all that are announced, and so for
            none; ``libraries`` for those made of other libraries, as far as they are installed.
            The references and the tracks' yardsticks always take part.
        size: Of ``cells.SIZES``.
        users: Per cell, instead of the size's.
        seeds: Instead of the size's.
        bank: As for ``data.load_bank``.

    Raises:
        LookupError: If there is no such track.
        ValueError: If there is no such size, or a number is below 1.
    """

    def __init__(
        self,
        tracks: Sequence[str] = (),
        agents: Sequence[str] = (),
        size: str = "default",
        users: int | None = None,
        seeds: int | None = None,
        bank: str = "synthetic",
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        self.given: dict[str, Any] = {
            "tracks": list(tracks),
            "agents": list(agents),
            "size": size,
            "users": users,
            "seeds": seeds,
            "bank": bank,
        }
        self.tracks: list[Track] = find_tracks(tracks)
        always = [*REFERENCES, *(track.yardstick for track in self.tracks)]
        self._absent: dict[str, list[str]] = {}  # per library the agents left out
        wanted = [name for given in agents or ("all",) for name in self._named(given)]
        self.agents = list(dict.fromkeys([*(a for a in always if a not in wanted), *wanted]))
        self.size: Size = SIZES[size]
        if users is not None:
            self.size = replace(self.size, num_users=users)
        if seeds is not None:
            self.size = replace(self.size, num_seeds=seeds)
        self.bank = bank

    def _named(self, given: str) -> list[str]:
        if given == "all":
            return list(agent_names())
        if given != _LIBRARIES:
            return [given]
        here = []
        for name in library_agent_names():
            missing = missing_libraries(find_agent(name).agent_class)
            for library in missing:
                self._absent.setdefault(library, []).append(name)
            here += [] if missing else [name]
        return here

    def check(self) -> list[str]:
        """Builds every task and, on the first, every agent: before any work is lost.

        Returns:
            What a reader of the results should know of the bank, and which agents of absent
            libraries are left out, a line each.

        Raises:
            ValueError: Naming the track or agent whose settings do not fit.
            LookupError: If there is no such agent.
            ImportError: If an agent that was named needs a library that is not installed.
        """
        entrants, bank = [find_agent(name) for name in self.agents], load_bank(self.bank)
        warnings = [
            f"Left out: {', '.join(names)} ({library} is not installed; it comes with "
            "pip install 'personalllm-env[bandits]')."
            for library, names in self._absent.items()
        ]
        for track in self.tracks:
            try:
                test = track.sides(bank, 0).test
            except (TypeError, ValueError) as error:
                raise ValueError(f"track {track.name!r}: {error}") from error
            if track is self.tracks[0]:
                check_settings(entrants, test)
            if test.prompts_per_episode is None and test.horizon > len(test.prompts):
                warnings.append(
                    f"{track.name}: {test.horizon} interactions on {len(test.prompts)} test "
                    "prompts, so prompts recur: agents that remember responses may pass the "
                    "yardstick."
                )
        return warnings

    @property
    def cells(self) -> list[Cell]:
        """All that is wanted."""
        return make_cells(self.tracks, self.agents, self.size, self.bank)

    def command(self, folder: Path) -> str:
        """Returns the command line that asks for this."""
        given = self.given
        words = ["personalllm-env", "benchmark", "--size", given["size"]]
        for key in ("users", "seeds"):
            words += [f"--{key}", str(given[key])] if given[key] else []
        words += [word for name in given["tracks"] for word in ("--track", name)]
        words += [word for name in given["agents"] for word in ("--agent", name)]
        words += ["--bank", self.bank] if self.bank != "synthetic" else []
        return shlex.join([*words, "--out", str(folder)])

    def save(self, folder: Path) -> None:
        """Keeps the request beside its results, for ``report``."""
        write_whole(folder / _REQUEST, json.dumps(self.given, indent=2) + "\n")


def saved_request(folder: Path) -> Request:
    """Reads what the last run in a folder was asked for.

    Raises:
        ValueError: If there was none, or its record cannot be read.
    """
    path = folder / _REQUEST
    try:
        return Request(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no benchmark; `personalllm-env benchmark --out {folder}` makes one"
        ) from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except LookupError as error:
        raise LookupError(f"{error}; was the run started in another folder?") from error
