"""From runs to numbers and columns. Whether intervals cover is in test_estimates."""

import numpy as np
import pytest
from pyarrow import parquet

from personalllm_env.agents.linear import Popular
from personalllm_env.agents.privileged import Oracle
from personalllm_env.agents.simple import Uniform
from personalllm_env.report import (
    estimates,
    one_minus,
    pair,
    share_of_regret,
    summarise,
    write_columns,
)
from personalllm_env.runner import Comparison, Entrant, Run, compare
from personalllm_env.testing import tiny_tasks


def a_run(utility, best, present=None, seconds=0.0):
    utility, best = np.array(utility, float), np.array(best, float)
    there = np.ones(utility.shape, bool) if present is None else np.array(present, bool)
    return Run(utility, best - utility, there, seconds)


def comparison(privileges=None, **runs):
    runs = {name: r if isinstance(r, list) else [r] for name, r in runs.items()}
    marks = {name: (privileges or {}).get(name, ()) for name in runs}
    return Comparison(runs, marks, tuple(range(len(next(iter(runs.values()))))))


BEST = [[4, 4], [2, 2]]
BY_HAND = comparison(
    {"oracle": ("scores", "weights")},
    uniform=a_run([[0, 0], [0, 0]], BEST),  # total 0 on average
    popular=a_run([[4, 2], [1, 1]], BEST),  # total 4
    agent=a_run([[4, 3], [2, 0]], BEST, seconds=8e-6),  # total 4.5; the oracle 6
    oracle=a_run(BEST, BEST),
)


def test_numbers_by_hand():
    rows = {row.agent: row for row in summarise(BY_HAND)}
    assert list(rows) == ["uniform", "popular", "agent", "oracle"]
    agent = rows["agent"]
    assert agent.regret.value == pytest.approx(1.5)
    assert agent.score.value == pytest.approx(4.5 / 6)
    assert agent.gain.value == pytest.approx(0.5 / 2)
    assert agent.best_picks == pytest.approx(2 / 4)
    assert agent.microseconds == pytest.approx(2.0)
    assert rows["uniform"].gain.value == pytest.approx(-4 / 2)
    assert rows["oracle"].privileges == ("scores", "weights")
    assert agent.privileges == ()
    for estimate in (agent.regret, agent.score, agent.gain):
        assert estimate.low <= estimate.value <= estimate.high


def test_seeds_of_one_user_are_pooled():
    """Two seeds of one user each are what one seed of two users is."""
    split = {
        name: [Run(*(x[i : i + 1] for x in runs[0][:3]), runs[0].seconds / 2) for i in range(2)]
        for name, runs in BY_HAND.runs.items()
    }
    assert summarise(comparison(BY_HAND.privileges, **split)) == summarise(BY_HAND)
    paired = pair(comparison(**split))
    assert paired.names == ("uniform", "popular", "agent", "oracle")
    np.testing.assert_array_equal(paired.regret[2], [[0, 1], [0, 2]])
    np.testing.assert_array_equal(paired.reference("popular"), [[0, 2], [1, 1]])


def test_what_seeds_disagree_on_widens_intervals():
    rng, best = np.random.default_rng(0), np.full((100, 5), 4.0)
    names = [f"agent {i}" for i in range(6)]
    regret = {name: rng.gamma(2.0, size=(3, 100, 5)) for name in names}

    def widths(moved):
        runs = {
            n: [a_run(best - r[s] - moved[s], best) for s in range(3)]
            for n, r in regret.items()
        }
        return [row.regret.high - row.regret.low for row in summarise(comparison(**runs))]

    same, differ = widths([1.0, 1.0, 1.0]), widths([0.0, 1.0, 2.0])
    assert np.divide(differ, same).min() > 2


def test_agents_must_have_met_the_same_users():
    one, two = a_run(BEST, BEST), a_run(BEST[:1], BEST[:1])
    with pytest.raises(
        ValueError, match=r"same users.*'a' has.*\[\(2, 2\)\].*'b' \[\(1, 2\)\]"
    ):
        summarise(comparison(a=one, b=two))
    with pytest.raises(ValueError, match="same users"):
        summarise(comparison(a=[one, one], b=one))
    with pytest.raises(ValueError, match="one agent and one seed or more"):
        summarise(Comparison({}, {}, ()))


def test_as_many_users_are_not_the_same_users():
    one, other = a_run(BEST, BEST), a_run([[4, 4], [2, 1]], [[4, 4], [2, 2.001]])
    with pytest.raises(ValueError, match=r"same.*user 1 .*interaction 2 is 2 with 'a', 2\.001"):
        pair(comparison(a=one, b=other))
    # Rounding, as of results in single precision, is no difference.
    near = a_run([[4, 4], [2, 1]], [[4, 4], [2, 2.00001]])
    pair(comparison(a=one, b=near))
    # Nor is it one for who has left: to be served nothing is then an option.
    gone = a_run([[4, 4], [2, 0]], [[4, 4], [2, 0]], present=[[1, 1], [1, 0]])
    pair(comparison(a=one, b=gone))
    pair(comparison(b=gone, a=one))
    with pytest.raises(ValueError, match=r"is 2 with 'a', 2\.001 with 'c'"):
        pair(comparison(b=gone, a=one, c=other))


