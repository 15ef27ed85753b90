"""Figures: their numbers by hand, their labels and colours, and that files are whole."""

import itertools
import os
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from personalllm_env import plots
from personalllm_env.curves import mean_curve, moving_average, normalised_curve
from personalllm_env.plots import line_styles, plot_learning_curves, plot_regret, spread
from personalllm_env.runner import Comparison, Run

DRAW = (plot_learning_curves, plot_regret)
NAMES = ("uniform", "popular", "linucb", "thompson", "oracle")


def comparison(names=NAMES, *, users=12, horizon=8, seeds=2, leave=False):
    """Agents that are better the later they are named; uniform far behind, oracle perfect."""
    rng = np.random.default_rng(0)
    best = rng.gamma(4.0, 0.3, size=(seeds, users, horizon)) + 1.0
    runs = {}
    for i, name in enumerate(names):
        level = {"uniform": 1.5, "oracle": 0.0}.get(name, 0.5 * 0.9**i)
        regret = level * rng.gamma(9.0, 1 / 9.0, size=best.shape)
        present = np.ones(best.shape, dtype=bool)
        if leave and name != "oracle":
            present[:, ::3, horizon // 2 :] = False
        utility = np.where(present, best - regret, 0.0)
        runs[name] = [
            Run(utility[s], best[s] - utility[s], present[s], 0.1) for s in range(seeds)
        ]
    privileges = {name: ("weights",) if "oracle" in name else () for name in names}
    return Comparison(runs, privileges, tuple(range(seeds)))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], plots._save

    def keep(figure, target):
        figures.append(figure)
        save(figure, target)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def texts(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def labels(figure):
    return [text for text in figure.axes[0].texts if text.get_gid() == "label"]


# Numbers


def test_normalised_score_by_hand():
    # Two users, two interactions. Means of agent - uniform: 2, 1; of oracle - uniform: 4, 2.
    uniform = np.array([[0.0, 1.0], [2.0, 1.0]])
    agent = np.array([[1.0, 1.0], [5.0, 3.0]])
    oracle = np.array([[4.0, 2.0], [6.0, 4.0]])
    curve = normalised_curve(agent, uniform, oracle, window=1)
    np.testing.assert_allclose(curve.middle, [0.5, 0.5])
    # Residuals agent - uniform - ratio * (oracle - uniform): -1, 1 and -.5, .5, over 4 and 2;
    # their sd is .25 * sqrt(2), and over sqrt(2) users .25.
    np.testing.assert_allclose(curve.half, [1.96 * 0.25, 1.96 * 0.25])


@pytest.mark.parametrize("horizon", [1, 2, 7, 50])
def test_the_oracle_scores_exactly_one_and_uniform_exactly_zero(horizon):
    rng = np.random.default_rng(1)
    uniform = rng.normal(size=(30, horizon))
    oracle = uniform + rng.gamma(2.0, size=(30, horizon))
    top, bottom = (normalised_curve(x, uniform, oracle) for x in (oracle, uniform))
    assert (top.middle == 1).all()
    assert (top.half == 0).all()
    assert (bottom.middle == 0).all()
    assert (bottom.half == 0).all()


def test_a_score_is_undefined_where_uniform_is_best():
    same = np.ones((3, 4))
    assert np.isnan(normalised_curve(same, same, same).middle).all()


def test_the_paired_band_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    # 4000 data sets of 80 users, laid out as interactions: one band each.
    gap = rng.gamma(4.0, size=(80, 4000))
    gained = 0.6 * gap + rng.normal(size=gap.shape)
    middle, half = normalised_curve(gained, np.zeros_like(gap), gap, window=1)
    assert 0.93 < (np.abs(middle - 0.6) < half).mean() < 0.965


def test_moving_average_by_hand():
    values = np.array([[0.0, 3.0, 6.0, 9.0, 12.0, 90.0]])
    # Nothing is borrowed from later at the start; at the end only the past is left.
    expected = [[0.0, 3.0, 6.0, 24.0, 29.25, 37.0]]
    np.testing.assert_allclose(moving_average(values, 5), expected)
    np.testing.assert_allclose(moving_average(values, 1), values)


def test_mean_curve_has_no_band_for_one_user():
    curve = mean_curve(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(curve.middle, [1.0, 2.0])
    assert np.isnan(curve.half).all()


# Labels


@given(
    wanted=st.lists(st.floats(-10, 10), max_size=20),
    gap=st.floats(0.01, 2),
    room=st.floats(0.5, 60),
)
def test_spread_places_keep_their_distance_order_and_frame(wanted, gap, room):
    low, high = -room / 2, room / 2
    wanted = [min(max(w, low), high) for w in wanted]
    places = spread(wanted, gap, low, high)
    assert len(places) == len(wanted)
    order = np.argsort(wanted, kind="stable")
    moved = np.array(places)[order]
    gap = min(gap, room / max(len(wanted) - 1, 1))
    assert (np.diff(moved) >= gap - 1e-9).all()
    assert (np.abs(moved) <= room / 2 + 1e-9).all()
    if (np.diff(np.array(wanted)[order]) >= gap).all():
        np.testing.assert_allclose(places, wanted, atol=1e-9)


@settings(max_examples=50)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_spread_moves_labels_as_little_as_can_be(wanted, seed):
    wanted, gap, num = np.sort(wanted), 0.3, len(wanted)
    cost = np.square(np.array(spread(wanted, gap, -3, 3)) - wanted).sum()
    other = np.random.default_rng(seed).normal(scale=0.2, size=(200, num)) + wanted
    other = np.maximum.accumulate(other - gap * np.arange(num), axis=1) + gap * np.arange(num)
    assert (np.square(other - wanted).sum(axis=1) >= cost - 1e-9).all()


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("num", [2, 10, 15, 30])
def test_labels_do_not_overlap_and_stay_on_the_page(draw, num, tmp_path, drawn):
    names = ["uniform", *(f"agent number {i}" for i in range(num - 1))]
    draw(comparison(names), tmp_path / "a.png")
    boxes = [text.get_window_extent() for text in labels(drawn[0])]
    assert len(boxes) == num
    for a, b in itertools.pairwise(sorted(boxes, key=lambda box: box.y0)):
        assert b.y0 >= a.y1 - 1  # a pixel, of descenders that few names have
    page = drawn[0].bbox
    assert all(box.x1 <= page.x1 and box.y1 <= page.y1 and box.y0 >= 0 for box in boxes)
    assert all(text.get_window_extent().x1 <= page.x1 for text in drawn[0].texts)


def test_long_names_and_titles_stay_on_the_page_and_dollars_are_not_mathematics(
    tmp_path, drawn
):
    names = ["uniform", "a very long name " * 4, "cost_$in$_dollars"]
    plot_regret(comparison(names), tmp_path / "a.png", title="A $long$ title " * 12)
    found = [*labels(drawn[0]), *drawn[0].texts]
    assert all(text.get_window_extent().x1 <= drawn[0].bbox.x1 for text in found)
    assert any("cost_$in$_dollars" in text.get_text() for text in found)
    assert not any(text.get_parse_math() for text in found)


def test_labels_say_who_is_privileged_and_who_left_the_frame(tmp_path, drawn):
    c = comparison()
    plot_learning_curves(c, tmp_path / "a.png")
    plot_regret(c, tmp_path / "b.png")
    score, regret = ({t.get_text() for t in labels(figure)} for figure in drawn)
    assert score == {"oracle *", "thompson", "linucb", "popular", "↓ uniform  0.00"}
    total = np.mean([run.regret.sum(axis=1).mean() for run in c.runs["uniform"]])
    assert f"↑ uniform  {total:.1f}" in regret
    assert "oracle *  0.00" in regret
    assert all("Dashed, *: sees" in texts(figure) for figure in drawn)


def test_those_outside_are_listed_in_their_order(tmp_path, drawn):
    c = comparison(["worse", *NAMES])
    for run in c.runs["worse"]:
        run.regret[:] = 9.0
    plot_regret(c, tmp_path / "a.png")
    top = sorted(labels(drawn[0]), key=lambda text: -text.get_position()[1])
    assert [text.get_text().split()[1] for text in top[:2]] == ["worse", "uniform"]


def test_no_label_reads_minus_zero(tmp_path, drawn):
    c = comparison([*NAMES, "as uniform"])
    for run, other in zip(c.runs["as uniform"], c.runs["uniform"], strict=True):
        run.regret[:] = other.regret + 0.001
        run.utility[:] = other.utility - 0.001
    plot_learning_curves(c, tmp_path / "a.png")
    assert "↓ as uniform  0.00" in {text.get_text() for text in labels(drawn[0])}


# Colours


def test_colours_are_the_same_in_both_figures_and_distinct(tmp_path, drawn):
    c = comparison([*NAMES[:-1], *(f"agent {i}" for i in range(11))])
    for draw in DRAW:
        draw(c, tmp_path / "a.png")
    of = [
        {t.get_text().split("  ")[0].strip("↑↓ "): t.get_color() for t in labels(f)}
        for f in drawn
    ]
    assert of[0] == of[1]
    assert len({tuple(colour) for colour in of[0].values()}) == 15


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
}


def lab(colours):
    """CIE Lab (D65) of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(colours, 0, 1) @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", SEEN)
def test_honest_colours_are_told_apart(sight):
    names = ["uniform", "popular", *(f"agent {i}" for i in range(10))]
    styles = line_styles(dict.fromkeys(names, ()))
    srgb = np.array([to_rgb(styles[name]["color"]) for name in names])
    seen = lab(
        np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ SEEN[sight].T
    )
    for i, j in itertools.combinations(range(len(names)), 2):
        assert np.linalg.norm(seen[i] - seen[j]) > 15, (names[i], names[j])


def test_privileged_lines_are_dashed_and_grey_and_honest_ones_are_neither():
    styles = line_styles({"a": (), "b": ("scores",), "c": ("weights",), "popular": ()})
    assert [("dashes" in style) for style in styles.values()] == [False, True, True, False]
    for name in "bc":
        assert len(set(to_rgb(styles[name]["color"]))) == 1
    assert styles["b"]["dashes"] != styles["c"]["dashes"]


def test_popular_and_uniform_keep_their_colours_whoever_takes_part():
    alone = line_styles({"uniform": (), "popular": ()})
    among = line_styles({"x": (), "popular": (), "y": (), "uniform": ()})
    for name in alone:
        assert alone[name]["color"] == among[name]["color"]


# Files


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizon": 1},
        {"horizon": 2},
        {"seeds": 1},
        {"users": 1, "seeds": 1},
        {"users": 1, "seeds": 1, "horizon": 1},
        {"leave": True},
        {"names": ("popular",)},
        {"names": ("uniform",)},
        {"names": ("uniform", "oracle")},
    ],
    ids=str,
)
def test_any_comparison_becomes_a_whole_png(draw, settings, tmp_path):
    path = tmp_path / "new" / "figure.png"
    draw(comparison(**settings), path, title="A title")
    image = imread(path)
    assert image.shape[1] == 1200
    assert np.ptp(image[..., :3]) > 0.8  # not blank
    assert os.listdir(path.parent) == ["figure.png"]


@pytest.mark.parametrize("draw", DRAW)
def test_svg(draw, tmp_path):
    draw(comparison(), tmp_path / "figure.SVG")
    assert ET.parse(tmp_path / "figure.SVG").getroot().tag.endswith("svg")


@pytest.mark.parametrize("draw", DRAW)
def test_nothing_half_written_is_left_by_a_failure(draw, tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("the old one")

    def full(*args, **settings):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        draw(comparison(), path)
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="disk full"):
        draw(comparison(), path)
    assert os.listdir(tmp_path) == ["figure.png"]
    assert path.read_text() == "the old one"


@pytest.mark.parametrize("draw", DRAW)
def test_what_cannot_be_drawn_is_refused(draw, tmp_path):
    with pytest.raises(ValueError, match=r"\.png or \.svg, got 'figure\.gif'"):
        draw(comparison(), tmp_path / "figure.gif")
    with pytest.raises(ValueError, match="one agent or more"):
        draw(Comparison({}, {}, ()), tmp_path / "figure.png")
    assert not os.listdir(tmp_path)


def test_the_words_say_what_is_shown(tmp_path, drawn):
    path = tmp_path / "a.png"
    plot_learning_curves(comparison(), path)
    plot_learning_curves(comparison(("popular", "linucb")), path)
    plot_regret(comparison(users=1, seeds=1), path)
    plot_regret(comparison(leave=True), path, title="Who left")
    scored, plain, alone, left = map(texts, drawn)
    assert "normalised score per interaction" in scored
    assert "24 users (2 seeds), moving average of 5 interactions; bands: 95 %" in scored
    assert "left" not in scored
    assert "mean utility per interaction (not normalised" in plain
    assert "Dashed" not in plain
    assert "1 user; one user has no bands" in alone
    assert "Users who left count on, with utility 0" in left
    assert left.startswith("Who left")


def test_no_global_state_is_touched(tmp_path):
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    plot_regret(comparison(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs
