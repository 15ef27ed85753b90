"""The tables and figures of ``adaptation.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pages import markdown_table, replace_figures

from personalllm_env.curves import Curve, normalised_curve
from personalllm_env.estimates import Design, intervals, ratio
from personalllm_env.files import written_whole
from personalllm_env.plots import line_styles, spread

SPANS = {"all": (1, 100), "1 to 10": (1, 10), "11 to 50": (11, 50), "51 to 100": (51, 100)}
MAIN = ("PPO, no memory", "PPO, history", "PPO, belief", "PPO, recurrent")
LONGER = "regression, recurrent, twice as long"
PRIVILEGED = ("feature-bayes", "decoder-oracle", "oracle")
DRAWN = ("linucb", "empirical-bayes", "feature-bayes", *MAIN, LONGER)
HISTORY = 300_000  # interactions of 1,000 users, from which the benchmark's agents learn
MADE_BY = "experiments/adaptation.py"
SMOOTH = 15  # interactions in the moving average


class Measured(NamedTuple):
    """Regrets of the same users, in the order of the evaluation seeds.

    Attributes:
        agents: Per agent (N, T).
        policies: Per policy, one per training seed: what ``adaptation.trained`` returns.
        sizes: Users per evaluation seed.
    """

    agents: Mapping[str, Float[np.ndarray, "N T"]]
    policies: Mapping[str, list[dict[str, np.ndarray]]]
    sizes: tuple[int, ...]

    def regret(self, name: str) -> Float[np.ndarray, "N T"]:
        """Returns an agent's regret, or a policy's, averaged over its training seeds."""
        if name in self.agents:
            return self.agents[name].astype(np.float64)
        runs = [found["regret"] for found in self.policies[name]]
        return np.asarray(np.mean(runs, axis=0, dtype=np.float64))


def gains(measured: Measured, names: list[str], span: tuple[int, int]) -> list[str]:
    """Returns every name's gain over popular with half its 95 % interval."""
    at = slice(span[0] - 1, span[1])
    popular = measured.regret("popular")[:, at].sum(axis=1)[None]
    regret = np.stack([measured.regret(name)[:, at].sum(axis=1) for name in names])
    design = Design(measured.sizes)
    found = intervals(design, ratio(design, popular - regret, popular))
    return [f"{value:.3f} ±{(high - low) / 2:.3f}" for value, low, high in found]


def table(measured: Measured) -> str:
    """Returns gains by agent and part of the episode."""
    names = [name for name in measured.agents if name not in ("popular", "oracle")]
    names = sorted([*names, *measured.policies], key=lambda name: measured.regret(name).sum())
    columns = {title: gains(measured, names, span) for title, span in SPANS.items()}
    lines = []
    for i, name in enumerate(names):
        seeds, learnt, cost = "", "", ""
        if name in measured.policies:
            runs = measured.policies[name]
            popular = measured.regret("popular").sum()
            seeds = ", ".join(f"{1 - run['regret'].sum() / popular:.3f}" for run in runs)
            learnt = f"{float(runs[0]['learnt_from']) / 1e6:.1f}"
            cost = f"{np.mean([run['seconds'] for run in runs]):.0f}"
        shown = f"*{name}* \\*" if name in PRIVILEGED else name
        lines.append((shown, *(column[i] for column in columns.values()), seeds, learnt, cost))
    header = ("agent", *columns, "by training seed", "million interactions", "CPU s")
    return markdown_table(header, lines)


def differences(measured: Measured) -> str:
    """Returns by how much each policy is better than the benchmark's agents, paired."""
    popular = measured.regret("popular").sum(axis=1)[None]
    design, lines = Design(measured.sizes), []
    for name in measured.policies:
        mine = measured.regret(name).sum(axis=1)
        cells = []
        for other in ("linucb", "empirical-bayes"):
            theirs = measured.regret(other).sum(axis=1)
            [(value, low, high)] = intervals(
                design, ratio(design, (theirs - mine)[None], popular)
            )
            cells.append(f"{value:+.3f} ±{(high - low) / 2:.3f}")
        lines.append((name, *cells))
    return markdown_table(("policy", "above linucb", "above empirical-bayes"), lines)


def within_episode(measured: Measured, path: Path) -> None:
    """Draws the gain at each interaction of an episode."""
    popular = measured.regret("popular")
    curves = {
        name: normalised_curve(popular - measured.regret(name), 0 * popular, popular, SMOOTH)
        for name in DRAWN
    }
    first = SMOOTH // 3  # before that the average is over too few
    curves = {
        name: Curve(curve.middle[first:], curve.half[first:]) for name, curve in curves.items()
    }
    t = np.arange(first + 1, popular.shape[1] + 1)
    beyond = 1 - measured.regret("decoder-oracle").sum() / popular.sum()
    note = (
        f"0: popular; 1: oracle (decoder-oracle: {beyond:.2f}, beyond the frame). Ratio of "
        f"means over {len(popular):,} test users, moving average of {SMOOTH}\ninteractions; "
        f"policies: mean of {len(measured.policies[MAIN[0]])} trainings. "
        "Bands: 95 % over users. *: sees what no real system could."
    )
    words = ("interaction of the episode", "personalisation gain", note)
    _draw(path, curves, t, words, "What is learnt of a user who answers one time in ten")


