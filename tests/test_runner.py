"""The loop: pairing, lateness, leaving, wrong actions, and who may see what."""

import gc
import time
import weakref
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from personalllm_env.decoding import linear_decoder
from personalllm_env.feedback import Delay, Leave, Reward, feedback_model
from personalllm_env.runner import Entrant, compare, measure, prior_for, run
from personalllm_env.task import Task
from personalllm_env.testing import tiny_bank
from personalllm_env.users import DirichletUsers, UserPopulation, dirichlet_population

BANK = tiny_bank()
EXACT = Reward(noise_sd=0.0)
WEIGHTS = np.array([0.5, 0.3, 0.2])


class Spy:
    """Acts at random and remembers all it was told."""

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, prior):
        self.prior, self.seen, self.did, self.heard, self.databases = prior, [], [], [], []

    def fit(self, database):
        self.databases.append(database)

    def reset(self, num_users, rng):
        self.rng, self.num_users = rng, num_users

    def act(self, observation):
        k, s = self.prior.num_responses, self.prior.num_shown
        self.seen.append(observation)
        self.did.append(self.rng.random((self.num_users, k)).argsort(axis=1)[:, :s])
        return self.did[-1]

    def update(self, observation, action, feedback):
        self.heard.append((observation, action, feedback))


class FirstSpy(Spy):
    """Always shows the first."""

    def act(self, observation):
        super().act(observation)
        s = self.prior.num_shown
        return np.tile(np.arange(s), (self.num_users, 1))


class Insider(Spy):
    privileges = frozenset({"scores", "weights", "population", "decoder"})


def task_of(*feedback, **settings):
    settings = {"population": DirichletUsers(3, 0.3), "horizon": 6, **settings}
    return Task(BANK, feedback=feedback_model(list(feedback or ("reward",))), **settings)


def spied(task, spy=Spy, num_users=7, seed=0):
    agent = spy(prior_for(spy, task))
    return agent, run(agent, task, num_users=num_users, seed=seed)


def same_records(one, two):
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a is b is None
        for a, b in zip(one, two, strict=True)
    )


# --- common random numbers --------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_all_agents_meet_the_same_users_prompts_and_noise(shuffle):
    task = task_of("reward", "like", {"silence": {"probability": 0.5}}, shuffle=shuffle)
    one, at_random = spied(task)
    two, the_first = spied(task, FirstSpy)
    for mine, theirs in zip(one.seen, two.seen, strict=True):
        assert same_records(mine, theirs)
    for (_, did, mine), (_, _, theirs) in zip(one.heard, two.heard, strict=True):
        np.testing.assert_array_equal(mine.heard, theirs.heard)
        alike = did[:, 0] == 0
        np.testing.assert_array_equal(mine.reward[alike], theirs.reward[alike])
        np.testing.assert_array_equal(mine.said["like"][alike], theirs.said["like"][alike])
    np.testing.assert_allclose(  # the best there was is the same for both
        at_random.utility + at_random.regret, the_first.utility + the_first.regret, atol=1e-5
    )


