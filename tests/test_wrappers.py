"""Wrappers: the history by hand, the belief in closed form, rows equal single environments."""

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

from personalllm_env.envs.single import PersonalEnv
from personalllm_env.envs.vector import PersonalVectorEnv
from personalllm_env.envs.wrappers import (
    Augmented,
    Belief,
    Flat,
    History,
    UtilityReward,
    VectorAugmented,
    VectorFlat,
    VectorUtilityReward,
)
from personalllm_env.feedback import feedback_model
from personalllm_env.testing import tiny_tasks

NEXT, SAME, OFF = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
TASKS = tiny_tasks()
TASKS["late and leaving"] = replace(
    TASKS["leaving"], feedback=feedback_model(["click", "silence", "delay", "leave"]), horizon=6
)
TASKS["late duel"] = replace(TASKS["duel"], feedback=feedback_model(["choice", "delay"]))


def settings_of(task):
    names = (
        "bank population feedback horizon num_shown split user_split prompts_per_episode "
        "shuffle drift recognise white_box"
    )
    return {name: getattr(task, name) for name in names.split()}


def single_of(task, **extra):
    return PersonalEnv(**settings_of(task) | extra)


def vector_of(task, num=4, mode=NEXT, **extra):
    return PersonalVectorEnv(num, autoreset_mode=mode, **settings_of(task) | extra)


def actions_of(task, num, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num,) if task.num_shown == 1 else (num, task.num_shown)
    while True:
        yield rng.integers(4, size=shape)


def parts():
    return [History(3), Belief(ridge=2.0)]


# -- history


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_history_by_hand(delay):
    """Three steps: what was shown is there at once, what was said stands beside it."""
    feedback = ["reward", {"delay": {"interactions": delay}}]
    plain = single_of(TASKS["reward"], feedback=feedback)
    prompt_now = single_of(TASKS["reward"], feedback="reward")
    env = Augmented(single_of(TASKS["reward"], feedback=feedback), History(4))
    obs = env.reset(seed=0)[0]
    seen, actions = [plain.reset(seed=0)[0]], (2, 0, 3)
    prompt_now.reset(seed=0)
    said = []
    for name in ("history_features", "history_feedback", "history_heard"):
        assert not obs[name].any()
    for action in actions:
        obs = env.step(action)[0]
        seen.append(plain.step(action)[0])
        said.append(prompt_now.step(action)[1])
    shown = [seen[t]["response_features"][a] for t, a in enumerate(actions)]
    nothing = np.zeros(6, np.float32)
    assert np.array_equal(obs["history_features"][:, 0], np.stack([nothing, *shown]))
    known = 3 - delay
    feedbacks = [0, *said[:known], *[0] * delay]
    assert np.array_equal(obs["history_feedback"][:, 0], np.float32(feedbacks))
    assert obs["history_heard"].tolist() == [0] + [1] * known + [0] * delay
    for name, value in seen[-1].items():
        assert np.array_equal(obs[name], value)


def test_history_forgets_the_oldest_and_the_last_episode():
    env = Augmented(single_of(TASKS["duel"]), History(2))
    env.reset(seed=0)
    rows = []
    for t in range(4):
        obs = env.step((t % 4, 3))[0]
        rows.append(obs["history_feedback"][-1].copy())
    assert obs["history_features"].shape == (2, 2, 6)
    assert np.array_equal(obs["history_feedback"], rows[-2:])
    obs = env.reset()[0]
    assert not obs["history_features"].any()
    assert not obs["history_heard"].any()


@pytest.mark.parametrize("parts", ["Belief", ["Belief"], Belief, None, [Belief(), 3]])
def test_parts_that_are_none(parts):
    with pytest.raises(ValueError, match=r"parts must be Belief\(\), History\(\) .*; got "):
        Augmented(PersonalEnv(), parts)
    with pytest.raises(ValueError, match=r"parts must be Belief\(\), History\(\) .*; got "):
        VectorAugmented(PersonalVectorEnv(2), parts)


