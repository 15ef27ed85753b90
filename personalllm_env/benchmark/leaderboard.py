"""From the runs of a track to its table: who stands where, and who is tied with whom."""

from __future__ import annotations

from dataclasses import dataclass

from personalllm_env.benchmark.track import Track
from personalllm_env.report import Estimate
from personalllm_env.runner import Comparison


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