def test_same_seed_same_run_and_other_seed_another():
    task = task_of()
    (one, first), (two, again), (three, other) = (spied(task, seed=s) for s in (4, 4, 5))
    for name in ("utility", "regret", "present"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(one.did, two.did)
    assert (first.utility != other.utility).any()
    assert (np.array(one.did) != np.array(three.did)).any()


def test_more_users_change_no_user():
    task = task_of()
    _, few = spied(task, FirstSpy, num_users=3)
    _, many = spied(task, FirstSpy, num_users=9)
    np.testing.assert_array_equal(few.utility, many.utility[:3])


def test_numbers_by_definition():
    """Utility and regret recomputed from the bank, for one known user."""
    task = task_of(EXACT, population=UserPopulation(WEIGHTS[None]), num_shown=2)
    agent, done = spied(task)
    for t, (seen, did) in enumerate(zip(agent.seen, agent.did, strict=True)):
        utility = BANK.scores[seen.prompt] @ WEIGHTS
        shown = np.take_along_axis(utility, did, axis=1).mean(axis=1)
        np.testing.assert_allclose(done.utility[:, t], shown, atol=1e-5)
        np.testing.assert_allclose(done.regret[:, t], utility.max(axis=1) - shown, atol=1e-5)
    assert done.present.all()


# --- the information barrier ------------------------------------------------------------------


def test_scores_and_weights_are_withheld_from_honest_agents():
    spy, _ = spied(task_of())
    assert all(seen.scores is seen.weights is seen.user is None for seen in spy.seen)
    assert spy.prior.population is spy.prior.decoder is None
    for observation, _, _ in spy.heard:
        assert observation.scores is observation.weights is None


def test_what_is_declared_is_granted():
    spy, _ = spied(task_of(population=UserPopulation(WEIGHTS[None])), Insider)
    for seen in spy.seen:
        np.testing.assert_array_equal(seen.scores, BANK.scores[seen.prompt])
        np.testing.assert_allclose(seen.weights, np.tile(WEIGHTS, (7, 1)), rtol=1e-6)
    np.testing.assert_allclose(spy.prior.population, np.tile(WEIGHTS, (4096, 1)), rtol=1e-6)
    assert spy.prior.decoder.shape == (6, 3)


def test_a_decoder_is_found_once_per_bank():
    bank, twin = tiny_bank(), tiny_bank()
    task = Task(bank, DirichletUsers(3, 0.3))
    decoder = prior_for(Insider, task).decoder
    assert prior_for(Insider, replace(task, horizon=3), 1).decoder is decoder
    assert linear_decoder(twin) is not decoder, "a bank of its own"
    np.testing.assert_array_equal(linear_decoder(twin), decoder)
    with pytest.raises(ValueError, match="read-only"):
        decoder[0] = 7
    kept = weakref.ref(bank)
    del bank, task
    gc.collect()
    assert kept() is None, "and goes with it"


def test_a_prior_that_was_computed_before(made, remembered):
    task, entrant = task_of(), Entrant("a", remembered, {})
    prior = prior_for(remembered, task)
    settings = dict(num_users=3, seed=0)
    told = measure(entrant, task, lambda: None, prior=prior, **settings)
    assert made[0].prior is prior
    found = measure(entrant, task, lambda: None, **settings)
    np.testing.assert_array_equal(told.utility, found.utility)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sides_of_a_task(split):
    users = UserPopulation(np.eye(3), is_test=np.array([True, False, False]))
    task = task_of(population=users, horizon=9)
    side = task.side(split)
    assert (side.split, side.user_split) == (split, split)
    assert replace(side, split="train", user_split="all") == task, "else as it was"
    whole = task_of(population=UserPopulation(np.eye(3))).side(split)
    assert (whole.split, whole.user_split) == (split, "all")
    new = task_of().side(split)
    assert (new.split, new.user_split) == (split, "all")


def test_only_the_class_can_declare_privileges():
    """A report marks the class, so an instance must not grant itself more."""

    class Upstart(Spy):
        def __init__(self, prior):
            super().__init__(prior)
            self.privileges = frozenset({"scores", "weights"})

    spy, _ = spied(task_of(), Upstart)
    assert all(seen.scores is seen.weights is None for seen in spy.seen)


def test_observations_do_not_depend_on_the_hidden_weights():
    one, two = (
        spied(task_of(population=UserPopulation(w[None])), FirstSpy)[0]
        for w in (WEIGHTS, WEIGHTS[::-1])
    )
    for mine, theirs in zip(one.seen, two.seen, strict=True):
        assert same_records(mine, theirs)
    assert (one.heard[0][2].reward != two.heard[0][2].reward).any()


def test_an_agent_cannot_change_what_the_runner_measures():
    """Writing into what it is handed does not keep users from leaving."""

    class Vandal(FirstSpy):
        def update(self, observation, action, feedback):
            feedback.left[:] = False
            feedback.reward[:] = 99
            for values in feedback.said.values():
                values[:] = 99

        def act(self, observation):
            action = super().act(observation)
            observation.response_features[:] = 0
            observation.prompt[:] = 0
            return action

    task = task_of(EXACT, Leave(threshold=0.0, probability=1.0))
    (_, fair), (_, vandalised) = spied(task, FirstSpy), spied(task, Vandal)
    assert not fair.present.all()
    for name in ("utility", "regret", "present"):
        np.testing.assert_array_equal(getattr(fair, name), getattr(vandalised, name))


def test_unknown_privileges_are_refused():
    class Seer(Spy):
        privileges = frozenset({"weights", "future", "aura"})

    with pytest.raises(
        ValueError, match=r"Seer declares unknown privileges \['aura', 'future'"
    ):
        prior_for(Seer, task_of())


# --- late feedback and leaving ----------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1, 3, 6])
@pytest.mark.parametrize("shuffle", [False, True])
def test_late_feedback_comes_with_what_it_is_about(delay, shuffle):
    feedback = (EXACT, Delay(delay)) if delay else (EXACT,)
    population = UserPopulation(WEIGHTS[None])
    agent, _ = spied(task_of(*feedback, population=population, shuffle=shuffle))
    assert len(agent.heard) == 6 - delay
    every = BANK.response_features
    for t, (then, did, feedback) in enumerate(agent.heard):
        assert then is agent.seen[t]
        np.testing.assert_array_equal(did, agent.did[t])
        for row in range(7):
            shown = then.response_features[row, did[row, 0]]
            (k,) = np.flatnonzero((every[then.prompt[row]] == shown).all(axis=1))
            utility = BANK.scores[then.prompt[row], k] @ WEIGHTS
            assert feedback.reward[row] == pytest.approx(utility, abs=1e-5)
        assert feedback.heard.all()


def test_an_agent_may_use_its_action_buffer_again():
    class Thrifty(Spy):
        """Returns the same array at every call, as preallocating agents do."""

        def reset(self, num_users, rng):
            super().reset(num_users, rng)
            self.buffer = np.empty((num_users, self.prior.num_shown), np.int64)

        def act(self, observation):
            self.buffer[:] = super().act(observation)
            return self.buffer

    agent, _ = spied(task_of(EXACT, Delay(2)), Thrifty)
    assert len({did.tobytes() for did in agent.did}) == 6
    for t, (_, did, _) in enumerate(agent.heard):
        np.testing.assert_array_equal(did, agent.did[t])


@pytest.mark.parametrize("delay", [0, 2])
def test_who_left_hears_nothing_and_counts_nothing(delay):
    parts = [EXACT, "like", Leave(threshold=0.0, probability=1.0)]
    task = task_of(*parts, *([Delay(delay)] if delay else []), horizon=8)
    agent, done = spied(task, num_users=60)
    stayed_agent, stayed = spied(replace(task, feedback=feedback_model(EXACT)), num_users=60)
    assert done.present[:, 0].all()
    assert not done.present.all()
    assert (np.diff(done.present.astype(int), axis=1) <= 0).all(), "nobody comes back"
    # With a threshold of 0 and probability 1 the first bad response is the last.
    bad_before = np.cumsum(stayed.utility < 0, axis=1) - (stayed.utility < 0)
    np.testing.assert_array_equal(done.present, bad_before == 0)
    np.testing.assert_array_equal(agent.did, stayed_agent.did)
    np.testing.assert_array_equal(done.utility, np.where(done.present, stayed.utility, 0))
    best = stayed.utility + stayed.regret
    best = np.where(done.present, best, np.maximum(best, 0))  # nothing, worth 0, is an option
    np.testing.assert_allclose(done.utility + done.regret, best, atol=1e-12)
    for t, (_, _, feedback) in enumerate(agent.heard):
        there = done.present[:, t + delay]
        np.testing.assert_array_equal(feedback.heard, there)
        for values in (feedback.reward, *feedback.said.values()):
            assert not values[~there].any(), "0 where silent"
        assert feedback.reward[there].all()


# --- wrong actions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((7, 2), int), r"integers in 0\.\.3 of shape \(7, 1\), got int64 \(7, 2\)"),
        (np.zeros(7, int), r"integers in 0\.\.3 of shape \(7, 1\), got int64 \(7,\)"),
        (np.zeros((3, 1), int), r"integers in 0\.\.3 of shape \(7, 1\), got int64 \(3, 1\)"),
        (np.zeros((7, 1)), r"integers in 0\.\.3 of shape \(7, 1\), got float64 \(7, 1\)"),
        (np.zeros((7, 1), bool), "got bool"),
        (None, "got object"),
        (np.full((7, 1), 4), r"integers in 0\.\.3 .*, got \[4\] for user 0"),
        (np.array([[0]] * 6 + [[-1]]), r"integers in 0\.\.3 .*, got \[-1\] for user 6"),
    ],
)
def test_wrong_actions(action, message):
    class Wrong(Spy):
        def act(self, observation):
            return action

    with pytest.raises(ValueError, match=message):
        spied(task_of(), Wrong)


