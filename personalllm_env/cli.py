"""The command line: compare agents, list them, look at a bank, check its calibration."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
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


def _fail(error: Exception) -> typer.Exit:
    text = f"[bold red]Error:[/] {escape(str(error))}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _need_benchmark() -> None:
    """Raises ImportError, before any work is lost, if the extra is not installed."""
    missing = [name for name in ("filelock", "jinja2") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the benchmark needs {' and '.join(missing)}: "
            "pip install 'personalllm-env[benchmark]'"
        )


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
    sys.path.insert(0, str(Path.cwd()))  # spelt out, so that it means the same in workers


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
    from personalllm_env.registry import REFERENCES, check_settings
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
        check_settings(entrants, task)
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


_Out = Annotated[Path, typer.Option(help="Folder of the results; a run goes on where it was.")]
_BENCHMARK = Path("results/benchmark")


@app.command()
def tracks() -> None:
    """Lists the benchmark's tracks: what they ask, and their settings."""
    from personalllm_env.benchmark.listing import show_tracks

    show_tracks(_console())


@app.command()
def benchmark(
    track: Annotated[
        list[str] | None, typer.Option(help="A name, or module:NAME. Repeatable. Default: all.")
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="As for compare, or 'all', which is the default. Repeatable."),
    ] = None,
    size: Annotated[str, typer.Option(help="smoke, default or paper.")] = "default",
    users: Annotated[int | None, typer.Option(help="Per seed, instead of the size's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Instead of the size's.")] = None,
    bank: Annotated[str, typer.Option(help="As for compare.")] = "synthetic",
    out: _Out = _BENCHMARK,
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one a core.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="A Ray cluster's address, 'auto' or 'local'.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it would take, and stop.")
    ] = False,
) -> None:
    """Runs agents on tracks, stores every result at once, and writes the report."""
    console = _console()
    try:
        _need_benchmark()
        from personalllm_env.benchmark import commands
        from personalllm_env.benchmark.request import Request

        if ray is not None and workers is not None:
            raise ValueError("--workers is of this machine; a Ray cluster has its own")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        request = Request(track or (), agent or (), size, users, seeds, bank)
        for line in request.check():
            console.print(line, highlight=False, soft_wrap=True)
        commands.show_estimate(request, out, workers, console)
        if estimate:
            return
        outcome = commands.run(request, out, workers=workers, ray=ray, console=console)
        if not outcome.interrupted and outcome.finished:
            commands.report(request, out, out / "report", None, console)
    except (ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        console.print("Interrupted. What is finished is kept; the same command goes on.")
        raise typer.Exit(130) from None
    if outcome.interrupted or outcome.failed:
        raise typer.Exit(130 if outcome.interrupted else 1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Where `benchmark` put its results.")] = (
        _BENCHMARK
    ),
    out: Annotated[Path | None, typer.Option(help="Default: report/ in that folder.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the leaderboard as Markdown, too.")
    ] = None,
) -> None:
    """Writes the page, figures and tables from stored results; runs nothing."""
    try:
        _need_benchmark()
        from personalllm_env.benchmark import commands
        from personalllm_env.benchmark.request import saved_request

        request = saved_request(folder)
        commands.report(request, folder, out or folder / "report", markdown, _console())
    except (ValueError, LookupError, OSError, ImportError) as error:
        raise _fail(error) from None


@app.command()
def history(
    out: Annotated[Path, typer.Option(help="The Parquet file.")] = Path("history.parquet"),
    users: Annotated[int, typer.Option(help="How many.")] = 10_000,
    interactions: Annotated[int, typer.Option(help="Per user.")] = 50,
    feedback: Annotated[
        str, typer.Option(help="Channels with commas between them, or JSON.")
    ] = "choice",
    bank: Annotated[str, typer.Option(help="As for compare.")] = "synthetic",
    concentration: Annotated[float, typer.Option(help="Of the users' Dirichlet law.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the history.")] = 0,
    paper_format: Annotated[
        bool, typer.Option("--paper-format", help="PersonalLLM's columns, a row per user.")
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Write out what was asked and shown, too.")
    ] = False,
) -> None:
    """Records what other users see and say, as a data set of its own."""
    from personalllm_env import commands
    from personalllm_env.feedback import feedback_model
    from personalllm_env.histories import write_history

    console = _console()
    try:
        commands.check_numbers(1, users=users, interactions=interactions)
        commands.check_numbers(0, seed=seed)
        model = feedback_model(parse_feedback(feedback))
        task = commands.build_task(
            bank,
            duel=any(channel.num_shown == 2 for channel in model.channels),
            feedback=model,
            concentration=concentration,
            horizon=interactions,
        )
        database = write_history(task, users, seed, out, paper=paper_format, texts=texts)
    except (ValueError, LookupError, OSError, ImportError) as error:
        raise _fail(error) from None
    console.print(
        f"{len(database.user)} interactions of {users} users with\n{task.bank!r}\nin {out}, "
        f"{out.stat().st_size / 1e3:,.0f} kB",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    app()
