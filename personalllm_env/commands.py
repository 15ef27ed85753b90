"""What the command line does, apart from reading its arguments."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from personalllm_env.data import load_bank, load_words
from personalllm_env.decoding import decodable_share, linear_decoder
from personalllm_env.envs.translate import task_from_settings
from personalllm_env.files import write_whole
from personalllm_env.generation.problem import WritingTask
from personalllm_env.registry import (
    UnknownAgentError,
    agent_names,
    find_agent,
    library_agent_names,
)
from personalllm_env.report import Estimate, Row, write_columns
from personalllm_env.rewards.for_bank import ensemble_for
from personalllm_env.runner import Comparison, Entrant, compare
from personalllm_env.task import Task


def check_numbers(least: int, **numbers: int) -> None:
    """Raises ValueError naming the first number below ``least``."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def entrants(names: Iterable[str], references: Iterable[str]) -> list[Entrant]:
    """Finds the agents, adding the references that a score needs."""
    wanted = list(dict.fromkeys(names))
    missing = [name for name in references if name not in wanted]
    return [find_agent(name) for name in (*missing, *wanted)]


def build_task(
    bank: str, *, duel: bool, feedback: Any, concentration: float, horizon: int
) -> Task:
    """Builds the task of a comparison."""
    return task_from_settings(
        bank=bank,
        num_shown=2 if duel else 1,
        feedback=feedback,
        concentration=concentration,
        horizon=horizon,
    )


def build_writing_task(
    bank: str,
    models: str | None,
    *,
    feedback: Any,
    concentration: float,
    horizon: int,
    past: int = 0,
) -> WritingTask:
    """Builds the test side of a task whose actions are texts, its answers shuffled.

    Args:
        bank: As for ``load_bank``; it needs texts.
        models: What scores texts, as for ``load_ensemble``; None for what the bank's own
            scores come from.
        feedback: As for ``feedback_model``.
        concentration: Of the users' Dirichlet law.
        horizon: T.
        past: Interactions of each user before the episode.
    """
    task = task_from_settings(
        bank=load_words(bank),
        feedback=feedback,
        concentration=concentration,
        horizon=horizon,
        shuffle=True,
    )
    return WritingTask(task.side("test"), ensemble_for(task.bank, models), past=past)


def run_comparison(
    chosen: list[Entrant],
    task: Task,
    *,
    num_seeds: int,
    num_users: int,
    history_users: int,
    console: Console,
) -> Comparison:
    """Runs a comparison under a progress bar."""
    total = len(chosen) * num_seeds * task.horizon
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("starting", total=total)

        def tick(name: str, num: int) -> None:
            bar.update(line, advance=num, description=name)

        result = compare(
            chosen,
            task,
            seeds=range(num_seeds),
            num_users=num_users,
            history_users=history_users,
            progress=tick,
        )
    console.print(
        f"{len(chosen)} agents x {num_seeds} seeds x {num_users} users x {task.horizon} "
        f"interactions in {time.perf_counter() - start:.1f} s on\n{task.bank!r}",
        highlight=False,
        soft_wrap=True,
    )
    return result


def show_comparison(rows: list[Row], task: Task, console: Console) -> None:
    """Prints the table, least regret first."""
    said = " + ".join(channel.name for channel in task.feedback.channels)
    title = f"{task.bank.name}: feedback {said}, {task.horizon} interactions per user"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("agent", overflow="fold")
    rows = sorted(rows, key=lambda r: r.regret.value)
    cells = [_cells(row) for row in rows]
    for i, name in enumerate(("regret", "score", "gain", "best", "µs"), start=1):
        widest = max(len(line[i]) for line in cells)  # the name gives way, not the numbers
        table.add_column(name, justify="right", no_wrap=True, min_width=widest)
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*line, style="dim" if row.privileges else "")
    console.print(table)
    console.print(
        "regret: cumulative, per user. score: normalised, 0 = uniform, 1 = oracle. gain: "
        "personalisation gain, 0 = popular, 1 = oracle.\n"
        "best: share of interactions with no regret. µs: per decision.\n"
        "±: half the 95 % interval, paired bootstrap over users, widened by seeds' spread.\n"
        "*: sees what no real system could; `personalllm-env agents` says what.",
        style="dim",
        highlight=False,
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.agent + (" *" if row.privileges else ""),
        _number(row.regret, 2),
        _number(row.score, 3),
        _number(row.gain, 3),
        f"{100 * row.best_picks:.0f} %",
        f"{row.microseconds:.1f}",
    )


