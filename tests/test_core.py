"""The core: batches equal single runs, regret, information barriers, drift, prompts, order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env import core
from personalllm_env.core import Fixed, draw_episodes, observe, step, weights_at
from personalllm_env.drift import GradualDrift, SuddenDrift
from personalllm_env.feedback import Click, Like, Reward, feedback_model
from personalllm_env.session import Session
from personalllm_env.streams import stream_keys
from personalllm_env.task import Task
from personalllm_env.testing import tiny_bank, tiny_tasks
from personalllm_env.types import Diagnostics
from personalllm_env.users import (
    DirichletUsers,
    UserPopulation,
    clustered_population,
    dirichlet_population,
)


def variants():
    """Tasks that between them use every mechanism there is."""
    tasks = tiny_tasks()
    reward, duel = tasks["reward"], tasks["duel"]
    clustered = clustered_population(
        20, num_communities=3, num_reward_models=3, num_test=5, seed=1
    )
    wide = tiny_bank(num_prompts=20, num_responses=8, num_reward_models=10, num_features=9)
    users = dirichlet_population(7, num_reward_models=3, concentration=0.5)
    return tasks | {
        "unshuffled": replace(reward, shuffle=False),
        "unshuffled duel": replace(duel, shuffle=False),
        "gradual drift": replace(reward, drift=GradualDrift(0.7)),
        "sudden drift": replace(duel, drift=SuddenDrift(0.8)),
        "few prompts": replace(reward, prompts_per_episode=3),
        "finite": replace(reward, population=users, recognise=True),
        "finite drift": replace(reward, population=users, drift=SuddenDrift()),
        "clustered": replace(reward, population=clustered, user_split="test"),
        "white box": replace(reward, white_box=True),
        "test prompts": replace(reward, split="test"),
        "one interaction": replace(reward, horizon=1, drift=SuddenDrift()),
        "ten models": Task(wide, DirichletUsers(10, 0.05), horizon=6, shuffle=True),
        "three shown": Task(wide, DirichletUsers(10, (0.05, 1.0)), horizon=4, num_shown=3),
        "everything": replace(
            tasks["duel with reward"],
            feedback=feedback_model(["choice", "reward", "click", "silence", "delay", "leave"]),
            drift=GradualDrift(),
            prompts_per_episode=2,
            population=users,
        ),
    }


VARIANTS = variants()


def keys_of(num, seed=0, episode=0):
    return stream_keys(seed, np.arange(num), np.full(num, episode))


def parts(record, found=None, prefix=""):
    """A record's arrays by name, whatever the nesting."""
    found = {} if found is None else found
    items = record.items() if isinstance(record, dict) else record._asdict().items()
    for name, value in items:
        if isinstance(value, np.ndarray):
            found[prefix + name] = value
        elif value is not None:
            parts(value, found, f"{prefix}{name}.")
    return found


def identical(left, right):
    left, right = parts(left), parts(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert value.shape == right[name].shape, name
        assert value.tobytes() == right[name].tobytes(), name


def row_of(record, b):
    """Row ``b`` of every array, as a batch of one."""
    return {name: value[b : b + 1] for name, value in parts(record).items()}


# -- rows are runs


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**64),
    num=st.integers(1, 9),
    episode=st.integers(0, 3),
    data=st.data(),
)
def test_a_row_of_a_batch_is_a_single_run(name, seed, num, episode, data):
    """Bit for bit: feedback, diagnostics and observations, wherever the row stands."""
    task = VARIANTS[name]
    rows = np.array(
        data.draw(st.lists(st.integers(0, 50), min_size=num, max_size=num, unique=True))
    )
    b = data.draw(st.integers(0, num - 1))
    action_rng = np.random.default_rng(seed)
    batch = Session(task, rows, regret=True)
    alone = Session(task, rows[b : b + 1], regret=True)
    quick = Session(task, rows[b : b + 1], regret=False)
    sessions = (batch, alone, quick)
    for session in sessions:
        session.begin(seed)
        for _ in range(episode):
            session.begin()
    for t in range(task.horizon):
        seen = [s.observe(scores=True, weights=True) for s in sessions]
        identical(row_of(seen[0], b), parts(seen[1]))
        shape = (num, task.num_shown)
        action = action_rng.integers(task.bank.num_responses, size=shape)
        ends = [
            s.step(a) for s, a in zip(sessions, (action, *[action[b : b + 1]] * 2), strict=True)
        ]
        identical(row_of(ends[0][0], b), parts(ends[1][0]))
        identical(row_of(ends[0][1], b), parts(ends[1][1]))
        identical(ends[1][0], ends[2][0])  # whether or not regret is computed
        assert ends[1][1].utility.tobytes() == ends[2][1].utility.tobytes()
        assert batch.t == t + 1
    identical(row_of(batch.observe(), b), parts(alone.observe()))


