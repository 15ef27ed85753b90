"""How near do off-policy estimates come to the truth, which the simulator knows?

    python experiments/off_policy.py [--out docs/off-policy.md] [--blocks 20] [--first 0]

Three agents keep logs on cold-start-v0; five others are estimated from them. Each block has
1,000 users of its own, who make logs of 50, 200 and 1,000. The tables and the figure go into
the page; about three minutes of one core.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from off_policy_page import MIDDLE, write_page
from pages import DOCS

from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.data import load_bank
from personalllm_env.database import record_history
from personalllm_env.logged import estimators
from personalllm_env.logged.log import Log
from personalllm_env.logged.off_policy import estimate, hidden_from, target_probabilities
from personalllm_env.logged.off_policy_models import personal_rewards, pooled_rewards
from personalllm_env.logged.off_policy_replay import replay_agent
from personalllm_env.logged.record import build_agent, record_log
from personalllm_env.registry import find_agent
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.types import Agent, LearnsFromHistory

TRACK = "cold-start-v0"
LOGGERS = {"uniform": 1.0, "popular": 0.2, "linucb": 0.2}
"""Who keeps a log, and the share of its responses that are random instead."""
TARGETS = ("uniform", "popular", "linucb", "empirical-bayes", "decoder-oracle")
LEARNERS = ("linucb", "empirical-bayes")
BLOCK_USERS, HISTORY_USERS = 1000, 500
SIZES = (50, MIDDLE, 1000)
FIRST = 5
"""Interactions of an agent's own that a replay is asked about."""


class Measured(NamedTuple):
    """What all blocks found, by (logger, target) unless it says otherwise."""

    estimates: dict[tuple[str, str, int], dict[str, list[np.ndarray]]]  # by log size too
    along: dict[tuple[str, str], list[np.ndarray]]  # each user's true value along the log
    online: dict[str, list[np.ndarray]]  # by target: each user's, and in the first few
    weights: dict[tuple[str, str], list[tuple[float, float]]]  # effective share, largest
    replays: dict[tuple[str, str], list[np.ndarray]]
    kept: dict[tuple[str, str], list[float]]  # interactions per user that a replay keeps


def agents(test: Task, history: Task) -> dict[str, Agent]:
    """Builds everybody, fitted on users who are in no log."""
    others = record_history(history, num_users=HISTORY_USERS, seed=0)
    built = {name: build_agent(find_agent(name), test) for name in {*LOGGERS, *TARGETS}}
    for agent in built.values():
        if isinstance(agent, LearnsFromHistory):
            agent.fit(others)
    return built


def law_of(name: str, agent: Agent, task: Task, log: Log, seed: int) -> np.ndarray:
    """Returns a target's probabilities along a log."""
    rng = np.random.default_rng(derived_seed(seed, f"target {name}"))
    return target_probabilities(agent, log, rng, hidden=hidden_from(task, log))


def per_user(log: Log, values: np.ndarray) -> np.ndarray:
    """Returns each user's mean over interactions."""
    return np.bincount(log.user, weights=values) / np.bincount(log.user)


def add_log(found: Measured, logger: str, log: Log, laws: dict[str, np.ndarray]) -> None:
    """Estimates all targets from logs of every size, which are parts of one log."""
    for size in SIZES:
        for start in range(0, log.num_users, size):
            rows = (log.user >= start) & (log.user < start + size)
            part = log.rows(rows)
            pooled = pooled_rewards(part)
            personal = personal_rewards(part) if size == MIDDLE else None
            for target, law in laws.items():
                made = estimate(part, law[rows], pooled)
                if personal is not None:
                    own = estimate(part, law[rows], personal)
                    made |= {f"{name}, personal": own[name] for name in ("DM", "DR")}
                ends = estimators.confidence(list(made.values()))
                kept = found.estimates[logger, target, size]
                for name, interval in zip(made, ends, strict=True):
                    kept[name].append(interval)


def add_block(found: Measured, block: int, built: dict[str, Agent], task: Task) -> None:
    """Records one log per logger, on the same users, and measures everything on it."""
    for target in LEARNERS:
        own = record_log(
            built[target], task, num_users=BLOCK_USERS, seed=block, exploration=0.0
        )
        utility = np.take_along_axis(own.truth, own.action[:, None], axis=1)[:, 0]
        early = own.t < FIRST
        begin = np.bincount(own.user[early], weights=utility[early]) / FIRST
        found.online[target].append(np.stack([per_user(own, utility), begin]))
    for logger, exploration in LOGGERS.items():
        log = record_log(
            built[logger], task, num_users=BLOCK_USERS, seed=block, exploration=exploration
        )
        laws = {name: law_of(name, built[name], task, log, block) for name in TARGETS}
        for target, law in laws.items():
            true = np.vecdot(law, log.truth.astype(np.float64))
            found.along[logger, target].append(per_user(log, true))
            weights = estimators.importance_weights(law, log.action, log.propensity)
            share = estimators.effective_size(weights) / len(log)
            found.weights[logger, target].append((share, float(weights.max())))
        add_log(found, logger, log, laws)
        for target in LEARNERS:
            rng = np.random.default_rng(derived_seed(block, f"replay {target}"))
            again = replay_agent(built[target], log, rng)
            found.replays[logger, target].append(again.value(FIRST))
            found.kept[logger, target].append(float(again.heard.sum() / BLOCK_USERS))


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=DOCS / "off-policy.md")
    parser.add_argument("--blocks", type=int, default=20, help="of 1,000 users each")
    parser.add_argument("--first", type=int, default=0, help="block; others are other users")
    args = parser.parse_args()
    if args.blocks < 2:
        parser.error(f"--blocks must be at least 2, got {args.blocks}")
    sides = TRACKS[TRACK].sides(load_bank(), 0)
    built = agents(sides.test, sides.history)
    found = Measured(
        defaultdict(lambda: defaultdict(list)), *(defaultdict(list) for _ in range(5))
    )
    for done in range(args.blocks):
        add_block(found, args.first + done, built, sides.test)
        print(f"block {done + 1} of {args.blocks}", flush=True)
    write_page(found, args.out)


if __name__ == "__main__":
    main()
