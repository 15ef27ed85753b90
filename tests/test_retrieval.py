"""Retrieval: examples by hand, votes and neighbours by brute force, the paper's claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from personalllm_env.agents import retrieval
from personalllm_env.agents.examples import build_library, embed, examples, unit
from personalllm_env.agents.retrieval import Retrieval, nearest, weigh
from personalllm_env.data.synthetic import synthetic_bank
from personalllm_env.database import Database, record_history
from personalllm_env.feedback import feedback_model
from personalllm_env.runner import Entrant, compare, prior_for, run
from personalllm_env.session import Session
from personalllm_env.streams import derived_seed
from personalllm_env.task import Task
from personalllm_env.testing import check_agent
from personalllm_env.types import Feedback, Observation, PriorKnowledge
from personalllm_env.users import DirichletUsers, UserPopulation

ROOT = np.sqrt(0.5).astype(np.float32)
THREE = np.array([[[2, 0], [0, 3], [1, 1]]], np.float32)  # (1, K=3, I=2)


def prior_of(num_features=2, num_responses=3, num_shown=1, feedback="reward", horizon=10):
    return PriorKnowledge(
        num_responses=num_responses,
        num_shown=num_shown,
        num_features=num_features,
        num_reward_models=2,
        horizon=horizon,
        feedback=feedback_model(feedback),
        responders=tuple("abcdefgh"[:num_responses]),
        shuffled=False,
    )


def hear(heard=None, **said):
    said = {name: np.asarray(value, np.float32) for name, value in said.items()}
    first = next(iter(said.values()))
    heard = np.ones(len(first), bool) if heard is None else np.asarray(heard)
    return Feedback(first, heard, said, np.zeros(len(first), bool))


def look(prompts, responses, user=None):
    prompts, responses = np.asarray(prompts, np.float32), np.asarray(responses, np.float32)
    number = np.arange(len(prompts))
    return Observation(number, prompts, responses, None if user is None else np.asarray(user))


def history(prompts, responses, *, user, prompt, action, identity=None, heard=None, **said):
    said = {name: np.asarray(value, np.float32) for name, value in said.items()}
    first = next(iter(said.values()))
    return Database(
        user=np.asarray(user),
        prompt=np.asarray(prompt),
        action=np.asarray(action).reshape(len(user), -1),
        reward=first.copy(),
        heard=np.ones(len(user), bool) if heard is None else np.asarray(heard),
        said=said,
        prompt_features=np.asarray(prompts, np.float32),
        response_features=np.asarray(responses, np.float32),
        identity=None if identity is None else np.asarray(identity),
    )


# --- what an interaction says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "said", "win", "lose"),
    [
        ([0], {"reward": [1.5]}, [1.0, 0], [0, 0]),  # .5 is the average
        ([2], {"reward": [-1.5]}, [0, 0], [2 * ROOT, 2 * ROOT]),
        ([0, 1], {"reward": [2.5]}, [1, 1], [0, 0]),  # the mean of the two shown, twice
        ([0, 1], {"choice": [1]}, [1, 0], [0, 1]),
        ([0, 1], {"choice": [-1]}, [0, 1], [1, 0]),
        ([0], {"click": [1]}, [0, 1], [(1 + ROOT) / 2, ROOT / 2]),
        ([1], {"like": [1]}, [0, 0.5], [0, 0]),
        ([1], {"like": [0]}, [0, 0], [0, 1.5]),
        ([1], {"stars": [3]}, [0, 0], [0, 0.5]),
        ([1], {"stars": [5]}, [0, np.sqrt(2) - 0.5], [0, 0]),
        ([0], {"click": [1], "reward": [1.5]}, [1, 0], [0, 0]),  # a reward goes first
        ([0, 1], {"choice": [-1], "click": [2]}, [ROOT, ROOT], [0.5, 0.5]),
        ([0, 1], {"stars": [5], "like": [1], "choice": [1]}, [1, 0], [0, 1]),
    ],
)
def test_what_wins_and_what_loses(action, said, win, lose):
    seen = examples(THREE, np.array([action]), hear(**said), average=0.5)
    np.testing.assert_allclose(seen.win, [win], atol=1e-6)
    np.testing.assert_allclose(seen.lose, [lose], atol=1e-6)


@pytest.mark.parametrize("said", [{"reward": [3.0]}, {"choice": [0]}, {"click": [0]}])
def test_silence_says_nothing(said):
    seen = examples(THREE, np.array([[0, 1]]), hear([False], **said), average=0.5)
    assert not seen.win.any()
    assert not seen.lose.any()


def test_unknown_channels_are_named():
    with pytest.raises(ValueError, match="no linear reading of what is said through sigh"):
        examples(THREE, np.array([[0]]), hear(sigh=[1]))


def test_embeddings_are_sums():
    seen = examples(THREE, np.array([[0, 1]]), hear(choice=[1]))
    np.testing.assert_array_equal(embed(seen, "winning"), [[1, 0]])
    np.testing.assert_array_equal(embed(seen, "losing"), [[0, 1]])
    np.testing.assert_array_equal(embed(seen, "difference"), [[1, -1]])


# --- similarity -------------------------------------------------------------------------------


def test_unit_vectors_and_nothing():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_nearest_and_weights_by_sorting(n, num, seed):
    similarity = np.random.default_rng(seed).standard_normal((3, n))
    ranked = np.argsort(-similarity, axis=1)[:, :num]
    np.testing.assert_array_equal(np.sort(nearest(similarity, num)), np.sort(ranked))
    expected = np.zeros_like(similarity)
    for row, places in enumerate(ranked):
        expected[row, places] = np.maximum(similarity[row, places], 0)
    np.testing.assert_array_equal(weigh(similarity, num), expected)
    np.testing.assert_array_equal(weigh(similarity, None), np.maximum(similarity, 0))


def test_ties_with_the_last_example_count():
    weights = weigh(np.array([[0.5, 0.9, 0.5, 0.2, -1.0]]), 2)
    np.testing.assert_array_equal(weights, [[0.5, 0.9, 0.5, 0, 0]])


# --- votes by hand ----------------------------------------------------------------------------

# Two prompts at right angles and responses along the axes. User 0 likes the first axis, user 1
# the second; user 2 dislikes the first. Rewards average 0.
PROMPTS = [[1, 0], [0, 1]]
RESPONSES = [[[1, 0], [0, 1], [1, 1]]] * 2
PAST = {"user": [0, 0, 1, 1, 2], "prompt": [0, 1, 0, 1, 0], "action": [0, 0, 1, 1, 0]}
CHOSEN = {
    # taste of the pool at prompt (1, 0), after the user gave the first axis +1 at (1, 1)
    "similar": [3 + ROOT, 0],  # user 0's reward of 3 at prompt 0; own example at cosine ROOT
    "self": [ROOT, 0],
    "everyone": [3 - 7, 2],
}


def small_history(**changes):
    return history(PROMPTS, RESPONSES, **{**PAST, "reward": [3, 1, 2, 1, -7], **changes})


def tastes(agent, prompts):
    return agent._tastes(unit(np.asarray(prompts, np.float32)))


@pytest.mark.parametrize("pool", CHOSEN)
def test_votes_by_hand(pool):
    agent = Retrieval(prior_of(), pool=pool, num_neighbours=1)
    agent.fit(small_history())
    agent.reset(1, np.random.default_rng(0))
    now = look([[1, 0]], [[[1, 0], [-1, 0], [0, 1]]])
    np.testing.assert_allclose(tastes(agent, [[1, 0]]), [CHOSEN["everyone"]], atol=1e-6)
    assert agent.act(now).tolist() == [[1]], "-4 on the first axis, so its opposite wins"
    agent.update(look([[1, 1]], RESPONSES[:1]), np.array([[0]]), hear(reward=[1]))
    np.testing.assert_allclose(tastes(agent, [[1, 0]]), [CHOSEN[pool]], atol=1e-6)
    assert agent.act(now).tolist() == [[1 if pool == "everyone" else 0]]


def test_background_counts_as_so_many_users():
    agent = Retrieval(prior_of(), num_neighbours=1, background=1.5)
    agent.fit(small_history())
    agent.reset(1, np.random.default_rng(0))
    agent.update(look([[1, 1]], RESPONSES[:1]), np.array([[0]]), hear(reward=[1]))
    expected = np.array(CHOSEN["similar"]) + 1.5 / 3 * np.array(CHOSEN["everyone"])
    np.testing.assert_allclose(tastes(agent, [[1, 0]]), [expected], atol=1e-6)


def test_few_examples_are_those_on_the_most_similar_prompts():
    """At (2, 1): cosines .89 with prompt 0, .45 with prompt 1 and .95 with the own (1, 1)."""
    agent = Retrieval(prior_of(), num_neighbours=1, num_examples=2)
    agent.fit(small_history())
    agent.reset(1, np.random.default_rng(0))
    both = [2 / np.sqrt(5) * -4, 2 / np.sqrt(5) * 2 + 1 / np.sqrt(5)]
    both[0] += 1 / np.sqrt(5)
    np.testing.assert_allclose(tastes(agent, [[2, 1]]), [both], atol=1e-6)
    agent.update(look([[1, 1]], RESPONSES[:1]), np.array([[0]]), hear(reward=[1]))
    expected = [3 * 2 / np.sqrt(5) + 3 / np.sqrt(10), 0]
    np.testing.assert_allclose(tastes(agent, [[2, 1]]), [expected], atol=1e-6)


def test_silence_takes_no_ones_place_among_few_examples():
    """The own interaction on this very prompt is the most similar, and silent."""
    agent = Retrieval(prior_of(), num_neighbours=1, num_examples=1)
    agent.fit(small_history())
    agent.reset(1, np.random.default_rng(0))
    seen = look([[1, 1]], RESPONSES[:1])
    agent.update(seen, np.array([[0]]), hear(reward=[1]))
    agent.update(look([[9, 1]], RESPONSES[:1]), np.array([[1]]), hear([False], reward=[0]))
    expected = [3 * 9 / np.sqrt(82), 0]  # user 0's on prompt 0
    np.testing.assert_allclose(tastes(agent, [[9, 1]]), [expected], atol=1e-6)


def test_who_says_nothing_is_served_what_everyone_likes():
    agent = Retrieval(prior_of(), pool="self")
    agent.fit(small_history())
    agent.reset(2, np.random.default_rng(0))
    seen = look([[1, 0]] * 2, RESPONSES)
    agent.update(seen, np.array([[1], [1]]), hear([False, True], reward=[9, 9]))
    expected = [CHOSEN["everyone"], [0, 9]]
    np.testing.assert_allclose(tastes(agent, [[1, 0]] * 2), expected, atol=1e-6)


def test_silent_interactions_of_others_do_not_vote():
    """Nor do they make the average: without the -7 it is 7 / 4."""
    agent = Retrieval(prior_of(), pool="everyone")
    agent.fit(small_history(heard=[True] * 4 + [False]))
    agent.reset(1, np.random.default_rng(0))
    np.testing.assert_allclose(tastes(agent, [[1, 0]]), [[3 - 1.75, 2 - 1.75]], atol=1e-6)


def test_a_returning_users_history_is_their_own():
    """Users 0 and 2 are the population's 7: they like the second axis more than the first."""
    agent = Retrieval(prior_of(), pool="self")
    agent.fit(small_history(identity=[7, 5, 7]))
    agent.reset(3, np.random.default_rng(0))
    now = look([[1, 0]] * 3, RESPONSES[:1] * 3, user=[7, 5, 6])
    agent.act(now)
    expected = [[3 - 7, 0], [0, 2], CHOSEN["everyone"]]
    np.testing.assert_allclose(tastes(agent, [[1, 0]] * 3), expected, atol=1e-6)
    agent.update(now, np.array([[1]] * 3), hear(reward=[1, 1, 1]))
    expected = [[3 - 7, 1], [0, 2 + 1], [0, 1]]
    np.testing.assert_allclose(tastes(agent, [[1, 0]] * 3), expected, atol=1e-6)
    agent.reset(3, np.random.default_rng(0))
    agent.act(now._replace(user=np.array([6, 6, 6])))
    everyone = [CHOSEN["everyone"]] * 3
    np.testing.assert_allclose(tastes(agent, [[1, 0]] * 3), everyone, atol=1e-6)


