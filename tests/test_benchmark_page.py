"""The report's page: numbers by hand, harmless names, nothing from elsewhere, whole files."""

import base64
import csv
import hashlib
import io
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from benchmark_tables import AGENTS, FACTS, TRACKS, comparison, tables
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from personalllm_env.benchmark import page
from personalllm_env.benchmark.colours import DARK, LIGHT, contrast, looks, readable
from personalllm_env.benchmark.exports import curves_csv, leaderboard_csv
from personalllm_env.benchmark.leaderboard import Metric, Standing, TrackTable
from personalllm_env.benchmark.overview import (
    half_width,
    interval,
    number,
    overview,
    rank_range,
    significant,
)
from personalllm_env.benchmark.page import embedded, render_page, slug, write_report
from personalllm_env.benchmark.page_data import (
    agents_of,
    learning_curves,
    numbers,
    share_of_yardstick,
    track_data,
    user_spread,
)
from personalllm_env.benchmark.panels import CONCENTRATIONS, bank_panels, sample_prompts
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import TRACKS as OURS
from personalllm_env.benchmark.words import given_population, settings_in_words
from personalllm_env.data import load_bank
from personalllm_env.data.calibration import calibration_table
from personalllm_env.estimates import Design, intervals, ratio, seed_effects
from personalllm_env.report import Estimate, pair, regret_per_user
from personalllm_env.runner import Comparison, Run
from personalllm_env.testing import tiny_bank

FEW = ("linucb", "popular", "uniform", "thompson", "my_agents:Greedy@x=<script>", "oracle")
NAN = float("nan")


@pytest.fixture(scope="module")
def three():
    found = tables(3, users=25, seeds=3, horizon=12)
    assert 1 < sum(standing.tied for standing in found[0].standings) < 15
    return found


@pytest.fixture(scope="module")
def html(three):
    return render_page(three, bank=tiny_bank(), facts=FACTS)


def made(regrets, *, yardstick="yard", seeds=1, privileged=("yard",)):
    """A table from regrets (users, interactions) per agent; the best utility is always 1."""
    runs = {
        name: [Run(1 - r, r, np.ones(r.shape, dtype=bool), 1e-3) for r in np.split(r, seeds)]
        for name, r in ((name, np.asarray(r, dtype=float)) for name, r in regrets.items())
    }
    privileges = {name: ("scores",) if name in privileged else () for name in runs}
    standings = tuple(
        Standing(
            name, privileges[name], {"gain": Estimate(0.1, 0.0, 0.2)}, None, False, 1, 0, NAN
        )
        for name in runs
    )
    metric = Metric("gain", "gain", "What it means.", 3)
    track = Track("hand-v0", "Who?", yardstick=yardstick)
    found = Comparison(runs, privileges, tuple(range(seeds)))
    return TrackTable(track, (metric,), standings, found, 1.0, 2.0)


# Numbers


SHARES = {"popular": [[4.0], [6.0]], "yard": [[2.0], [2.0]], "me": [[3.0], [5.0]]}


def test_share_of_the_yardstick_by_hand():
    # Lost: popular 4, 6; yardstick 2, 2; agent 3, 5. Gained: 1, 1 of 2, 4. Six of each kind.
    found = share_of_yardstick(made({name: 6 * r for name, r in SHARES.items()}))
    assert set(found) == {"popular", "me"}
    assert found["me"].value == pytest.approx(2 / 6)
    # Residuals 1 - 2/3, 1 - 4/3, so 12 users' sd is sqrt(12/11)/3; over a mean of 3. The
    # bootstrap's error is 3 %, and the law of a ratio of so few is a little wider.
    half = stats.t.isf(0.025, 11) * np.sqrt(12 / 11) / 9 / np.sqrt(12)
    assert (found["me"].high - found["me"].low) / 2 == pytest.approx(half, rel=0.12)
    assert found["popular"] == Estimate(0.0, 0.0, 0.0)


