"""The report: one page that needs nothing else, and figures and CSV files beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from personalllm_env.bank import ResponseBank
from personalllm_env.benchmark import overview as texts
from personalllm_env.benchmark.colours import looks
from personalllm_env.benchmark.exports import curves_csv, leaderboard_csv
from personalllm_env.benchmark.leaderboard import Standing, TrackTable
from personalllm_env.benchmark.page_data import agents_of, headline, track_data
from personalllm_env.benchmark.panels import CONCENTRATIONS, bank_panels
from personalllm_env.benchmark.words import given_population, settings_in_words
from personalllm_env.files import write_whole
from personalllm_env.plots import plot_learning_curves

TITLE = "PersonalLLM benchmark"


def write_report(
    tables: Sequence[TrackTable],
    folder: str | os.PathLike[str],
    *,
    bank: ResponseBank,
    facts: Mapping[str, str],
) -> list[Path]:
    """Writes report.html, leaderboard.csv, curves.csv, and a PNG and an SVG per track.

    Every file is written whole or not at all, the page last, so that what it links to exists.

    Args:
        tables: One per track, in the order in which the page has them.
        folder: Where to; made if need be.
        bank: What the tracks were measured on; its panels are drawn from it.
        facts: What somebody needs to do it again, as the page's last part has it. Those called
            ``command``, or ``command: what it is for``, are shown as commands, the others as
            a list.

    Returns:
        The files, the page first.

    Raises:
        ImportError: Without jinja2, naming the extra that brings it.
        ValueError: If there is no table, or two are of the same track.
    """
    target = Path(folder)
    html = render_page(tables, bank=bank, facts=facts)
    written = [
        write_whole(target / "leaderboard.csv", leaderboard_csv(tables)),
        write_whole(target / "curves.csv", curves_csv(tables)),
    ]
    for table in tables:
        paths = [target / f"{slug(table.track.name)}.{kind}" for kind in ("png", "svg")]
        plot_learning_curves(table.runs, *paths, title=table.track.question)
        written += paths
    return [write_whole(target / "report.html", html), *written]


def render_page(
    tables: Sequence[TrackTable], *, bank: ResponseBank, facts: Mapping[str, str]
) -> str:
    """Returns the page; arguments and errors as for ``write_report``."""
    names = [slug(table.track.name) for table in tables]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a report needs a table each of one track or more, got {names}")
    agents = agents_of(tables)
    ids = {name: i for i, name in enumerate(agents)}
    panels = bank_panels(bank)
    data = {
        "agents": _agents(agents),
        "tracks": [track_data(table, ids) for table in tables],
        "bank": {k: v for k, v in panels.items() if k not in ("calibration", "within")},
        "laws": CONCENTRATIONS,
    }
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        title=TITLE,
        notices=texts.notices(tables),
        style=_asset("report.css"),
        colours=list(enumerate(looks(agents).values())),
        script=script,
        digest=digest,
        data=embedded(data),
        overview=_overview(tables, ids),
        tracks=[_track(table, ids) for table in tables],
        panels=panels,
        laws=CONCENTRATIONS,
        commands=texts.commands_of(facts),
        facts=texts.others_of(facts),
    )


def embedded(data: Any) -> str:
    """Returns JSON that is safe within a ``<script>`` element, whatever the strings hold."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def slug(name: str) -> str:
    """Returns a track's name as it stands in addresses and file names."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "track"


def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise ImportError(
            "the report needs jinja2: pip install 'personalllm-env[benchmark]'"
        ) from None
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return files("personalllm_env.benchmark").joinpath(name).read_text(encoding="utf-8")


def _agents(agents: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "starred": bool(agents[name]),
            "dash": look.dash,
            "marker": look.marker,
            "wide": look.wide,
        }
        for name, look in looks(agents).items()
    ]


def _overview(tables: Sequence[TrackTable], ids: Mapping[str, int]) -> dict[str, Any]:
    rows = []
    gains = [headline(t, s).value for t in tables for s in t.standings if not s.privileges]
    top = max((gain for gain in gains if gain > 0), default=1.0)
    for row in texts.overview(tables):
        cells = [
            _overview_cell(table, cell, top)
            for table, cell in zip(tables, row.cells, strict=True)
        ]
        rows.append(
            {
                "id": ids[row.agent],
                "agent": row.agent,
                "privileges": row.privileges,
                "cells": cells,
                "mean": texts.number(row.mean, 2),
            }
        )
    return {
        "honest": [row for row in rows if not row["privileges"]],
        "privileged": [row for row in rows if row["privileges"]],
    }


def _overview_cell(
    table: TrackTable, standing: Standing | None, top: float
) -> dict[str, Any] | None:
    if standing is None:
        return None
    gain = headline(table, standing)
    value = gain.value if math.isfinite(gain.value) else 0.0
    tied = ", not significantly behind the best" if standing.tied else ""
    return {
        "text": texts.number(gain.value, 2),
        "shade": round(min(abs(value) / (top if value > 0 else 1.0), 1.0), 3),
        "loss": value < 0,
        "tied": standing.tied,
        "tip": f"{standing.agent} on {table.track.name}: {texts.interval(gain, 3)}{tied}",
    }


def _track(table: TrackTable, ids: Mapping[str, int]) -> dict[str, Any]:
    rows = [_row(table, standing, ids) for standing in table.standings]
    return {
        "name": table.track.name,
        "slug": slug(table.track.name),
        "question": table.track.question,
        "settings": settings_in_words(table.track),
        "metrics": table.metrics,
        "honest": [row for row in rows if not row["privileges"]],
        "privileged": [row for row in rows if row["privileges"]],
        "yardstick": table.track.yardstick,
        "missing": table.missing,
        "size": texts.size_in_words(table),
        "widening": texts.widening(table),
        "given": given_population(table.track),
        "tied": sum(standing.tied for standing in table.standings),
    }


def _row(table: TrackTable, standing: Standing, ids: Mapping[str, int]) -> dict[str, Any]:
    cells: list[dict[str, Any] | None] = []
    for metric in table.metrics:
        estimate = standing.estimates.get(metric.key)
        if estimate is None:
            cells.append(None)
            continue
        cells.append(
            {
                "sort": _sortable(estimate.value),
                "text": texts.number(estimate.value, metric.digits),
                "half": texts.half_width(estimate, metric.digits),
                "tip": f"{metric.label}: {texts.interval(estimate, metric.digits)}",
                "bar": _bar(table, standing) if metric is table.metrics[0] else None,
            }
        )
    costs = (standing.microseconds, standing.fit_seconds, standing.memory_mb)
    best, worst = standing.ranks or (math.inf, math.inf)
    return {
        "id": ids[standing.agent],
        "agent": standing.agent,
        "privileges": standing.privileges,
        "yardstick": standing.agent == table.track.yardstick,
        "rank": texts.rank_range(standing.ranks),
        "rank_sort": _sortable(best + worst / 1000),
        "tied": standing.tied,
        "cells": cells,
        "costs": [(texts.significant(cost), _sortable(cost)) for cost in costs],
    }


def _bar(table: TrackTable, standing: Standing) -> dict[str, float] | None:
    """Returns where the gain's interval lies between popular (0) and 1, in percent."""
    gain = headline(table, standing)
    if not all(math.isfinite(part) for part in gain):
        return None
    value, low, high = (100 * min(max(part, 0.0), 1.0) for part in gain)
    return {"at": round(value, 2), "low": round(low, 2), "width": round(high - low, 2)}


def _sortable(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""
