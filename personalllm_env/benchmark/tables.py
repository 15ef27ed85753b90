"""From stored results to the tables of all tracks."""

from __future__ import annotations

from collections.abc import Iterable

from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.leaderboard import TrackTable, track_table
from personalllm_env.benchmark.store import Store, load_comparisons


def load_tables(store: Store, cells: Iterable[Cell]) -> list[TrackTable]:
    """Returns the tables of the tracks that have results, a track at a time.

    Args:
        store: Where the results are; of a run, ``outcome.store``.
        cells: All that were wanted; of a run, ``outcome.cells``.
    """
    by_track: dict[str, list[Cell]] = {}
    for cell in cells:
        by_track.setdefault(cell.track.name, []).append(cell)
    tables = []
    for name, wanted in by_track.items():
        found = load_comparisons(store, wanted)
        if found.comparisons[name].runs:
            table = track_table(wanted[0].track, found.comparisons[name], found.missing[name])
            tables.append(table)
    return tables
