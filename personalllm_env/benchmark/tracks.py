"""The tracks, by name. What each asks and which ordering theory expects: ``docs/tracks``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

from personalllm_env.benchmark.track import Track

TRACKS: dict[str, Track] = {
    track.name: track
    for track in (
        Track(
            "cold-start-v0",
            "How fast is a new user learnt from the rewards they report?",
            environment={"horizon": 60},
            history={"horizon": 50},
            reported=(1, 5, 10, 20, 50),
        ),
        Track(
            "sparse-v0",
            "What is learnt when users speak at one interaction in ten?",
            environment={
                "feedback": ["reward", {"silence": {"probability": 0.9}}],
                "horizon": 100,
            },
            history={"horizon": 300},
            reported=(1, 5, 20, 50),
        ),
        Track(
            "duels-v0",
            "What is learnt from preferences between two responses, both paid for?",
            environment={"num_shown": 2, "feedback": "choice", "horizon": 100},
            history={"horizon": 50},
            reported=(1, 5, 20, 50),
        ),
        Track(
            "clicks-v0",
            "What is learnt when users see all responses and click on the one they like best?",
            environment={"feedback": "click", "horizon": 50},
            reported=(1, 5, 20),
        ),
        Track(
            "meta-learning-v0",
            "What do 1,000 other users teach about one who has clicked five times?",
            environment={"feedback": "click", "horizon": 6},
            history={"horizon": 50},
            reported=(0, 1, 5),
        ),
        Track(
            "returning-v0",
            "What is the memory of a user worth when they come back, 50 interactions later?",
            environment={"recognise": True, "horizon": 10},
            history={"horizon": 50},
            population={"dirichlet": {"num_users": 1000}},
            yardstick="decoder-oracle",
            reported=(0, 1, 5),
        ),
        Track(
            "drift-v0",
            "Who notices that a user has changed?",
            environment={"drift": "sudden", "horizon": 100},
            history={"drift": None, "horizon": 50},
            reported=(1, 5, 20, 50),
        ),
        Track(
            "communities-v0",
            "Is it found out that users come in communities, and which one a user belongs to?",
            environment={"horizon": 50},
            population={
                "communities": {
                    "num_users": 3000,
                    "num_communities": 5,
                    "cohesion": 50.0,
                    "num_test": 1000,
                    "seed": 0,
                }
            },
        ),
        Track(
            "mismatch-v0",
            "What is a history worth whose users are more alike than those who come?",
            environment={"concentration": 0.05, "horizon": 50},
            history={"concentration": 0.3},
        ),
        Track(
            "repeated-v0",
            "Who explores where the same two prompts come again and again?",
            environment={"prompts_per_episode": 2, "horizon": 60},
            history={"prompts_per_episode": None, "horizon": 50},
            yardstick="exact-bayes",
        ),
        Track(
            "white-box-v0",
            "How near to the exact Bayesian answer are learners that see the reward models?",
            environment={
                "white_box": True,
                "feedback": {"reward": {"noise_sd": 1.0}},
                "horizon": 50,
            },
            yardstick="exact-bayes",
        ),
    )
}


def find_tracks(names: Iterable[str] = ()) -> list[Track]:
    """Returns the tracks of these names, or ``module:NAME`` of your own; all ours for none.

    Raises:
        LookupError: Naming the first that is unknown, and what is near it.
    """
    wanted = list(dict.fromkeys(names))
    return [_find(name) for name in wanted] if wanted else list(TRACKS.values())


def _find(name: str) -> Track:
    if name in TRACKS:
        return TRACKS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, TRACKS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(TRACKS)
        raise LookupError(
            f"no track is called {name!r}; {hint}known: {known}, or module:NAME of your own"
        )
    try:
        track = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever happens when somebody's module is run
        raise LookupError(f"cannot load track {name!r}: {error}") from error
    if not isinstance(track, Track):
        raise LookupError(f"{name!r} is not a Track but {track!r}")
    if track != TRACKS.get(track.name, track):
        raise LookupError(
            f"{name!r} is called {track.name!r} as one of ours; name it otherwise"
        )
    return track