def test_history_errors():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        History(0)
    with pytest.raises(ValueError, match="history of 2 never holds feedback that is 2"):
        Augmented(single_of(TASKS["late"]), History(2))
    with pytest.raises(ValueError, match="need an environment with observation='features'"):
        Augmented(
            single_of(replace(TASKS["reward"], shuffle=False), observation="ids"), parts()
        )


# -- belief


def ridge_by_formula(x, y, ridge, centre):
    """(ridge I + X^T X)^-1 (X^T y + ridge centre), and the inverse."""
    x = np.array(x, dtype=np.float64).reshape(-1, len(centre))
    inverse = np.linalg.inv(ridge * np.eye(len(centre)) + x.T @ x)
    return inverse @ (x.T @ np.array(y, dtype=np.float64) + ridge * centre), inverse


def pair_of(kind, features, action, said):
    """Features and target of one interaction, as ``belief.evidence`` documents them."""
    if kind == "reward":
        return features[action], said[0]
    if kind == "like":
        return features[action], 2 * said[0] - 1
    if kind == "stars":
        return features[action], (said[0] - 3) / 2**0.5
    if kind == "choice":
        return features[action[0]] - features[action[1]], said[0]
    return features[said.argmax()] - features.mean(axis=0), 1.0


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("kind", ["reward", "like", "stars", "choice", "click"])
def test_belief_is_ridge_regression(kind, delay):
    """At every step, with silence, away from 0, at a ridge other than 1."""
    feedback = [kind, {"silence": {"probability": 0.3}}, {"delay": {"interactions": delay}}]
    num_shown = 2 if kind == "choice" else 1
    centre, ridge = np.linspace(-1, 1, 6), 2.5
    env = Augmented(
        single_of(TASKS["reward"], feedback=feedback, num_shown=num_shown, horizon=12),
        Belief(ridge, centre),
    )
    rng, heard = np.random.default_rng(0), 0
    for episode in range(3):
        obs = env.reset(seed=0 if episode == 0 else None)[0]
        past, x, y = [], [], []
        for _ in range(12):
            mean, inverse = ridge_by_formula(x, y, ridge, centre)
            assert np.allclose(obs["belief_mean"], mean, atol=1e-5)
            features = obs["response_features"].astype(float)
            assert np.allclose(obs["belief_value"], features @ mean, atol=1e-5)
            widths = np.sqrt(np.einsum("kd,de,ke->k", features, inverse, features))
            assert np.allclose(obs["belief_width"], widths, atol=1e-5)
            action = rng.integers(4, size=num_shown)
            past.append((features, action if kind == "choice" else action[0]))
            obs = env.step(action if kind == "choice" else int(action[0]))[0]
            if obs["heard"][0]:
                heard += 1
                about = past[len(past) - 1 - delay]
                pair = pair_of(kind, *about, obs["feedback"].astype(float))
                x.append(pair[0])
                y.append(pair[1])
    assert heard > 15


# -- rows are single environments


def near(mine, theirs):
    """Equal but for rounding, which differs between batched and single matrix products."""
    assert mine.keys() == theirs.keys()
    for part, value in mine.items():
        assert np.allclose(value, theirs[part], rtol=1e-4, atol=1e-5), part


@pytest.mark.parametrize("mode", [NEXT, SAME, OFF], ids=lambda m: m.name)
@pytest.mark.parametrize("name", TASKS)
def test_rows_are_single_environments(name, mode):
    task, num = TASKS[name], 4
    env = VectorAugmented(vector_of(task, num, mode), parts())
    singles = [Augmented(single_of(task, row=b), parts()) for b in range(num)]
    obs = env.reset(seed=2)[0]
    ones = [single.reset(seed=2)[0] for single in singles]
    over, ends = np.zeros(num, bool), 0
    for _, action in zip(range(30), actions_of(task, num), strict=False):
        assert env.observation_space.contains(obs)
        for b in range(num):
            near({part: value[b] for part, value in obs.items()}, ones[b])
        if mode is OFF and over.any():
            obs = env.reset(options={"reset_mask": over})[0]
            for b in np.flatnonzero(over):
                ones[b] = singles[b].reset()[0]
            over = np.zeros(num, bool)
            continue
        obs, _, terminated, truncated, info = env.step(action)
        for b, single in enumerate(singles):
            if mode is NEXT and over[b]:
                ones[b] = single.reset()[0]
                continue
            acted = int(action[b]) if task.num_shown == 1 else action[b]
            ones[b], _, left, out, _ = single.step(acted)
            if left or out:
                ends += 1
            if mode is SAME and (left or out):
                near(info["final_obs"][b], ones[b])
                ones[b] = single.reset()[0]
        over = terminated | truncated
    assert ends >= num


