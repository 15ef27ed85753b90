"""The tracks, by name. What each asks and which ordering theory expects: ``docs/tracks``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from personalllm_env.benchmark.track import Track

TRACKS: dict[str, Track] = {
    track.name: track
    for track in (
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
    )
}


def find_tracks(names: Iterable[str] = ()) -> list[Track]:
    """Returns the tracks of these names, in the table's order; all of them for none.

    Raises:
        LookupError: Naming the first that is unknown, and what is near it.
    """
    wanted = list(names)
    for name in wanted:
        if name not in TRACKS:
            near = difflib.get_close_matches(name, TRACKS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LookupError(f"no track is called {name!r}; {hint}known: {', '.join(TRACKS)}")
    return [track for name, track in TRACKS.items() if not wanted or name in wanted]
