"""Tables of a made-up benchmark with curves like real ones, for tests of the report."""

from collections.abc import Sequence

import numpy as np

from personalllm_env.benchmark.leaderboard import TrackTable, track_table
from personalllm_env.benchmark.track import Track
from personalllm_env.runner import Comparison, Run

# name: gain it tends to, interactions to get there, microseconds, fit seconds, privileges
AGENTS = {
    "uniform": (-1.9, 1, 0.4, 0.0, ()),
    "popular": (0.0, 1, 1.1, 0.4, ()),
    "best-responder": (-0.35, 1, 0.2, 0.0, ()),
    "linucb": (0.44, 9, 6.2, 2.1, ()),
    "linucb@alpha=0.5": (0.47, 8, 6.3, 2.1, ()),
    "thompson": (0.42, 11, 9.7, 2.1, ()),
    "epsilon-greedy": (0.33, 15, 5.4, 2.0, ()),
    "lora-taste": (0.52, 6, 14.0, 21.0, ()),
    "nearest-users": (0.38, 5, 31.0, 0.7, ()),
    "meta-learned-prior": (0.49, 7, 18.0, 64.0, ()),
    "kernel-thompson": (0.4, 16, 120.0, 8.0, ()),
    "neural-bandit": (0.29, 20, 310.0, 40.0, ()),
    "clustered": (0.35, 6, 4.4, 3.0, ()),
    "successive-halving": (0.22, 12, 2.2, 0.0, ()),
    "my_agents:Greedy@x=<script>": (0.18, 18, 3.0, 0.0, ()),
    "feature-bayes": (0.6, 5, 900.0, 12.0, ("decoder", "population")),
    "exact-bayes": (0.74, 4, 700.0, 0.0, ("population", "scores")),
    "popular-scores": (0.12, 1, 2.0, 0.4, ("scores",)),
    "oracle": (1.0, 1, 1.0, 0.0, ("scores", "weights")),
}

TRACKS = (
    Track("cold-start-v0", "How fast is a new user learnt from the rewards they report?"),
    Track(
        "sparse-v0",
        "And if they speak at one interaction in ten?",
        environment={"feedback": ["reward", {"silence": {"probability": 0.9}}]},
    ),
    Track(
        "duels-v0",
        "And if all they say is which of two shown responses they prefer?",
        environment={"num_shown": 2, "feedback": "choice"},
    ),
    Track("likes-v0", "Do likes do?", environment={"feedback": "like", "horizon": 50}),
    Track("stars-v0", "Do five stars say more?", environment={"feedback": "stars"}),
    Track(
        "clicks-v0",
        "Is a click on one of eight enough?",
        environment={"feedback": ["click"], "shuffle": True},
    ),
    Track(
        "drift-v0",
        "What if tastes move?",
        environment={"drift": {"gradual": {"share": 1.0}}},
    ),
    Track("sudden-v0", "What if tastes jump?", environment={"drift": "sudden"}),
    Track(
        "communities-v0",
        "Does knowing that users come in communities help?",
        population={"communities": {"num_users": 1200, "num_communities": 8, "num_test": 400}},
    ),
    Track(
        "late-v0",
        "What if feedback comes late, and unhappy users leave?",
        environment={
            "feedback": ["reward", {"delay": {"interactions": 3}}, {"leave": {}}],
            "horizon": 50,
        },
    ),
    Track(
        "recurring-v0",
        "Does an agent explore where prompts come again?",
        environment={"prompts_per_episode": 5},
        history={"feedback": "like"},
    ),
    Track(
        "white-box-v0",
        "What is a look at the reward models worth?",
        environment={"white_box": True, "concentration": [0.01, 0.1]},
        yardstick="exact-bayes",
    ),
)


def comparison(
    rng: np.random.Generator,
    names: Sequence[str],
    *,
    seeds: int = 3,
    users: int = 60,
    horizon: int = 50,
    strength: float = 1.0,
) -> Comparison:
    """Draws runs whose gain rises to the agent's level."""
    t = np.arange(horizon)
    shape = (seeds, users, horizon)
    best = 1.2 + rng.gamma(4.0, 0.15, size=shape)
    loss = rng.gamma(2.0, 0.3, size=shape[:2])[..., None] * rng.gamma(3.0, 1 / 3, size=shape)
    runs, privileges = {}, {}
    for name in names:
        level, rise, cost, fit, privileged = AGENTS[name]
        moves = 0 < level < 1 and rise > 1
        reached = level * strength if moves else level
        gain = reached * (1 - np.exp(-(t + 0.5) / rise)) if moves else np.full(horizon, level)
        regret = (1 - gain) * loss
        if name not in ("popular", "oracle"):  # whom it suits differs from agent to agent
            regret *= rng.gamma(8.0, 1 / 8, size=(*shape[:2], 1)) * rng.gamma(
                6.0, 1 / 6, size=shape
            )
        runs[name] = [
            Run(
                best[s] - regret[s],
                regret[s],
                np.ones(shape[1:], dtype=bool),
                1e-6 * cost * users * horizon,
                fit,
                float("nan") if name == "clustered" else 2.0 + 3 * fit,
            )
            for s in range(seeds)
        ]
        privileges[name] = privileged
    return Comparison(runs, privileges, tuple(range(seeds)))


def tables(
    num_tracks: int = 3,
    names: Sequence[str] = tuple(AGENTS),
    **sizes: int,
) -> list[TrackTable]:
    """Builds tables of several tracks; the same at every call."""
    rng = np.random.default_rng(0)
    made = []
    for i, track in enumerate(TRACKS[:num_tracks]):
        runs = comparison(rng, names, strength=0.45 + 0.55 * rng.random(), **sizes)
        made.append(track_table(track, runs, ("kernel-ucb",) if i == 1 else ()))
    return made


FACTS = {
    "command: results": "personalllm-env benchmark run --bank synthetic --seeds 0 1 2",
    "command: report": "personalllm-env benchmark report results --out report",
    "bank": "synthetic, 10,402 prompts (1,000 test), 8 responses, 10 reward models",
    "users": "200 per seed, seeds 0, 1, 2",
    "versions": "personalllm-env 0.1.0, numpy 2.3.1, Python 3.11",
    "fingerprint": "4e1f0a9be3",
}
