"""The command ``log``: an agent's interactions with propensities, for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from personalllm_env.cli.app import app, fail, parse_feedback, plain_console


@app.command()
def log(
    out: Annotated[Path, typer.Option(help="The file or folder, where nothing is yet.")],
    agent: Annotated[
        str, typer.Option(help="Who shows: a name, module:Class, or either@setting=value.")
    ] = "linucb",
    format: Annotated[
        str,
        typer.Option(
            help="hub: a folder for `datasets`, with a card. obp: the Open Bandit Pipeline's "
            "dictionary, .npz. vw: Vowpal Wabbit's lines. rllib: RLlib's columns, Parquet. "
            "minari: a data set, called as its folder, linucb-v0. dpo: pairs of texts, Parquet."
        ),
    ] = "hub",
    exploration: Annotated[
        float, typer.Option(help="How often, 0 to 1, a random response is shown instead.")
    ] = 0.2,
    users: Annotated[int, typer.Option(help="How many.")] = 1000,
    interactions: Annotated[
        int, typer.Option("--interactions", "--horizon", help="Per user.")
    ] = 50,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="Channels with commas between them, or JSON. Default: reward; choice for dpo."
        ),
    ] = None,
    bank: Annotated[str, typer.Option(help="As for compare.")] = "synthetic",
    concentration: Annotated[float, typer.Option(help="Of the users' Dirichlet law.")] = 0.05,
    prompts: Annotated[
        int | None, typer.Option(help="Different prompts per user. Default: always new ones.")
    ] = None,
    history: Annotated[int, typer.Option(help="Other users to learn from first.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    truth: Annotated[
        bool, typer.Option("--truth", help="Write the simulator's utilities, too (hub, obp).")
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Observations have the words (minari).")
    ] = False,
) -> None:
    """Logs what an agent shows, how likely that was and what users say, for other libraries."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from personalllm_env import commands
    from personalllm_env.feedback import feedback_model
    from personalllm_env.logged.export import LogRequest, export

    console = plain_console()
    try:
        commands.check_numbers(1, users=users, interactions=interactions)
        commands.check_numbers(0, seed=seed, history=history)
        said = parse_feedback(feedback or ("choice" if format == "dpo" else "reward"))
        duel = any(channel.num_shown == 2 for channel in feedback_model(said).channels)
        settings: dict[str, Any] = {
            "bank": bank,
            "feedback": said,
            "concentration": concentration,
            "horizon": interactions,
            "prompts_per_episode": prompts,
            "num_shown": 2 if duel else 1,
        }
        request = LogRequest(
            agent, format, out, settings, users, history, exploration, seed, truth, texts
        )
        request.check()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            line = bar.add_task(f"{agent}, interactions", total=interactions)
            done = export(request, lambda num: bar.update(line, advance=num))
    except (ValueError, LookupError, OSError, ImportError) as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        console.print(f"Interrupted; nothing is in {out}.")
        raise typer.Exit(130) from None
    size = sum(p.stat().st_size for p in [out, *out.rglob("*")] if p.is_file())
    console.print(
        f"{done}, logged by {agent}, in {out} ({format}), {size / 1e3:,.0f} kB",
        highlight=False,
        soft_wrap=True,
    )
