"""What the benchmark's commands do, apart from reading their arguments."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from personalllm_env.benchmark.costs import CostEstimate
from personalllm_env.benchmark.leaderboard import TrackTable
from personalllm_env.benchmark.markdown import leaderboard_markdown
from personalllm_env.benchmark.overview import half_width, number, rank_range
from personalllm_env.benchmark.page import write_report
from personalllm_env.benchmark.request import Request
from personalllm_env.benchmark.run import Outcome, plan, run_benchmark
from personalllm_env.benchmark.run import Progress as Step
from personalllm_env.benchmark.store import Scan, Store
from personalllm_env.benchmark.tables import load_tables
from personalllm_env.data import load_bank
from personalllm_env.files import write_whole
from personalllm_env.report import Estimate


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
    for line in _not_used(scan):
        console.print(line, highlight=False, soft_wrap=True)
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
    """Runs what is missing under a progress bar, and prints what became of it.

    The tracebacks of agents that failed are kept in ``failures.txt``.
    """
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
    if told := [reply for reply in outcome.failed if reply.details]:
        text = "\n".join(f"{reply.cell.name}\n{reply.details}" for reply in told)
        where = write_whole(folder / "failures.txt", text)
        console.print(f"Tracebacks: {where}", highlight=False, soft_wrap=True)
    return outcome


def tables_of(request: Request, folder: Path, console: Console) -> list[TrackTable]:
    """Computes the tables of all tracks that have results of this code, and says what lacks.

    Raises:
        ValueError: If there are none at all.
    """
    store = Store(folder)
    scan, tables = store.scan(request.cells), load_tables(store, request.cells)
    why = _not_used(scan)
    if not tables:
        reasons = f" ({'; '.join(why)})" if why else ""
        raise ValueError(
            f"{folder} holds no finished results of this code and these settings{reasons}; "
            f"`{request.command(folder)}` makes them"
        )
    if scan.missing:
        console.print(
            f"{len(scan.missing)} of {len(request.cells)} cells are missing, and who lacks one "
            f"is left out. `{request.command(folder)}` runs them.",
            highlight=False,
            soft_wrap=True,
        )
    for line in why:
        console.print(line, highlight=False, soft_wrap=True)
    return tables


def _not_used(scan: Scan) -> list[str]:
    """Says which results there are that are not used, and why."""
    lines = [
        f"{num} older result{'s' * (num > 1)} not used: {why}"
        for why, num in Counter(scan.stale.values()).most_common()
    ]
    return [*lines, *(f"unreadable, not used: {why}" for why in scan.damaged.values())]


def report(
    request: Request, folder: Path, out: Path, markdown: Path | None, console: Console
) -> None:
    """Writes the page, its figures and CSV files, and the leaderboard as Markdown."""
    tables = tables_of(request, folder, console)
    facts = _facts(request, folder, markdown)
    show_leaders(tables, request.given["agents"], console)
    written = write_report(tables, out, bank=load_bank(request.bank), facts=facts)
    if markdown is not None:
        written.append(write_whole(markdown, leaderboard_markdown(tables, facts)))
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
        f"histories of up to {size.most_history_users} other users (of all where users return)",
        "bank": repr(load_bank(request.bank)),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        "machines, of all results": ", ".join(Store(folder).machines(request.cells)),
    }


def show_leaders(tables: Iterable[TrackTable], named: Sequence[str], console: Console) -> None:
    """Prints who leads each track, who is tied with them, and where the named agents are."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("track", no_wrap=True)
    table.add_column("leading honest agents, tied", overflow="fold")
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("yardstick", justify="right", no_wrap=True)
    for each in tables:
        gains = {s.agent: s.estimates["gain"] for s in each.standings}
        leaders = [s.agent for s in each.standings if s.tied and not s.privileges]
        limit = gains.get(each.track.yardstick)
        more = f" and {len(leaders) - 3} more" if len(leaders) > 3 else ""
        table.add_row(
            each.track.name,
            (", ".join(leaders[:3]) or "-") + more,
            _gain(gains[leaders[0]]) if leaders else "-",
            "-" if limit is None else f"{each.track.yardstick} {number(limit.value, 3)}",
        )
        for standing in each.standings:
            if standing.agent in named and standing.agent not in leaders[:1]:
                rank = f"rank {rank_range(standing.ranks)}" if standing.ranks else ""
                table.add_row("", standing.agent, _gain(gains[standing.agent]), rank)
    console.print(table)


def _gain(estimate: Estimate) -> str:
    return f"{number(estimate.value, 3)} {half_width(estimate, 3)}"
