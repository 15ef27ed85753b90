"""The command line: compare agents, list them, look at a bank, check its calibration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Personalising language-model responses from sparse user feedback.",
)

DEFAULT_AGENTS = (
    "uniform",
    "best-responder",
    "popular",
    "epsilon-greedy",
    "thompson",
    "linucb",
    "exact-bayes",
    "popular-scores",
    "decoder-oracle",
    "oracle",
)
REFERENCES = ("uniform", "popular", "oracle")
"""Always run: without them a score has no scale."""


def _fail(error: Exception) -> typer.Exit:
    text = f"[bold red]Error:[/] {escape(str(error))}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _console() -> Console:
    return Console(markup=False)  # names may hold [brackets], which are no styles


def parse_feedback(text: str) -> Any:
    """Reads ``--feedback``: names with commas between them, or JSON."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--feedback is not JSON: {error}") from None
    return [name.strip() for name in text.split(",")]


@app.callback()
def main() -> None:
    """Finds modules in the current folder too, for agents given as module:Class."""
    sys.path.insert(0, "")


@app.command()
def compare(
    bank: Annotated[
        str, typer.Option(help="'synthetic', a saved bank, a table, or a hub id.")
    ] = "synthetic",
    agent: Annotated[
        list[str] | None,
        typer.Option(help="A name, module:Class, or either@setting=value. Repeatable."),
    ] = None,
    duel: Annotated[bool, typer.Option(help="Show two responses instead of one.")] = False,
    feedback: Annotated[
        str | None, typer.Option(help="Channels with commas between them, or JSON.")
    ] = None,
    concentration: Annotated[float, typer.Option(help="Of the users' Dirichlet law.")] = 0.05,
    horizon: Annotated[int, typer.Option(help="Interactions per user.")] = 50,
    users: Annotated[int, typer.Option(help="Test users per seed.")] = 200,
    history: Annotated[int, typer.Option(help="Other users to learn from first.")] = 1000,
    seeds: Annotated[int, typer.Option(help="How many repetitions: seeds 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the plots and columns.")] = Path(
        "results"
    ),
) -> None:
    """Runs agents on the same simulated users; prints a table and saves plots and columns."""
    from personalllm_env import commands
    from personalllm_env.report import summarise

    try:
        entrants = commands.entrants(agent or DEFAULT_AGENTS, REFERENCES)
        task = commands.build_task(
            bank,
            duel=duel,
            feedback=None if feedback is None else parse_feedback(feedback),
            concentration=concentration,
            horizon=horizon,
        )
        commands.check_numbers(1, users=users, seeds=seeds, horizon=horizon)
        commands.check_numbers(0, history=history)
        commands.check_settings(entrants, task)
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, LookupError, OSError, ImportError) as error:
        raise _fail(error) from None
    console = _console()
    try:
        result = commands.run_comparison(
            entrants,
            task,
            num_seeds=seeds,
            num_users=users,
            history_users=history,
            console=console,
        )
        rows = summarise(result)
        commands.show_comparison(rows, task, console)
        commands.save_comparison(result, rows, task, out, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was saved before is whole, in {out}.")
        raise typer.Exit(130) from None


@app.command()
def agents() -> None:
    """Lists the agents that can be named, and what the privileged ones see."""
    from personalllm_env import commands

    commands.show_agents(_console())


@app.command()
def info(bank: Annotated[str, typer.Argument(help="As for compare.")] = "synthetic") -> None:
    """Says what is in a bank: sizes, reward models, splits, how far features tell scores."""
    from personalllm_env import commands

    try:
        commands.show_bank(bank, _console())
    except (ValueError, OSError, ImportError) as error:
        raise _fail(error) from None


@app.command()
def calibration(
    bank: Annotated[str, typer.Option(help="As for compare.")] = "synthetic",
    users: Annotated[int, typer.Option(help="Simulated users who vote.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the users.")] = 0,
) -> None:
    """Prints a bank's diversity beside PersonalLLM's published figures."""
    from personalllm_env import commands

    try:
        commands.check_numbers(1, users=users)
        commands.check_numbers(0, seed=seed)
        commands.show_calibration(bank, users, seed, _console())
    except (ValueError, OSError, ImportError) as error:
        raise _fail(error) from None


if __name__ == "__main__":
    app()