@pytest.mark.parametrize("name", ["reward", "duel", "leaving", "everything", "white box"])
def test_a_clock_of_pairs_is_the_clock_of_one_number(name):
    """Interactions of one episode looked up at once equal those looked up one by one."""
    task = VARIANTS[name]
    episodes = draw_episodes(task, keys_of(3, seed=9))
    rng = np.random.default_rng(0)
    t = rng.integers(task.horizon, size=40)
    column = rng.integers(3, size=40)
    action = rng.integers(4, size=(40, task.num_shown))
    together = step(task, episodes, (t, column), action, regret=True)
    seen = observe(task, episodes, (t, column), scores=True, weights=True)
    for i in range(40):
        one = np.repeat(action[i : i + 1], 3, axis=0)
        feedback, diagnostics = step(task, episodes, int(t[i]), one, regret=True)
        identical(row_of(together[0], i), row_of(feedback, column[i]))
        identical(row_of(together[1], i), row_of(diagnostics, column[i]))
        now = observe(task, episodes, int(t[i]), scores=True, weights=True)
        identical(row_of(seen, i), row_of(now, column[i]))


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_that_begin_anew_one_by_one(name):
    """A masked begin equals the same row's next episode, and leaves the others alone."""
    task = VARIANTS[name]
    session = Session(task, np.arange(4), regret=True)
    session.begin(5)
    singles = [Session(task, np.array([b]), regret=True) for b in range(4)]
    for single in singles:
        single.begin(5)
    rng = np.random.default_rng(1)
    for _ in range(3 * task.horizon):
        mask = rng.random(4) < 0.25
        late = np.array([s.t == task.horizon for s in singles])
        mask |= late
        if mask.any():
            session.begin(mask=mask)
            for b in np.flatnonzero(mask):
                singles[b].begin()
        seen = session.observe(scores=True, weights=True)
        action = rng.integers(task.bank.num_responses, size=(4, task.num_shown))
        feedback, diagnostics = session.step(action)
        for b, single in enumerate(singles):
            identical(row_of(seen, b), parts(single.observe(scores=True, weights=True)))
            told, known = single.step(action[b : b + 1])
            identical(row_of(feedback, b), parts(told))
            identical(row_of(diagnostics, b), parts(known))
            assert session.over()[b] == single.over()[0]
            assert session.elapsed()[b] == single.elapsed()[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_episodes_can_be_repeated(name):
    """Same seed: same episodes, whatever else was drawn. Other seed, row, episode: others."""
    task = VARIANTS[name]
    first = draw_episodes(task, keys_of(6, seed=3))
    np.random.default_rng(0).random(5)
    draw_episodes(task, keys_of(6, seed=4))
    again = draw_episodes(task, keys_of(6, seed=3))
    for field, value in vars(first).items():
        twin = getattr(again, field)
        if isinstance(value, tuple):
            assert all(np.array_equal(a, b) for a, b in zip(value, twin, strict=True))
        else:
            assert (value is None and twin is None) or np.array_equal(value, twin)
    for keys in (keys_of(6, seed=4), keys_of(6, seed=3, episode=1), keys_of(12, seed=3)[6:]):
        other = draw_episodes(task, keys)
        assert not (other.noise[0] == first.noise[0]).any()


def test_neighbouring_seeds_share_no_row():
    """What Gymnasium's own ``seed + i`` does: row 1 of seed 0 would be row 0 of seed 1."""
    task = VARIANTS["reward"]
    first, second = (draw_episodes(task, keys_of(64, seed=seed)) for seed in (0, 1))
    assert not (first.weights[:, None] == second.weights[None]).all(axis=2).any()
    same = (first.prompt.T[:, None] == second.prompt.T[None]).all(axis=2)
    assert not same.any()
    # The normal table has 65,536 values: two rows that share noise share all of it.
    noise = [e.noise[0].T for e in (first, second)]
    assert not (noise[0][:, None] == noise[1][None]).all(axis=2).any()


def test_what_is_drawn_is_independent():
    """User, prompt, order, silence, leaving, drift and every channel's noise, 20,000 rows.

    Correlations within 5.5 / sqrt(n): false alarm 4e-8 each, 78 pairs.
    """
    names = ["reward", "like", "stars", "click", "choice", "silence", "leave"]
    task = replace(VARIANTS["duel"], feedback=feedback_model(names), drift=SuddenDrift())
    episodes = draw_episodes(task, keys_of(20_000))
    draws = [
        episodes.weights[:, 0],
        episodes.drift_to[:, 0],
        episodes.drift_by.sum(axis=0),
        episodes.prompt[0],
        episodes.prompt[1],
        episodes.order[0, :, 0],
        episodes.heard[0],
        episodes.leave[0],
        *(noise[0] for noise in episodes.noise),
    ]
    correlation = np.corrcoef(np.array(draws, dtype=float)) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(20_000)


# -- by hand


def by_hand():
    """Two prompts, two responses, two reward models."""
    scores = np.array([[[1, 0], [0, 2]], [[-1, 3], [0.5, 0.5]]], np.float32)
    bank = replace(
        tiny_bank(num_prompts=2, num_responses=2, num_reward_models=2),
        scores=scores,
        is_test=np.array([False, True]),
    )
    users = UserPopulation(np.array([[0.75, 0.25], [0.0, 1.0]]))
    return Task(bank, users, feedback_model(Reward(0.0)), horizon=2, split="all")


def test_utility_and_regret_by_hand():
    task = by_hand()
    fixed = Fixed(user=np.array([0, 1, 0]), prompts=np.array([0, 1]))
    episodes = draw_episodes(task, keys_of(3), fixed)
    assert episodes.prompt.tolist() == [[0] * 3, [1] * 3, [0] * 3]
    feedback, diagnostics = step(task, episodes, 0, np.array([[0], [0], [1]]), regret=True)
    assert diagnostics.utility.tolist() == [0.75, 0.0, 0.5]
    assert diagnostics.regret.tolist() == [0.0, 2.0, 0.25]
    assert feedback.reward.tolist() == [0.75, 0.0, 0.5]
    feedback, diagnostics = step(task, episodes, 1, np.array([[0], [0], [1]]), regret=True)
    assert diagnostics.utility.tolist() == [0.0, 3.0, 0.5]
    assert diagnostics.regret.tolist() == [0.5, 0.0, 0.0]
    pair = replace(task, num_shown=2)
    _, diagnostics = step(pair, episodes, 0, np.array([[0, 1], [1, 1], [1, 0]]), regret=True)
    assert diagnostics.utility.tolist() == [0.625, 2.0, 0.625]
    assert diagnostics.regret.tolist() == [0.125, 0.0, 0.125]
    _, diagnostics = step(pair, episodes, 0, np.array([[0, 1], [1, 1], [1, 0]]))
    assert diagnostics.regret is None


@pytest.mark.parametrize("name", VARIANTS)
def test_the_best_response_has_no_regret(name):
    """Exactly zero, and positive for whatever is worse."""
    task = VARIANTS[name]
    episodes = draw_episodes(task, keys_of(32, seed=5))
    rng = np.random.default_rng(0)
    for t in range(task.horizon):
        rows = core.candidates(task, episodes, t)
        values = core.utilities(task.flat_scores[rows], weights_at(episodes, t))
        best = np.repeat(values.argmax(axis=1)[:, None], task.num_shown, axis=1)
        _, known = step(task, episodes, t, best, regret=True)
        if task.num_shown < 3:  # the mean of three equal numbers may round
            assert (known.regret == 0).all()
        assert np.abs(known.regret).max() < 1e-6
        assert np.allclose(known.utility, values.max(axis=1))
        action = rng.integers(task.bank.num_responses, size=best.shape)
        _, known = step(task, episodes, t, action, regret=True)
        assert (known.regret >= 0 if task.num_shown < 3 else known.regret > -1e-6).all()
        shown = np.take_along_axis(values, action, axis=1)
        assert np.allclose(known.regret, values.max(axis=1) - shown.mean(axis=1), atol=1e-6)
        worse = (shown < values.max(axis=1, keepdims=True) - 1e-4).any(axis=1)
        assert (known.regret[worse] > 0).all()


# -- what an agent may know


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "white box"])
def test_observations_do_not_depend_on_what_is_hidden(name):
    """Other users, other scores and other noise: the same observations."""
    task = VARIANTS[name]
    m = task.bank.num_reward_models
    scores = np.random.default_rng(0).standard_normal(task.bank.scores.shape)
    users = dirichlet_population(7, num_reward_models=m, concentration=3.0, seed=9)
    other = replace(
        task,
        bank=replace(task.bank, scores=scores.astype(np.float32)),
        population=users,
        user_split="all",
    )
    mine, theirs = (draw_episodes(x, keys_of(20, seed=1)) for x in (task, other))
    assert not np.array_equal(mine.weights, theirs.weights)
    for t in range(task.horizon + 1):
        left, right = observe(task, mine, t), observe(other, theirs, t)
        if not task.recognise:
            assert left.user is None
        identical(left._replace(user=None), right._replace(user=None))
        assert left.scores is None
        assert left.weights is None


