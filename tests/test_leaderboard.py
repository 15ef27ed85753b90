"""The table of a track: by hand, its order and ties, and what is left out."""

import numpy as np
import pytest

from personalllm_env.agents.linear import Popular
from personalllm_env.agents.privileged import Oracle
from personalllm_env.agents.simple import Uniform
from personalllm_env.benchmark.leaderboard import track_table, window_after
from personalllm_env.benchmark.ties import Verdict
from personalllm_env.benchmark.track import Track
from personalllm_env.runner import Comparison, Entrant, Run, compare
from personalllm_env.testing import tiny_tasks

TRACK = Track("made-up-v0", "And if?", reported=(1, 5, 20))


def a_run(regret, **more):
    regret = np.asarray(regret, float)
    return Run(-regret, regret, np.ones(regret.shape, bool), **{"seconds": 0.0, **more})


def comparison(privileges=None, **regrets):
    """Per agent a list of one array (B, T) of regret per seed."""
    runs = {name: [a_run(r) for r in seeds] for name, seeds in regrets.items()}
    marks = {name: (privileges or {}).get(name, ()) for name in runs}
    return Comparison(runs, marks, tuple(range(len(next(iter(runs.values()))))))


def drawn(levels, *, seeds=3, users=40, horizon=8, spread=0.1):
    """Regrets about these levels, per agent's name, of users who have a level of their own."""
    rng = np.random.default_rng(0)
    base = rng.gamma(9.0, 1 / 9, size=(seeds, users, 1))
    return {
        name: list(base * level * rng.gamma(1 / spread, spread, size=(seeds, users, horizon)))
        for name, level in levels.items()
    }


def by_name(table):
    return {standing.agent: standing for standing in table.standings}


# Two users, two interactions.
BY_HAND = comparison(
    {"oracle": ("scores", "weights")},
    uniform=[[[4, 4], [2, 2]]],
    popular=[[[0, 2], [1, 1]]],
    agent=[[[0, 1], [0, 2]]],
    oracle=[[[0, 0], [0, 0]]],
)


def test_numbers_by_hand():
    table = track_table(TRACK, BY_HAND, missing=("absent",))
    assert [metric.key for metric in table.metrics] == [
        "gain",
        "score",
        "regret",
        "area",
        "gain_1",
        "worst_tenth",
        "best_picks",
    ]
    found = by_name(table)
    assert list(found) == ["oracle", "agent", "popular", "uniform"]
    numbers = {key: x.value for key, x in found["agent"].estimates.items()}
    expected = {
        "gain": 1 - 3 / 4,
        "score": 1 - 3 / 12,
        "regret": 1.5,
        "area": 1 - (0 / 6 + 3 / 6) / 2,
        "gain_1": 1 - 3 / 3,  # at the second interaction
        "worst_tenth": 2 / 2,
        "best_picks": 0.5,
    }
    assert numbers == pytest.approx(expected)
    assert (table.track, table.runs, table.missing) == (TRACK, BY_HAND, ("absent",))
    assert table.design_effect == 1  # of one seed nothing is known
    for metric in table.metrics:
        assert metric.meaning.endswith(".")
    lower = [metric.key for metric in table.metrics if not metric.higher_is_better]
    assert lower == ["regret", "worst_tenth"]


def test_references_are_exact():
    classes = {"uniform": Uniform, "popular": Popular, "oracle": Oracle}
    entrants = [Entrant(name, c, {}) for name, c in classes.items()]
    result = compare(entrants, tiny_tasks()["reward"], num_users=20, history_users=20)
    table = track_table(TRACK, result)
    found = by_name(table)
    assert list(found) == ["oracle", "popular", "uniform"]
    for key in ("gain", "score", "area", "gain_1", "gain_5", "best_picks"):
        assert found["oracle"].estimates[key] == (1, 1, 1)
    for key in ("regret", "worst_tenth"):
        assert found["oracle"].estimates[key] == (0, 0, 0)
    for key in ("gain", "gain_1", "gain_5"):
        assert found["popular"].estimates[key] == (0, 0, 0)
    for key in ("score", "area"):
        assert found["uniform"].estimates[key] == (0, 0, 0)
    score = found["popular"].estimates["score"]
    assert 0 < score.low < score.value < score.high < 1


@pytest.mark.parametrize(
    ("number", "horizon", "window"),
    [(1, 50, (1, 2)), (5, 50, (5, 7)), (20, 50, (20, 25)), (20, 22, (20, 22))],
)
def test_windows(number, horizon, window):
    found = window_after(number, horizon)
    assert (found.start, found.stop) == window


def test_gains_are_reported_within_the_horizon():
    levels = {"popular": 1.0, "agent": 0.8}
    eight, six = (track_table(TRACK, comparison(**drawn(levels, horizon=t))) for t in (6, 5))
    assert {"gain_1", "gain_5"} < {metric.key for metric in eight.metrics}
    assert "gain_20" not in {metric.key for metric in eight.metrics}
    assert "gain_5" not in {metric.key for metric in six.metrics}
    meanings = {metric.key: metric.meaning for metric in eight.metrics}
    assert meanings["gain_1"] == "Personalisation gain in interaction 2."
    assert meanings["gain_5"] == "Personalisation gain in interaction 6."


