"""Fits the synthetic bank's constants to PersonalLLM's published figures.

    python experiments/fit_synthetic.py [REFERENCE.json] [--seeds 4] [--evaluations 90]

writes ``personalllm_env/data/synthetic_constants.json`` and prints target against measured for
generator seeds that the fit did not see. It is deterministic and takes about five minutes.

Two loops. The inner one moves each taste correlation by the error of its top-1 agreement, and
each responder's offset by the error of its log win rate. The outer one, Nelder-Mead, looks for
the weakness law and the loadings, and is charged for the variance that weakness takes up: the
figures alone would be met best by flaws so large that tastes hardly matter within a prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from personalllm_env.data import calibration as cal
from personalllm_env.data.diversity import Diversity, top1_agreement, vote_shares
from personalllm_env.data.standardise import standardise
from personalllm_env.data.synthetic import combine, draw_parts, synthetic_bank
from personalllm_env.data.synthetic_law import Constants

DATA = Path(cal.__file__).parent
BEAVER, WEAK = [7], [6, 8, 9]  # the unaligned reward model; the ones of the other family
# rate, size, b beaver, c beaver, b weak, c weak, shrinkage of the agreements
START = np.array([0.42, 2.5, 1.4, 0.4, 1.4, 0.75, 0.03])
STEP = np.array([0.02, 0.25, 0.2, 0.1, 0.2, -0.1, 0.01])
COMFORT = 0.6  # share of the tolerances within which the fit need not get any closer


class Sample(NamedTuple):
    """The fit's common random numbers."""

    white: Float[np.ndarray, "P K M"]
    weak: Float[np.ndarray, "P K"]
    users: dict[float, list[Float[np.ndarray, "U M"]]]


class Targets(NamedTuple):
    """The published figures, as arrays."""

    agreement: Float[np.ndarray, "M M"]
    diversity: dict[float, Diversity]


def read_targets(reference: dict[str, Any]) -> Targets:
    """Takes what the fit needs from the reference."""
    published = reference["population_diversity"]
    shares = published["top_response_share_at_most_50_75_95_percent"]
    counts = published["responses_with_a_vote_le2_3_4_5_ge6"]
    wins = published["win_rate_per_responder"]
    entropy = published["mean_vote_entropy_nats"]
    rows = {}
    for c in wins:
        share, count, win = (np.array(block[c]) for block in (shares, counts, wins))
        rows[float(c)] = Diversity(share, count, win, entropy.get(c, 0.0))  # 0: not published
    return Targets(np.array(reference["top1_agreement"]["matrix"]), rows)


def draw_sample(num_prompts: int, num_seeds: int) -> Sample:
    """Draws the numbers that every evaluation reuses, so that the objective is smooth."""
    rng = np.random.default_rng(2409_20296)
    users = {
        c: [rng.dirichlet([c] * 10, 1000) for _ in range(num_seeds)] for c in (0.01, 0.05, 0.1)
    }
    shape = (num_prompts, 8)
    return Sample(rng.standard_normal((*shape, 10)), rng.random(shape), users)


def scores_of(law: Constants, sample: Sample) -> Float[np.ndarray, "P K M"]:
    """Draws standardised scores by the package's own formula, from the common numbers."""
    weakness = law.weakness_size * (sample.weak < law.weakness_rate)
    taste = sample.white @ np.linalg.cholesky(law.taste_correlation).T
    parts = draw_parts(law, 1, np.random.default_rng(0))._replace(
        taste=taste, weakness=weakness
    )
    is_test = np.zeros(len(taste), bool)
    return standardise(combine(law, parts), is_test, law.reward_models)[0]


def nearest_correlation(matrix: Float[np.ndarray, "M M"]) -> Float[np.ndarray, "M M"]:
    """Clips eigenvalues at .01 and scales the diagonal back to 1."""
    values, vectors = np.linalg.eigh(matrix)
    positive = (vectors * np.maximum(values, 0.01)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(positive))
    return scale[:, None] * positive * scale


def settle(
    law: Constants, sample: Sample, targets: Targets, shrink: float, rounds: int
) -> Constants:
    """Runs the inner loop: correlations towards agreements, offsets towards win rates.

    A taste correlation answers an error in agreement about one to one, an offset an error in
    log win rate about a third.
    """
    wins = np.mean([d.win_rates for d in targets.diversity.values()], axis=0)
    few = np.concatenate([groups[0][:100] for groups in sample.users.values()])
    for _ in range(rounds):
        scores = scores_of(law, sample)
        error = targets.agreement * (1 - shrink) - top1_agreement(scores)
        np.fill_diagonal(error, 0.0)
        votes = 100 * vote_shares(scores[:4000], few).mean(axis=0)
        offset = law.responder_offset + 0.35 * np.log(wins / votes)
        law = law._replace(
            taste_correlation=nearest_correlation(law.taste_correlation + 1.2 * error),
            responder_offset=offset - offset.mean(),
        )
    return law


def misfit(law: Constants, sample: Sample, targets: Targets) -> float:
    """Returns a soft maximum of the errors, each as a share of its tolerance."""
    scores = scores_of(law, sample)
    errors = [
        np.array([cal.agreement_error(scores, targets.agreement)]) / cal.AGREEMENT_TOLERANCE
    ]
    for concentration, groups in sample.users.items():
        found = cal.mean_diversity(scores, groups)
        target = targets.diversity[concentration]
        errors.append(
            (found.top_share_at_most - target.top_share_at_most) / cal.PROMPTS_TOLERANCE
        )
        errors.append((found.winner_counts - target.winner_counts) / cal.PROMPTS_TOLERANCE)
        errors.append((found.win_rates - target.win_rates) / cal.WIN_RATE_TOLERANCE)
        if target.entropy:
            errors.append(np.array([found.entropy - target.entropy]) / cal.ENTROPY_TOLERANCE)
    return float((np.abs(np.concatenate(errors)) ** 8).sum() ** (1 / 8))


