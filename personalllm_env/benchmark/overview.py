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


_FEW_USERS = 200  # on a track, all seeds together


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


def size_in_words(table: TrackTable) -> str:
    """Returns how many users and seeds a table is of."""
    runs = next(iter(table.runs.runs.values()))
    users, seeds = sum(len(run.utility) for run in runs), len(table.runs.seeds)
    many = f"{users} user{'s' * (users != 1)}"
    return f"{many} over {seeds} seeds" if seeds > 1 else f"{many}, one seed"


def widening(table: TrackTable) -> str:
    """Says what the intervals of a table know of other histories, and what is significant."""
    if len(table.runs.seeds) == 1:
        known = "with one seed, intervals hold for its one history only"
    else:
        times = number(math.sqrt(max(table.design_effect, 1.0)), 2)
        known = f"intervals are widened about {times}-fold for differences between seeds"
    if not math.isfinite(table.critical):
        return f"{known}; nothing can be told apart"
    limit = number(table.critical, 2)
    return f"{known}; a difference is significant from {limit} standard errors on"


def notices(tables: Sequence[TrackTable]) -> list[str]:
    """Returns what a reader must know before any number."""
    sizes = dict.fromkeys(size_in_words(table) for table in tables)
    few = min(
        sum(len(run.utility) for run in next(iter(table.runs.runs.values())))
        for table in tables
    )
    found = [f"{' or '.join(sizes)} on each track."]
    if few < _FEW_USERS:
        found.append("So few users tell hardly anything apart: a test that it runs, no result.")
    lacking = [t.track.name for t in tables if "popular" not in t.runs.runs]
    if lacking:
        found.append(f"Without results of popular there are no gains on {', '.join(lacking)}.")
    return found