def test_ranks_and_ties():
    levels = {"uniform": 3.0, "popular": 1.0, "a": 0.5, "b": 0.5, "oracle": 0.0, "seer": 0.1}
    marks = {"oracle": ("scores",), "seer": ("weights",)}
    table = track_table(TRACK, comparison(marks, **drawn(levels)))
    found = by_name(table)
    assert list(found)[:2] == ["oracle", "seer"]
    assert {name: (s.ranks, s.tied) for name, s in found.items()} == {
        "oracle": (None, False),
        "seer": (None, False),
        "a": ((1, 2), True),
        "b": ((1, 2), True),
        "popular": ((3, 3), False),
        "uniform": ((4, 4), False),
    }
    gains = [standing.estimates["gain"].value for standing in table.standings]
    assert gains == sorted(gains, reverse=True)
    assert 2 < table.critical < 6


def test_ranks_by_hand():
    """The first beats the third; the second is tied with both."""
    better = np.zeros((3, 3), bool)
    better[0, 2] = True
    verdict = Verdict(better, 3.0)
    assert [verdict.ranks(i) for i in range(3)] == [(1, 2), (1, 3), (2, 3)]


def test_privileged_agents_do_not_change_who_is_tied():
    levels = {"uniform": 3.0, "popular": 1.0, "a": 0.5, "b": 0.48}
    runs = drawn(levels)
    alone = track_table(TRACK, comparison(**runs))
    among = track_table(TRACK, comparison({"seer": ("weights",)}, **runs, seer=runs["b"]))
    assert among.critical == alone.critical
    for name, standing in by_name(alone).items():
        assert by_name(among)[name].ranks == standing.ranks


def test_a_design_effect_is_of_several_seeds():
    """Seeds that move all agents against popular alike."""
    runs = drawn({"popular": 1.0, "a": 0.8, "b": 0.9, "c": 0.7})
    still = track_table(TRACK, comparison(**runs))
    moved = {
        name: [r * (1 if name == "popular" else 0.8 + 0.2 * s) for s, r in enumerate(seeds)]
        for name, seeds in runs.items()
    }
    after = track_table(TRACK, comparison(**moved))
    assert 1 <= still.design_effect < 4
    assert after.design_effect > 20
    widths = [np.diff(by_name(table)["a"].estimates["gain"][1:])[0] for table in (still, after)]
    assert widths[1] > 3 * widths[0]


def test_without_references_there_is_no_scale_but_an_order():
    table = track_table(TRACK, comparison(**drawn({"b": 1.0, "a": 0.5})))
    assert [(s.agent, s.ranks) for s in table.standings] == [("a", (1, 1)), ("b", (2, 2))]
    for standing in table.standings:
        for key in ("gain", "score", "area", "gain_1"):
            assert np.isnan(standing.estimates[key]).all()
        assert np.isfinite(standing.estimates["regret"]).all()
    assert table.design_effect == 1


def test_where_popular_is_the_oracle_there_is_no_gain():
    regrets = drawn({"uniform": 1.0, "popular": 0.0, "a": 0.5})
    table = track_table(TRACK, comparison(**regrets))
    assert np.isnan(by_name(table)["a"].estimates["gain"]).all()
    assert by_name(table)["popular"].ranks == (1, 1)


@pytest.mark.parametrize(("seeds", "users"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_very_few_users(seeds, users):
    table = track_table(
        TRACK, comparison(**drawn({"popular": 1.0, "a": 0.9}, seeds=seeds, users=users))
    )
    assert {standing.tied for standing in table.standings} == {True}
    assert {standing.ranks for standing in table.standings} == {(1, 2)}


def test_one_agent_leads_and_without_popular_nobody_does():
    (only,) = track_table(TRACK, comparison(**drawn({"popular": 1.0}))).standings
    assert (only.ranks, only.tied) == ((1, 1), True)
    (only,) = track_table(TRACK, comparison(**drawn({"a": 1.0}))).standings
    assert (only.ranks, only.tied) == ((1, 1), False)
    marks = {"a": ("weights",)}
    (seer,) = track_table(TRACK, comparison(marks, **drawn({"a": 1.0}))).standings
    assert (seer.ranks, seer.tied) == (None, False)


def test_costs():
    regret = np.ones((2, 4))
    runs = [
        a_run(regret, seconds=8e-6, fit_seconds=1.0, memory_mb=3.0),
        a_run(regret, seconds=0.0, fit_seconds=2.0, memory_mb=float("nan")),
    ]
    measured = Comparison({"a": runs, "b": [a_run(regret)] * 2}, {"a": (), "b": ()}, (0, 1))
    found = by_name(track_table(TRACK, measured))
    assert found["a"].microseconds == pytest.approx(0.5)
    assert found["a"].fit_seconds == 1.5
    assert found["a"].memory_mb == 3.0
    assert np.isnan(found["b"].memory_mb)


def test_agents_must_have_met_the_same_users():
    different = comparison(a=[np.ones((2, 3))], b=[np.ones((3, 3))])
    with pytest.raises(ValueError, match="same users"):
        track_table(TRACK, different)