def _number(estimate: Estimate, digits: int) -> str:
    if np.isnan(estimate.value):
        return "-"
    text = f"{estimate.value:.{digits}f}"
    if np.isnan(estimate.low) or estimate.low == estimate.high:
        return text
    return f"{text} ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def save_comparison(
    result: Comparison, rows: list[Row], task: Task, out: Path, console: Console
) -> None:
    """Writes columns, the summary and the plots into a folder."""
    from personalllm_env.plots import plot_learning_curves, plot_regret

    title = f"{task.bank.name}, {' + '.join(c.name for c in task.feedback.channels)}"
    write_columns(result, out / "columns.parquet")
    write_whole(out / "summary.csv", _summary_csv(rows))
    plot_learning_curves(result, out / "learning_curves.png", title=title)
    plot_regret(result, out / "regret.png", title=title)
    names = "columns.parquet, summary.csv, learning_curves.png, regret.png"
    console.print(f"Saved to {out}: {names}", highlight=False, soft_wrap=True)


def _summary_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = ("regret", "score", "gain")
    ends = ("", "_low", "_high")
    writer.writerow(
        ["agent", "privileges", *(m + e for m in measures for e in ends), "best_picks", "us"]
    )
    for row in rows:
        numbers = [x for m in measures for x in getattr(row, m)]
        writer.writerow(
            [row.agent, " ".join(row.privileges), *numbers, row.best_picks, row.microseconds]
        )
    return text.getvalue()


def show_agents(console: Console) -> None:
    """Prints the agents' names, privileges and what they are."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("agent", "sees beyond an honest agent", "what it is"):
        table.add_column(name)
    for name in (*agent_names(), *library_agent_names()):
        try:
            cls = find_agent(name).agent_class
        except UnknownAgentError as error:  # one broken package must not hide the others
            table.add_row(name, "?", str(error))
            continue
        privileges = ", ".join(sorted(cls.privileges))  # type: ignore[attr-defined]
        table.add_row(name, privileges, (cls.__doc__ or "").strip().partition("\n")[0])
    console.print(table)


def show_bank(source: str, console: Console) -> None:
    """Prints what is in a bank."""
    bank = load_bank(source)
    share = decodable_share(bank, linear_decoder(bank))
    console.print(repr(bank), highlight=False, soft_wrap=True)
    for key, value in bank.facts.items():
        console.print(f"{key}: {value}", highlight=False, soft_wrap=True)
    title = "How far a linear map of the features tells the scores (test prompts)"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("reward model")
    table.add_column("share of within-prompt variance", justify="right")
    for name, value in zip(bank.reward_models, share, strict=True):
        table.add_row(name, f"{value:.2f}")
    console.print(table)


def show_calibration(source: str, num_users: int, seed: int, console: Console) -> None:
    """Prints target against measured, and says how many rows are within tolerance."""
    from personalllm_env.data.calibration import calibration_table

    rows = calibration_table(load_bank(source), num_users=num_users, seed=seed)
    title = f"{source}: PersonalLLM's published figures against this bank"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("statistic", max_width=40)
    for name in ("alpha", "target", "measured", "diff", "within"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = (row.target, row.measured, row.difference, row.tolerance)
        style = "" if row.ok else "bold red"
        concentration = "" if row.concentration is None else f"{row.concentration:g}"
        table.add_row(row.statistic, concentration, *(f"{x:.3g}" for x in numbers), style=style)
    console.print(table)
    good = sum(row.ok for row in rows)
    console.print(f"{good} of {len(rows)} within tolerance", highlight=False)