def test_privileged_parts_are_what_they_say():
    task = VARIANTS["gradual drift"]
    episodes = draw_episodes(task, keys_of(5))
    for t in range(task.horizon):
        seen = observe(task, episodes, t, scores=True, weights=True)
        values = np.einsum("bkm,bm->bk", seen.scores, seen.weights)
        for k in range(4):
            _, known = step(task, episodes, t, np.full((5, 1), k))
            assert np.allclose(known.utility, values[:, k], atol=1e-6)
    after = observe(task, episodes, task.horizon, weights=True)
    assert np.array_equal(after.weights, weights_at(episodes, task.horizon - 1))
    white = replace(task, white_box=True)
    seen = observe(white, draw_episodes(white, keys_of(5)), 2)
    assert np.array_equal(seen.scores, observe(task, episodes, 2, scores=True).scores)
    assert seen.weights is None


@pytest.mark.parametrize("name", ["reward", "finite", "unshuffled", "white box"])
def test_observations_are_the_callers_own(name):
    """Writing to one changes neither the bank nor what is seen next time."""
    task = VARIANTS[name]
    episodes = draw_episodes(task, keys_of(4))
    first = observe(task, episodes, 1, weights=True)
    kept = {part: value.copy() for part, value in parts(first).items()}
    for value in parts(first).values():
        value[:] = 7
    again = parts(observe(task, episodes, 1, weights=True))
    for part, value in kept.items():
        assert np.array_equal(value, again[part]), part