@pytest.mark.parametrize("kind", ["reward", "duel", "silence", "leaving"])
def test_references_are_exact(kind):
    """Not within a tolerance: 1 is the oracle's score, 0 uniform's, 0 popular's gain."""
    references = {"uniform": Uniform, "popular": Popular, "oracle": Oracle}
    result = compare(
        [Entrant(name, c, {}) for name, c in references.items()],
        tiny_tasks()[kind],
        seeds=(0, 1),
        num_users=20,
        history_users=20,
    )
    rows = {row.agent: row for row in summarise(result)}
    assert rows["uniform"].score == (0.0, 0.0, 0.0)
    assert rows["popular"].gain == (0.0, 0.0, 0.0)
    if kind != "leaving":  # there even the oracle loses users, served nothing from then on
        assert rows["oracle"].score == rows["oracle"].gain == (1.0, 1.0, 1.0)
        assert rows["oracle"].regret == (0.0, 0.0, 0.0)
    assert rows["oracle"].best_picks == 1
    assert 0 < rows["popular"].score.value < 1


def test_best_picks_are_counted_while_the_user_is_there():
    """Serving nobody is no pick, even where the best response would have been below 0."""
    gone = a_run([[1, 0, 0, 0]], [[1, 3, -1, -2]], present=[[1, 1, 0, 0]])
    (row,) = summarise(comparison(agent=gone))
    assert row.best_picks == pytest.approx(1 / 2)


def test_without_references_there_is_no_scale():
    (row,) = summarise(comparison(agent=BY_HAND.runs["agent"]))
    assert row.regret.value == pytest.approx(1.5)
    assert np.isnan([*row.score, *row.gain]).all()
    best = a_run(BEST, BEST)
    rows = summarise(comparison(uniform=best, popular=best, oracle=best))
    assert np.isnan([x for row in rows for x in (*row.score, *row.gain)]).all()


def test_intervals_of_very_few_users():
    one = summarise(comparison(uniform=a_run([[0]], [[2]]), agent=a_run([[1]], [[2]])))[1].score
    assert one.value == 0.5
    assert np.isnan([one.low, one.high]).all()
    # Resamples of the first user alone have no gap to be a share of: no warning, no interval.
    ends = [[3], [2]]
    two = comparison(uniform=a_run([[3], [0]], ends), agent=a_run([[3], [1]], ends))
    score = summarise(two)[1].score
    assert score.value == 0.5
    assert np.isnan([score.low, score.high]).all()


def test_intervals_repeat_themselves():
    assert summarise(BY_HAND) == summarise(BY_HAND)


def test_a_share_turned_round_keeps_its_interval():
    paired = pair(BY_HAND)
    shares = share_of_regret(paired, "uniform", slice(1, 2))
    for share, score in zip(estimates(paired, shares), one_minus(paired, shares), strict=True):
        assert score == (1 - share.value, 1 - share.high, 1 - share.low)
    assert shares.value[2] == pytest.approx(3 / 6)


# --- columns ----------------------------------------------------------------------------------


def test_columns_round_trip(tmp_path):
    rng = np.random.default_rng(0)

    def some():
        present = rng.random((3, 4)) < 0.7
        return Run(rng.standard_normal((3, 4)), rng.random((3, 4)), present, 0.0)

    written = Comparison(
        {"a": [some(), some()], "b@x=1": [some(), some()]}, {"a": (), "b@x=1": ()}, (5, 9)
    )
    path = tmp_path / "new" / "folder" / "columns.parquet"
    write_columns(written, path)
    table = parquet.read_table(path)
    assert table.column_names == [
        "agent",
        "seed",
        "user",
        "interaction",
        "utility",
        "regret",
        "present",
    ]
    lines = table.to_pylist()
    assert len(lines) == 2 * 2 * 3 * 4
    for line in lines:
        run = written.runs[line["agent"]][written.seeds.index(line["seed"])]
        where = line["user"], line["interaction"] - 1
        for name in ("utility", "regret", "present"):
            assert line[name] == getattr(run, name)[where]
    keys = {(x["agent"], x["seed"], x["user"], x["interaction"]) for x in lines}
    assert len(keys) == len(lines)


def test_columns_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "columns.parquet"
    write_columns(BY_HAND, path)
    before = path.read_bytes()

    def fails(table, where):
        with open(where, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(parquet, "write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        write_columns(comparison(agent=a_run([[0]], [[1]])), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_columns_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    write_columns(BY_HAND, tmp_path / "columns.parquet")
    modes = [(tmp_path / name).stat().st_mode for name in ("columns.parquet", "other")]
    assert modes[0] == modes[1]
