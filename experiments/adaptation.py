"""Does a policy that was trained by RL learn its user within an episode, and as well as LinUCB?

    python experiments/adaptation.py

trains policies on sparse-v0 that differ in their memory (none, the history wrapper, the belief
wrapper, a recurrent state), measures them in the runner beside the agents of the benchmark, and
writes the tables and figures. Takes some 16 minutes on one core. What was trained is kept in
``--results`` and not trained again, so it can be interrupted; ``--size quick`` is a trial run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from adaptation_page import MADE_BY, Measured, write_page
from adaptation_policies import FeedForward, Net, Recurrent
from adaptation_readers import BeliefReader, HistoryReader, NoMemory
from adaptation_training import PPO, Greedy, Learner, Regression, Schedule, build, train
from jaxtyping import Float
from pages import DOCS, check_page

from personalllm_env.adapters.policies import PolicyAgent
from personalllm_env.benchmark.tracks import TRACKS
from personalllm_env.data import load_bank
from personalllm_env.database import record_history
from personalllm_env.files import written_whole
from personalllm_env.registry import find_agent
from personalllm_env.runner import Entrant, measure

TRACK = TRACKS["sparse-v0"]
AGENTS = ("popular", "linucb", "empirical-bayes", "feature-bayes", "decoder-oracle", "oracle")
WINDOW = 50  # interactions that the history wrapper remembers: five answers or so


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        schedule: How much policies learn from.
        training_seeds: How many times each is trained.
        users: Test users per evaluation seed.
        seeds: Evaluation seeds.
        history_users: Whom the benchmark's agents learn from.
    """

    schedule: Schedule = field(default_factory=Schedule)
    training_seeds: int = 3
    users: int = 600
    seeds: int = 3
    history_users: int = 1000


SIZES = {"full": Size(), "quick": Size(Schedule(users=32, rounds=2, batches=2), 1, 20, 1, 50)}


class Variant(NamedTuple):
    """A policy to be trained."""

    name: str
    make: Callable[[], Net]
    learner: Learner
    rounds: float = 1.0  # times those of the schedule
    utility: bool = False
    trainings: int = 1000  # at most: from the first seeds


def _history() -> Net:
    return FeedForward(HistoryReader(WINDOW))


VARIANTS = (
    Variant("PPO, no memory", lambda: FeedForward(NoMemory()), PPO()),
    Variant("PPO, history", _history, PPO()),
    Variant("PPO, belief", lambda: FeedForward(BeliefReader()), PPO()),
    Variant("PPO, recurrent", Recurrent, PPO()),
    Variant("regression, recurrent", Recurrent, Regression()),
    Variant("regression, recurrent, twice as long", Recurrent, Regression(), rounds=2),
    Variant("PPO, recurrent, utility", Recurrent, PPO(), utility=True, trainings=1),
)
"""The first four are the question; the others say what it would take."""


def regrets(
    make_entrant: Callable[[], Entrant], size: Size, seeds: range
) -> Float[np.ndarray, "N T"]:
    """Returns regret of the test users of some evaluation seeds, the same for everybody."""
    found = []
    for seed in seeds:
        sides = TRACK.sides(load_bank(), seed)
        done = measure(
            make_entrant(),
            sides.test,
            lambda sides=sides, seed=seed: record_history(  # type: ignore[misc]
                sides.history, num_users=size.history_users, seed=seed
            ),
            num_users=size.users,
            seed=seed,
        )
        found.append(done.regret.astype(np.float32))
    return np.concatenate(found)


def trained(variant: Variant, size: Size, seed: int) -> dict[str, np.ndarray]:
    """Trains a policy; returns its regret, and that of seed 0's users while it was trained."""
    rounds = max(1, round(size.schedule.rounds * variant.rounds))
    schedule = replace(size.schedule, rounds=rounds, utility=variant.utility)
    net = build(variant.make, seed)
    agent = {"policy": Greedy(net, variant.learner), "parts": net.parts()}
    looks = {max(1, round(rounds * share)) for share in (0.05, 0.1, 0.25, 0.5, 1)}
    after: list[int] = []
    found: list[np.ndarray] = []
    start = time.process_time()
    entrant = Entrant(variant.name, PolicyAgent, agent)

    def look(done: int) -> None:
        if done in looks and seed == 0:
            after.append(done * schedule.users * TRACK.environment["horizon"])
            found.append(regrets(lambda: entrant, size, range(1)))

    train(net, variant.learner, schedule, TRACK, seed, look)
    seconds = time.process_time() - start
    return {
        "regret": regrets(lambda: entrant, size, range(size.seeds)),
        "interactions": np.array(after),
        "on_the_way": np.array(found),
        "seconds": np.array(seconds),
        "learnt_from": np.array(rounds * schedule.users * TRACK.environment["horizon"]),
    }


def kept(
    path: Path, settings: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns what is in a file if its settings are these; else makes and keeps it."""
    if path.exists():
        with np.load(path) as file:
            if str(file["settings"]) == settings:
                return {name: file[name] for name in file.files}
    found = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, settings=np.array(settings), **found)  # type: ignore[arg-type]
    return found


def main() -> None:
    """Trains, measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="Default, at full size: docs/adaptation.md.")
    parser.add_argument("--results", type=Path, default=Path("results") / "adaptation")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    args = parser.parse_args()
    if args.out is None and args.size != "full":
        parser.error("a trial run needs --out: it would replace the published figures")
    out = DOCS / "adaptation.md" if args.out is None else args.out.resolve()
    try:
        check_page(out, MADE_BY)
    except ValueError as error:
        parser.error(str(error))
    size, folder = SIZES[args.size], args.results / args.size
    torch.set_num_threads(1)
    agents = of_agents(size, folder)
    policies = of_policies(size, folder, agents["popular"].sum())
    write_page(out, Measured(agents, policies, (size.users,) * size.seeds))


def of_agents(size: Size, folder: Path) -> dict[str, Float[np.ndarray, "N T"]]:
    """Returns the regret of the benchmark's agents."""
    agents = {}
    for name in AGENTS:
        made = kept(
            folder / f"{name}.npz",
            repr((size.users, size.seeds, size.history_users, TRACK.definition())),
            lambda name=name: {  # type: ignore[misc]
                "regret": regrets(lambda: find_agent(name), size, range(size.seeds))
            },
        )
        agents[name] = made["regret"]
        print(f"{name}: {1 - agents[name].sum() / agents['popular'].sum():.3f}", flush=True)
    return agents


def of_policies(
    size: Size, folder: Path, popular: float
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Returns what was found of every policy, by training seed; all once before any twice."""
    policies: dict[str, list[dict[str, np.ndarray]]] = {v.name: [] for v in VARIANTS}
    fixed, track = replace(size, training_seeds=0), TRACK.definition()
    for seed in range(size.training_seeds):
        for v in (v for v in VARIANTS if seed < v.trainings):
            settings = repr((fixed, v.learner, v.rounds, v.utility, WINDOW, track))
            file = folder / f"{v.name.replace(', ', '-').replace(' ', '_')}-{seed}.npz"
            found = kept(file, settings, lambda v=v, seed=seed: trained(v, size, seed))  # type: ignore[misc]
            policies[v.name].append(found)
            gain, seconds = 1 - found["regret"].sum() / popular, found["seconds"]
            print(f"{v.name}, seed {seed}: {gain:.3f} ({seconds:.0f} s)", flush=True)
    return policies


if __name__ == "__main__":
    main()