def test_shares_have_the_design_effects_of_shares():
    """Seeds move agents, and neither popular nor the yardstick."""
    rng = np.random.default_rng(0)
    popular = 3 + rng.random((90, 2))
    noise = {name: 0.2 * rng.random((90, 2)) for name in "abcd"}
    yard = 1 + 0.2 * rng.random((90, 2))

    def halves(moved):
        shift = np.repeat(moved, 30)[:, None]
        agents = {name: 2 + shift + noise[name] for name in noise}
        table = made({"popular": popular, "yard": yard} | agents, seeds=3)
        shares = share_of_yardstick(table)
        paired = pair(table.runs)
        regret = paired.regret.sum(axis=2)
        gained = regret[0] - regret
        expected = intervals(paired.design, ratio(paired.design, gained, gained[1:2]))
        np.testing.assert_allclose([shares[n] for n in noise], expected[2:])
        return np.array([shares[name].high - shares[name].low for name in noise])

    assert (halves([-0.2, 0.0, 0.2]) > 4 * halves([0.0, 0.0, 0.0])).all()


@pytest.mark.parametrize("change", [{"yardstick": "nobody"}, {"yardstick": "popular"}])
def test_no_shares_without_a_yardstick_that_gains(change):
    regrets = {name: 6 * r for name, r in SHARES.items()}
    assert share_of_yardstick(made(regrets, **change)) == {}
    del regrets["popular"]
    assert share_of_yardstick(made(regrets)) == {}


def test_no_shares_of_a_gain_that_is_not_clear():
    """Twelve users of whom some lose by the yardstick; its interval reaches 0."""
    popular = np.full((12, 1), 4.0)
    yard = popular - np.resize([2.0, -1.5], 12)[:, None]
    assert share_of_yardstick(made({"popular": popular, "yard": yard})) == {}
    clear = popular - np.resize([2.0, 1.5], 12)[:, None]
    assert set(share_of_yardstick(made({"popular": popular, "yard": clear}))) == {"popular"}


def test_spread_over_users_by_hand():
    regret = np.array([[i / 2, i / 2] for i in range(21)])  # totals 0..20
    *quantiles, worst, mean = user_spread(np.random.default_rng(0).permutation(regret))
    assert quantiles == pytest.approx([1, 5, 10, 15, 19])
    assert worst == pytest.approx((20 + 19 + 0.1 * 18) / 2.1)  # 2.1 of 21 are the worst tenth
    assert mean == 10
    assert user_spread(np.array([[2.0]])) == pytest.approx([2.0] * 7)


def test_the_worst_tenth_is_that_of_the_table(three):
    for standing in three[0].standings:
        regret = np.concatenate([run.regret for run in three[0].runs.runs[standing.agent]])
        expected = standing.estimates["worst_tenth"].value * regret.shape[1]
        assert user_spread(regret)[5] == pytest.approx(expected)


def test_bands_are_widened_as_the_tables_intervals_are():
    """At the end cumulative regret is the table's regret: the same standard error."""
    rng = np.random.default_rng(1)
    shift = np.repeat([0.0, 0.5, 1.0], 100)[:, None]
    names = ["uniform", "popular", "a", "b", "c"]
    regrets = {n: rng.gamma(4.0, 0.25, size=(300, 5)) + shift for n in names}
    curves = learning_curves(made(regrets, seeds=3).runs)
    alone = learning_curves(made(regrets).runs)
    effects = seed_effects(
        Design((100,) * 3), regret_per_user(pair(made(regrets, seeds=3).runs)).linear
    )
    assert effects.inflation.min() > 4
    for kind in ("gain", "score", "regret"):
        for name in names:
            np.testing.assert_array_equal(curves[kind][name][0], alone[kind][name][0])
    for name, effect in zip(names, effects.inflation, strict=True):
        widened = np.sqrt(effect) * alone["regret"][name].half
        np.testing.assert_allclose(curves["regret"][name].half, widened)
    # All agents move alike with the seeds: their shares of popular's regret do so less.
    ratios = [curves["gain"][n].half[2] / alone["gain"][n].half[2] for n in ("a", "b", "c")]
    assert max(ratios) < 0.7 * np.sqrt(effects.inflation.min())


