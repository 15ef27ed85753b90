"""Feedback: channels by hand, laws by their formula, specifications, and silence."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from personalllm_env.feedback import (
    CHANNELS,
    Channel,
    Choice,
    Click,
    Delay,
    FeedbackModel,
    Leave,
    Like,
    Reward,
    Served,
    Silence,
    Stars,
    feedback_model,
    mean_shown,
)
from personalllm_env.session import Session
from personalllm_env.streams import MAX_NORMAL, stream_keys
from personalllm_env.task import Task
from personalllm_env.types import Feedback
from personalllm_env.users import DirichletUsers, UserPopulation

NUM = 20_000
F4 = np.float32


def keys_of(num=NUM, seed=0):
    return stream_keys(seed, np.arange(num), np.zeros(num, int))


def served(shown, candidates=None, action=None):
    """What users have before them, from (B, S) utilities of what was shown."""
    shown = np.asarray(shown, F4)
    action = np.tile(np.arange(shown.shape[1]), (len(shown), 1)) if action is None else action
    return Served(shown, mean_shown(shown), candidates, np.asarray(action))


def say(channel, utilities, num=NUM, seed=0, width=1):
    """What ``num`` users say to the same utilities, each with noise of their own."""
    noise = channel.noise(keys_of(num, seed), 1)[0]
    if channel.needs_candidates:
        everything = np.tile(np.asarray(utilities, F4), (num, 1))
        shown = everything[:, :width]
        return channel.say(served(shown, everything), noise)
    return channel.say(served(np.tile(np.asarray(utilities, F4), (num, 1))), noise)


def close_to(share, exact, num=NUM):
    """Within 5.5 binomial sd: false alarm 4e-8."""
    assert abs(share - exact) <= 5.5 * np.sqrt(exact * (1 - exact) / num), (share, exact)


# -- exact values


def test_mean_of_what_was_shown():
    assert mean_shown(np.array([[1.0, 3.0]])).tolist() == [2.0]
    one = np.array([[1.0], [2.0]])
    assert mean_shown(one).tolist() == [1.0, 2.0]


def test_reward_without_noise_is_the_utility():
    channel = Reward(noise_sd=0.0)
    noise = channel.noise(keys_of(3), 2)
    assert noise.shape == (2, 3)
    assert (noise == 0).all()
    said = channel.say(served([[1.5], [-2.25], [0.0]]), noise[0])
    assert said.dtype == F4
    assert said.tolist() == [1.5, -2.25, 0.0]
    assert channel.reward(said, np.zeros((3, 1), int)) is said
    both = channel.say(served([[1.0, 2.0]]), F4([0.25]))
    assert both.tolist() == [1.75]


def test_like_with_a_sharp_threshold():
    channel = Like(threshold=0.5, temperature=0.0)
    shown = served([[0.4], [0.6], [0.5], [0.5], [-9.0], [9.0]])
    said = channel.say(shown, np.array([0.01, 0.99, 0.49, 0.51, 0.0001, 0.9999]))
    assert said.dtype == F4
    assert said.tolist() == [0, 1, 1, 0, 0, 1]
    assert channel.reward(said, shown.action).tolist() == said.tolist()


def test_like_is_decided_by_noise_below_its_probability():
    channel = Like(threshold=0.0, temperature=2.0)
    chance = 1 / (1 + np.exp(-0.5))  # of utility 1
    noise = np.array([chance - 1e-4, chance + 1e-4])
    assert channel.say(served([[1.0], [1.0]]), noise).tolist() == [1, 0]


def test_stars_without_noise():
    channel = Stars(cuts=(-1, 0, 2), noise_sd=0.0)
    utility = [[-5], [-1.0], [-0.99], [0.0], [0.5], [2.0], [2.1], [100]]
    said = channel.say(served(utility), np.zeros(8, F4))
    assert said.dtype == F4
    assert said.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    reward = channel.reward(said, np.zeros((8, 1), int))
    assert np.allclose(reward, [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    felt = channel.say(served([[0.0]]), F4([-1.5]))  # noise is added before cutting
    assert felt.tolist() == [1]


def test_choice_at_temperature_zero():
    channel = Choice(temperature=0.0)
    shown = served([[1, 0], [0, 1], [2, 2], [2, 2]])
    said = channel.say(shown, np.array([0.99, 0.01, 0.49, 0.51]))
    assert said.dtype == F4
    assert said.tolist() == [1, -1, 1, -1]
    assert channel.reward(said, shown.action).tolist() == [1, -1, 1, -1]


def test_choice_is_decided_by_noise_below_its_probability():
    channel = Choice(temperature=0.5)
    chance = 1 / (1 + np.exp(-(0.9 - 0.2) / 0.5))
    noise = np.array([chance - 1e-4, chance + 1e-4])
    assert channel.say(served([[0.9, 0.2], [0.9, 0.2]]), noise).tolist() == [1, -1]


def test_click_at_temperature_zero():
    channel = Click(temperature=0.0)
    everything = F4([[0, 3, 1], [2, 1, 0], [0, 0, 1]])
    shown = served(everything[:, :1], everything, action=[[1], [1], [2]])
    said = channel.say(shown, np.array([0.1, 0.5, 0.9]))
    assert said.dtype == F4
    assert said.tolist() == [1, 0, 2]
    assert channel.reward(said, shown.action).tolist() == [1, 0, 1]
    assert channel.reward(said, np.array([[0, 1], [0, 1], [0, 1]])).tolist() == [1, 1, 0]
    assert channel.encode(said, 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_click_inverts_the_cumulative_probabilities():
    channel = Click(temperature=0.5)
    everything = np.tile(F4([0.5, -0.5, 1.0]), (6, 1))
    edges = np.cumsum(special.softmax(np.array([0.5, -0.5, 1.0]) / 0.5))[:2]
    noise = np.array([1e-9, edges[0] - 1e-6, edges[0] + 1e-6, *(edges[1] + [-1e-6, 1e-6]), 1])
    said = channel.say(served(everything[:, :1], everything), np.minimum(noise, 1 - 1e-16))
    assert said.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_utilities_do_not_overflow(margin):
    likes = say(Like(0.0, 1e-3), [margin], num=50)
    chooses = say(Choice(1e-3), [margin, 0.0], num=50)
    clicks = say(Click(1e-3), [0.0, margin], num=50)
    up = margin > 0
    assert (likes == up).all()
    assert (chooses == (1 if up else -1)).all()
    assert (clicks == up).all()


# -- laws


@pytest.mark.parametrize("noise_sd", [0.1, 2.0])
def test_reward_noise_is_normal(noise_sd):
    """KS over 20,000 users; false alarm 1e-6."""
    error = say(Reward(noise_sd), [0.75]) - 0.75
    assert stats.kstest(error.astype(float), "norm", (0, noise_sd)).pvalue > 1e-6


@pytest.mark.parametrize("utility", [-1.0, 0.2, 0.5, 1.3])
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_like_is_logistic(utility, temperature):
    share = (say(Like(0.5, temperature), [utility]) == 1).mean()
    close_to(share, special.expit((utility - 0.5) / temperature))


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (1.0, 0.5), (-0.5, 0.1)])
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_choice_is_bradley_terry(first, second, temperature):
    said = say(Choice(temperature), [first, second])
    assert set(np.unique(said)) <= {-1.0, 1.0}
    close_to((said == 1).mean(), special.expit((first - second) / temperature))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 10.0])
def test_click_is_softmax(temperature):
    """Chi-square over 20,000 users; false alarm 1e-6."""
    utilities = np.array([0.3, -0.2, 0.0, 0.5])
    said = say(Click(temperature), utilities).astype(int)
    expected = NUM * special.softmax(utilities / temperature)
    assert stats.chisquare(np.bincount(said, minlength=4), expected).pvalue > 1e-6


@pytest.mark.parametrize("utility", [-1.0, 0.1])
@pytest.mark.parametrize("noise_sd", [0.25, 1.0])
def test_stars_are_an_ordered_probit(utility, noise_sd):
    channel = Stars(noise_sd=noise_sd)
    said = say(channel, [utility])
    edges = np.array([-np.inf, *channel.cuts, np.inf])
    expected = np.diff(special.ndtr((edges - utility) / noise_sd))
    assert set(np.unique(said)) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    for star in range(1, 6):
        close_to((said == star).mean(), expected[star - 1])


def test_default_cuts_are_quintiles():
    assert np.allclose(special.ndtr(Stars().cuts), [0.2, 0.4, 0.6, 0.8], atol=1e-4)


def test_silence_is_as_likely_as_said(tasks):
    """16,000 interactions; 5.5 binomial sd, false alarm 4e-8."""
    session = Session(tasks["silence"], np.arange(2000))
    session.begin(0)
    heard = [session.step(np.zeros((2000, 1), int))[0].heard for _ in range(8)]
    close_to(np.mean(heard), 0.3, num=16_000)


def test_noise_of_channels_is_independent():
    """Correlations of 20,000 pairs within 5.5 / sqrt(n)."""
    draws = [channel().noise(keys_of(), 1)[0] for channel in CHANNELS.values()]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(NUM)


# -- likelihoods

BINARY = {"like": [0.0, 1.0], "choice": [-1.0, 1.0]}


def hypotheses(channel, num_hypotheses=7, num_responses=4, seed=0):
    """One user's situation under several hypotheses about their weights."""
    rng = np.random.default_rng(seed)
    everything = rng.standard_normal((1, num_responses, num_hypotheses))
    shown = everything[:, : channel.num_shown or 1]
    return Served(shown, mean_shown(shown), everything, np.arange(shown.shape[1])[None])


