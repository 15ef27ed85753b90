"""The benchmark: tracks, the cells they are measured in, statistics and the report.

    from personalllm_env.benchmark import SIZES, TRACKS, Track, load_tables, run_benchmark

Nothing is imported until it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personalllm_env.benchmark.cells import SIZES, Size
    from personalllm_env.benchmark.leaderboard import track_table
    from personalllm_env.benchmark.page import write_report
    from personalllm_env.benchmark.run import run_benchmark
    from personalllm_env.benchmark.store import load_comparisons
    from personalllm_env.benchmark.tables import load_tables
    from personalllm_env.benchmark.track import Track
    from personalllm_env.benchmark.tracks import TRACKS

__all__ = [
    "SIZES",
    "TRACKS",
    "Size",
    "Track",
    "load_comparisons",
    "load_tables",
    "run_benchmark",
    "track_table",
    "write_report",
]

_PLACES = {
    "SIZES": "cells",
    "Size": "cells",
    "TRACKS": "tracks",
    "Track": "track",
    "load_comparisons": "store",
    "load_tables": "tables",
    "run_benchmark": "run",
    "track_table": "leaderboard",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