def test_gain_curves_are_0_for_popular_and_1_for_the_oracle(three):
    gain = learning_curves(three[0].runs)["gain"]
    np.testing.assert_allclose(gain["popular"].middle, 0, atol=1e-12)
    np.testing.assert_allclose(gain["oracle"].middle, 1, atol=1e-12)
    assert set(learning_curves(three[0].runs)) == {"gain", "score", "regret"}
    alone = learning_curves(made({"me": [[1.0, 2.0], [3.0, 4.0]]}).runs)
    assert set(alone) == {"regret"}
    np.testing.assert_allclose(alone["regret"]["me"].middle, [2, 5])


def test_track_data_is_json_and_thins_long_curves():
    [table] = tables(1, FEW, users=4, seeds=1, horizon=450)
    ids = {name: i for i, name in enumerate(agents_of([table]))}
    data = json.loads(json.dumps(track_data(table, ids), allow_nan=False))
    assert len(data["t"]) == 200
    assert (data["t"][0], data["t"][-1]) == (1, 450)
    assert [len(part) for part in data["curves"]["gain"][str(ids["linucb"])]] == [200, 200]
    assert data["order"] == [ids[s.agent] for s in table.standings]
    assert data["tied"] == [ids[s.agent] for s in table.standings if s.tied]
    whole = learning_curves(table.runs)["gain"]["linucb"].middle
    assert data["curves"]["gain"][str(ids["linucb"])][0][-1] == pytest.approx(
        whole[-1], abs=1e-4
    )


def test_agents_come_best_first_and_who_has_no_gain_last(three):
    names = list(agents_of(three))
    assert names[0] == "oracle"
    assert names[-1] == "uniform"
    assert set(names) == set(AGENTS)
    rows = overview(three)
    assert [row.agent for row in rows] == names
    first = rows[3]
    gains = [cell.estimates["gain"].value for cell in first.cells]
    assert first.mean == pytest.approx(np.mean(gains))


def test_an_agent_without_a_result_has_no_mean_and_an_empty_cell(three):
    short = TrackTable(
        three[1].track,
        three[1].metrics,
        tuple(s for s in three[1].standings if s.agent != "linucb"),
        three[1].runs,
        1.0,
        3.0,
        ("linucb",),
    )
    row = {r.agent: r for r in overview([three[0], short])}["linucb"]
    assert row.cells[1] is None
    assert math.isnan(row.mean)
    text = render_page([three[0], short], bank=tiny_bank(), facts={})
    assert "Without complete results here: linucb." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0004, "0.00"), (-1.234, "−1.23"), (NAN, "–"), (1234.5, "1,234.50"), (math.inf, "–")],  # noqa: RUF001
)
def test_numbers_in_words(value, text):
    assert number(value, 2) == text


def test_estimates_in_words():
    assert half_width(Estimate(0.4, 0.35, 0.47), 2) == "±0.06"
    assert half_width(Estimate(0.4, NAN, NAN), 2) == ""
    assert interval(Estimate(0.4, -0.1, 0.9), 1) == "0.4 (95 %: −0.1 to 0.9)"  # noqa: RUF001
    assert interval(Estimate(0.4, NAN, NAN), 1) == "0.4"
    costs = {0: "0", 0.042: "0.042", 3.14: "3.1", 212.4: "212", NAN: "\N{EN DASH}"}
    assert [significant(x) for x in costs] == list(costs.values())
    assert [rank_range(r) for r in ((2, 2), (1, 4), None)] == ["2", "1–4", ""]  # noqa: RUF001
    assert numbers([1.23456, NAN, -1e-9], 3) == [1.235, None, 0.0]