def weakness_share(law: Constants) -> float:
    """Returns the mean share of within-prompt variance that is weakness."""
    spread = law.weakness_size**2 * law.weakness_rate * (1 - law.weakness_rate)
    weak = law.weakness_loading**2 * spread
    rest = 1 + law.offset_loading**2 * law.responder_offset.var()
    return float((weak / (weak + rest)).mean())


def with_parameters(law: Constants, x: Float[np.ndarray, "7"]) -> Constants:
    """Puts the outer loop's parameters into the law."""
    offset, weak = np.ones(10), np.ones(10)
    weak[BEAVER], offset[BEAVER], weak[WEAK], offset[WEAK] = x[2:6]
    return law._replace(
        offset_loading=offset,
        weakness_loading=weak,
        weakness_rate=float(x[0]),
        weakness_size=float(x[1]),
    )


def fit(
    reference: dict[str, Any], num_prompts: int, num_seeds: int, evaluations: int
) -> Constants:
    """Runs the outer loop and returns rounded constants."""
    targets, sample = read_targets(reference), draw_sample(num_prompts, num_seeds)
    start = Constants(
        reward_models=tuple(reference["reward_models"]),
        responders=tuple(reference["responders"]),
        taste_correlation=nearest_correlation(np.clip(1.2 * targets.agreement, -0.3, 0.9)),
        responder_offset=np.zeros(8),
        offset_loading=np.ones(10),
        weakness_loading=np.ones(10),
        weakness_rate=0.5,
        weakness_size=1.0,
    )
    best = [
        (np.inf, settle(with_parameters(start, START), sample, targets, START[6], 25), START[6])
    ]

    def objective(x: Float[np.ndarray, "7"]) -> float:
        law = settle(with_parameters(best[-1][1], x), sample, targets, x[6], 8)
        error = misfit(law, sample, targets)
        value = 2 * max(error, COMFORT) + weakness_share(law)
        if value < best[-1][0]:
            best.append((value, law, x[6]))
            print(
                f"objective {value:.3f}: worst error / tolerance about {error:.2f}", flush=True
            )
        return value

    simplex = np.vstack([START, START + np.diag(STEP)])
    options = {"maxfev": evaluations, "adaptive": True, "initial_simplex": simplex}
    minimize(objective, START, method="Nelder-Mead", options=options)
    law = settle(best[-1][1], sample, targets, best[-1][2], 10)
    return rounded(law)


def rounded(law: Constants) -> Constants:
    """Returns the law to three digits, which is more than the figures bear."""
    values = law._asdict()
    for name, value in values.items():
        if not isinstance(value, tuple):
            values[name] = (
                np.round(value, 3) if isinstance(value, np.ndarray) else round(value, 3)
            )
    return Constants(**values)


def as_json(law: Constants, source: str) -> str:
    """Returns the constants with a line per row of numbers, for readable diffs."""
    plain = {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in law._asdict().items()
    }
    rows = plain.pop("taste_correlation")
    head = (
        json.dumps({"source": source, "constants": plain}, indent=1)
        .removesuffix("}\n}")
        .rstrip()
        .removesuffix("}")
        .rstrip()
    )
    body = ",\n".join("   " + json.dumps(row) for row in rows)
    return f'{head},\n  "taste_correlation": [\n{body}\n  ]\n }}\n}}\n'


def print_check(reference: dict[str, Any], seeds: range) -> None:
    """Prints target, measured range over banks of fresh seeds, and the worst difference."""
    tables = [cal.calibration_table(synthetic_bank(seed=s), reference=reference) for s in seeds]
    print("| statistic | concentration | target | measured | worst difference | tolerance |")
    print("|---|---|---|---|---|---|")
    for rows in zip(*tables, strict=True):
        row, values = rows[0], [r.measured for r in rows]
        worst = max((r.difference for r in rows), key=abs)
        concentration = "" if row.concentration is None else row.concentration
        print(
            f"| {row.statistic} | {concentration} | {row.target:g} | "
            f"{min(values):.3g} to {max(values):.3g} | {worst:+.2g} | {row.tolerance:g} |"
        )
    misses = sum(not row.ok for table in tables for row in table)
    print(f"\n{misses} of {sum(map(len, tables))} figures outside tolerance; seeds {[*seeds]}")


def main() -> None:
    """Reads the arguments, fits, writes and checks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reference", nargs="?", default=DATA / "personalllm_reference.json")
    parser.add_argument("--seeds", type=int, default=4, help="draws of 1,000 users to fit on")
    parser.add_argument("--prompts", type=int, default=7000, help="prompts to fit on")
    parser.add_argument("--evaluations", type=int, default=90, help="of the outer loop")
    parser.add_argument(
        "--check-only", action="store_true", help="fit nothing, print the table"
    )
    args = parser.parse_args()
    reference = json.loads(Path(args.reference).read_text(encoding="utf-8"))
    if not args.check_only:
        law = fit(reference, args.prompts, args.seeds, args.evaluations)
        target = DATA / "synthetic_constants.json"
        source = "experiments/fit_synthetic.py, fitted to personalllm_reference.json"
        target.write_text(as_json(law, source), encoding="utf-8")
        print(f"weakness takes {weakness_share(law):.2f} of the within-prompt variance")
    print_check(reference, range(5))


if __name__ == "__main__":
    main()
