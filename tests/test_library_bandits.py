"""Agents made of Vowpal Wabbit, river, MABWiser and contextualbandits."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env import registry
from personalllm_env.agents import borrowed
from personalllm_env.agents.linear import LinUCB, history_evidence
from personalllm_env.database import record_history
from personalllm_env.feedback import Reward, feedback_model
from personalllm_env.registry import agent_names, find_agent, library_agent_names
from personalllm_env.runner import Entrant, compare, prior_for, run
from personalllm_env.session import Session
from personalllm_env.task import Task
from personalllm_env.testing import check_agent, tiny_bank, tiny_tasks
from personalllm_env.types import Feedback
from personalllm_env.users import DirichletUsers

ROOT = Path(__file__).parents[1]
NAMES = sorted(library_agent_names())
CANDIDATES = [name for name in NAMES if name.endswith("-candidates")]
RESPONDERS = [name for name in NAMES if name.endswith("-responders")]
RIDGE, EXPLORATION = 3.0, 0.4


def agent_class(name):
    found = find_agent(name).agent_class
    for library in found.libraries:
        pytest.importorskip(library)
    return found


def built(name, task=None, **given):
    task = tiny_tasks()["reward"] if task is None else task
    cls = agent_class(name)
    return cls(prior_for(cls, task), **given)


def hear(heard=None, **said):
    said = {name: np.asarray(value, np.float32) for name, value in said.items()}
    first = next(iter(said.values()))
    heard = np.ones(len(first), bool) if heard is None else np.asarray(heard)
    return Feedback(first, heard, said, np.zeros(len(first), bool))


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    check_agent(agent_class(name))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *((name, {}) for name in NAMES),
        # Of laws with zeros in them, which leave nothing to tell the others apart by.
        ("vowpal-wabbit", {"options": "--epsilon 0"}),
        ("vowpal-wabbit", {"options": "--bag 5"}),
    ],
)
def test_honest_and_two_different_in_a_duel(name, given):
    task = tiny_tasks()["duel"]
    agent = built(name, task, **given)
    assert agent.privileges == frozenset()
    shown = []
    act = agent.act
    agent.act = lambda observation: shown.append(act(observation)) or shown[-1]
    run(agent, task, num_users=20, seed=0)
    assert all((action[:, 0] != action[:, 1]).all() for action in shown)


# --- what a history is condensed to, what is said of arms -------------------------------------


@given(st.integers(1, 40), st.integers(1, 6), st.floats(0.01, 100), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_condensed_history_teaches_a_ridge_regression_the_same(num, size, weight, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((num, size)), rng.standard_normal(num)
    small, target = borrowed.condensed(x, y, weight)
    assert len(small) == len(target) <= size
    np.testing.assert_allclose(small.T @ small, weight * x.T @ x, atol=1e-9 * weight * num)
    np.testing.assert_allclose(small.T @ target, weight * x.T @ y, atol=1e-9 * weight * num)


def test_what_is_said_becomes_targets_of_arms():
    def said(action, **spoken):
        found = borrowed.said_of_arms(np.array(action), hear(**spoken), 4, 5)
        return found.arm.tolist(), found.target.tolist()

    assert said([[2], [0]], reward=[0.5, -1]) == ([[2], [0]], [[0.5], [-1]])
    assert said([[2], [0]], like=[1, 0]) == ([[2], [0]], [[1], [-1]])
    assert said([[1, 3]], choice=[-1]) == ([[1, 3]], [[-1, 1]])
    arms, target = said([[1]], click=[3])
    assert arms == [[0, 1, 2, 3]]
    assert target == [[-0.25, -0.25, -0.25, 0.75]]
    found = borrowed.said_of_arms(np.array([[1]]), hear(stars=[5]), 4, 5)
    np.testing.assert_allclose(found.target, [[2 / 2**0.5]])
    with pytest.raises(ValueError, match="no reading of what is said through hum"):
        said([[0]], hum=[1])


class Pupil:
    """Takes down what it is taught, as a learner of both kinds."""

    def __init__(self, seed):
        self.told = []

    def learn(self, *columns):
        self.told.append(columns)

    def bounds(self, x):
        return np.zeros(len(x))

    def choose(self, context, num):
        return np.arange(num)


def half_silent(channel, num_shown=1):
    feedback = feedback_model([channel, {"silence": {"probability": 0.5}}])
    users = DirichletUsers(3, 0.1)
    return Task(tiny_bank(), users, feedback, horizon=8, num_shown=num_shown)


def taught(kind, task, history, worth):
    """Returns what one user's learner is taught of a history."""
    agent = kind(prior_for(kind, task), worth, Pupil)
    agent.fit(history)
    agent.reset(1, np.random.default_rng(0))
    [pupil] = agent._learners
    [columns] = pupil.told
    return columns