# Words


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        (
            Track("a", "?"),
            [
                "50 interactions per user",
                "one response is shown",
                "they report how good it was, with normal noise of sd 0.5",
                "every user is new, with Dirichlet(0.05) weights over the reward models",
                "a history of up to 1,000 other users to learn from",
            ],
        ),
        (TRACKS[1], ["silent at 90 % of interactions"]),
        (
            TRACKS[2],
            [
                "2 responses are shown",
                "they say which of the two they prefer (temperature 0.25)",
            ],
        ),
        (TRACKS[6], ["tastes move in a straight line 100 % of the way to another user's"]),
        (
            TRACKS[8],
            [
                "1,200 users in 8 communities, of whom 400 are held out for the test, "
                "drawn anew each time"
            ],
        ),
        (
            Track(
                "a",
                "?",
                population={"communities": {"num_users": 9, "num_communities": 2, "seed": 0}},
            ),
            ["9 users in 2 communities, the same in every repetition"],
        ),
        (
            Track("a", "?", population={"dirichlet": {"num_users": 2000}}),
            [
                "2,000 users, drawn anew each time",
                "a history of up to 1,000 users of this population to learn from",
            ],
        ),
        (
            OURS["returning-v0"],
            ["a history of 1,000 of these very users to learn from, 50 interactions each"],
        ),
        (
            OURS["communities-v0"],
            [
                "3,000 users in 5 communities, of whom 1,000 are held out for the test, the "
                "same in every repetition",
                "a history of up to 1,000 other users to learn from",
            ],
        ),
        (
            TRACKS[9],
            [
                "what they say arrives 3 interactions late",
                "served worse than 0, they leave for good with probability 0.1",
            ],
        ),
        (TRACKS[10], ["5 prompts per user, which recur"]),
        (
            TRACKS[11],
            ["every user is new, with Dirichlet(0.01 or 0.1) weights over the reward models"],
        ),
        (
            Track("a", "?", history={"horizon": 1, "drift": None, "concentration": 1.0}),
            [
                "a history of up to 1,000 other users to learn from, 1 interaction each, whose "
                "tastes stay as they are, whose weights are Dirichlet(1)"
            ],
        ),
        (
            Track("a", "?", environment={"novel": 3}, history_users=0),
            ["novel = 3", "no history of other users"],
        ),
    ],
)
def test_settings_in_words(track, expected):
    found = settings_in_words(track)
    assert [line for line in found if line in expected] == expected, found


def test_no_setting_of_the_tracks_is_left_out_of_the_words():
    for track in OURS.values():
        plain = settings_in_words(Track(track.name, track.question))
        changed = settings_in_words(track)
        num = len(track.environment) + bool(track.population) + bool(track.history)
        assert (set(changed) != set(plain)) == bool(num), track.name


# Colours


def test_contrast_by_hand():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)  # WCAG's example
    assert contrast("#123456", "#123456") == 1


@given(st.from_regex(r"#[0-9A-F]{6}", fullmatch=True), st.sampled_from([LIGHT, DARK]))
def test_any_colour_becomes_readable(colour, background):
    assert contrast(readable(colour, background, 4.5), background) >= 4.5
    if contrast(colour, background) >= 3:
        assert readable(colour, background, 3.0) == colour


def test_looks_are_readable_distinct_and_dashed_for_the_privileged():
    privileges = {name: agent[4] for name, agent in AGENTS.items()}
    found = looks(privileges)
    for name, look in found.items():
        assert bool(look.dash) == bool(privileges[name])
        for line, text, background in zip(look.line, look.text, (LIGHT, DARK), strict=True):
            assert contrast(line, background) >= 3
            assert contrast(text, background) >= 4.5
    assert found["popular"].line == ("#000000", "#F2F2F2")  # no grey, which is the privileged's
    for scheme in (0, 1):
        seen = [(look.line[scheme], look.dash, look.marker) for look in found.values()]
        assert len(set(seen)) == len(seen)


def test_the_style_sheet_has_the_backgrounds_that_colours_are_made_for(html):
    grounds = re.findall(r"--ground: (#\w{6})", html)
    assert grounds == [LIGHT, DARK]


@pytest.mark.parametrize("scheme", [0, 1])
def test_the_style_sheets_texts_are_readable(html, scheme):
    values = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", part))
        for part in (html.split("@media screen")[0], html.split("@media screen")[1])
    ][scheme]
    for ink in ("ink", "faint", "accent"):
        for ground in ("ground", "raised", "lead-ground"):
            assert contrast(values[ink], values[ground]) >= 4.5, (ink, ground)


