"""One interaction as text, on the terminal, and as pixels."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from personalllm_env.bank import ResponseBank, Texts
from personalllm_env.envs.render import Scene, as_pixels, as_text, render, wrap
from personalllm_env.envs.single import PersonalEnv

TINY = Scene(
    t=2,
    horizon=50,
    prompt="What rhymes\nwith month?",
    responses=(("poet", "Nothing,\nsadly."), ("bluffer", ""), ("pedant", "Oneth. " * 60)),
    picked=(2, 0),
    said={"choice": -1.0, "reward": 0.526},
)
GOLDEN = """\
Interaction 3 of 50

  What rhymes with month?

> 1  poet  (second, preferred)
     Nothing, sadly.
  2  bluffer
> 3  pedant  (first)
     Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth.
     Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth.
     Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. Oneth. …

The user prefers the second (response 1)
The user reports a reward of 0.53"""
DUEL = (4, 1)


def scene(**changes):
    eight = tuple((f"responder {k}", f"Words of {k}. " * 30) for k in range(8))
    return dataclasses.replace(Scene(2, 50, "Why?", eight, (4,), {}), **changes)


def said(**changes):
    return [sentence for _, sentence in scene(**changes).sentences()]


def test_text_is_what_it_was():
    assert as_text(TINY) == GOLDEN


@pytest.mark.parametrize(
    ("picked", "channels", "sentence"),
    [
        ((4,), {"reward": 0.526}, "The user reports a reward of 0.53"),
        ((4,), {"reward": -0.001}, "The user reports a reward of 0.00"),
        ((4,), {"reward": -1.5}, "The user reports a reward of -1.50"),
        ((4,), {"like": 1.0}, "The user likes it"),
        ((4,), {"like": 0.0}, "The user does not like it"),
        (DUEL, {"like": 1.0}, "The user likes them"),
        ((4,), {"stars": 4.0}, "The user gives 4 stars"),
        ((4,), {"stars": 1.0}, "The user gives 1 star"),
        (DUEL, {"choice": 1.0}, "The user prefers the first (response 5)"),
        (DUEL, {"choice": -1.0}, "The user prefers the second (response 2)"),
        ((4,), {"click": 1.0}, "The user clicks on response 2"),
        ((4,), {"shrug": 0.5}, "The user says shrug 0.5"),
        ((4,), {}, "The user says nothing"),
    ],
)
def test_every_channel_has_its_sentence(picked, channels, sentence):
    assert said(picked=picked, said=channels) == [sentence]
    assert as_text(scene(picked=picked, said=channels)).splitlines()[-1] == sentence


def test_nothing_is_said_before_acting():
    before = scene(picked=(), said=None)
    assert before.sentences() == []
    assert "user" not in as_text(before)
    assert ">" not in as_text(before)


def test_late_feedback_is_about_an_earlier_interaction():
    late = {"said": {"like": 0.0}, "delay": 2}
    assert said(**late) == ["About interaction 1, the user does not like it"]
    assert said(said={}, delay=2) == ["About interaction 1, the user says nothing"]
    assert said(said={}, delay=3) == ["The user has said nothing yet"]


def test_late_feedback_points_at_nothing_shown_now():
    late = scene(picked=DUEL, said={"choice": -1.0, "click": 4.0}, delay=1)
    assert late.sentences()[0][1] == "About interaction 2, the user prefers the second"
    assert late.badges(4) == ["first"]
    assert late.badges(1) == ["second"]


def test_badges_say_what_was_shown_preferred_and_clicked():
    assert scene(said={"click": 1.0}).badges(4) == ["shown"]
    assert scene(said={"click": 1.0}).badges(1) == ["clicked"]
    assert scene(picked=(3, 3)).badges(3) == ["first", "second"]
    assert scene(picked=DUEL, said={"choice": 1.0}).badges(4) == ["first", "preferred"]
    assert scene(picked=()).badges(0) == []


def test_leaving_is_said_last():
    assert said(said={"like": 0.0}, left=True)[-1] == "The user leaves"
    assert said(said={}, left=True) == ["The user says nothing", "The user leaves"]


def test_a_scene_has_no_place_for_what_is_hidden():
    assert {field.name for field in dataclasses.fields(Scene)} == {
        *("t", "horizon", "prompt", "responses", "picked", "said", "delay", "left"),
        "most_stars",
    }


def bank(*, texts=True):
    rng = np.random.default_rng(0)
    p, k, m = 4, 3, 2
    words = Texts(
        tuple(f"Question {i}?" for i in range(p)),
        tuple(tuple(f"Answer {i}.{j}" for j in range(k)) for i in range(p)),
    )
    return ResponseBank(
        scores=rng.normal(size=(p, k, m)).astype(np.float32),
        prompt_features=rng.normal(size=(p, 2)).astype(np.float32),
        response_features=rng.normal(size=(p, k, 2)).astype(np.float32),
        reward_models=("a", "b"),
        responders=("x", "y", "z"),
        is_test=np.array([False, False, True, True]),
        texts=words if texts else None,
    )


def env(mode, **settings):
    return PersonalEnv(bank=bank(), horizon=4, split="train", render_mode=mode, **settings)


def test_what_is_shown_does_not_depend_on_the_weights():
    """Two users who differ in weights alone, and say nothing, look the same throughout."""
    seen = []
    for weights in ([1.0, 0.0], [0.0, 1.0]):
        e = env("ansi", feedback=["reward", {"silence": {"probability": 1.0}}])
        e.reset(seed=3, options={"weights": weights, "prompts": [0, 1, 0, 1]})
        frames = [e.render()]
        for action in (0, 2, 1):
            e.step(action)
            frames.append(e.render())
        seen.append(frames)
    assert seen[0] == seen[1]
    assert "The user says nothing" in seen[0][1]


def test_the_env_shows_the_interaction_just_over():
    e = env("ansi", feedback=["stars"])
    e.reset(seed=0, options={"prompts": [1]})
    assert e.render().startswith("Interaction 1 of 4\n\n  Question 1?\n")
    _, reward, *_ = e.step(2)
    stars = round(4 * reward) + 1
    assert e.render().endswith(f"The user gives {stars} star" + "s" * (stars > 1))
    assert "(shown)" in next(line for line in e.render().splitlines() if line[0:3] == "> 3")


def test_env_frames_have_one_shape():
    e = env("rgb_array", num_shown=2)
    e.reset(seed=0)
    frames = [e.render()]
    for _ in range(4):
        e.step((0, 1))
        frames.append(e.render())
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((720, 1280, 3), "uint8")}
    assert len({frame.tobytes() for frame in frames}) == 5


def test_a_bank_without_texts_is_shown_by_number():
    task = PersonalEnv(bank=bank(texts=False)).task
    shown = Scene.of(task, 3, np.arange(3), t=0)
    assert shown.prompt == "Prompt 3"
    assert shown.responses == (("x", ""), ("y", ""), ("z", ""))


def test_the_number_of_stars_is_the_channels():
    task = PersonalEnv(bank=bank(), feedback={"stars": {"cuts": (-1.0, 1.0)}}).task
    assert Scene.of(task, 0, np.arange(3), t=0).most_stars == 3
    assert Scene.of(PersonalEnv(bank=bank()).task, 0, np.arange(3), t=0).most_stars == 5


def test_human_prints(capsys):
    assert render(TINY, "human") is None
    printed = capsys.readouterr().out
    assert "Interaction 3 of 50" in printed
    assert "The user prefers the second (response 1)" in printed


def test_human_prints_words_as_they_are(capsys):
    """Neither rich's markup nor a terminal's escapes in a response do anything."""
    render(scene(responses=(("[bold]", "[red]a[/red] :smile: \x1b[2Jb"),) * 2), "human")
    printed = capsys.readouterr().out
    assert "[red]a[/red] :smile: [2Jb" in printed
    assert "\x1b[2J" not in printed


ODD = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=st.characters(), max_size=40),  # with lone surrogates
    st.sampled_from(
        [
            "",
            " ",
            "\n\n",
            "x" * 9000,
            "many words " * 900,
            "日本語" * 50,
            "שלום عربي " * 9,
            "👩‍👩‍👧" * 30,
        ]
    ),
)
CHANNEL = st.dictionaries(
    st.sampled_from(["reward", "like", "stars", "choice", "click", "shrug"]),
    st.floats(-9, 9, width=32).map(lambda x: abs(round(x)) if abs(x) > 3 else x),
)


@st.composite
def scenes(draw):
    k = draw(st.integers(2, 64))
    few = draw(st.lists(st.tuples(ODD, ODD), min_size=1, max_size=4))
    picks = st.lists(st.integers(0, k - 1), max_size=2)
    return Scene(
        t=draw(st.integers(0, 9)),
        horizon=10,
        prompt=draw(ODD),
        responses=tuple(few[i % len(few)] for i in range(k)),
        picked=tuple(draw(picks)),
        said=draw(st.none() | CHANNEL),
        delay=draw(st.integers(0, 3)),
        left=draw(st.booleans()),
        most_stars=draw(st.integers(2, 12)),
    )


@settings(max_examples=40, deadline=None)
@given(scenes())
@example(TINY)
@example(scene(responses=(("only", "one"),), picked=(0,)))
@example(
    scene(said={"reward": float("inf"), "like": 1.0, "stars": 5.0, "choice": 1.0}, delay=1)
)
def test_any_scene_can_be_drawn(any_scene):
    frame = as_pixels(any_scene)
    assert frame.shape == (720, 1280, 3)
    assert frame.dtype == np.uint8
    text = as_text(any_scene)
    assert max(map(cell_len, text.splitlines())) <= 88
    assert "\x1b" not in text
    text.encode()


def changed(before, after):
    """Returns the box (top, bottom, left, right) around what differs."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_a_picked_card_differs_from_an_unpicked_one():
    first, fourth = (as_pixels(scene(picked=(k,))) for k in (0, 3))
    none = as_pixels(scene(picked=()))
    top, bottom, left, right = changed(first, fourth)
    assert (left, right) == (32, 1247)  # from the first column's edge to the fourth's
    assert bottom < 390  # and only in the upper row
    assert (first[top:bottom, 32:320] != none[top:bottom, 32:320]).any(axis=2).mean() > 0.5