@pytest.mark.parametrize("kind", [list, np.int8, np.uint64])
def test_any_integers_will_do(kind):
    class Relaxed(FirstSpy):
        def act(self, observation):
            action = super().act(observation)
            return action.tolist() if kind is list else action.astype(kind)

    (_, one), (_, two) = spied(task_of(), FirstSpy), spied(task_of(), Relaxed)
    np.testing.assert_array_equal(one.utility, two.utility)


# --- clocks -----------------------------------------------------------------------------------


def test_progress_ticks_once_per_interaction():
    ticks = []
    agent = Spy(prior_for(Spy, task_of()))
    run(agent, task_of(), num_users=3, seed=0, progress=ticks.append)
    assert ticks == [1] * 6


def test_seconds_are_those_inside_the_agent():
    class Slow(Spy):
        def act(self, observation):
            time.sleep(0.004)
            return super().act(observation)

        def update(self, observation, action, feedback):
            time.sleep(0.004)

    _, slow = spied(task_of(), Slow)
    assert slow.seconds >= 6 * 0.008


# --- comparisons ------------------------------------------------------------------------------


def entrants(**classes):
    return [Entrant(name, c, {}) for name, c in classes.items()]


@pytest.fixture
def made():
    return []


@pytest.fixture
def remembered(made):
    class Remembered(Spy):
        def __init__(self, prior):
            super().__init__(prior)
            made.append(self)

    return Remembered


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_comparisons_learn_on_train_and_measure_on_test(made, remembered, split):
    population = UserPopulation(np.eye(3)[[0, 1, 2, 0]], is_test=np.array([0, 0, 1, 1], bool))
    task = task_of(population=population, recognise=True, split=split, user_split="all")
    compare(entrants(a=remembered), task, seeds=(0, 1), num_users=20, history_users=30)
    assert len(made) == 2
    for agent in made:
        prompts = np.concatenate([seen.prompt for seen in agent.seen])
        assert BANK.is_test[prompts].all()
        assert len(np.unique(prompts)) > 15
        users = np.concatenate([seen.user for seen in agent.seen])
        assert set(users.tolist()) == {2, 3}
        (database,) = agent.databases
        assert not BANK.is_test[database.prompt].any()
        assert database.num_users == 30