# The page


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what a test asks about."""

    VOID = {"meta", "link", "br", "img", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.found, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_is_well_formed_and_takes_nothing_from_elsewhere(html, three):
    reader = read(html)
    for _, attributes in reader.found:
        for key in ("src", "href"):
            link = attributes.get(key, "#")
            assert link.startswith(("#", "data:")) or re.fullmatch(
                r"[\w.-]+\.(csv|png|svg)", link
            )
    assert not re.search(r"@import|url\((?!#)", html.replace("url(#${clip})", ""))
    ids = [a["id"] for _, a in reader.found if "id" in a]
    assert len(set(ids)) == len(ids)
    anchors = {a["href"][1:] for t, a in reader.found if t == "a" and a["href"][0] == "#"}
    assert anchors <= set(ids)
    assert {slug(table.track.name) for table in three} <= anchors


def test_only_the_pages_own_script_may_run(html):
    policy = next(a["content"] for t, a in read(html).found if a.get("http-equiv"))
    script = re.findall(r"<script>(.*)</script>", html, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_names_are_harmless(three, html):
    evil = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
    track = Track(f"x {evil}", evil)
    [table] = tables(1, FEW, users=5, seeds=1, horizon=4)
    runs = Comparison(
        {evil if n == "linucb" else n: r for n, r in table.runs.runs.items()},
        {evil if n == "linucb" else n: p for n, p in table.runs.privileges.items()},
        table.runs.seeds,
    )
    standings = tuple(
        Standing(**(vars(s) | {"agent": evil if s.agent == "linucb" else s.agent}))
        for s in table.standings
    )
    bad = TrackTable(track, table.metrics, standings, runs, 1.0, 3.0, (evil,))
    text = render_page([bad], bank=tiny_bank(), facts={evil: evil, f"command: {evil}": evil})
    before, after = (read(t).found for t in (html, text))
    assert [t for t, _ in after].count("script") == [t for t, _ in before].count("script") == 2
    assert "img" not in {t for t, _ in after}
    assert not any(key.startswith("on") for _, a in after for key in a)
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert evil in {agent["name"] for agent in data["agents"]}


@given(st.text())
def test_embedded_json_is_that_json_without_markup(text):
    held = embedded({"x": text})
    assert json.loads(held) == {"x": text}
    assert not set("<>&\u2028\u2029") & set(held)


def test_nan_is_not_embedded():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded(NAN)


def rows_of(html, table):
    """Returns the rows of a track's table: privileged or not, tied or not, name."""
    section = html.split(f'<section class="track" id="{slug(table.track.name)}"')[1]
    bodies = section.split("</table>")[0].split("<tbody")[1:]
    found = []
    for body in bodies:
        for row in re.findall(r"<tr(.*?)</tr>", body, re.DOTALL):
            name = re.search(r'class="nm">(.*?)</span>', row).group(1)
            found.append(("privileged" in body.split(">")[0], 'class="tied"' in row, name, row))
    return found


def test_the_table_has_standings_in_order_with_ties_and_privileged_apart(html, three):
    for table in three:
        rows = rows_of(html, table)
        honest = [s for s in table.standings if not s.privileges]
        starred = [s for s in table.standings if s.privileges]
        names = [
            (s.agent.replace("<", "&lt;").replace(">", "&gt;"), s) for s in honest + starred
        ]
        assert [name for name, _ in names] == [row[2] for row in rows]
        for (_, standing), (privileged, tied, _, row) in zip(names, rows, strict=True):
            assert privileged == bool(standing.privileges)
            assert tied == standing.tied
            gain = standing.estimates["gain"]
            assert f">{number(gain.value, 3)} <" in row
            assert half_width(gain, 3) in row
            assert f">{rank_range(standing.ranks)}</td>" in row
            assert ("*</abbr>" in row) == privileged
    assert html.count("<small>yardstick<") == 3