def at(served_one, num):
    """The same situation for ``num`` rows."""
    return Served(*(np.repeat(part, num, axis=0) for part in served_one))


@pytest.mark.parametrize(
    ("channel", "outcomes"),
    [
        (Like(0.3, 0.7), [0.0, 1.0]),
        (Like(temperature=0.0), [0.0, 1.0]),
        (Choice(0.6), [-1.0, 1.0]),
        (Choice(0.0), [-1.0, 1.0]),
        (Click(0.8), [0.0, 1.0, 2.0, 3.0]),
        (Click(0.0), [0.0, 1.0, 2.0, 3.0]),
        (Stars(noise_sd=0.5), [1.0, 2.0, 3.0, 4.0, 5.0]),
        (Stars(cuts=(0,), noise_sd=0.0), [1.0, 2.0]),
    ],
)
def test_likelihoods_sum_to_one_over_outcomes(channel, outcomes):
    said = F4(outcomes)
    found = channel.log_likelihood(said, at(hypotheses(channel), len(said)))
    assert found.shape == (len(said), 7)
    assert np.allclose(np.exp(found).sum(axis=0), 1, atol=1e-9)


def test_likelihoods_are_the_laws():
    one = hypotheses(Like())
    u, everything = one.utility[0], one.candidates[0]
    like = Like(0.3, 0.7).log_likelihood(F4([1]), one)[0]
    assert np.allclose(np.exp(like), special.expit((u - 0.3) / 0.7))
    click = Click(0.8).log_likelihood(F4([2]), one)[0]
    assert np.allclose(np.exp(click), special.softmax(everything / 0.8, axis=0)[2])
    stars = Stars(cuts=(-0.5, 0.5), noise_sd=0.4).log_likelihood(F4([2]), one)[0]
    exact = special.ndtr((0.5 - u) / 0.4) - special.ndtr((-0.5 - u) / 0.4)
    assert np.allclose(np.exp(stars), exact)
    reward = Reward(0.5).log_likelihood(F4([0.2]), one)[0]
    exact = stats.norm(u, 0.5).logpdf(F4(0.2))
    assert np.allclose(reward - reward[0], exact - exact[0])
    pair = hypotheses(Choice())
    first, second = pair.shown[0]
    choice = Choice(0.6).log_likelihood(F4([-1]), pair)[0]
    assert np.allclose(np.exp(choice), special.expit((second - first) / 0.6))


