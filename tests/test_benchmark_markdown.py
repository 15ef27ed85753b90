"""The leaderboard in Markdown: what is bold, what is linked, and that names break nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_tables import AGENTS, FACTS, tables

from personalllm_env.benchmark.leaderboard import TrackTable
from personalllm_env.benchmark.markdown import leaderboard_markdown
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.benchmark.words import given_population

NAMES = (
    "linucb",
    "thompson",
    "popular",
    "uniform",
    "popular-scores",
    "feature-bayes",
    "oracle",
)


@pytest.fixture(scope="module")
def two():
    found = tables(2, NAMES, users=30, seeds=3, horizon=12)
    assert {s.tied for s in found[0].standings if not s.privileges} == {True, False}
    return found


@pytest.fixture(scope="module")
def text(two):
    return leaderboard_markdown(two, FACTS)


def grid(text, heading):
    """Returns the cells of the first table after a heading."""
    lines = text.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found[0], found[2:]


def test_the_overview_has_honest_agents_and_the_limits(text, two):
    head, rows = grid(text, "# Leaderboard")
    assert head[1:] == [f"[{t.track.name}](tracks/{t.track.name}.md)" for t in two]
    names = [row[0] for row in rows]
    assert set(names[:4]) == {"`linucb`", "`thompson`", "`popular`", "`uniform`"}
    assert names[2:4] == ["`popular`", "`uniform`"]
    # Of those that are privileged, the yardstick and the oracle only.
    assert names[4:] == ["`oracle` \\*", "`feature-bayes` \\*"]
    for column, table in enumerate(two, start=1):
        by_name = {f"`{s.agent}`" + " \\*" * bool(s.privileges): s for s in table.standings}
        for row in rows:
            standing = by_name[row[0]]
            gain = standing.estimates["gain"]
            number = f"{gain.value:.2f} ±{(gain.high - gain.low) / 2:.2f}"
            number = number.replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")
            assert row[column] == (f"**{number}**" if standing.tied else number)


def test_every_track_has_its_question_and_table(text, two):
    for table in two:
        assert table.track.question in text
        head, rows = grid(text, f"## {table.track.name}")
        labels = [metric.label for metric in table.metrics]
        assert head == ["agent", labels[0], "rank", *labels[1:], *head[-3:]]
        assert head[-3:] == ["µs / decision", "fit s", "memory MB"]
        assert all(len(row) == len(head) for row in rows)
        assert len(rows) == len(NAMES)
        starred = [row[0].endswith("\\*") for row in rows]
        assert starred == sorted(starred)  # honest agents first
    assert "Without complete results: `kernel-ucb`." in text


def test_commands_come_in_fences_and_nothing_is_to_be_edited_by_hand(text):
    assert f"```bash\n{FACTS['command: report']}\n```" in text
    assert "- fingerprint: 4e1f0a9be3" in text
    assert "do not edit" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_the_order_of_the_overview_is_said(text, two):
    assert "Rows are in the order of the unweighted mean over tracks" in text
    _, rows = grid(text, "# Leaderboard")
    gains = [{s.agent: s.estimates["gain"].value for s in table.standings} for table in two]
    means = [sum(gain[row[0].strip("`")] for gain in gains) for row in rows[:4]]
    assert means == sorted(means, reverse=True)


def test_only_tracks_that_have_a_page_are_linked(two):
    own = replace(two[0], track=Track("my-own-v0", "Mine?"))
    text = leaderboard_markdown([own, two[1]], {})
    head, _ = grid(text, "# Leaderboard")
    assert head[1:] == ["my-own-v0", "[sparse-v0](tracks/sparse-v0.md)"]
    assert "\n\nMine?\n\n" in text
    assert "tracks/my-own" not in text
    for name in TRACKS:
        assert (Path(__file__).parents[1] / "docs" / "tracks" / f"{name}.md").is_file()


def test_a_fixed_population_is_said_below_the_table(two):
    said = given_population(TRACKS["communities-v0"])
    fixed = replace(two[0], track=TRACKS["communities-v0"])
    text = leaderboard_markdown([fixed, two[1]], {})
    assert text.count(said) == 1
    assert f"standard errors on. {said}\n\n## sparse-v0" in text


def test_names_break_no_table(two):
    evil = "a|b`c<script>\nx"
    [first, _] = two
    standings = tuple(
        type(s)(**(vars(s) | {"agent": evil if s.agent == "linucb" else s.agent}))
        for s in first.standings
    )
    track = Track(first.track.name, "Is *this* a [question](x)?\n# No")
    bad = TrackTable(track, first.metrics, standings, first.runs, 1.0, 3.0)
    text = leaderboard_markdown([bad], {"command": "echo ```", "a|b": "<b>"})
    _, rows = grid(text, "# Leaderboard")
    assert {len(row) for row in rows} == {2}
    assert "`` a\\|b`c<script> x ``" in {row[0] for row in rows}
    assert "Is \\*this\\* a \\[question\\](x)? \\# No" in text
    assert "\n````bash\necho ```\n````" in text
    assert "- a\\|b: \\<b\\>" in text


def test_agents_without_a_result_have_a_dash(two):
    first, second = two
    standings = tuple(s for s in second.standings if s.agent != "thompson")
    short = TrackTable(second.track, second.metrics, standings, second.runs, 1.0, 3.0)
    _, rows = grid(leaderboard_markdown([first, short], {}), "# Leaderboard")
    assert {row[0]: row[2] for row in rows}["`thompson`"] == "\N{EN DASH}"


def test_no_table_is_an_error():
    with pytest.raises(ValueError, match="got none"):
        leaderboard_markdown([], FACTS)


def test_the_fixtures_have_the_numbers_of_agents_that_readers_will_meet():
    assert 15 <= len(AGENTS) <= 20
    assert sum(bool(agent[4]) for agent in AGENTS.values()) >= 3


def test_what_a_reader_must_know_first(two):
    from personalllm_env.benchmark.overview import notices, size_in_words, widening

    table = two[0]
    runs = table.runs.runs
    users = sum(len(run.utility) for run in next(iter(runs.values())))
    seeds = len(table.runs.seeds)
    assert size_in_words(table) == f"{users} users over {seeds} seeds"
    assert notices([table])[0] == f"{users} users over {seeds} seeds on each track."
    one = replace(
        table,
        runs=replace(table.runs, runs={k: [v[0]] for k, v in runs.items()}, seeds=(0,)),
        critical=float("nan"),
    )
    assert widening(one).startswith("with one seed, intervals hold for its one history only")
    assert "nothing can be told apart" in widening(one)
    assert "no result" in notices([one])[1]
    left = {name: found for name, found in runs.items() if name != "popular"}
    without = replace(table, runs=replace(table.runs, runs=left))
    assert notices([without])[-1].endswith(f"there are no gains on {table.track.name}.")
