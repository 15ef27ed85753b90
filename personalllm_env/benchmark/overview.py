"""Agents by tracks in one table, and how numbers are written, for the page and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from personalllm_env.benchmark.leaderboard import Standing, TrackTable
from personalllm_env.benchmark.page_data import agents_of, headline
from personalllm_env.report import Estimate

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""


class OverviewRow(NamedTuple):
    """An agent over all tracks.

    Attributes:
        agent: Its name.
        privileges: What it sees beyond an honest agent.
        cells: Its standing per track; None where it has no complete result.
        mean: Unweighted mean of its gains; NaN unless it has one on every track.
    """

    agent: str
    privileges: tuple[str, ...]
    cells: tuple[Standing | None, ...]
    mean: float


def overview(tables: Sequence[TrackTable]) -> list[OverviewRow]:
    """Returns a row per agent, the best mean gain first; those without one come last."""
    by_track = [{s.agent: s for s in table.standings} for table in tables]
    rows = []
    for name, privileges in agents_of(tables).items():
        cells = tuple(standings.get(name) for standings in by_track)
        gains = [
            math.nan if cell is None else headline(table, cell).value
            for table, cell in zip(tables, cells, strict=True)
        ]
        rows.append(OverviewRow(name, privileges, cells, sum(gains) / max(len(gains), 1)))
    return sorted(rows, key=lambda row: (math.isnan(row.mean), -row.mean))


def number(value: float, digits: int) -> str:
    """Returns a number with a proper minus sign and no negative zero; a dash for NaN."""
    if not math.isfinite(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def half_width(estimate: Estimate, digits: int) -> str:
    """Returns ± half the interval's width; nothing where there is no interval."""
    half = (estimate.high - estimate.low) / 2
    return f"±{half:.{digits}f}" if math.isfinite(half) else ""


def interval(estimate: Estimate, digits: int) -> str:
    """Returns ``0.412 (95 %: 0.398 to 0.425)``, or only the number without an interval."""
    value = number(estimate.value, digits)
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return value
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{value} (95 %: {low} to {high})"


def significant(value: float) -> str:
    """Returns a cost with about two significant digits: 0.042, 3.1, 210; a dash for NaN."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0 or abs(value) >= 10:
        return number(value, 0)
    return number(value, min(4, max(0, 1 - math.floor(math.log10(abs(value))))))


def rank_range(ranks: tuple[int, int] | None) -> str:
    """Returns ``1``, ``2–5``, or nothing for who is not ranked."""
    if ranks is None:
        return ""
    best, worst = ranks
    return str(best) if best == worst else f"{best}\N{EN DASH}{worst}"


def commands_of(facts: Mapping[str, str]) -> dict[str, str]:
    """Returns the facts that are commands, by what they are for."""
    found = {}
    for key, value in facts.items():
        head, _, purpose = key.partition(":")
        if head.strip().lower() == "command":
            found[purpose.strip() or key] = value
    return found


def others_of(facts: Mapping[str, str]) -> dict[str, str]:
    """Returns the facts that are no commands."""
    return {k: v for k, v in facts.items() if k.partition(":")[0].strip().lower() != "command"}