@pytest.mark.parametrize("channel", [Like(), Choice(), Click(), Stars(), Reward()])
def test_the_truth_is_likeliest_on_average(channel):
    """Gibbs' inequality: over 20,000 answers the true hypothesis beats every other one."""
    one = hypotheses(channel, num_hypotheses=3, seed=4)
    true = Served(*(np.repeat(p[..., 0], NUM, axis=0).astype(F4) for p in one[:3]), one.action)
    true = true._replace(action=np.repeat(one.action, NUM, axis=0))
    said = channel.say(true, channel.noise(keys_of(), 1)[0])
    total = channel.log_likelihood(said, at(one, NUM)).mean(axis=0)
    assert total.argmax() == 0
    assert total[0] > total[1:].max() + 0.01


# -- encoding


@given(
    said=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    names=st.permutations(["reward", "like", "stars", "click"]),
    silent=st.booleans(),
)
def test_encode_and_decode_are_inverse(said, names, silent):
    model = feedback_model([*names, *([Silence(0.5)] if silent else [])])
    b = len(said)
    what = {
        "reward": F4(said) - F4(1.5),
        "like": F4(said) % 2,
        "stars": F4(said) + 1,
        "click": F4(said),
    }
    spoken = {name: what[name] for name in names}
    feedback = Feedback(F4(said), np.ones(b, bool), spoken, np.zeros(b, bool))
    encoded = model.encode(feedback, 5)
    assert encoded.shape == (b, model.width(5)) == (b, 8)
    assert encoded.dtype == F4
    decoded = model.decode(encoded, 5)
    assert list(decoded) == list(names)
    for name in names:
        assert np.array_equal(decoded[name], spoken[name])


