"""Figures of a comparison: how good each interaction is, and what regret adds up to.

One look for both: lines are labelled at their ends, not in a legend; an agent keeps its colour
from figure to figure; privileged agents are dashed and grey; what would squeeze everybody else
into a corner leaves the frame and is named where it left.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from personalllm_env.curves import WINDOW, Curve, mean_curve, moving_average, normalised_curve
from personalllm_env.files import written_whole
from personalllm_env.runner import Comparison, Run

_FAR = 2.0  # times the regret of the next better agent, and a line is let out of the frame
_KNOWN = {"popular": "#000000", "uniform": "#7A5230"}
# Okabe and Ito's first; the others keep apart from them and from each other, also in simulated
# deuteranopia and protanopia, and carry markers.
_SAFE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
_MORE = ("#3B1FA3", "#99BB66", "#882255", "#7766FF", "#004455", "#AA8866", "#332200", "#FF6FB5")
_GREYS = ("#8A8A8A", "#6A6A6A")
_DASHES = (3.5, 1.5), (1.2, 1.2), (7, 1.5, 1.2, 1.5), (7, 2)
_INK, _FAINT, _LINE = "#222222", "#5A5A5A", "#B0B0B0"
_WIDTH, _SIZE, _GAP = 7.5, 8.5, 12.0  # inches; points; points between labels


def plot_learning_curves(
    comparison: Comparison, *paths: str | os.PathLike[str], title: str | None = None
) -> None:
    """Draws the normalised score per interaction, and writes it whole or not at all.

    Without an agent called ``uniform`` it is the mean utility instead, and the axis says so.

    Args:
        comparison: One agent or more; up to 15 stay readable.
        paths: Where to; ``.png`` or ``.svg``, or both of one drawing.
        title: What was compared.
    """
    names = _near(comparison)
    utility = {name: _stack(runs, "utility") for name, runs in comparison.runs.items()}
    best = {name: utility[name] + _stack(comparison.runs[name], "regret") for name in utility}
    if (floor := utility.get("uniform")) is not None:
        curves = {n: normalised_curve(utility[n], floor, best[n]) for n in utility}
        ceiling = np.ones_like(curves["uniform"].middle)
        axis = "normalised score per interaction"
        what = "0 = uniform, 1 = the best response. Ratio of means"
    else:
        curves = {n: mean_curve(moving_average(utility[n])) for n in utility}
        ceiling = mean_curve(moving_average(best[names[0]])).middle
        axis = "mean utility per interaction (not normalised: nobody is called uniform)"
        what = "Thin line: the best response. Means"
    note = _caption(comparison, what, f", moving average of {WINDOW} interactions")
    near = [np.minimum(curves[name].middle, ceiling) for name in names]
    high, low = float(ceiling.max()), float(np.nanmin([ceiling, *near]))
    losses = [float(np.nanmean(ceiling - x)) for x in near if not np.isnan(x).all()]
    low = max(low, high - 2.5 * max(losses, default=1.0))  # an early dip may leave the frame
    room = max(high - low, 1e-3)
    limits = (low - 0.06 * room, high + 0.04 * room)
    _draw(comparison, curves, paths, title, (axis, note), limits, ceiling)


def plot_regret(
    comparison: Comparison, *paths: str | os.PathLike[str], title: str | None = None
) -> None:
    """Draws cumulative regret per user; arguments as for ``plot_learning_curves``."""
    names = _near(comparison)
    curves = {
        name: mean_curve(_stack(runs, "regret").cumsum(axis=1))
        for name, runs in comparison.runs.items()
    }
    top = max(float((curves[n].middle + np.nan_to_num(curves[n].half)).max()) for n in names)
    what = "Utility of the best response minus that of the one shown, summed. Means"
    words = ("cumulative regret per user", _caption(comparison, what))
    _draw(comparison, curves, paths, title, words, (0.0, 1.04 * max(top, 1e-3)))


def spread(wanted: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Returns places at least ``gap`` apart in [low, high], as near as can be to those wanted.

    The least-squares answer (isotonic regression by pooling neighbours), in the order given,
    equal wishes staying in it. Where there is no room for the gap it is as wide as it can be.
    """
    places = np.asarray(list(wanted), dtype=float)
    num = len(places)
    if num == 0:
        return []
    gap = min(gap, (high - low) / max(num - 1, 1))
    order, steps = np.argsort(places, kind="stable"), gap * np.arange(num)
    pools: list[tuple[float, int]] = []  # mean, size
    for value in places[order] - steps:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((m * a + n * b) / (m + n), m + n)]
    level = np.repeat([mean for mean, _ in pools], [size for _, size in pools])
    out = np.empty(num)
    out[order] = np.clip(level, low, max(low, high - steps[-1])) + steps
    return [float(place) for place in out]


