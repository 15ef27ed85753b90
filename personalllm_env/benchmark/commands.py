"""What the benchmark's commands do, apart from reading their arguments."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from personalllm_env.benchmark.cells import SIZES, Cell, Size, make_cells
from personalllm_env.benchmark.costs import CostEstimate
from personalllm_env.benchmark.leaderboard import TrackTable, track_table
from personalllm_env.benchmark.markdown import leaderboard_markdown
from personalllm_env.benchmark.overview import half_width, number
from personalllm_env.benchmark.page import write_report
from personalllm_env.benchmark.run import Outcome, plan, run_benchmark
from personalllm_env.benchmark.run import Progress as Step
from personalllm_env.benchmark.store import Store, load_comparisons
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import TRACKS, find_tracks
from personalllm_env.data import load_bank
from personalllm_env.files import written_whole
from personalllm_env.registry import REFERENCES, agent_names

_REQUEST = "benchmark.json"  # what was asked for, beside the results


class Request:
    """What a run of the benchmark is asked for.

    Args:
        tracks: Names, or ``module:NAME``; all of them for none.
        agents: As for ``registry.find_agent``; all of them for none.
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
        wanted = list(dict.fromkeys(agents)) or list(agent_names())
        self.agents = [*(name for name in REFERENCES if name not in wanted), *wanted]
        self.size: Size = SIZES[size]
        if users is not None:
            self.size = replace(self.size, num_users=users)
        if seeds is not None:
            self.size = replace(self.size, num_seeds=seeds)
        self.bank = bank

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
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / _REQUEST) as scratch:
            scratch.write_text(json.dumps(self.given, indent=2) + "\n", encoding="utf-8")


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


def show_estimate(
    request: Request, folder: Path, workers: int | None, console: Console
) -> None:
    """Prints what is finished, what is missing and what it will take."""
    scan, cost = plan(
        request.tracks, request.agents, request.size, folder, bank=request.bank, workers=workers
    )
    size, tracks = request.size, request.tracks
    console.print(
        f"{len(tracks)} tracks x {len(request.agents)} agents x {size.num_seeds} seeds, "
        f"{size.num_users} users each: {len(scan.finished)} cells are finished, "
        f"{cost.num_cells} to run.",
        highlight=False,
    )
    if cost.num_cells:
        console.print(_cost_in_words(cost), highlight=False)


def _cost_in_words(cost: CostEstimate) -> str:
    text = (
        f"Estimate: {_duration(cost.wall_seconds)} with {cost.workers} processes "
        f"({_duration(cost.core_seconds)} of one core), {cost.memory_mb:,.0f} MB of memory, "
        f"{cost.disk_mb:,.0f} MB of disk."
    )
    if cost.guessed:
        text += f" Never measured, so guessed: {', '.join(cost.guessed)}."
    return text


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def run(
    request: Request, folder: Path, *, workers: int | None, ray: str | None, console: Console
) -> Outcome:
    """Runs what is missing under a progress bar, and prints what became of it."""
    request.save(folder)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells, {task.fields[left]} left  {task.fields[cell]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("", total=None, left="?", cell="")

        def show(step: Step) -> None:
            bar.update(
                line,
                total=step.total,
                completed=step.done + step.failed,
                left=_duration(step.seconds_left),
                cell=step.cell,
            )

        outcome = run_benchmark(
            request.tracks,
            request.agents,
            request.size,
            folder,
            bank=request.bank,
            workers=workers,
            ray=ray,
            on_progress=show,
        )
    console.print(outcome.summary(), highlight=False, soft_wrap=True)
    return outcome


def load_tables(request: Request, folder: Path) -> list[TrackTable]:
    """Computes the tables of all tracks that have results of this code.

    Raises:
        ValueError: If there are none at all.
    """
    store, tables = Store(folder), []
    for track in request.tracks:
        cells = [cell for cell in request.cells if cell.track == track]
        found = load_comparisons(store, cells)
        runs, missing = found.comparisons[track.name], found.missing[track.name]
        if runs.runs:
            tables.append(track_table(track, runs, missing))
    if not tables:
        stale = Counter(store.scan(request.cells).stale.values()).most_common(1)
        why = f" (there are {stale[0][1]} of {stale[0][0]})" if stale else ""
        raise ValueError(
            f"{folder} holds no finished results of this code and these settings{why}; "
            f"`{request.command(folder)}` makes them"
        )
    return tables


def report(
    request: Request, folder: Path, out: Path, markdown: Path | None, console: Console
) -> None:
    """Writes the page, its figures and CSV files, and the leaderboard as Markdown."""
    tables = load_tables(request, folder)
    facts = _facts(request, folder, markdown)
    show_leaders(tables, console)
    written = write_report(tables, out, bank=load_bank(request.bank), facts=facts)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(markdown) as scratch:
            scratch.write_text(leaderboard_markdown(tables, facts), encoding="utf-8")
        written.append(markdown)
    console.print(
        f"Report: {written[0]}, and {len(written) - 1} files beside it.",
        highlight=False,
        soft_wrap=True,
    )


def _facts(request: Request, folder: Path, markdown: Path | None) -> dict[str, str]:
    size, again = request.size, ["personalllm-env", "report", str(folder)]
    again += ["--markdown", str(markdown)] if markdown is not None else []
    packages = ("personalllm-env", "numpy", "scipy")
    return {
        "command: run what is missing": request.command(folder),
        "command: write this again from what is stored": shlex.join(again),
        "size": f"{size.num_users} users x {size.num_seeds} seeds, "
        f"histories of up to {size.most_history_users} other users",
        "bank": repr(load_bank(request.bank)),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def show_leaders(tables: Iterable[TrackTable], console: Console) -> None:
    """Prints who leads each track, who is tied with them, and how far the limit is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("track", no_wrap=True)
    table.add_column("leading honest agents, tied", overflow="fold")
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("yardstick", justify="right", no_wrap=True)
    for each in tables:
        gains = {s.agent: s.estimates["gain"] for s in each.standings}
        leaders = [s.agent for s in each.standings if s.tied and not s.privileges]
        best = gains[leaders[0]] if leaders else None
        limit = gains.get(each.track.yardstick)
        more = f" and {len(leaders) - 3} more" if len(leaders) > 3 else ""
        table.add_row(
            each.track.name,
            (", ".join(leaders[:3]) or "-") + more,
            "-" if best is None else f"{number(best.value, 3)} {half_width(best, 3)}",
            "-" if limit is None else f"{each.track.yardstick} {number(limit.value, 3)}",
        )
    console.print(table)


def show_tracks(console: Console) -> None:
    """Prints the tracks, what they ask and their settings."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("track", "question", "settings"):
        table.add_column(name)
    for track in TRACKS.values():
        given = {"history users": track.history_users, **track.definition()}
        words = {k: v for k, v in given.items() if v and k != "name"}
        table.add_row(track.name, track.question, json.dumps(words)[1:-1])
    console.print(table)