@pytest.mark.parametrize("cut", ["all", "some"])
def test_a_first_reset_may_have_a_full_mask(cut):
    env = VectorAugmented(vector_of(TASKS["reward"], mode=OFF), parts())
    obs = env.reset(seed=0, options={"reset_mask": np.ones(4, bool)})[0]
    assert not obs["history_features"].any()
    env.step(np.zeros(4, int))
    mask = np.ones(4, bool) if cut == "all" else np.array([True, False, True, True])
    obs = env.reset(options={"reset_mask": mask})[0]
    assert np.array_equal(obs["history_heard"].any(axis=1), ~mask)


@pytest.mark.parametrize("name", ["late and leaving", "reward"])
def test_what_is_kept_is_not_overwritten(name):
    task = TASKS[name]
    env = VectorAugmented(vector_of(task, 8), parts())
    kept = [env.reset(seed=0)[0]]
    copies = [copy.deepcopy(kept[0])]
    for _, action in zip(range(15), actions_of(task, 8), strict=False):
        kept.append(env.step(action)[0])
        copies.append(copy.deepcopy(kept[-1]))
    assert data_equivalence(kept, copies, exact=True)


def test_two_environments_may_be_given_the_same_parts():
    """Parts hold what happened, so each environment has copies of its own."""
    shared = parts()
    left, right = (Augmented(single_of(TASKS["reward"]), shared) for _ in range(2))
    alone = Augmented(single_of(TASKS["reward"]), parts())
    left.reset(seed=0)
    alone.reset(seed=0)
    for t in range(5):
        right.reset(seed=t)
        right.step(3)
        assert data_equivalence(left.step(t % 4)[0], alone.step(t % 4)[0], exact=True)


# -- utility as reward


def test_utility_reward():
    env, plain = UtilityReward(single_of(TASKS["silence"])), single_of(TASKS["silence"])
    env.reset(seed=0)
    plain.reset(seed=0)
    for t in range(8):
        _, reward, terminated, truncated, info = env.step(t % 4)
        _, told, *ends, known = plain.step(t % 4)
        assert reward == known["utility"] == info["utility"]
        assert isinstance(reward, float)
        assert [terminated, truncated] == ends
        assert reward != told


@pytest.mark.parametrize("mode", [NEXT, SAME], ids=lambda m: m.name)
def test_vector_utility_reward(mode):
    """Of the step itself, also where the row ends and begins anew in the same step."""
    task = TASKS["leaving"]
    env = VectorUtilityReward(vector_of(task, 4, mode))
    singles = [UtilityReward(single_of(task, row=b)) for b in range(4)]
    env.reset(seed=0)
    for single in singles:
        single.reset(seed=0)
    over = np.zeros(4, bool)
    for _, action in zip(range(25), actions_of(task, 4), strict=False):
        _, reward, terminated, truncated, info = env.step(action)
        for b, single in enumerate(singles):
            if over[b]:
                single.reset()
                assert reward[b] == 0
                continue
            _, told, left, out, _ = single.step(int(action[b]))
            assert reward[b] == told
            if mode is SAME and (left or out):
                single.reset()
        over = (terminated | truncated) & (mode is NEXT)
        reward[:] = 7
        assert not (info["utility"] == 7).any()


# -- flat