def test_what_is_said_is_drawn_below_the_cards():
    silent, liked, gone = (
        as_pixels(s)
        for s in (scene(), scene(said={"like": 1.0}), scene(said={"like": 1.0}, left=True))
    )
    assert changed(silent, liked)[0] > 620
    assert changed(liked, gone)[0] > 620


def test_a_reward_is_a_bar_to_either_side_of_nought():
    good, bad = (as_pixels(scene(said={"reward": x})) for x in (2.0, -2.0))
    green, red = np.array([31, 157, 99]), np.array([210, 67, 77])
    assert (good == green).all(axis=2).sum() > 300 > (good == red).all(axis=2).sum()
    assert (bad == red).all(axis=2).sum() > 300 > (bad == green).all(axis=2).sum()


def test_progress_grows_with_the_interactions_over():
    def over(t, **changes):
        frame = as_pixels(scene(t=t, **changes))
        return int((frame[49] == (0x33, 0x66, 0xDD)).all(axis=1).sum())

    assert over(0, said=None, picked=()) == 0
    assert over(24) == pytest.approx(608, abs=2)
    assert over(49) == pytest.approx(1216, abs=2)


def test_wrap_breaks_shortens_and_keeps_within_the_width():
    assert wrap("one two three", 7, 9, len) == ["one two", "three"]
    assert wrap("one two three", 7, 1, len) == ["one …"]
    assert wrap("abcdefgh", 3, 9, len) == ["abc", "def", "gh"]
    assert wrap("abcdefgh", 3, 2, len) == ["abc", "de…"]
    assert wrap("a\x00b\n\tc", 9, 1, len) == ["a b c"]
    assert wrap(" \n", 9, 3, len) == []
    assert wrap("anything", 9, 0, len) == []


@given(st.text(alphabet="ab \n", max_size=60), st.integers(3, 20), st.integers(1, 6))
def test_wrap_loses_words_only_where_it_says_so(words, width, max_lines):
    lines = wrap(words, width, max_lines, len)
    assert all(len(line) <= width for line in lines)
    whole = "".join(words.split())
    kept = "".join("".join(lines).split())
    assert kept == whole or (kept.endswith("…") and whole.startswith(kept[:-1]))
