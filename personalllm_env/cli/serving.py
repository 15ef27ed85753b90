"""The command ``serve``: simulated users behind a websocket, by OpenEnv."""

from __future__ import annotations

import ipaddress
import json
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from personalllm_env.cli.app import app, fail, parse_feedback, plain_console


@app.command()
def serve(
    kind: Annotated[str, typer.Argument(help="'select' or 'generate'.")] = "select",
    host: Annotated[str, typer.Option(help="Where to listen; else this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8000,
    bank: Annotated[str, typer.Option(help="'text', or any other, as for compare.")] = "text",
    feedback: Annotated[
        str | None, typer.Option(help="Channels with commas between them, or JSON.")
    ] = None,
    horizon: Annotated[int, typer.Option(help="Interactions per episode.")] = 50,
    concentration: Annotated[float, typer.Option(help="Of the users' Dirichlet law.")] = 0.05,
    settings: Annotated[
        str, typer.Option(help="Other settings of the environment, as JSON.")
    ] = "{}",
    features: Annotated[
        bool | None, typer.Option("--features/--no-features", help="Observations hold them.")
    ] = None,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Tell clients what is hidden.")
    ] = False,
    utility_reward: Annotated[
        bool, typer.Option("--utility-reward", help="Reward is the noise-free utility.")
    ] = False,
    num_tasks: Annotated[int, typer.Option(help="Tasks that each split lists.")] = 1000,
    max_sessions: Annotated[int, typer.Option(help="Episodes at a time.")] = 64,
    max_message: Annotated[int, typer.Option(help="Bytes of a message.")] = 262_144,
    idle_seconds: Annotated[float, typer.Option(help="A silent session ends.")] = 600.0,
    web: Annotated[bool, typer.Option("--web", help="Add the page at /web.")] = False,
) -> None:
    """Serves episodes to OpenEnv's clients; to other machines only if a host says so."""
    console = plain_console()
    try:
        from personalllm_env.adapters.openenv import Limits, ServerSettings, build_app
        from personalllm_env.adapters.openenv.network import listen
        from personalllm_env.adapters.openenv.network import serve as serve_at

        chosen: dict[str, Any] = {"bank": bank, "horizon": horizon}
        chosen["concentration"] = concentration
        if feedback is not None:
            chosen["feedback"] = parse_feedback(feedback)
        chosen |= _read_object(settings)
        limits = Limits(max_sessions, max_message, idle_seconds)
        server = ServerSettings(
            kind, chosen, features, diagnostics, utility_reward, num_tasks, web, limits
        )
        with ExitStack() as stack:  # an address that is taken is said before banks are read
            bound = stack.enter_context(listen(host, port))
            application = build_app(server)
            stack.pop_all()
    except (ValueError, LookupError, OSError, ImportError, TypeError) as error:
        raise fail(error) from None
    address, number = bound.getsockname()[:2]
    url = f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"
    if not ipaddress.ip_address(address).is_loopback:
        console.print("Anybody who reaches this machine can open sessions: nothing is asked.")
    console.print(f"Serving {kind} at {url}; Ctrl-C ends it.", highlight=False, soft_wrap=True)
    try:
        serve_at(application, bound)
    except KeyboardInterrupt:
        console.print("Stopped.")


def _read_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--settings is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--settings must be a JSON object, got {text:.60}")
    return found
