"""Tables and figure of ``off_policy.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pages import markdown_table, replace_figures

from personalllm_env.files import written_whole

if TYPE_CHECKING:
    from off_policy import Measured

MIDDLE = 200
"""Users of the logs in the figure and in the large table."""
HONEST = ("uniform", "popular", "linucb", "empirical-bayes")
"""Targets that a real system could have."""
SHOWN = {
    "IPS": ("#0072B2", "o"),
    "SNIPS": ("#56B4E9", "s"),
    "DM": ("#D55E00", "v"),
    "DR": ("#009E73", "D"),
    "SNDR": ("#E69F00", "^"),
}
"""The estimators in the figure, with colours of Okabe and Ito's."""


def write_page(found: Measured, out: Path) -> None:
    """Writes the figure and puts the tables between the page's markers."""
    image = out.parent / "images" / "off-policy.png"
    draw(found, image)
    caption = "Estimates of five agents from the logs of three, with intervals and truths"
    text = "\n".join(
        (
            f"![{caption}](images/{image.name})\n",
            f"The first log of {MIDDLE} users of each logger. Lines: the truth. The intervals",
            "of DM are mostly narrower than its marker.\n",
            "### What is true\n",
            "Mean utility per interaction with its standard error over users. Effective size:",
            "how many interactions of equal weight would tell as much: a share of the log.\n",
            truths(found),
            f"### Logs of {MIDDLE} users\n",
            "Bias / root mean square error / coverage of the 95 % intervals in %. *The users",
            "alone* is the error of who knows all utilities of the log's users.\n",
            errors(found),
            "### Larger and smaller logs\n",
            "Root mean square error / coverage in %, over all loggers and targets.\n",
            sizes(found),
            "### Who is best?\n",
            f"How often the best of {', '.join(HONEST)} has the highest estimate.\n",
            choices(found),
            "### Replay\n",
            "Logs of 1,000 users; bias with its standard error.\n",
            replays(found),
        )
    )
    replace_figures(out.resolve(), "python experiments/off_policy.py", text)


def mean_and_error(users: list[np.ndarray]) -> str:
    """Returns a mean over users and its standard error."""
    values = np.concatenate(users)
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def truths(found: Measured) -> str:
    """Returns what each target is worth along each log, and on its own."""
    rows = []
    for logger, target in found.along:
        along, online = found.along[logger, target], ""
        if target in found.online:
            own = [both[0] for both in found.online[target]]
            difference = [a - b for a, b in zip(along, own, strict=True)]
            online = f"{mean_and_error(own)} | {mean_and_error(difference)}"
        share, _ = np.mean(found.weights[logger, target], axis=0)
        largest = max(most for _, most in found.weights[logger, target])
        online = online or "as along the log | 0"
        size = f"{100 * share:.0f} %", f"{largest:.0f}"
        rows.append((logger, target, mean_and_error(along), online, *size))
    header = ("log kept by", "target", "true value along the log", "on its own")
    header += ("difference", "effective size", "largest weight")
    return markdown_table(header, rows)


def error_of(intervals: np.ndarray, truth: float) -> tuple[float, float, float]:
    """Returns bias, root mean square error, and the share of intervals that hold the truth."""
    error = intervals[:, 0] - truth
    inside = (intervals[:, 1] <= truth) & (truth <= intervals[:, 2])
    return float(error.mean()), float((error**2).mean() ** 0.5), float(inside.mean())


def truth_of(found: Measured, logger: str, target: str) -> float:
    """Returns a target's value along a logger's logs, over all users."""
    return float(np.concatenate(found.along[logger, target]).mean())


def errors(found: Measured) -> str:
    """Returns bias, error and coverage per logger, estimator and target."""
    targets = list(dict.fromkeys(target for _, target in found.along))
    rows = []
    for logger in dict.fromkeys(logger for logger, _ in found.along):
        for name in found.estimates[logger, targets[0], MIDDLE]:
            cells = []
            for target in targets:
                made = np.array(found.estimates[logger, target, MIDDLE][name])
                bias, error, inside = error_of(made, truth_of(found, logger, target))
                cells.append(f"{bias:+.3f} / {error:.3f} / {100 * inside:.0f}")
            rows.append((logger, name, *cells))
        rows.append((logger, "*the users alone*", *_users_alone(found, logger, targets)))
    return markdown_table(("log kept by", "estimator", *targets), rows)