# -- drift


def test_weights_with_gradual_drift_by_hand():
    users = UserPopulation(np.eye(3))
    task = replace(VARIANTS["reward"], population=users, drift=GradualDrift(0.5), horizon=3)
    episodes = draw_episodes(task, keys_of(50))
    for t, moved in enumerate((0, 0.25, 0.5)):
        expected = (1 - moved) * episodes.weights + moved * episodes.drift_to
        assert np.array_equal(weights_at(episodes, t), expected.astype(np.float32))
    pairs = (np.array([2, 0, 1]), np.array([4, 4, 7]))
    by_pairs = weights_at(episodes, pairs)
    for i, (t, column) in enumerate(zip(*pairs, strict=True)):
        assert np.array_equal(by_pairs[i], weights_at(episodes, int(t))[column])


def test_weights_with_sudden_drift_are_one_user_and_then_another():
    task = VARIANTS["sudden drift"]
    episodes = draw_episodes(task, keys_of(200))
    before = np.stack([weights_at(episodes, t) for t in range(task.horizon)])
    for b in range(200):
        change = int((episodes.drift_by[:, b] == 0).sum())
        assert 1 <= change <= task.horizon
        assert (before[:change, b] == episodes.weights[b]).all()
        assert (before[change:, b] == episodes.drift_to[b]).all()
    assert not np.array_equal(episodes.weights, episodes.drift_to)


def test_without_drift_weights_stay(tasks):
    episodes = draw_episodes(tasks["reward"], keys_of(5))
    for t in range(8):
        assert np.array_equal(weights_at(episodes, t), episodes.weights)