def while_training(measured: Measured, path: Path) -> None:
    """Draws the gain over an episode against interactions of training."""
    popular = measured.regret("popular")[: measured.sizes[0]]
    lines: dict[str, Curve] = {}
    at: dict[str, np.ndarray] = {}
    longest = float(measured.policies[LONGER][0]["learnt_from"])
    for name in ("linucb", "empirical-bayes"):
        regret = measured.regret(name)[: measured.sizes[0]].sum()
        gain = np.full(2, 1 - regret / popular.sum())
        lines[name] = Curve(gain, np.full_like(gain, np.nan))
        at[name] = np.array([HISTORY, longest])
    for name in (*MAIN, LONGER):
        run = measured.policies[name][0]
        gain = 1 - run["on_the_way"].sum(axis=(1, 2)) / popular.sum()
        lines[name], at[name] = Curve(gain, np.full_like(gain, np.nan)), run["interactions"]
    note = (
        f"Mean over the episodes of {len(popular)} test users, training seed 0. The learning "
        "rate falls to 0 in the course of each training, so points before its\nend say less "
        f"than a training of that length would. Agents learnt from {HISTORY:,} interactions."
    )
    words = (
        "training interactions, of which one in ten is answered",
        "personalisation gain",
        note,
    )
    _draw(path, lines, at, words, "How much experience the policies take")


def _draw(
    path: Path,
    curves: Mapping[str, Curve],
    at: Any,
    words: tuple[str, str, str],
    title: str,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.9), dpi=150)
    axes = figure.add_axes((0.08, 0.2, 0.6, 0.68))
    privileges = {name: ("x",) * (name in PRIVILEGED) for name in (*DRAWN, *curves)}
    styles = line_styles(privileges)
    for name, (middle, half) in curves.items():
        x = at[name] if isinstance(at, dict) else at
        axes.plot(x, middle, **styles[name])
        axes.fill_between(
            x, middle - half, middle + half, color=styles[name]["color"], alpha=0.1, lw=0
        )
    axes.axhline(0, color="black", lw=1.2)
    low = 1.1 * min(-0.02, *(float(curve.middle.min()) for curve in curves.values()))
    high = 1.1 * max(0.02, *(float(curve.middle.max()) for curve in curves.values()))
    axes.set_ylim(max(low, -0.06), high)
    axes.set_xlim(*axes.dataLim.intervalx)
    if isinstance(at, dict):
        axes.set_xscale("log")
    axes.grid(axis="y", color="#E9E9E9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(words[0], fontsize=9)
    axes.set_ylabel(words[1], fontsize=9)
    axes.tick_params(labelsize=8.5)
    _label(axes, curves, styles, at)
    figure.text(0.016, 0.94, title, size=11.5, weight="bold")
    figure.text(0.016, 0.02, words[2], size=7.5, color="#5A5A5A")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as scratch:
        figure.savefig(scratch, format="png")


def _label(axes: Any, curves: Mapping[str, Curve], styles: Mapping[str, Any], at: Any) -> None:
    bottom, top = axes.get_ylim()
    right = axes.get_yaxis_transform()
    ends = {"popular": 0.0} | {name: float(curve.middle[-1]) for name, curve in curves.items()}
    ends = {name: min(max(end, bottom), top) for name, end in ends.items()}
    ends = dict(sorted(ends.items(), key=lambda item: item[1]))
    places = spread(ends.values(), 0.052 * (top - bottom), bottom, top)
    for (name, end), place in zip(ends.items(), places, strict=True):
        colour = styles[name]["color"] if name in styles else "black"
        axes.plot([1, 1.03], [end, place], transform=right, clip_on=False, color=colour, lw=0.8)
        if isinstance(at, dict) and name in at:  # from where the training ended to the name
            far = axes.get_xlim()[1]
            axes.plot([at[name][-1], far], [end, end], color=colour, lw=0.8, ls=":")
        words = f"{name} *" if name in PRIVILEGED else name
        axes.text(1.036, place, words, transform=right, va="center", size=8.5, color=colour)


def write_page(path: Path, measured: Measured) -> None:
    """Puts tables and figures between the page's markers."""
    images = path.parent / "images"
    within_episode(measured, images / "adaptation.png")
    while_training(measured, images / "adaptation-training.png")
    text = "\n".join(
        (
            "![Gain by interaction](images/adaptation.png)",
            "",
            table(measured),
            differences(measured),
            "![Gain by training interactions](images/adaptation-training.png)",
        )
    )
    replace_figures(path.resolve(), MADE_BY, text)