def test_comparisons_are_paired_within_a_seed(made, remembered):
    task = task_of()
    result = compare(
        entrants(a=remembered, b=remembered), task, seeds=(3, 8), num_users=5, history_users=4
    )
    three_a, three_b, eight_a, eight_b = made
    for one, two in ((three_a, three_b), (eight_a, eight_b)):
        assert one.databases[0] is two.databases[0], "one history for all"
        for mine, theirs in zip(one.seen, two.seen, strict=True):
            assert same_records(mine, theirs)
    assert not np.array_equal(three_a.seen[0].prompt, eight_a.seen[0].prompt)
    assert not np.array_equal(three_a.databases[0].prompt, eight_a.databases[0].prompt)
    for one, two in zip(result.runs["a"], result.runs["b"], strict=True):
        np.testing.assert_array_equal(one.utility, two.utility)
    assert result.seeds == (3, 8)
    assert [len(runs) for runs in result.runs.values()] == [2, 2]


def test_a_seed_alone_is_what_it_is_among_others():
    task = task_of()
    several = compare(entrants(a=Spy, b=FirstSpy), task, seeds=(0, 1), num_users=5)
    alone = compare(entrants(b=FirstSpy), task, seeds=(1,), num_users=5)
    np.testing.assert_array_equal(several.runs["b"][1].utility, alone.runs["b"][0].utility)


def test_without_history_nobody_is_fitted(made, remembered):
    compare(entrants(a=remembered), task_of(), seeds=(0,), num_users=2, history_users=0)
    assert made[0].databases == []


def test_comparisons_report_progress_and_privileges():
    ticks = []
    result = compare(
        entrants(a=Spy, b=Insider),
        task_of(),
        seeds=(0, 1, 2),
        num_users=2,
        history_users=2,
        progress=lambda name, num: ticks.extend([name] * num),
    )
    assert ticks == (["a"] * 6 + ["b"] * 6) * 3
    assert result.privileges == {
        "a": (),
        "b": ("decoder", "population", "scores", "weights"),
    }


