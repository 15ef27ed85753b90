"""From the runs of a track to its table: who stands where, and who is tied with whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from personalllm_env import report
from personalllm_env.benchmark.ties import Verdict, compare_all
from personalllm_env.benchmark.track import Track
from personalllm_env.estimates import Statistics, mean_ratio, seed_effects, worst_mean
from personalllm_env.report import Estimate, Paired
from personalllm_env.runner import Comparison, Run


@dataclass(frozen=True)
class Metric:
    """A number in the table.

    Attributes:
        key: Its name in files: ``gain``, ``gain_5``.
        label: Its heading.
        meaning: In a sentence, for a tooltip.
        digits: After the point.
        higher_is_better: Which way is up.
    """

    key: str
    label: str
    meaning: str
    digits: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class Standing:
    """One agent on one track.

    Attributes:
        agent: Its name.
        privileges: What it sees beyond an honest agent; empty for an honest one.
        estimates: Per metric's key, with its 95 % interval.
        ranks: Best and worst rank by gain among the honest agents that is compatible with the
            significant differences; None for a privileged agent.
        tied: Whether an honest agent is not significantly behind the leading honest one.
        microseconds: Inside the agent, per decision.
        fit_seconds: Mean over seeds of what learning from the history took.
        memory_mb: Largest peak over seeds above what the process held; NaN if not measured.
    """

    agent: str
    privileges: tuple[str, ...]
    estimates: dict[str, Estimate]
    ranks: tuple[int, int] | None
    tied: bool
    microseconds: float
    fit_seconds: float
    memory_mb: float


@dataclass(frozen=True)
class TrackTable:
    """What the report says of one track.

    Attributes:
        track: The question.
        metrics: The columns, the headline (personalisation gain) first.
        standings: Best gain first.
        runs: What it was computed from, per agent and seed.
        design_effect: How many times the seeds' spread makes variances larger than
            independent users would have them (1 if not at all, or with one seed).
        critical: The studentised difference beyond which two agents are not tied.
        missing: Agents of the benchmark without complete results here.
    """

    track: Track
    metrics: tuple[Metric, ...]
    standings: tuple[Standing, ...]
    runs: Comparison
    design_effect: float
    critical: float
    missing: tuple[str, ...] = ()


_GAIN = Metric(
    "gain",
    "gain",
    "Personalisation gain: 0 is the best non-personal choice learnt from others through "
    "features, 1 the best response always and nobody gone.",
    3,
)
_SCORE = Metric(
    "score",
    "score",
    "Normalised score: 0 is choosing at random, 1 the best response always and nobody gone.",
    3,
)
_REGRET = Metric(
    "regret",
    "regret",
    "Utility lost against the best response, summed over the episode, per user.",
    2,
    higher_is_better=False,
)
_AREA = Metric(
    "area",
    "area",
    "Area under the learning curve: the mean over interactions of the score at each.",
    3,
)
_TENTH = Metric(
    "worst_tenth",
    "worst tenth",
    "Regret per interaction among the tenth of the users who lose most with this agent.",
    3,
    higher_is_better=False,
)
_BEST = Metric(
    "best_picks",
    "best picks",
    "Share of interactions in which nothing better could have been shown.",
    3,
)


def window_after(number: int, horizon: int) -> slice:
    """Returns the interactions over which the gain after ``number`` of them is taken.

    They grow with the number, since the gain then changes slowly: 1 + number // 5, up to the
    horizon.
    """
    return slice(number, min(number + 1 + number // 5, horizon))


def _after(number: int, horizon: int) -> Metric:
    window = window_after(number, horizon)
    first, last = window.start + 1, window.stop
    where = f"interaction {first}" if last == first else f"interactions {first} to {last}"
    meaning = f"Personalisation gain in {where}."
    return Metric(f"gain_{number}", f"gain after {number}", meaning, 3)


def _area(paired: Paired) -> Statistics:
    return mean_ratio(paired.design, paired.regret, paired.reference("uniform"))


def _worst_tenth(paired: Paired) -> Statistics:
    return worst_mean(paired.design, paired.regret.mean(axis=2))


def _columns(track: Track, paired: Paired) -> dict[Metric, list[Estimate]]:
    """Returns the metrics with an estimate per agent."""
    horizon = paired.regret.shape[2]
    shares = report.share_of_regret
    columns = {
        _GAIN: report.one_minus(paired, shares(paired, "popular")),
        _SCORE: report.one_minus(paired, shares(paired, "uniform")),
        _REGRET: report.estimates(paired, report.regret_per_user(paired)),
        _AREA: report.one_minus(paired, _area(paired)),
    }
    for number in (n for n in track.reported if n < horizon):
        share = shares(paired, "popular", window_after(number, horizon))
        columns[_after(number, horizon)] = report.one_minus(paired, share)
    columns[_TENTH] = report.estimates(paired, _worst_tenth(paired))
    columns[_BEST] = report.estimates(paired, report.best_picks(paired))
    return columns


def track_table(
    track: Track, comparison: Comparison, missing: Iterable[str] = ()
) -> TrackTable:
    """Computes all that the report says of a track.

    Who is better is decided on regret, of which the gain is 1 minus a share: agents stand in
    the same order by either. Score, area and gains are NaN without agents called ``uniform``
    and ``popular``.

    Args:
        track: The question.
        comparison: What the agents did, on the same users.
        missing: Agents of the benchmark without complete results here.

    Raises:
        ValueError: If there is no agent, or not the same users for everybody.
    """
    paired = report.pair(comparison)
    columns = _columns(track, paired)
    regret = paired.regret.sum(axis=2)
    honest = [i for i, name in enumerate(paired.names) if not comparison.privileges[name]]
    honest.sort(key=lambda i: regret[i].mean())
    verdict = compare_all(paired.design, regret[honest])
    place = {paired.names[i]: at for at, i in enumerate(honest)}
    standings = []
    for i in np.argsort(regret.mean(axis=1), kind="stable"):
        name = paired.names[i]
        numbers = {metric.key: found[i] for metric, found in columns.items()}
        runs, privileges = comparison.runs[name], comparison.privileges[name]
        standings.append(_standing(name, privileges, numbers, runs, verdict, place.get(name)))
    headline = report.share_of_regret(paired, "popular")
    return TrackTable(
        track=track,
        metrics=tuple(columns),
        standings=tuple(standings),
        runs=comparison,
        design_effect=seed_effects(paired.design, headline.linear).pooled,
        critical=verdict.critical,
        missing=tuple(missing),
    )


def _standing(
    name: str,
    privileges: tuple[str, ...],
    numbers: dict[str, Estimate],
    runs: list[Run],
    verdict: Verdict,
    place: int | None,
) -> Standing:
    # Without popular there are no gains, and so nobody leads.
    leads = place is not None and bool(np.isfinite(numbers["gain"].value))
    peaks = [run.memory_mb for run in runs if not np.isnan(run.memory_mb)]
    return Standing(
        agent=name,
        privileges=privileges,
        estimates=numbers,
        ranks=None if place is None else verdict.ranks(place),
        tied=leads and not verdict.better[0, place],
        microseconds=report.microseconds(runs),
        fit_seconds=float(np.mean([run.fit_seconds for run in runs])),
        memory_mb=max(peaks, default=float("nan")),
    )