# -- prompts and order


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_prompts_are_of_the_split(split):
    task = replace(VARIANTS["reward"], split=split)
    prompt = draw_episodes(task, keys_of(500)).prompt
    assert prompt.shape == (9, 500)
    assert set(np.unique(prompt)) == set(task.bank.prompts(split))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_repeated_prompts_are_a_small_pool(size):
    task = replace(VARIANTS["reward"], prompts_per_episode=size, horizon=60)
    prompt = draw_episodes(task, keys_of(300)).prompt
    kinds = np.array([len(np.unique(column)) for column in prompt.T])
    assert kinds.max() == size
    # The pool is drawn with replacement from 30: E[kinds] = 30 (1 - (29/30)**size).
    exact = 30 * (1 - (29 / 30) ** size)
    assert abs(kinds.mean() - exact) <= 5.5 * np.sqrt(kinds.var() / 300) + 1e-9
    assert len(np.unique(prompt)) == 30 if size > 1 else len(np.unique(prompt)) > 20


def test_shuffled_order_is_a_permutation_and_uniform():
    """9 * 2000 orders of 4: each of 24 within 5.5 sd of its share."""
    task = VARIANTS["reward"]
    order = draw_episodes(task, keys_of(2000)).order
    assert np.array_equal(np.sort(order, axis=2), np.broadcast_to(np.arange(4), order.shape))
    number = order.reshape(-1, 4) @ [64, 16, 4, 1]
    _, counts = np.unique(number, return_counts=True)
    assert len(counts) == 24
    n, p = len(number), 1 / 24
    assert np.abs(counts - n * p).max() < 5.5 * np.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("kind", [Reward(0.0), Like(0.0, 0.0), Click(0.0)])
def test_acting_through_the_order_is_acting(kind):
    """Position j of the shuffled task is response order[j] of the unshuffled one."""
    shuffled = replace(VARIANTS["reward"], feedback=feedback_model(kind))
    plain = replace(shuffled, shuffle=False)
    episodes = draw_episodes(shuffled, keys_of(40))
    straight = draw_episodes(plain, keys_of(40))
    assert straight.order is None
    for t in range(shuffled.horizon):
        order = episodes.order[t]
        seen, unshuffled = (
            observe(s, e, t) for s, e in ((shuffled, episodes), (plain, straight))
        )
        expected = np.take_along_axis(unshuffled.response_features, order[:, :, None], axis=1)
        assert np.array_equal(seen.response_features, expected)
        for j in range(4):
            action = np.full((40, 1), j)
            told, known = step(shuffled, episodes, t, action, regret=True)
            chosen = np.take_along_axis(order, action, axis=1)
            same, exact = step(plain, straight, t, chosen, regret=True)
            assert np.array_equal(known.utility, exact.utility)
            assert np.array_equal(known.regret, exact.regret)
            assert np.array_equal(told.reward, same.reward)
            if isinstance(kind, Click):  # a click is named by its position
                clicked = told.said["click"].astype(int)[:, None]
                in_bank = np.take_along_axis(order, clicked, axis=1)[:, 0]
                assert np.array_equal(in_bank, same.said["click"].astype(int))


def test_the_world_does_not_depend_on_the_action():
    """Common random numbers: what two agents do changes neither users, prompts nor noise."""
    task = VARIANTS["duel with reward"]
    left, right = (Session(task, np.arange(30)) for _ in range(2))
    for session in (left, right):
        session.begin(8)
    same = np.array([[1, 1]] * 30)
    for t in range(task.horizon):
        identical(left.observe(weights=True), right.observe(weights=True))
        if t % 2:
            first, second = left.step(same), right.step(same)
            identical(first[0], second[0])
        else:
            first, second = left.step(same), right.step(same + 1)
            assert np.array_equal(first[0].heard, second[0].heard)
            assert not np.array_equal(first[1].utility, second[1].utility)


# -- delay


@pytest.mark.parametrize("delay", [0, 1, 3, 20])
def test_delay_is_exact(delay):
    """What is said about interaction t arrives after t + delay; who leaves leaves at once."""
    prompt_now = feedback_model(["reward", "like", "leave"])
    late = replace(prompt_now, delay=delay)
    task = replace(VARIANTS["reward"], feedback=prompt_now)
    now, then = Session(task, np.arange(6)), Session(replace(task, feedback=late), np.arange(6))
    rng = np.random.default_rng(0)
    for session in (now, then):
        session.begin(1)
    told = []
    for t in range(task.horizon):
        action = rng.integers(4, size=(6, 1))
        told.append(now.step(action)[0])
        heard = then.step(action)[0]
        assert np.array_equal(heard.left, told[t].left)
        if t < delay:
            assert not heard.heard.any()
            assert not heard.reward.any()
            assert not any(value.any() for value in heard.said.values())
        else:
            identical(heard._replace(left=told[t - delay].left), told[t - delay])