def targets_of_arms(history, i):
    """What interaction i says of arms, written out."""
    said = {name: values[i] for name, values in history.said.items()}
    if "click" in said:
        return [(k, (k == said["click"]) - 0.25) for k in range(4)]
    if "choice" in said:
        first, second = history.action[i]
        return [(first, said["choice"]), (second, -said["choice"])]
    return [(history.action[i, 0], said["reward"])]


CHANNELS = [("reward", 1), ("click", 1), ("choice", 2)]


@pytest.mark.parametrize(("channel", "num_shown"), CHANNELS)
def test_a_history_counts_as_many_interactions_of_those_who_spoke(channel, num_shown):
    """Sums over all pairs that were spoken of, each weighing worth / their number."""
    task = half_silent(channel, num_shown)
    history = record_history(task, num_users=30, seed=1)
    spoken = np.flatnonzero(history.heard)
    assert 0 < len(spoken) < len(history.heard)
    weight, seen = 7 / len(spoken), history_evidence(history)
    x, y = taught(borrowed.CandidateAgent, task, history, 7.0)
    features, target = seen.features[spoken].astype(float), seen.target[spoken].astype(float)
    np.testing.assert_allclose(x.T @ x, weight * features.T @ features, atol=1e-5)
    np.testing.assert_allclose(x.T @ y, weight * features.T @ target, atol=1e-5)

    gram, moment = np.zeros((4, 7, 7)), np.zeros((4, 7))
    for i in spoken:
        context = np.append(history.prompt_features[history.prompt[i]], 1)
        for arm, said in targets_of_arms(history, i):
            gram[arm] += weight * np.outer(context, context)
            moment[arm] += weight * said * context
    x, arms, y = taught(borrowed.ResponderAgent, task, history, 7.0)
    for arm in range(4):
        mine = x[arms == arm]
        np.testing.assert_allclose(mine.T @ mine, gram[arm], atol=1e-5)
        np.testing.assert_allclose(mine.T @ y[arms == arm], moment[arm], atol=1e-5)


@pytest.mark.parametrize("kind", [borrowed.CandidateAgent, borrowed.ResponderAgent])
def test_silence_teaches_nobody_and_everybody_has_their_own_context(kind):
    session = Session(half_silent("reward"), np.arange(40))
    session.begin(0)
    agent = kind(prior_for(kind, session.task), 0.0, Pupil)
    agent.reset(40, np.random.default_rng(0))
    seen = session.observe()
    action = agent.act(seen)
    feedback, _ = session.step(action)
    agent.update(seen, action, feedback)
    told = [pupil.told for pupil in agent._learners]
    assert [len(each) for each in told] == feedback.heard.astype(int).tolist()
    for b in np.flatnonzero(feedback.heard):
        x, *_, y = told[b][0]
        mine = seen.response_features[b, action[b]]
        if kind is borrowed.ResponderAgent:
            mine = [[*seen.prompt_features[b], 1]]
        np.testing.assert_allclose(x, mine)
        assert y == [feedback.said["reward"][b]]


def test_a_silent_history_replaces_an_earlier_one():
    task = half_silent("reward")
    history = record_history(task, num_users=30, seed=1)
    for kind in (borrowed.CandidateAgent, borrowed.ResponderAgent):
        agent = kind(prior_for(kind, task), 7.0, Pupil)
        agent.fit(history)
        agent.fit(replace(history, heard=np.zeros_like(history.heard)))
        agent.reset(1, np.random.default_rng(0))
        assert agent._learners[0].told == []


# --- the libraries' learners against the closed form, where known bugs would show -------------