@pytest.mark.parametrize("num_neighbours", [1, 3])
def test_nobody_is_their_own_neighbour(num_neighbours):
    """The nearest to user 1 (identity 5) is 1; then come 0 and 2, who are the same person."""
    agent = Retrieval(prior_of(), num_neighbours=num_neighbours)
    agent.fit(small_history(identity=[7, 5, 7], reward=[3, 1, 2, 1, -7.0]))
    agent.reset(1, np.random.default_rng(0))
    agent.act(look([[1, 0]], RESPONSES[:1], user=[5]))
    who, counts = agent._who(np.array([0]))
    assert 1 in who[counts].tolist()
    assert who[counts].tolist().count(1) == 1
    assert counts.sum() == (2 if num_neighbours == 1 else 3)


# --- against brute force ----------------------------------------------------------------------


def examples_by_user(database):
    """Returns each user's (prompt, win, lose) as lists, interaction by interaction."""
    said, of = database.said, {u: [] for u in range(database.num_users)}
    average = float(np.mean(said["reward"][database.heard])) if "reward" in said else 0.0
    for row in np.flatnonzero(database.heard):
        prompt, shown = database.prompt[row], database.action[row]
        x = database.response_features[prompt]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        if "reward" in said:
            above = said["reward"][row] - average
            win, lose = max(above, 0) * x[shown[0]], max(-above, 0) * x[shown[0]]
        else:
            first = said["choice"][row] > 0
            win, lose = x[shown[0 if first else 1]], x[shown[1 if first else 0]]
        of[database.user[row]].append((database.prompt_features[prompt], win, lose))
    return of