def _users_alone(found: Measured, logger: str, targets: list[str]) -> list[str]:
    """Returns the error of who knows everything about the log's users, and no others."""
    spread = [np.concatenate(found.along[logger, target]).std(ddof=1) for target in targets]
    return [f"{sd / MIDDLE**0.5:.3f}" for sd in spread]


def sizes(found: Measured) -> str:
    """Returns error and coverage by the size of the log, over loggers and targets."""
    steps = sorted({size for *_, size in found.estimates})
    rows = []
    for name in SHOWN:
        cells = []
        for size in steps:
            each = [
                error_of(np.array(made[name]), truth_of(found, logger, target))
                for (logger, target, users), made in found.estimates.items()
                if users == size
            ]
            _, error, inside = np.transpose(each)
            cells.append(f"{(error**2).mean() ** 0.5:.3f} / {100 * inside.mean():.0f}")
        rows.append((name, *cells))
    return markdown_table(("estimator", *(f"{size:,} users" for size in steps)), rows)


def choices(found: Measured) -> str:
    """Returns how often the honest target that is best in truth is best in the estimates."""
    steps = sorted({size for *_, size in found.estimates})
    rows = []
    for logger in dict.fromkeys(logger for logger, _ in found.along):
        best = max(HONEST, key=lambda target: truth_of(found, logger, target))
        for name in SHOWN:
            cells = []
            for size in steps:
                made = [np.array(found.estimates[logger, t, size][name])[:, 0] for t in HONEST]
                right = np.argmax(made, axis=0) == HONEST.index(best)
                cells.append(f"{100 * right.mean():.0f} %")
            rows.append((logger, name, *cells))
    header = ("log kept by", "estimator", *(f"{size:,} users" for size in steps))
    return markdown_table(header, rows)


def replays(found: Measured) -> str:
    """Returns what replays say of the first interactions, against the truth."""
    rows = []
    for (logger, target), made in found.replays.items():
        values = np.array(made)
        truth = float(np.concatenate([both[1] for both in found.online[target]]).mean())
        bias, error, inside = error_of(values, truth)
        kept = f"{np.mean(found.kept[logger, target]):.1f}"
        doubt = f"{bias:+.3f} ± {values[:, 0].std(ddof=1) / len(values) ** 0.5:.3f}"
        rows.append(
            (logger, target, kept, f"{truth:.3f}", doubt, f"{error:.3f}", f"{100 * inside:.0f}")
        )
    header = (
        "log kept by",
        "target",
        "interactions kept per user",
        "true value of the first 5",
    )
    return markdown_table((*header, "bias", "RMSE", "coverage, %"), rows)


def draw(found: Measured, path: Path) -> None:
    """Draws the first log of every logger: estimates with intervals, and the truths."""
    from matplotlib.figure import Figure

    loggers = list(dict.fromkeys(logger for logger, _ in found.along))
    targets = list(dict.fromkeys(target for _, target in found.along))
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(loggers), sharey=True)
    place: Callable[[int], float] = lambda i: 0.14 * (i - (len(SHOWN) - 1) / 2)  # noqa: E731
    for logger, panel in zip(loggers, panels, strict=True):
        for x, target in enumerate(targets):
            level = truth_of(found, logger, target)
            panel.plot(
                (x - 0.42, x + 0.42), (level, level), color="#222222", lw=1.2, label="truth"
            )
            for i, (name, (colour, marker)) in enumerate(SHOWN.items()):
                value, low, high = found.estimates[logger, target, MIDDLE][name][0]
                panel.errorbar(
                    x + place(i),
                    value,
                    yerr=[[value - low], [high - value]],
                    color=colour,
                    marker=marker,
                    ms=4.5,
                    lw=1.2,
                    label=name,
                )
        panel.set_title(f"log kept by {logger}", fontsize=10)
        panel.set_xticks(range(len(targets)), [name.replace("-", "-\n") for name in targets])
        panel.tick_params(labelsize=8.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#E4E4E4", lw=0.7)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("mean reward per interaction")
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        once.values(), once.keys(), loc="outside upper center", ncols=6, frameon=False
    )
    with written_whole(path) as scratch:
        figure.savefig(scratch, format="png")
