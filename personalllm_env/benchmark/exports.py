"""The report's numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

from personalllm_env.benchmark.leaderboard import TrackTable
from personalllm_env.benchmark.page_data import learning_curves

_CURVES = ("gain", "score", "regret")


def leaderboard_csv(tables: Iterable[TrackTable]) -> str:
    """Returns a line per track and agent: every metric with its interval, ranks, costs.

    Metrics that only some tracks have are empty in the others; so is what is NaN.
    """
    tables = list(tables)
    keys = list(dict.fromkeys(metric.key for table in tables for metric in table.metrics))
    bounds = [name for key in keys for name in (key, f"{key}_low", f"{key}_high")]
    head = ["track", "agent", "privileges", "best_rank", "worst_rank", "tied", *bounds]
    lines = [[*head, "microseconds", "fit_seconds", "memory_mb"]]
    for table in tables:
        for standing in table.standings:
            found = standing.estimates
            values = [v for key in keys for v in found.get(key, (float("nan"),) * 3)]
            costs = (standing.microseconds, standing.fit_seconds, standing.memory_mb)
            ranks = standing.ranks or ("", "")
            lines.append(
                [
                    *(table.track.name, standing.agent, " ".join(standing.privileges)),
                    *(str(rank) for rank in ranks),
                    str(int(standing.tied)),
                    *(_text(value) for value in (*values, *costs)),
                ]
            )
    return _csv(lines)


def curves_csv(tables: Iterable[TrackTable]) -> str:
    """Returns a line per track, agent and interaction: each curve and half its 95 % band."""
    lines = [["track", "agent", "interaction", *_columns()]]
    for table in tables:
        curves = learning_curves(table.runs)
        for name in table.runs.runs:
            columns = [part for k in _CURVES if k in curves for part in curves[k][name]]
            blanks = [k in curves for k in _CURVES for _ in range(2)]
            for t, row in enumerate(zip(*columns, strict=True), start=1):
                values = iter(row)
                cells = [_text(next(values)) if there else "" for there in blanks]
                lines.append([table.track.name, name, str(t), *cells])
    return _csv(lines)


def _columns() -> list[str]:
    return [column for kind in _CURVES for column in (kind, f"{kind}_half")]


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _csv(lines: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