def cosine(a, b):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.dot(a, b) / lengths) if lengths > 0 else 0.0


def brute_force(of, own, prompt, *, embedding, pool, num, few):
    """Returns the votes of one user, summed example by example."""
    kind = {"winning": (1, 0), "losing": (0, 1), "difference": (1, -1)}[embedding]

    def embedded(some):
        return sum((kind[0] * w + kind[1] * o for _, w, o in some), start=0 * prompt)

    pooled = list(own)
    if pool == "similar":
        mine = embedded(own)
        known = [u for u in of if np.any(embedded(of[u]))]
        ranked = sorted(known, key=lambda u: -cosine(mine, embedded(of[u])))
        pooled += [example for u in ranked[:num] for example in of[u]]
    elif pool == "everyone":
        pooled = [example for u in of for example in of[u]]
    weights = np.array([cosine(prompt, p) for p, _, _ in pooled])
    if few is not None and few < len(weights):
        weights[weights < np.sort(weights)[-few] - 1e-7] = 0
    differences = np.array([win - lose for _, win, lose in pooled])
    return np.maximum(weights, 0) @ differences


@pytest.mark.parametrize("embedding", ["winning", "losing", "difference"])
@pytest.mark.parametrize(
    ("pool", "few"), [("similar", None), ("similar", 9), ("self", None), ("everyone", None)]
)
@pytest.mark.parametrize("kind", ["silence", "duel", "leaving"])
def test_votes_by_brute_force(tasks, monkeypatch, embedding, pool, few, kind):
    """And the number of users handled at a time changes nothing."""
    task = tasks[kind]
    database = record_history(task, num_users=12, seed=3)
    prior = prior_for(Retrieval, task)
    agent = Retrieval(prior, embedding=embedding, pool=pool, num_neighbours=3, num_examples=few)
    agent.fit(database)
    agent.reset(4, np.random.default_rng(0))
    session = Session(task, np.arange(4))
    session.begin(1)
    of, own = examples_by_user(database), [[] for _ in range(4)]
    average = agent._library.average
    for _ in range(5):
        observation = session.observe()
        action = agent.act(observation)
        feedback, _ = session.step(action)
        agent.update(observation, action, feedback)
        seen = examples(observation.inputs, action, feedback, average=average)
        for b in np.flatnonzero(feedback.heard):
            own[b].append((observation.prompt_features[b], seen.win[b], seen.lose[b]))
    observation = session.observe()
    whole = tastes(agent, observation.prompt_features)
    chosen = agent.act(observation)
    checked = 0
    for b in range(4):
        settings = {"embedding": embedding, "pool": pool, "num": 3, "few": few}
        if not own[b] or not agent._own.embedding[b].any():
            settings["pool"], settings["few"] = "everyone", None
            if few is not None:
                continue  # of everyone's examples prompts are counted: tested by hand
        prompt = observation.prompt_features[b]
        expected = brute_force(of, own[b], prompt, **settings)
        np.testing.assert_allclose(whole[b], expected, rtol=1e-4, atol=1e-4)
        x = observation.inputs[b]
        votes = x @ expected / np.linalg.norm(x, axis=1)
        assert chosen[b].tolist() == np.argsort(-votes)[: task.num_shown].tolist()
        checked += 1
    assert checked
    monkeypatch.setattr(retrieval, "_BLOCK", 1)
    np.testing.assert_allclose(
        tastes(agent, observation.prompt_features), whole, rtol=1e-5, atol=1e-5
    )


