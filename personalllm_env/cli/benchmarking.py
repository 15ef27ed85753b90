"""Commands of the benchmark: tracks, benchmark, report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from personalllm_env.cli.app import app, fail, plain_console


def need_benchmark() -> None:
    """Raises ImportError, before any work is lost, if the extra is not installed."""
    missing = [name for name in ("filelock", "jinja2") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the benchmark needs {' and '.join(missing)}: "
            "pip install 'personalllm-env[benchmark]'"
        )


_Out = Annotated[Path, typer.Option(help="Folder of the results; a run goes on where it was.")]
_BENCHMARK = Path("results/benchmark")


@app.command()
def tracks() -> None:
    """Lists the benchmark's tracks: what they ask, and their settings."""
    from personalllm_env.benchmark.listing import show_tracks

    show_tracks(plain_console())


@app.command()
def benchmark(
    track: Annotated[
        list[str] | None, typer.Option(help="A name, or module:NAME. Repeatable. Default: all.")
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="As for compare, or 'all', which is the default, or 'libraries': those made "
            "of the other bandit libraries that are installed. Repeatable."
        ),
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
    console = plain_console()
    try:
        need_benchmark()
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
        raise fail(error) from None
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
        need_benchmark()
        from personalllm_env.benchmark import commands
        from personalllm_env.benchmark.request import saved_request

        request = saved_request(folder)
        commands.report(request, folder, out or folder / "report", markdown, plain_console())
    except (ValueError, LookupError, OSError, ImportError) as error:
        raise fail(error) from None