@pytest.mark.parametrize("name", ["duel with reward", "late"])
def test_flat_is_gymnasiums_flatten(name):
    env = Flat(single_of(TASKS[name]))
    other = gym.wrappers.FlattenObservation(single_of(TASKS[name]))
    assert env.observation_space == other.observation_space
    assert np.array_equal(env.reset(seed=0)[0], other.reset(seed=0)[0])
    for _, action in zip(range(8), actions_of(TASKS[name], 1), strict=False):
        acted = int(action[0]) if action.ndim == 1 else action[0]
        assert np.array_equal(env.step(acted)[0], other.step(acted)[0])


@pytest.mark.parametrize("mode", [NEXT, SAME, OFF], ids=lambda m: m.name)
def test_vector_flat_rows(mode):
    task, num = TASKS["late and leaving"], 4
    plain = vector_of(task, num, mode)
    env = VectorFlat(vector_of(task, num, mode))
    space = plain.single_observation_space

    def flat(obs):
        return gym.spaces.flatten(space, obs)

    obs, laid, ends = plain.reset(seed=0)[0], env.reset(seed=0)[0], 0
    for _, action in zip(range(25), actions_of(task, num), strict=False):
        assert env.observation_space.contains(laid)
        for b in range(num):
            assert np.array_equal(laid[b], flat({k: v[b] for k, v in obs.items()}))
        obs, _, terminated, truncated, info = plain.step(action)
        laid, *_, other = env.step(action)
        over = terminated | truncated
        for b in np.flatnonzero(over & (mode is SAME)):
            ends += 1
            assert np.array_equal(other["final_obs"][b], flat(info["final_obs"][b]))
        if mode is OFF and over.any():
            options = {"reset_mask": over}
            obs, laid = plain.reset(options=options)[0], env.reset(options=options)[0]
    assert ends > 3 or mode is not SAME


def test_only_boxes_are_laid_flat():
    task = replace(TASKS["reward"], shuffle=False)
    for wrapper, make in ((Flat, single_of), (VectorFlat, vector_of)):
        with pytest.raises(ValueError, match="only boxes can be laid flat"):
            wrapper(make(task, observation="ids"))


# -- Gymnasium's contract, specifications


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "tiny"
    TASKS["reward"].bank.save(path)
    return str(path)


WRAPPED = {
    "history and belief": lambda env: Augmented(env, parts()),
    "one part": lambda env: Augmented(env, History(3)),
    "utility": UtilityReward,
    "flat": Flat,
    "all": lambda env: Flat(UtilityReward(Augmented(env, parts()))),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_gymnasiums_checker(name, saved):
    """Warnings are errors, but for the one that says that this is a wrapper."""
    env = WRAPPED[name](gym.make("PersonalLLM/Select-v0", bank=saved, horizon=5))
    with pytest.warns(UserWarning, match="different from the unwrapped version") as caught:
        check_env(env)
    assert len(caught) == 1, [str(w.message) for w in caught]
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.parametrize("name", WRAPPED)
def test_specifications_make_the_wrapped_environment_again(name, saved):
    env = WRAPPED[name](gym.make("PersonalLLM/Select-v0", bank=saved, horizon=5))
    twins = [gym.make(env.spec) for _ in range(2)]
    if name in ("utility", "flat"):  # parts are objects, which no JSON holds
        twins.append(gym.make(EnvSpec.from_json(env.spec.to_json())))
    ones = [env.reset(seed=0)[0]] + [twin.reset(seed=0)[0] for twin in twins]
    for t in range(5):
        assert all(data_equivalence(ones[0], one, exact=True) for one in ones[1:])
        steps = [e.step(t % 4) for e in (env, *twins)]
        assert len({step[1] for step in steps}) == 1
        ones = [step[0] for step in steps]


def test_the_caller_may_write_to_vector_observations():
    task = TASKS["reward"]
    env, twin = (
        VectorAugmented(PersonalVectorEnv(3, bank=task.bank), [History(3), Belief()])
        for _ in range(2)
    )
    obs, other = env.reset(seed=0)[0], twin.reset(seed=0)[0]
    for _ in range(4):
        for value in obs.values():
            value[...] = 0
        obs, other = env.step(np.array([0, 1, 2]))[0], twin.step(np.array([0, 1, 2]))[0]
        assert data_equivalence(obs, other)