def test_an_agent_may_serve_beyond_the_horizon():
    short = Retrieval(prior_of(horizon=1), pool="self")
    long = Retrieval(prior_of(horizon=9), pool="self")
    for agent in (short, long):
        agent.reset(1, np.random.default_rng(0))
        for reward in (1.0, -2.0, 4.0, 0.5, 3.0):
            agent.update(
                look([[1, reward]], RESPONSES[:1]), np.array([[0]]), hear(reward=[reward])
            )
    np.testing.assert_array_equal(tastes(short, [[1, 2]]), tastes(long, [[1, 2]]))
    assert tastes(long, [[1, 2]])[0, 0] > 0


def test_random_users_are_different_and_drawn_anew():
    agent = Retrieval(prior_of(), pool="random", num_neighbours=2)
    agent.fit(small_history())
    agent.reset(900, np.random.default_rng(0))
    first = np.sort(agent._drawn, axis=1)
    pairs = np.bincount(first[:, 0] * 3 + first[:, 1], minlength=9)
    assert pairs[[1, 2, 5]].sum() == 900, "two different ones of three"
    assert stats.chisquare(pairs[[1, 2, 5]]).pvalue > 1e-4
    agent.reset(900, np.random.default_rng(1))
    assert (np.sort(agent._drawn, axis=1) != first).any()