def test_a_click_among_one_response_survives_encoding():
    model = feedback_model("click")
    said = {"click": np.zeros(2, F4)}
    both = Feedback(np.ones(2, F4), np.ones(2, bool), said, np.zeros(2, bool))
    assert model.decode(model.encode(both, 1), 1)["click"].tolist() == [0, 0]


def test_columns_stand_channel_after_channel():
    model = feedback_model(["click", "reward"])
    said = {"click": F4([1]), "reward": F4([-0.5])}
    heard = Feedback(F4([0]), np.ones(1, bool), said, np.zeros(1, bool))
    assert model.encode(heard, 3).tolist() == [[0, 1, 0, -0.5]]


def test_encoding_does_not_share_memory():
    said = {"reward": F4([1, 2])}
    heard = Feedback(said["reward"], np.ones(2, bool), said, np.zeros(2, bool))
    feedback_model("reward").encode(heard, 3)[:] = 9
    assert said["reward"].tolist() == [1, 2]


# -- specifications

EQUAL = [
    ("like", FeedbackModel((Like(),))),
    (Reward(noise_sd=1), FeedbackModel((Reward(1),))),
    ({"stars": {"noise_sd": 0.5}}, FeedbackModel((Stars(noise_sd=0.5),))),
    ({"stars": None}, FeedbackModel((Stars(),))),
    ({"stars": {"cuts": [-1, 1]}}, FeedbackModel((Stars(cuts=(-1.0, 1.0)),))),
    (
        {"reward": {}, "silence": {"probability": 0.5}},
        FeedbackModel((Reward(),), Silence(0.5)),
    ),
    (
        [Like(), "click", {"silence": {"probability": 0.2}}, Delay(2), Leave(0.1, 0.2)],
        FeedbackModel((Like(), Click()), Silence(0.2), 2, Leave(0.1, 0.2)),
    ),
    (["silence", "reward"], FeedbackModel((Reward(),), Silence())),
    (("choice", ["reward"]), FeedbackModel((Choice(), Reward()))),
    (["like", "delay"], FeedbackModel((Like(),), None, 1)),
    (FeedbackModel((Like(),)), FeedbackModel((Like(),))),
]