def test_a_fixed_population_is_said_below_the_table(three):
    said = given_population(OURS["communities-v0"])
    assert "given that one population" in said
    assert [name for name, track in OURS.items() if given_population(track)] == [
        "communities-v0"
    ]
    fixed = replace(three[0], track=OURS["communities-v0"])
    html = render_page([fixed, three[1]], bank=tiny_bank(), facts={})
    assert html.count(said) == 1
    assert f"standard errors on. {said}</p>" in html


def test_the_overview_marks_leaders_and_shades_by_gain(html, three):
    table = html.split('class="overview"')[1].split("</table>")[0]
    cells = re.findall(
        r'<td class="heat( loss)?( tied)?" style="--g:([\d.]+)" data-tip="(.*?): \W?\d', table
    )
    assert len(cells) == 3 * len(AGENTS)
    assert sum(bool(tied) for _, tied, _, _ in cells) == sum(
        s.tied for t in three for s in t.standings
    )
    assert all(0 <= float(shade) <= 1 for _, _, shade, _ in cells)
    lossy = {tip.split(" on ")[0] for loss, _, _, tip in cells if loss}
    assert {"uniform", "best-responder"} <= lossy
    assert not lossy & {"oracle", "popular", "lora-taste"}


def test_commands_and_facts_are_shown(html):
    assert f"<code>{FACTS['command: report']}</code>" in html
    assert '<p class="what">report</p>' in html
    assert f"<dd>{FACTS['fingerprint']}</dd>" in html
    assert "<dt>command" not in html


@pytest.mark.parametrize(
    "regrets",
    [
        {"me": [[0.5]]},
        {"me": [[0.5, 0.25]], "popular": [[0.0, 0.0]]},
        {"popular": [[0.0], [0.0]], "uniform": [[0.0], [0.0]]},
    ],
)
def test_tiny_and_degenerate_tables_have_a_page(regrets):
    read(render_page([made(regrets)], bank=tiny_bank(), facts={}))


def test_no_table_or_the_same_track_twice_is_an_error(three):
    for given_tables in ([], [three[0], three[0]]):
        with pytest.raises(ValueError, match="a table each of one track or more"):
            render_page(given_tables, bank=tiny_bank(), facts={})