def line_styles(privileges: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    """Returns matplotlib's settings per agent: functions of who takes part, in which order."""
    styles: dict[str, dict[str, Any]] = {}
    taken = greys = 0
    for name, privileged in privileges.items():
        style: dict[str, Any] = {"lw": 1.9, "zorder": 3.0, "solid_capstyle": "round"}
        if privileged:
            style |= {"color": _GREYS[greys % 2], "dashes": _DASHES[greys % 4]}
            style |= {"lw": 1.4, "zorder": 2.5}
            greys += 1
        elif name in _KNOWN:
            style["color"] = _KNOWN[name]
            style["lw"] = 2.8 if name == "uniform" else 1.9  # seen behind what is no better
        else:
            style["color"] = (_SAFE + _MORE)[taken % (len(_SAFE) + len(_MORE))]
            if taken >= len(_SAFE):
                style |= {"marker": "os^Dv"[taken % 5], "ms": 4.5, "mec": "w"}
                style["markevery"] = 0.12  # of the figure's diagonal
            taken += 1
        styles[name] = style
    return styles


def _stack(runs: list[Run], column: str) -> Float[np.ndarray, "N T"]:
    return np.concatenate([getattr(run, column) for run in runs])


def _near(comparison: Comparison) -> list[str]:
    """Returns who sets the scale: all up to a jump in regret, and at least half of them."""
    totals = {n: float(_stack(r, "regret").sum(1).mean()) for n, r in comparison.runs.items()}
    if not totals:
        raise ValueError("a figure needs one agent or more, the comparison has none")
    names = sorted(totals, key=lambda name: totals[name])
    for i in range(max(2, (len(names) + 1) // 2), len(names)):
        if totals[names[i]] > _FAR * totals[names[i - 1]] > 0:
            return names[:i]
    return names


def _caption(comparison: Comparison, what: str, smooth: str = "") -> str:
    runs = [run for runs in comparison.runs.values() for run in runs]
    num = sum(len(run.utility) for run in next(iter(comparison.runs.values())))
    seeds = f" ({len(comparison.seeds)} seeds)" if len(comparison.seeds) > 1 else ""
    text = f"{what} over {num} user{'s' * (num > 1)}{seeds}{smooth}; "
    text += (
        "bands: 95 % over users, who are the same for all agents."
        if num > 1
        else "one user has no bands."
    )
    if not all(run.present.all() for run in runs):
        text += " Users who left count on, with utility 0."
    if any(comparison.privileges.values()):
        text += " Dashed, *: sees what no real system could."
    return text


def _draw(
    comparison: Comparison,
    curves: Mapping[str, Curve],
    paths: Iterable[str | os.PathLike[str]],
    title: str | None,
    words: tuple[str, str],
    limits: tuple[float, float],
    ceiling: Float[np.ndarray, "T"] | None = None,
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    notes = textwrap.wrap(words[1], 128)
    heading = textwrap.wrap(title or "", 68)
    below, above = 0.58 + 0.15 * len(notes), 0.42 + 0.21 * len(heading)
    height = max(4.7, above + below + len(curves) * _GAP / 72)
    figure = Figure(figsize=(_WIDTH, height), dpi=160)
    axes = figure.add_axes((0.1, below / height, 0.7, 1 - (above + below) / height))
    t = np.arange(1, len(next(iter(curves.values())).middle) + 1)
    if ceiling is not None:
        axes.plot(t, ceiling, color=_LINE, lw=0.8, zorder=1)
    styles = line_styles({name: comparison.privileges[name] for name in curves})
    for name, (middle, half) in curves.items():
        dots = {} if len(t) > 1 else {"marker": "o", "mec": "w"}
        axes.plot(t, middle, **(styles[name] | dots))
        shade = {"color": styles[name]["color"], "zorder": 2, "alpha": 0.15}
        axes.fill_between(t, middle - half, middle + half, lw=0 if len(t) > 1 else 1.2, **shade)
    axes.set(xlim=(1 if len(t) > 1 else 0.9, max(len(t), 1.01)), ylim=limits)
    ticks = MaxNLocator(6, integer=True).tick_values(1, len(t))
    axes.set_xticks([1, *(x for x in ticks if 1 + len(t) / 20 < x <= len(t))])
    axes.set_xlabel("interaction", fontsize=_SIZE + 0.5, color=_INK)
    axes.grid(axis="y", color="#E9E9E9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(labelsize=_SIZE, labelcolor=_FAINT, color=_LINE, length=3)
    widest = _label(axes, comparison, curves, styles, values=ceiling is None)
    box = axes.get_position()
    axes.set_position((0.075, box.y0, 0.875 - widest, box.height))
    note = {"linespacing": 1.3, "color": _FAINT}
    for text, y, size, more in (
        ("\n".join(heading), height - 0.1, 11.5, {"va": "top", "weight": "bold"}),
        (words[0], height - above + 0.12, _SIZE + 0.5, {}),
        ("\n".join(notes), 0.1, _SIZE - 1, note),
    ):
        drawn = figure.text(0.016, y / height, text, size=size, color=_INK)
        drawn.set(parse_math=False, **more)
    for path in paths:
        _save(figure, Path(path))


def _label(
    axes: Any,
    comparison: Comparison,
    curves: Mapping[str, Curve],
    styles: Mapping[str, dict[str, Any]],
    *,
    values: bool,
) -> float:
    """Names the lines at their ends; returns the widest name as a share of the figure."""
    from matplotlib.colors import to_rgb

    (low, high), right = axes.get_ylim(), axes.get_yaxis_transform()
    ends = {name: float(curve.middle[-1]) for name, curve in curves.items()}
    ends = dict(sorted(ends.items(), key=lambda item: item[1]))  # those outside in order too
    figure, widest = axes.figure, 0.0
    gap = _GAP / 72 / (figure.get_figheight() * axes.get_position().height) * (high - low)
    wanted = [low if np.isnan(end) else min(max(end, low), high) for end in ends.values()]
    for (name, end), place in zip(ends.items(), spread(wanted, gap, low, high), strict=True):
        colour, privileged = styles[name]["color"], bool(comparison.privileges[name])
        words = name if len(name) <= 32 else name[:31] + "…"
        words += " *" * privileged
        if values or not low <= end <= high:
            words += f"  {round(end, 2) + 0.0:.{1 if abs(end) >= 10 else 2}f}"
        if low <= end <= high:
            start = 1.0 if len(curves[name].middle) > 1 else 0.91
            link = axes.plot([start, 1.03], [end, place], transform=right, clip_on=False)
            link[0].set(color=colour, lw=0.8)
        else:
            words = ("↑ " if end > high else "↓ ") + words
        text = axes.text(1.036, place, words, transform=right, va="center", fontsize=_SIZE)
        text.set(parse_math=False, gid="label", style="italic" if privileged else "normal")
        text.set_color([0.75 * part for part in to_rgb(colour)])  # readable on white
        widest = max(widest, text.get_window_extent().width / figure.bbox.width)
    return widest


def _save(figure: Any, target: Path) -> None:
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"figures are written as .png or .svg, got {target.name!r}")
    with written_whole(target) as scratch:
        figure.savefig(scratch, format=kind, dpi=160)