@pytest.mark.parametrize("pool", ["similar", "self", "everyone", "random"])
def test_without_votes_all_are_alike(pool):
    """Chi-square at alpha 1e-4, also for agents without a history."""
    agent = Retrieval(prior_of(num_features=3, num_responses=5), pool=pool)
    agent.reset(5000, np.random.default_rng(0))
    action = agent.act(look(np.ones((5000, 3)), np.ones((5000, 5, 3))))
    assert stats.chisquare(np.bincount(action[:, 0], minlength=5)).pvalue > 1e-4


# --- the contract and settings ----------------------------------------------------------------


@pytest.mark.parametrize("pool", ["similar", "self", "everyone", "random"])
def test_contract(pool):
    check_agent(Retrieval, pool=pool)


@pytest.mark.parametrize(
    "changes",
    [{"embedding": "winning"}, {"embedding": "losing"}, {"num_examples": 3}, {"background": 5}],
)
def test_contract_with_settings(changes):
    check_agent(Retrieval, num_neighbours=4, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": "loosing"}, "embedding must be one of winning, losing, difference, got"),
        ({"pool": "all"}, "pool must be one of similar, self, everyone, random, got 'all'"),
        ({"num_neighbours": 0}, "num_neighbours"),
        ({"num_examples": 0}, "num_examples"),
        ({"background": -1}, "background"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Retrieval(prior_of(), **changes)


# --- the paper's claim ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic():
    return synthetic_bank(num_prompts=4000, num_test=500)


@pytest.mark.parametrize(("feedback", "num_shown"), [("choice", 2), ("reward", 1)])
def test_the_difference_finds_the_most_similar_users(synthetic, feedback, num_shown):
    """PersonalLLM: winning minus losing is the best embedding, with 5 own interactions.

    Cosine of true weights with the 20 retrieved of 1,000 users, the mean over 800 others;
    paired over these, each gap is more than 3 standard errors.
    """
    users, own = 800, 5
    task = Task(
        synthetic,
        DirichletUsers(10, 0.05),
        feedback_model(feedback),
        num_shown=num_shown,
    )
    n = 1000 + users
    database = record_history(task, num_users=n, seed=0)
    session = Session(task, np.arange(n))
    session.begin(derived_seed(0, "history"))
    weights = unit(session.episodes.weights)
    seen = examples(
        database.inputs[database.prompt],
        database.action,
        database.feedback(),
        average=build_library(database).average,
    )
    found = {}
    for name in ("winning", "losing", "difference"):
        embedded = embed(seen, name).reshape(n, task.horizon, -1)
        library = unit(embedded[:1000].sum(axis=1))
        few = unit(embedded[1000:, :own].sum(axis=1))
        who = nearest(few @ library.T, 20)
        found[name] = np.einsum("bd,bnd->bn", weights[1000:], weights[who]).mean(axis=1)
        direct = build_library(database, name).embedding[:1000]
        np.testing.assert_allclose(unit(direct), library, atol=1e-4)
    chance = (weights[1000:] @ weights[:1000].T).mean(axis=1)

    def errors_above(a, b):
        return (a - b).mean() / ((a - b).std() / np.sqrt(users))

    for name in ("winning", "losing"):
        assert errors_above(found["difference"], found[name]) > 3
        assert errors_above(found[name], chance) > 3


def test_returning_users_are_served_well_from_the_start(synthetic):
    """First two interactions, 600 users: 4 paired standard errors above everyone's votes."""
    weights = DirichletUsers(10, 0.05).sample(300, np.random.default_rng(0))
    task = Task(
        synthetic, UserPopulation(weights), feedback_model("click"), horizon=20, recognise=True
    )
    names = {"similar": {"pool": "similar"}, "everyone": {"pool": "everyone"}}
    entrants = [Entrant(name, Retrieval, changes) for name, changes in names.items()]
    runs = compare(entrants, task, seeds=(0,), num_users=600, history_users=600).runs
    early = {name: runs[name][0].utility[:, :2].mean(axis=1) for name in names}
    gap = early["similar"] - early["everyone"]
    assert gap.mean() / (gap.std() / np.sqrt(len(gap))) > 4


def test_scores_stand_in_for_features_in_a_white_box(bank):
    task = Task(bank, DirichletUsers(3, 0.1), feedback_model("reward"), white_box=True)
    agent = Retrieval(prior_for(Retrieval, task))
    agent.fit(record_history(task, num_users=9, seed=0))
    done = run(agent, task, num_users=3, seed=0)
    assert agent._library.vote.shape == (9, 50, 3)
    assert done.regret.shape == (3, 50)


def test_similar_users_beat_random_ones_and_everyone(synthetic):
    """With clicks, 100 users: the paired gap in utility is more than 4 standard errors."""
    task = Task(synthetic, DirichletUsers(10, 0.05), feedback_model("click"), horizon=30)
    pools = ("similar", "random", "everyone", "self")
    entrants = [Entrant(pool, Retrieval, {"pool": pool}) for pool in pools]
    runs = compare(entrants, task, seeds=(0,), num_users=100, history_users=400).runs
    mean = {pool: runs[pool][0].utility.mean(axis=1) for pool in pools}
    for pool in pools[1:]:
        gap = mean["similar"] - mean[pool]
        assert gap.mean() / (gap.std() / np.sqrt(len(gap))) > 4, pool