def posterior(x, y):
    inverse = np.linalg.inv(RIDGE * np.eye(x.shape[1]) + x.T @ x)
    return inverse @ x.T @ y, inverse


def bound(name, rows, mean, inverse):
    """Their bound; river's has the noise of an answer in it."""
    width = np.einsum("kd,de,ke->k", rows, inverse, rows) + name.startswith("river")
    return rows @ mean + EXPLORATION * np.sqrt(width)


@pytest.mark.parametrize("pairs", [(), (1,), (40,), (2, 1, 30)])
@pytest.mark.parametrize("name", CANDIDATES)
def test_a_regression_is_the_ridge_in_closed_form(name, pairs):
    """MABWiser 2.7.4: an unseen arm's bound with ridge 3 is three times too wide. river
    0.26.1: fed many at once it takes I / alpha for the precision.
    """
    rng = np.random.default_rng(1)
    learner = built(name, ridge=RIDGE, exploration=EXPLORATION)._make(3)
    x, y = rng.standard_normal((sum(pairs), 6)), rng.standard_normal(sum(pairs))
    for rows in np.split(np.arange(len(x)), np.cumsum(pairs)[:-1]):
        if len(rows):
            learner.learn(x[rows], y[rows])
    candidates = rng.standard_normal((5, 6))
    expected = bound(name, candidates, *posterior(x, y))
    np.testing.assert_allclose(learner.bounds(candidates), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", RESPONDERS)
def test_a_policy_pulls_the_arm_with_the_highest_bound_in_closed_form(name):
    """One arm of the four is never seen, so that its bound is the prior's."""
    rng = np.random.default_rng(2)
    learner = built(name, ridge=RIDGE, exploration=EXPLORATION)._make(3)
    x, y = rng.standard_normal((60, 7)), rng.standard_normal(60)
    arm = rng.integers(0, 3, size=60)
    learner.learn(x[:50], arm[:50], y[:50])
    for i in range(50, 60):
        learner.learn(x[i : i + 1], arm[i : i + 1], y[i : i + 1])
    contexts = 0.5 * rng.standard_normal((100, 7))
    laws = [posterior(x[arm == k], y[arm == k]) for k in range(4)]
    expected = np.stack([bound(name, contexts, *law) for law in laws], axis=1)
    order = expected.argsort(axis=1)[:, ::-1]
    chosen = np.array([learner.choose(context, 2) for context in contexts])
    assert (chosen == order[:, :2]).all()
    assert len(np.unique(order[:, 0])) == 4


@pytest.mark.parametrize("name", RESPONDERS)
def test_untried_arms_are_all_tried(name):
    """Ties go to nobody in particular: not to the first arm for every user."""
    agent = built(name)
    agent.reset(200, np.random.default_rng(0))
    context = np.zeros(7)  # all bounds are equal
    first = [int(learner.choose(context, 1)[0]) for learner in agent._learners]
    assert np.bincount(first, minlength=4).min() > 25


@pytest.mark.parametrize("name", ["mabwiser-candidates", "contextualbandits-candidates"])
def test_without_a_history_it_chooses_as_our_linucb(name):
    task = tiny_tasks()["reward"]
    prior = prior_for(LinUCB, task)
    ours = run(LinUCB(prior, exploration=0.2, ridge=2.0), task, num_users=30, seed=5)
    theirs = run(built(name, task, exploration=0.2, ridge=2.0), task, num_users=30, seed=5)
    np.testing.assert_array_equal(ours.utility, theirs.utility)


@pytest.mark.parametrize("name", CANDIDATES + RESPONDERS)
def test_a_history_is_worth_what_it_is_said_to_be(name):
    """Of no worth: as if there were none. Of huge worth: users no longer count."""
    task = tiny_tasks()["reward"]
    history = record_history(task, num_users=30, seed=1)
    alone = run(built(name, task), task, num_users=10, seed=2)
    nothing = built(name, task, worth=0)
    nothing.fit(history)
    np.testing.assert_array_equal(
        alone.utility, run(nothing, task, num_users=10, seed=2).utility
    )
    much = built(name, task, worth=1e8)
    much.fit(history)
    much.reset(2, np.random.default_rng(0))
    [first, second] = much._learners
    if name in CANDIDATES:
        first.learn(np.ones((1, 6)), np.array([9.0]))
        x = np.eye(6)
        np.testing.assert_allclose(first.bounds(x), second.bounds(x), atol=1e-4)
    else:
        context = np.ones(7)
        before = second.choose(context, 4)
        first.learn(context[None], before[-1:], np.array([9.0]))
        assert (first.choose(context, 4) == before).all()


def test_users_who_never_speak_in_the_history_teach_nothing():
    task = Task(
        tiny_bank(),
        DirichletUsers(3, 0.1),
        feedback_model(["reward", {"silence": {"probability": 1.0}}]),
        horizon=3,
    )
    silent = record_history(task, num_users=3, seed=0)
    for name in NAMES:
        agent = built(name, task)
        agent.fit(silent)
        assert run(agent, task, num_users=2, seed=0).utility.shape == (2, 3)


# --- Vowpal Wabbit ----------------------------------------------------------------------------


def wabbit(task=None, **given):
    agent = built("vowpal-wabbit", task, **given)
    agent.reset(2, np.random.default_rng(0))
    return agent


def observed(task, num_users=2):
    session = Session(task, np.arange(num_users))
    session.begin(3)
    return session.observe()


def test_it_is_drawn_from_as_it_says():
    task = tiny_tasks()["reward"]
    agent = wabbit(task, options="--epsilon 0.4", learning_rate=0.5)
    observation = observed(task)
    for _ in range(20):
        agent.update(observation, np.array([[2], [1]]), hear(reward=[1, 1]))
    chances = agent.probabilities(observation)
    np.testing.assert_allclose(chances, [[0.1, 0.1, 0.7, 0.1], [0.1, 0.7, 0.1, 0.1]], atol=1e-6)
    drawn = np.array([agent.act(observation)[:, 0] for _ in range(3000)])
    for b in range(2):
        share = np.bincount(drawn[:, b], minlength=4) / 3000
        assert np.abs(share - chances[b]).max() < 4 * (0.25 / 3000) ** 0.5


def test_each_user_has_weights_of_their_own():
    """The same prompt, and users who say the opposite of each other."""
    task = tiny_tasks()["reward"]
    agent = wabbit(task, options="--epsilon 0", learning_rate=0.5)
    one = observed(task)
    same = one._replace(response_features=np.repeat(one.response_features[:1], 2, axis=0))
    for k in range(4):
        level = 1.0 if k == 3 else -1.0
        agent.update(same, np.array([[k], [k]]), hear(reward=[level, -level]))
    assert agent.act(same)[0, 0] == 3
    assert agent.act(same)[1, 0] != 3
    before = agent.probabilities(same)
    agent.update(same, np.array([[0], [0]]), hear([False, False], reward=[0, 0]))
    np.testing.assert_array_equal(agent.probabilities(same), before)


def test_a_history_teaches_everybody():
    task = tiny_tasks()["reward"]
    agent = built("vowpal-wabbit", task, options="--epsilon 0")
    agent.fit(record_history(task, num_users=200, seed=1))
    run(agent, task, num_users=5, seed=0)
    agent.reset(50, np.random.default_rng(1))
    observation = observed(task, 50)
    popular = built_popular(task).act(observation)
    assert (agent.act(observation) == popular).mean() > 0.6  # of 4


def built_popular(task):
    from personalllm_env.agents.linear import Popular

    agent = Popular(prior_for(Popular, task))
    agent.fit(record_history(task, num_users=200, seed=1))
    agent.reset(50, np.random.default_rng(1))
    return agent


def test_options_it_does_not_know_are_found_at_once():
    with pytest.raises(ValueError, match=r"does not take .*--squarecbb.*unrecognised option"):
        wabbit(options="--squarecbb")
    found = {
        "--cb_explore 4": "expecting single line example",
        "--json": "JSON parser error",
        "--dsjson": r"expected 4 probabilities, got \[\[1.0\]\]",
        "--bag 2 --help": "end the process",
    }
    for options, problem in found.items():
        with pytest.raises(ValueError, match=f"does not take .*{options}.*: .*{problem}"):
            wabbit(options=options)
    for setting in ({"learning_rate": 0}, {"bits": 3}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            wabbit(**setting)


# --- what they learn --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_better_than_chance_by_four_standard_errors(name):
    """Two prompts that recur, no history: what is left is learning from each user."""
    task = Task(
        tiny_bank(),
        DirichletUsers(3, 0.1),
        feedback_model(Reward()),
        horizon=15,
        prompts_per_episode=2,
    )
    given = {"worth": 0} if name != "vowpal-wabbit" else {"learning_rate": 0.5}
    entrants = [find_agent("uniform"), Entrant(name, agent_class(name), given)]
    result = compare(entrants, task, seeds=[0], num_users=30, history_users=0)
    ahead = result.runs["uniform"][0].regret - result.runs[name][0].regret
    ahead = ahead.mean(axis=1)
    assert ahead.mean() > 4 * ahead.std() / len(ahead) ** 0.5


# --- names, and what happens without the libraries --------------------------------------------


def test_they_have_names_that_all_does_not_mean():
    assert len(NAMES) == 7
    assert not set(NAMES) & set(agent_names())
    assert find_agent("river-candidates@ridge=2.0").settings == {"ridge": 2.0}
    with pytest.raises(registry.UnknownAgentError, match="did you mean 'vowpal-wabbit'"):
        find_agent("vowpal-wabit")


def test_the_benchmark_takes_them_together():
    from personalllm_env.benchmark.request import Request

    for name in NAMES:
        agent_class(name)
    few = Request(tracks=["clicks-v0"], agents=["libraries", "linucb"])
    assert set(few.agents) >= {*NAMES, "linucb"}
    assert few.check() == []
    assert not set(NAMES) & set(Request().agents)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("vowpal-wabbit", "vowpalwabbit"),
        ("river-responders", "river"),
        ("mabwiser-candidates", "mabwiser"),
        ("contextualbandits-responders", "contextualbandits"),
    ],
)
def test_without_the_library_one_sentence_says_what_to_install(name, library, monkeypatch):
    from personalllm_env.benchmark.request import Request

    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    cls = find_agent(name).agent_class  # nothing is loaded yet
    with pytest.raises(ImportError, match=r"pip install 'personalllm-env\[bandits\]'"):
        cls(prior_for(cls, tiny_tasks()["reward"]))  # before any work is lost
    monkeypatch.setattr(registry, "find_spec", lambda n: None if n == library else object())
    request = Request(tracks=["clicks-v0"], agents=["libraries"])
    assert name not in request.agents
    [line] = [line for line in request.check() if library in line]
    assert name in line
    assert "personalllm-env[bandits]" in line