@pytest.mark.parametrize(("spec", "model"), EQUAL)
def test_specifications(spec, model):
    assert feedback_model(spec) == model


@pytest.mark.parametrize(
    "spec",
    [
        "like",
        ["like", {"silence": {"probability": 0.9}}, {"delay": {"interactions": 3}}],
        {"stars": {"cuts": [-1, 0, 1], "noise_sd": 0.0}, "leave": {"threshold": -1.0}},
    ],
)
def test_specifications_survive_json(spec):
    assert feedback_model(json.loads(json.dumps(spec))) == feedback_model(spec)


def test_a_channel_of_ones_own():
    """A channel is whatever has the protocol's parts; no list has to be extended."""

    class Grunt(Like):
        name = "grunt"

    assert feedback_model([Grunt(), "reward"]).channels[0].name == "grunt"
    assert all(isinstance(channel(), Channel) for channel in CHANNELS.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("likes", "unknown feedback 'likes'; known: reward, like, stars, choice, click, sil"),
        (
            {"like": None, "silence": {"prob": 0.2}},
            "'silence' takes a dict of probability;",
        ),
        ({"like": 3}, "feedback 'like' takes a dict of threshold, temperature; got 3"),
        ({"stars": {"cuts": 3}}, "feedback 'stars': 'int' object is not iterable"),
        ({"reward": {"sd": 1}}, "feedback 'reward' takes a dict of noise_sd; got .'sd': 1."),
        ({"silence": {"probability": 0.5}}, r"one or more different channels, got \[\]"),
        ([], r"one or more different channels, got \[\]"),
        (["like", Like(0.1)], r"different channels, got \['like', 'like'\]"),
        (["like", Silence(0.1), "silence"], "names Silence twice"),
        (["like", Delay(1), Delay(2)], "names Delay twice"),
        (["like", "leave", Leave()], "names Leave twice"),
        (5, "feedback must be names, .*, got 5"),
        (["like", None], "feedback must be names, .*, got None"),
        (Like, "feedback must be names, .*, got <class"),
        ([FeedbackModel((Like(),))], r"feedback must be names, .*, got FeedbackModel"),
        (
            {"reward": {"noise_sd": -1}},
            "reward: noise_sd must be finite and at least 0, got -1",
        ),
        ({"reward": {"noise_sd": float("inf")}}, "reward: noise_sd must be finite"),
        ({"reward": {"noise_sd": float("nan")}}, "reward: noise_sd must be finite"),
        ({"like": {"temperature": -0.1}}, "like: temperature must be finite and at least 0"),
        ({"like": {"threshold": float("nan")}}, "like: threshold must be finite, got nan"),
        (["like", {"leave": {"threshold": float("nan")}}], "leave: threshold must be finite,"),
        ({"choice": {"temperature": -0.1}}, "choice: temperature must be"),
        ({"click": {"temperature": -0.1}}, "click: temperature must be"),
        ({"stars": {"noise_sd": -0.1}}, "stars: noise_sd must be"),
        ({"stars": {"cuts": []}}, r"stars: cuts must be numbers that increase, got \(\)"),
        ({"stars": {"cuts": [0, 0]}}, r"stars: cuts must .* increase, got \(0.0, 0.0\)"),
        ({"stars": {"cuts": [1, 0]}}, r"stars: cuts must .* increase, got \(1.0, 0.0\)"),
        ({"stars": {"cuts": [float("nan")]}}, "stars: cuts must be numbers"),
        (["like", {"silence": {"probability": 1.5}}], r"silence: probability .* in \[0, 1\]"),
        (["like", {"leave": {"probability": -1}}], r"leave: probability must be in \[0, 1\]"),
        (["like", {"delay": {"interactions": -1}}], "delay: interactions must be"),
        (["like", {"delay": {"interactions": 1.5}}], "delay: interactions must be whole"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_specification_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        feedback_model(spec)


def test_a_choice_needs_two():
    from personalllm_env.testing import tiny_bank

    message = "feedback 'choice' needs 2 shown responses; this task shows 1"
    with pytest.raises(ValueError, match=message):
        Task(tiny_bank(), DirichletUsers(3), feedback_model(["reward", "choice"]))


# -- silence

KINDS = ["reward", "like", "stars", "click", "choice"]


def spoken(bank, spec, num_shown, horizon=6, num=200, regret=False):
    """All feedback of an episode in which the users' utilities are often negative."""
    task = Task(
        bank, DirichletUsers(3, 0.1), feedback_model(spec), horizon=horizon, num_shown=num_shown
    )
    session = Session(task, np.arange(num), regret=regret)
    session.begin(11)
    rng = np.random.default_rng(0)
    action = rng.integers(4, size=(horizon, num, num_shown))
    return task, [session.step(a)[0] for a in action]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [0, 2])
def test_silence_says_nothing_at_all(bank, kind, delay):
    """Neither a value nor, by way of a negative zero, its sign."""
    shown = 2 if kind == "choice" else 1
    task, quiet = spoken(bank, [kind, Silence(0.5), Delay(delay)], shown)
    _, loud = spoken(bank, kind, shown)
    some = 0
    for t, feedback in enumerate(quiet):
        silent = ~feedback.heard
        encoded = task.feedback.encode(feedback, 4)
        for said in (feedback.reward, feedback.said[kind], encoded):
            assert (said[silent] == 0).all()
            assert not np.signbit(said[silent]).any()
        if t < delay:
            assert silent.all()
            continue
        heard = feedback.heard
        some += heard.sum()
        before = loud[t - delay]
        assert np.array_equal(feedback.reward[heard], before.reward[heard])
        assert np.array_equal(feedback.said[kind][heard], before.said[kind][heard])
    assert 0.35 < some / (200 * (6 - delay)) < 0.65


@pytest.mark.parametrize("kind", KINDS)
def test_always_silent(bank, kind):
    task, quiet = spoken(bank, [kind, Silence(1.0)], 2 if kind == "choice" else 1)
    for feedback in quiet:
        assert not feedback.heard.any()
        assert not task.feedback.encode(feedback, 4).any()
        assert not feedback.reward.any()


def test_silence_is_told_from_a_zero(bank):
    """A dislike, and a silence, are both a reward of 0; ``heard`` tells them apart."""
    task, quiet = spoken(bank, ["like", Silence(0.5)], 1)
    for feedback in quiet:
        encoded = task.feedback.encode(feedback, 4)[:, 0]
        disliked = feedback.heard & (feedback.said["like"] == 0)
        assert disliked.any()
        assert (encoded[disliked] == 0).all()
        assert (encoded[~feedback.heard] == 0).all()


def test_silence_does_not_depend_on_what_would_be_said(bank):
    """The same interactions are heard whatever the action, the channel or the user."""
    heard = []
    for kind, concentration in (("reward", 0.1), ("like", 5.0), ("click", 0.1)):
        task = Task(bank, DirichletUsers(3, concentration), feedback_model([kind, "silence"]))
        session = Session(task, np.arange(300))
        session.begin(2)
        action = np.full((300, 1), len(heard))
        heard.append(np.stack([session.step(action)[0].heard for _ in range(20)]))
    assert np.array_equal(heard[0], heard[1])
    assert np.array_equal(heard[0], heard[2])


# -- leaving


def test_leaving(bank):
    """Certain below the threshold and never above; the number of stayers is binomial."""
    sure = feedback_model([Reward(0.0), Leave(threshold=0.1, probability=1.0)])
    _, steps = spoken(bank, sure, 1)
    for feedback in steps:
        assert np.array_equal(feedback.left, feedback.reward < 0.1)
        assert 0 < feedback.left.sum() < 200
    some = feedback_model([Reward(0.0), Leave(threshold=0.1, probability=0.3)])
    _, steps = spoken(bank, some, 1, num=5000)
    unhappy = np.stack([f.reward < 0.1 for f in steps])
    left = np.stack([f.left for f in steps])
    assert not left[~unhappy].any()
    close_to(left[unhappy].mean(), 0.3, unhappy.sum())


# -- bounds


@pytest.mark.parametrize(
    "channel", [Reward(0.0), Reward(0.7), Like(), Stars(), Click(), Choice()]
)
def test_bounds_contain_everything_said(channel):
    limit = 3.0
    rng = np.random.default_rng(0)
    everything = rng.uniform(-limit, limit, (500, 4)).astype(F4)
    everything[0], everything[1] = limit, -limit
    shown = everything[:, : channel.num_shown or 1]
    situation = served(shown, everything)
    low, high = channel.bounds(limit)
    for noise in channel.noise(keys_of(500), 50):
        said = channel.encode(channel.say(situation, noise), 4)
        assert said.min() >= low
        assert said.max() <= high
    if isinstance(channel, Reward):
        assert high == limit + MAX_NORMAL * channel.noise_sd == -low


def test_bounds_hold_for_weights_at_the_tolerance(bank):
    """Weights may sum to 1.0001: utilities then exceed the largest score, not the space."""
    from personalllm_env.envs.translate import observation_space

    top = np.unravel_index(np.abs(bank.scores).argmax(), bank.scores.shape)
    weights = np.zeros((1, 3))
    weights[0, top[2]] = 1.00009
    users = UserPopulation(weights)
    task = Task(bank, users, feedback_model(Reward(0.0)), split="all")
    session = Session(task, np.arange(1))
    from personalllm_env.core import Fixed

    session.begin(0, fixed=Fixed(prompts=np.array([top[0]])))
    feedback, _ = session.step(np.array([[top[1]]]))
    box = observation_space(task, "features")["feedback"]
    assert abs(feedback.reward[0]) > np.abs(bank.scores).max()
    assert box.contains(feedback.reward)


@pytest.mark.parametrize("name", ["reward", "like", "stars", "click", "duel", "silence"])
def test_task_without_silence_equals_silence_of_probability_zero(tasks, name):
    """Dense feedback is sparse feedback with nobody silent."""
    task = tasks[name]
    dense = replace(task, feedback=replace(task.feedback, silence=None))
    sparse = replace(task, feedback=replace(task.feedback, silence=Silence(0.0)))
    ends = [Session(t, np.arange(5), regret=True) for t in (dense, sparse)]
    for session in ends:
        session.begin(4)
    rng = np.random.default_rng(1)
    for _ in range(task.horizon):
        action = rng.integers(4, size=(5, task.num_shown))
        (left, first), (right, second) = (session.step(action) for session in ends)
        assert np.array_equal(left.reward, right.reward)
        assert left.heard.all()
        assert right.heard.all()
        assert np.array_equal(first.utility, second.utility)
        assert np.array_equal(first.regret, second.regret)
        for channel in left.said:
            assert np.array_equal(left.said[channel], right.said[channel])
        codes = [t.feedback.encode(f, 4) for t, f in ((dense, left), (sparse, right))]
        assert np.array_equal(*codes)


def test_a_sharp_click_among_equals_is_a_fair_draw():
    """4,000 users, four equal responses: each count within 5 binomial sd of 1,000."""
    utility = np.zeros((4000, 4), np.float32)
    utility[:, 0] = -1
    served = Served(utility[:, :1], utility[:, 0], utility, np.zeros((4000, 1), np.int64))
    noise = (np.arange(4000) + 0.5) / 4000
    counts = np.bincount(Click(0.0).say(served, noise).astype(int), minlength=4)
    assert counts[0] == 0
    assert np.ptp(counts[1:]) <= 1


@pytest.mark.parametrize("channels", [(), (Reward(0.0), Reward(5.0))])
def test_a_model_checks_its_own_channels(channels):
    with pytest.raises(ValueError, match="one or more different channels"):
        FeedbackModel(channels)
