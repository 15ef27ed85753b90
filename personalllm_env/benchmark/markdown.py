"""The leaderboard as Markdown, for docs/leaderboard.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from personalllm_env.benchmark.leaderboard import Standing, TrackTable
from personalllm_env.benchmark.overview import (
    NOTHING,
    OverviewRow,
    commands_of,
    half_width,
    notices,
    number,
    others_of,
    overview,
    rank_range,
    significant,
    size_in_words,
    widening,
)
from personalllm_env.benchmark.page_data import headline
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.benchmark.words import given_population
from personalllm_env.report import Estimate

_DIGITS = 2  # of the overview

_HOW_TO_READ = """\
The number is the personalisation gain over the whole episode: 0 is what the best non-personal
choice learnt from others through features (`popular`) earns, 1 the best response always and
nobody gone. ± is half of a 95 % interval. **Bold**: the best honest agent of a track and those
that are not significantly behind it. Rows are in the order of the unweighted mean over tracks,
which is not shown since it has no interval; agents without a gain on every track come last.
Agents with \\* see what no real system could; they are not ranked."""

_STATISTICS = """\
All agents meet the same users, prompts and noise. Intervals are from a paired bootstrap of
users within seeds, widened by a design effect where seeds differ by more than their users
explain. Agents are tied unless their difference exceeds the critical value of all pairwise
comparisons of honest agents at once (max-|t|, 5 % for a track). A range of ranks counts only
significant differences. More: [statistics](statistics.md)."""


def leaderboard_markdown(tables: Sequence[TrackTable], facts: Mapping[str, str]) -> str:
    """Returns docs/leaderboard.md.

    Args:
        tables: One per track, in order.
        facts: As for ``page.write_report``: those called ``command`` are shown as commands.

    Raises:
        ValueError: If there is no table.
    """
    if not tables:
        raise ValueError("a leaderboard needs the table of one track or more, got none")
    commands = commands_of(facts)
    parts = [
        "# Leaderboard",
        "<!-- Written by a command from stored results (see the end): do not edit. -->",
        _HOW_TO_READ,
        " ".join(_plain(notice) for notice in notices(tables)),
        _overview(tables),
        *(part for table in tables for part in _track(table)),
        "## How the numbers are made",
        _STATISTICS,
        "## How to reproduce",
        *(f"{_plain(what)}:\n\n{_fenced(command)}" for what, command in commands.items()),
        "\n".join(
            f"- {_plain(key)}: {_plain(value)}" for key, value in others_of(facts).items()
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(tables: Sequence[TrackTable]) -> str:
    rows = overview(tables)
    honest = [row for row in rows if not row.privileges]
    wanted = {"oracle", *(table.track.yardstick for table in tables)}
    limits = [row for row in rows if row.privileges and row.agent in wanted]
    head = ["agent", *(_link(_plain(t.track.name), t.track) for t in tables)]
    return _table(head, [_overview_row(tables, row) for row in honest + limits])


def _overview_row(tables: Sequence[TrackTable], row: OverviewRow) -> list[str]:
    cells = []
    for table, standing in zip(tables, row.cells, strict=True):
        if standing is None:
            cells.append(NOTHING)
            continue
        text = _value(headline(table, standing), _DIGITS)
        cells.append(f"**{text}**" if standing.tied else text)
    return [_name(row.agent, row.privileges), *cells]


def _track(table: TrackTable) -> list[str]:
    track = table.track
    parts = [f"## {_plain(track.name)}", _plain(track.question)]
    if track.name in TRACKS:
        parts[-1] += " " + _link("What it measures, and what theory expects", track)
    if table.missing:
        names = ", ".join(_name(name, ()) for name in table.missing)
        parts.append(f"Without complete results: {names}.")
    head = ["agent", *(_plain(metric.label) for metric in table.metrics)]
    head.insert(min(2, len(head)), "rank")
    head += ["µs / decision", "fit s", "memory MB"]
    ordered = sorted(table.standings, key=lambda standing: bool(standing.privileges))
    parts.append(_table(head, [_standing(table, standing) for standing in ordered]))
    words = widening(table)
    parts.append(f"{size_in_words(table)}: {words}.")
    if given := given_population(track):
        parts[-1] += f" {given}"
    return parts


def _standing(table: TrackTable, standing: Standing) -> list[str]:
    cells = []
    for metric in table.metrics:
        estimate = standing.estimates.get(metric.key)
        cells.append(NOTHING if estimate is None else _value(estimate, metric.digits))
    if cells and standing.tied:
        cells[0] = f"**{cells[0]}**"
    row = [_name(standing.agent, standing.privileges), *cells]
    row.insert(min(2, len(row)), rank_range(standing.ranks))
    costs = (standing.microseconds, standing.fit_seconds, standing.memory_mb)
    return row + [significant(cost) for cost in costs]


def _value(estimate: Estimate, digits: int) -> str:
    return f"{number(estimate.value, digits)} {half_width(estimate, digits)}".strip()


def _name(agent: str, privileges: tuple[str, ...]) -> str:
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", agent)), default=0))
    padded = f" {agent} " if "`" in agent else agent
    text = f"{ticks}{padded}{ticks}".replace("|", "\\|").replace("\n", " ")
    return text + " \\*" * bool(privileges)


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _link(words: str, track: Track) -> str:
    """Returns words that lead to a track's page; plain ones for a track that has none."""
    return f"[{words}](tracks/{track.name}.md)" if track.name in TRACKS else words


def _fenced(command: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"{fence}bash\n{command.strip()}\n{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