def test_settings_reach_the_agent():
    class Tuned(Spy):
        def __init__(self, prior, *, share):
            super().__init__(prior)
            assert share == 0.25

    entrant = Entrant("tuned", Tuned, {"share": 0.25})
    assert compare([entrant], task_of(), seeds=(0,), num_users=2).runs["tuned"]


class Silent:
    """Says nothing of privileges."""

    def __init__(self, prior):
        self.num = 0

    def reset(self, num_users, rng):
        self.num = num_users

    def act(self, observation):
        return np.zeros((self.num, 1), int)

    def update(self, observation, action, feedback):
        pass


def test_an_agent_states_its_privileges():
    task, says = task_of(), "Silent does not state its privileges; an honest agent's class has"
    with pytest.raises(ValueError, match=says):
        run(Silent(None), task, num_users=2, seed=0)
    with pytest.raises(ValueError, match=says):
        compare(entrants(a=Silent), task, seeds=(0,), num_users=2)

    class Open(Silent):
        privileges: ClassVar[set[str]] = {"scores"}  # any set will do

    compared = compare(entrants(a=Open), task, seeds=(0,), num_users=2)
    assert compared.privileges == {"a": ("scores",)}


@pytest.mark.parametrize(("seeds", "agents"), [((), {"a": Spy}), ((0,), {})])
def test_nothing_cannot_be_compared(seeds, agents):
    with pytest.raises(ValueError, match=r"nothing to compare: \d agents, \d seeds"):
        compare(entrants(**agents), task_of(), seeds=seeds, num_users=2)


def test_a_bare_name_is_no_entrant():
    says = r"expected an Entrant: find_agent\('linucb'\); got 'uniform'"
    with pytest.raises(ValueError, match=says):
        compare(["uniform"], task_of(), num_users=2)
    with pytest.raises(ValueError, match=says):
        measure("uniform", task_of(), lambda: None, num_users=2, seed=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bank": "tiny"}, r"bank must be a ResponseBank: load_bank\(.*; got 'tiny'"),
        ({"population": 5}, "population must be users: .*; got 5"),
        ({"feedback": "like"}, r"FeedbackModel: feedback_model\('like'\); got 'like'"),
        ({"split": "tset"}, "^split must be 'train', 'test' or 'all', got 'tset'"),
        ({"user_split": "tset"}, "^user_split must be 'train', 'test' or 'all', got 'tset'"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_parts_of_a_task_are_of_their_kind(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(task_of(), **wrong)
    with pytest.raises(ValueError, match=r"^split must be .*, got 'tset'"):
        task_of().side("tset")


def test_names_must_differ():
    """Else one agent's runs would be filed under the other's name."""
    with pytest.raises(ValueError, match=r"different names.*'a'"):
        compare([Entrant("a", Spy, {}), Entrant("a", FirstSpy, {})], task_of(), seeds=(0,))


def test_a_population_without_a_split_is_compared_whole():
    from personalllm_env.registry import find_agent

    bank = tiny_bank()
    users = dirichlet_population(9, num_reward_models=bank.num_reward_models)
    task = Task(bank, users, horizon=3)
    done = compare([find_agent("popular")], task, seeds=[0], num_users=5, history_users=4)
    assert done.runs["popular"][0].utility.shape == (5, 3)


def test_a_history_of_silence_teaches_nothing():
    from personalllm_env.registry import find_agent

    bank = tiny_bank()
    feedback = feedback_model(["reward", {"silence": {"probability": 1.0}}])
    task = Task(bank, DirichletUsers(bank.num_reward_models), feedback, horizon=3)
    agents = [find_agent(name) for name in ("popular", "linucb")]
    done = compare(agents, task, seeds=[0], num_users=5, history_users=4)
    assert set(done.runs) == {"popular", "linucb"}


def test_agents_cannot_write_to_the_history_they_share():
    from personalllm_env.database import record_history

    bank = tiny_bank()
    database = record_history(
        Task(bank, DirichletUsers(bank.num_reward_models), horizon=3), num_users=4, seed=0
    )
    with pytest.raises(ValueError, match="read-only"):
        database.reward[0] = 7
