"""The list of the tracks, for the command line."""

from __future__ import annotations

import json

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from personalllm_env.benchmark.tracks import TRACKS


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