def test_without_jinja2_the_extra_is_named(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'personalllm-env\[benchmark\]'"):
        render_page(three[:1], bank=tiny_bank(), facts={})


# The bank's panels


def test_the_panels_agree_with_the_calibration_table(monkeypatch):
    from personalllm_env.benchmark import panels

    monkeypatch.setattr(panels, "_GROUPS", 1)
    monkeypatch.setattr(panels, "_PROMPTS", 150)
    found = bank_panels(load_bank("synthetic"))
    assert found["prompts"] == 300
    assert found["compared"] == 50
    assert found["within"] == sum(
        cell["ok"]
        for row in found["calibration"]
        for cell in [row["alone"], *row["cells"]]
        if cell is not None
    )
    measured = {row["statistic"]: row["cells"] for row in found["calibration"]}
    for i, law in enumerate(CONCENTRATIONS):
        own = found["laws"][law]
        for share in (50, 75, 95):
            cell = measured[f"top response has at most {share} % of votes, % of prompts"][i]
            at = found["grid"].index(share / 100)
            assert own["top"][at] == pytest.approx(cell["measured"], abs=0.01)
        for name, value in zip(("<= 2", "3", "4", "5", ">= 6"), own["winners"], strict=True):
            cell = measured[f"{name} responses have a vote, % of prompts"][i]
            assert value == pytest.approx(cell["measured"], abs=0.01)
        assert sum(own["wins"]) == pytest.approx(100, abs=0.1)
    assert found["published"]["wins"]["0.05"][2] == 26.2  # gpt-4o, in the paper's Figure 3


def test_a_bank_of_others_has_panels_and_a_sentence_in_place_of_the_calibration(html):
    found = bank_panels(tiny_bank())
    assert found["calibration"] is None
    assert found["published"]["wins"] == {}
    assert len(found["laws"]["0.05"]["wins"]) == tiny_bank().num_responses
    assert "There is no calibration table" in html
    assert "None published for these responders" in html


def test_prompts_are_sampled_from_both_splits():
    bank = load_bank("synthetic")
    rows = sample_prompts(bank)
    assert len(rows) == len(set(rows.tolist())) == 2000
    assert bank.is_test[rows].sum() == 1000
    with pytest.raises(Exception, match="calibration needs"):
        calibration_table(tiny_bank())


# Files


def test_the_leaderboard_csv_has_every_number(three):
    lines = list(csv.DictReader(io.StringIO(leaderboard_csv(three))))
    assert len(lines) == 3 * len(AGENTS)
    standing = next(s for s in three[1].standings if s.agent == "thompson")
    [line] = [x for x in lines if (x["track"], x["agent"]) == ("sparse-v0", standing.agent)]
    for key, estimate in standing.estimates.items():
        got = [float(line[name] or "nan") for name in (key, f"{key}_low", f"{key}_high")]
        np.testing.assert_allclose(got, estimate, rtol=1e-5)
    assert (int(line["best_rank"]), int(line["worst_rank"])) == standing.ranks
    tied = [x["agent"] for x in lines if x["track"] == "sparse-v0" and x["tied"] == "1"]
    assert tied == [s.agent for s in three[1].standings if s.tied]
    assert float(line["microseconds"]) == pytest.approx(standing.microseconds, rel=1e-5)
    clustered = next(x for x in lines if x["agent"] == "clustered")
    assert clustered["memory_mb"] == ""  # was not measured
    oracle = next(x for x in lines if x["agent"] == "oracle")
    assert (oracle["best_rank"], oracle["tied"]) == ("", "0")
    assert oracle["privileges"] == "scores weights"


def test_the_curves_csv_has_every_curve(three):
    lines = list(csv.DictReader(io.StringIO(curves_csv(three[:1]))))
    assert len(lines) == 12 * len(AGENTS)
    curves = learning_curves(three[0].runs)
    mine = [x for x in lines if x["agent"] == "linucb"]
    assert [int(x["interaction"]) for x in mine] == list(range(1, 13))
    for kind in ("gain", "score", "regret"):
        middle, half = curves[kind]["linucb"]
        np.testing.assert_allclose([float(x[kind]) for x in mine], middle, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose([float(x[f"{kind}_half"]) for x in mine], half, rtol=1e-5)
    [line] = csv.DictReader(io.StringIO(curves_csv([made({"me": [[0.5]]})])))
    assert line["gain"] == line["score"] == ""
    assert line["regret"] == "0.5"


def test_everything_is_written_and_the_page_comes_first(three, tmp_path):
    files = write_report(three[:2], tmp_path / "new" / "folder", bank=tiny_bank(), facts=FACTS)
    names = [path.name for path in files]
    assert names[:3] == ["report.html", "leaderboard.csv", "curves.csv"]
    figures = {f"{t.track.name}.{kind}" for t in three[:2] for kind in ("png", "svg")}
    assert set(names[3:]) == figures
    folder = files[0].parent
    assert {path.name for path in folder.iterdir()} == set(names)  # no scratch file is left
    links = {a.get("href", "#") for _, a in read(files[0].read_text(encoding="utf-8")).found}
    assert {link for link in links if link[0] not in "#d"} <= set(names)


def test_a_failure_leaves_the_page_as_it_was(three, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("before")

    def broken(*args, **kwargs):
        raise OSError("no room")

    monkeypatch.setattr(page, "plot_learning_curves", broken)
    with pytest.raises(OSError, match="no room"):
        write_report(three[:1], tmp_path, bank=tiny_bank(), facts=FACTS)
    assert (tmp_path / "report.html").read_text() == "before"


def test_the_page_stays_small():
    # Twelve tracks of twenty agents over 50 interactions: the issue allows 8 MB.
    rng = np.random.default_rng(0)
    runs = comparison(rng, tuple(AGENTS), seeds=1, users=5)
    [table] = tables(1, users=5, seeds=1)
    many = [
        TrackTable(track, table.metrics, table.standings, runs, 1.0, 3.0) for track in TRACKS
    ]
    assert len(render_page(many, bank=tiny_bank(), facts={}).encode()) < 2_000_000
