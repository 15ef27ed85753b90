"""What is a larger history worth, and is it better to know more users or more of each?

    python experiments/history_size.py [--seeds 3] [--users 400]

prints the personalisation gain on cold-start-v0 and meta-learning-v0 after histories of 100 to
10,000 users with 50 interactions each, and of 50,000 interactions spread over fewer or more
users. PersonalLLM's released sweep (arXiv 2409.20296, section 5) finds nothing beyond 1,000
users for retrieval. Figures are means over seeds with their standard deviation.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.data import load_bank
from personalllm_env.database import record_history
from personalllm_env.registry import find_agent
from personalllm_env.runner import measure

AGENTS = ("linucb", "eb-gaussian", "empirical-bayes@most_users=10000", "retrieval")
SIZES = ((100, 50), (300, 50), (1000, 50), (3000, 50), (10_000, 50))
BUDGET = ((250, 200), (500, 100), (1000, 50), (2500, 20), (5000, 10), (10_000, 5))


def gains(
    track_name: str, num_history: int, length: int, num_users: int, seed: int
) -> list[float]:
    """Returns every agent's gain after one history."""
    sides = TRACKS[track_name].sides(load_bank(), seed)
    database = record_history(
        replace(sides.history, horizon=length), num_users=num_history, seed=seed
    )
    # popular learns from the largest history, so that all gains have one zero
    most = record_history(sides.history, num_users=SIZES[-1][0], seed=seed)
    regret = {}
    for name in ("popular", *AGENTS):
        history = most if name == "popular" else database
        done = measure(
            find_agent(name), sides.test, lambda h=history: h, num_users=num_users, seed=seed
        )
        regret[name] = float(done.regret.sum())
    return [1 - regret[name] / regret["popular"] for name in AGENTS]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=int, default=400)
    args = parser.parse_args()
    for track in ("cold-start-v0", "meta-learning-v0"):
        for title, plan in (("size", SIZES), ("50,000 interactions", BUDGET)):
            print(f"\n{track}, {title}\n\n| users | interactions each | {' | '.join(AGENTS)} |")
            print("|" + "---|" * (2 + len(AGENTS)))
            for num, length in plan:
                found = np.array(
                    [gains(track, num, length, args.users, s) for s in range(args.seeds)]
                )
                cells = [
                    f"{mean:.3f} ± {sd:.3f}"
                    for mean, sd in zip(found.mean(0), found.std(0, ddof=1), strict=True)
                ]
                print(f"| {num:,} | {length} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
