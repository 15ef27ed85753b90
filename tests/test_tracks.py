"""Tracks: data from which both sides are built, a page for each, and how they are found."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.tracks import TRACKS, find_tracks
from personalllm_env.database import record_history
from personalllm_env.registry import find_agent
from personalllm_env.runner import measure

PAGES = Path(__file__).parents[1] / "docs" / "tracks"
NAMES = sorted(TRACKS)


@pytest.mark.parametrize("name", NAMES)
def test_sides(name, bank):
    track = TRACKS[name]
    history, test = track.sides(bank, 0)
    assert history.split == "train"
    assert test.split == "test"
    assert not set(history.prompts) & set(test.prompts)
    assert history.feedback == test.feedback, "what is learnt from must be what is heard"
    assert history.num_shown == test.num_shown
    assert all(number < test.horizon for number in track.reported)
    if track.population is None:
        assert track.sides(bank, 1).test.population == test.population
    else:
        assert history.population is test.population


@pytest.mark.parametrize("name", NAMES)
def test_definition_is_json_and_has_no_words(name):
    track = TRACKS[name]
    definition = track.definition()
    assert json.loads(json.dumps(definition)) == definition
    assert track.question not in json.dumps(definition)
    assert re.fullmatch(r"[a-z-]+-v\d+", name)


@pytest.mark.parametrize("name", NAMES)
def test_every_track_has_its_page(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\n**{TRACKS[name].question}**")
    for heading in ("Setting", "Why it is hard", "What theory expects", "The limit"):
        assert f"## {heading}\n" in text
    assert f"({name}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")
    horizon = TRACKS[name].environment["horizon"]
    assert f"{horizon} interactions" in text, "the page's horizon is the track's"
    assert TRACKS[name].yardstick in text


def test_no_page_is_of_a_track_that_is_gone():
    assert {path.stem for path in PAGES.glob("*-v*.md")} == set(NAMES)


def test_yardsticks_are_privileged_agents():
    for track in TRACKS.values():
        assert find_agent(track.yardstick).agent_class.privileges


def test_the_communities_stay_and_returning_users_do_not(bank):
    communities, returning = TRACKS["communities-v0"], TRACKS["returning-v0"]
    one, other = (communities.sides(bank, seed).test.population for seed in (0, 1))
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.is_test.sum() == 1000
    assert communities.sides(bank, 0).test.user_split == "test"
    assert communities.sides(bank, 0).history.user_split == "train"
    one, other = (returning.sides(bank, seed).test.population for seed in (0, 1))
    assert not np.array_equal(one.weights, other.weights)


def test_returning_users_are_those_of_the_history(bank):
    sides = TRACKS["returning-v0"].sides(bank, 3)
    database = record_history(sides.history, num_users=1000, seed=3)
    np.testing.assert_array_equal(database.identity, np.arange(1000))


@pytest.mark.parametrize("name", NAMES)
def test_an_honest_and_the_privileged_agents_run_on_every_track(name, bank):
    track = TRACKS[name]
    sides = track.sides(bank, 0)
    database = record_history(sides.history, num_users=30, seed=0)
    for agent in ("popular", "empirical-bayes", track.yardstick, "oracle"):
        done = measure(find_agent(agent), sides.test, lambda: database, num_users=5, seed=0)
        assert done.utility.shape == (5, sides.test.horizon)
        assert (done.regret >= -1e-5).all()


def test_all_tracks_are_found_in_order():
    assert [track.name for track in find_tracks()] == list(TRACKS)
    assert [t.name for t in find_tracks(["duels-v0", "clicks-v0", "duels-v0"])] == [
        "duels-v0",
        "clicks-v0",
    ]


def test_an_unknown_track_is_named_with_what_is_near():
    with pytest.raises(LookupError, match=r"'duel-v0'; did you mean 'duels-v0'\?"):
        find_tracks(["duel-v0"])


def test_a_track_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "mine_tracks.py").write_text(
        "from personalllm_env.benchmark.track import Track\n"
        "LATE = Track('late-v0', 'Late?', environment={'horizon': 3})\nWORD = 'late'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_tracks(["mine_tracks:LATE"])[0].name == "late-v0"
    with pytest.raises(LookupError, match="is not a Track but 'late'"):
        find_tracks(["mine_tracks:WORD"])
    with pytest.raises(LookupError, match="cannot load track 'mine_tracks:LATER'"):
        find_tracks(["mine_tracks:LATER"])
    sys.modules.pop("mine_tracks")


def test_settings_that_do_not_fit_are_refused(bank):
    with pytest.raises(ValueError, match="silences"):
        Track("bad-v0", "", environment={"feedback": "silences"}).sides(bank, 0)
    with pytest.raises(ValueError, match="dirichlet, communities, got 'crowd'"):
        Track("bad-v0", "", population={"crowd": {}}).sides(bank, 0)