def test_a_result_knows_the_version_of_the_library():
    from personalllm_env.benchmark.cells import SIZES, make_cells
    from personalllm_env.benchmark.fingerprint import fingerprint
    from personalllm_env.benchmark.tracks import TRACKS

    pytest.importorskip("river")
    track = [TRACKS["clicks-v0"]]
    theirs, ours = make_cells(track, ["river-candidates", "linucb"], SIZES["smoke"])[:2]
    versions = fingerprint(theirs).parts["versions"]
    assert re.fullmatch(r"[\d.]+", versions["river"])
    assert set(versions) - set(fingerprint(ours).parts["versions"]) == {"river"}


# --- the page and the example -----------------------------------------------------------------


def test_the_code_of_the_page_runs():
    for name in NAMES:
        agent_class(name)
    page = (ROOT / "docs" / "libraries" / "bandits.md").read_text(encoding="utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 2
    for name in NAMES:
        assert f"`{name}`" in page


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    for name in NAMES:
        agent_class(name)
    script = ROOT / "examples" / "libraries" / "bandits.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(script), "figure.png", "10"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "vowpal-wabbit" in done.stdout
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80


def test_the_measurements_have_rows():
    measured = ROOT / "benchmarks" / "libraries" / "measured" / "bandits.json"
    if not measured.exists():
        pytest.skip("not measured here")
    rows = json.loads(measured.read_text(encoding="utf-8"))["rows"]
    assert {row["library"] for row in rows} >= {"vowpalwabbit", "river", "mabwiser"}