def test_a_new_episode_hears_nothing_of_the_last():
    task = replace(VARIANTS["reward"], feedback=feedback_model(["reward", "delay"]))
    session = Session(task, np.arange(3))
    session.begin(0)
    session.step(np.zeros((3, 1), int))
    session.begin(mask=np.array([True, False, True]))
    heard = session.step(np.zeros((3, 1), int))[0].heard
    assert heard.tolist() == [False, True, False]
    session.begin()
    assert not session.step(np.zeros((3, 1), int))[0].heard.any()


# -- what is held fixed


def test_fixed_users_weights_prompts_and_split():
    task = VARIANTS["finite"]
    weights = np.array([[0.2, 0.3, 0.5], [1, 0, 0]], np.float32)
    free = draw_episodes(task, keys_of(2))
    episodes = draw_episodes(task, keys_of(2), Fixed(user=np.array([6, 2])))
    assert episodes.user.tolist() == [6, 2]
    assert np.array_equal(episodes.weights, task.population.weights[[6, 2]])
    assert np.array_equal(episodes.prompt, free.prompt)  # the rest is as it would be
    assert np.array_equal(episodes.noise[0], free.noise[0])
    episodes = draw_episodes(task, keys_of(2), Fixed(weights=weights))
    assert episodes.user.tolist() == [-1, -1]
    assert np.array_equal(episodes.weights, weights)
    episodes.weights[:] = 0
    assert weights.any()
    episodes = draw_episodes(task, keys_of(2), Fixed(prompts=np.array([5, 40, 7])))
    assert episodes.prompt.T.tolist() == [[5, 40, 7] * 3] * 2
    episodes = draw_episodes(task, keys_of(200), Fixed(split="test"))
    assert task.bank.is_test[episodes.prompt].all()


@pytest.mark.parametrize("user", [-1, 7])
def test_fixed_users_must_exist(user):
    with pytest.raises(ValueError, match=r"options\['user'\] must be in 0\.\.6, got \[.*\]"):
        draw_episodes(VARIANTS["finite"], keys_of(2), Fixed(user=np.array([0, user])))
    with pytest.raises(ValueError, match="needs a finite population"):
        draw_episodes(VARIANTS["reward"], keys_of(1), Fixed(user=np.array([0])))


def test_a_population_is_not_changed_by_its_episodes():
    task = VARIANTS["finite"]
    before = task.population.weights.copy()
    for fixed in (Fixed(), Fixed(user=np.array([1, 2]))):
        episodes = draw_episodes(task, keys_of(2), fixed)
        episodes.weights[:] = -1
        episodes.user[:] = -1
    assert np.array_equal(task.population.weights, before)


# -- settings


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"num_shown": 0}, r"num_shown must be in 1\.\.4, got 0"),
        ({"num_shown": 5}, r"num_shown must be in 1\.\.4, got 5"),
        ({"prompts_per_episode": 0}, "prompts_per_episode must be at least 1, got 0"),
        (
            {"population": DirichletUsers(4)},
            "users weigh 4 reward models, the bank has 3: model_0, model_1, model_2",
        ),
    ],
)
def test_task_errors(bank, settings_, message):
    with pytest.raises(ValueError, match=message):
        Task(bank, **({"population": DirichletUsers(3)} | settings_))


def test_prior_knowledge_holds_nothing_hidden():
    task = VARIANTS["everything"]
    prior = task.prior_knowledge()
    assert prior.population is None
    assert prior.decoder is None
    assert (prior.num_responses, prior.num_shown, prior.num_features) == (4, 2, 6)
    assert (prior.num_reward_models, prior.horizon, prior.shuffled) == (3, 8, True)
    assert prior.feedback is task.feedback
    assert prior.responders == task.bank.responders


def test_diagnostics_have_no_more_than_the_report_needs():
    assert Diagnostics._fields == ("utility", "regret")
