"""The one-file learners, and what ``experiments/adaptation.py`` trains and measures."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import adaptation  # noqa: E402
import adaptation_page as page  # noqa: E402
import adaptation_policies as policies  # noqa: E402
import adaptation_readers as readers  # noqa: E402
import adaptation_training as training  # noqa: E402

from personalllm_env.adapters.policies import PolicyAgent  # noqa: E402
from personalllm_env.agents.simple import Uniform  # noqa: E402
from personalllm_env.belief import RidgeBelief  # noqa: E402
from personalllm_env.benchmark.tracks import TRACKS  # noqa: E402
from personalllm_env.data import load_bank  # noqa: E402
from personalllm_env.envs.wrappers import VectorAugmented  # noqa: E402
from personalllm_env.registry import find_agent  # noqa: E402
from personalllm_env.runner import prior_for, run  # noqa: E402
from personalllm_env.streams import derived_seed  # noqa: E402

TRACK = TRACKS["sparse-v0"]
BEGIN, END = "<!-- figures: made by experiments/adaptation.py -->", "<!-- /figures -->"
NETS = {
    "nothing": lambda: policies.FeedForward(readers.NoMemory()),
    "history": lambda: policies.FeedForward(readers.HistoryReader(20)),
    "belief": lambda: policies.FeedForward(readers.BeliefReader()),
    "recurrent": policies.Recurrent,
}
PPO, QUICK = training.PPO(), training.Schedule(users=32, rounds=2, batches=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def environment(parts, num=16, **settings):
    env = gym.make_vec(
        "personalllm_env:PersonalLLM/Select-v0",
        num,
        autoreset_mode="DISABLED",
        **{**TRACK.environment, **settings},
    )
    return VectorAugmented(env, parts) if parts else env


def played(net, num=16, learner=PPO, *, utility=False, **settings):
    env = environment(net.parts(), num, **settings)
    obs, _ = env.reset(seed=3)
    rng = np.random.default_rng(0)
    return training.play(env, obs, net, learner, rng, utility=utility)


def lively(name, seed=0):
    """Returns a network whose memory matters: at first it hardly does."""
    net = training.build(NETS[name], seed)
    if net.head.personal is not None:
        torch.nn.init.normal_(
            net.head.personal.weight, std=0.5, generator=torch.Generator().manual_seed(1)
        )
    return net


# --- what is played is what is learnt from ----------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("learner", [PPO, training.Regression(0.3)], ids=["ppo", "regression"])
def test_judging_again_gives_the_same_law(name, learner):
    """Whole episodes at once, or decision by decision: the chance of what was done is one."""
    net = lively(name)
    told = played(net, learner=learner)
    law = torch.log_softmax(learner.logits(net.judge_again(told)), dim=-1)
    again = law.gather(1, told.action[:, None])[:, 0]
    torch.testing.assert_close(again, told.log_chance, atol=1e-5, rtol=1e-4)
    # and so it is for some of the users
    some = told.pick((told.user % 3 == 1).nonzero()[:, 0])
    law = torch.log_softmax(learner.logits(net.judge_again(some)), dim=-1)
    again = law.gather(1, some.action[:, None])[:, 0]
    torch.testing.assert_close(again, some.log_chance, atol=1e-5, rtol=1e-4)


def test_only_answers_are_kept_and_in_order():
    told = played(lively("nothing"), num=200)
    assert (told.user.diff() >= 0).all()
    share = len(told.user) / 200 / 100
    assert share == pytest.approx(0.1, abs=4 * (0.09 / 20_000) ** 0.5)
    assert (told.goal == told.said).all()
    # utility plus noise of sd .5 is what is said: at 4 standard errors
    exact = played(lively("nothing"), num=200, utility=True)
    assert torch.equal(exact.said, told.said)
    noise = exact.said - exact.goal
    error = 0.5 / len(noise) ** 0.5
    assert abs(float(noise.mean())) < 4 * error
    assert float(noise.std()) == pytest.approx(0.5, abs=4 * error)


def test_the_answer_stands_beside_what_was_shown():
    """Of users who say their utility without noise, the bank knows what they speak of."""
    net = lively("recurrent")
    quiet = {"feedback": [{"reward": {"noise_sd": 0.0}}, {"silence": {"probability": 0.5}}]}
    weights = np.zeros((16, 10))
    weights[:, 3] = 1.0
    env = environment((), **quiet)
    obs, _ = env.reset(seed=0, options={"weights": weights})
    told = training.play(env, obs, net, PPO, np.random.default_rng(0), utility=False)
    bank = load_bank()
    score = {bank.response_features[p, k].tobytes(): bank.scores[p, k, 3]
             for p in range(len(bank.scores)) for k in range(8)}  # fmt: skip
    expected = [score[x.numpy().tobytes()] for x in told.shown()]
    np.testing.assert_allclose(told.said.numpy(), expected, atol=1e-5)


def test_silence_leaves_the_recurrent_state():
    net = lively("recurrent")
    env = environment((), feedback=["reward", {"silence": {"probability": 1.0}}])
    obs, _ = env.reset(seed=0)
    net.begin(16)
    before = net.look(obs)["state"]
    net.note(torch.randn(16, 32))
    obs, *_ = env.step(np.zeros(16, np.int64))
    assert torch.equal(net.look(obs)["state"], before)


def test_the_history_is_read_as_a_set_of_answers():
    reader = training.build(lambda: readers.HistoryReader(10), 0)
    torch.manual_seed(0)
    known = {
        "shown": torch.randn(4, 10, 32),
        "said": torch.randn(4, 10),
        "heard": torch.rand(4, 10) < 0.5,
    }
    order = torch.randperm(10)
    turned = {name: value[:, order] for name, value in known.items()}
    torch.testing.assert_close(reader(turned), reader(known))
    unheard = known | {"said": known["said"] + 7 * ~known["heard"]}
    assert torch.equal(reader(unheard), reader(known))
    louder = known | {"said": known["said"] + 7 * known["heard"]}
    assert not torch.allclose(reader(louder), reader(known))


def test_a_belief_alone_can_be_acted_on():
    """With weight 1 on the believed value the policy is the greedy ridge agent."""
    net = training.build(NETS["belief"], 0)
    with torch.no_grad():
        net.head.personal.weight.zero_()
        net.head.weights[0, 0] = 1.0
    test = TRACK.sides(load_bank(), 0).test
    policy = training.Greedy(net, PPO)
    agent = PolicyAgent(prior_for(PolicyAgent, test), policy=policy, parts=net.parts())
    env = environment(net.parts(), split="test")
    obs, _ = env.reset(seed=derived_seed(5, "evaluation"))
    belief, utility = RidgeBelief(32, ridge=30.0), []
    belief.reset(16)
    for _ in range(100):
        np.testing.assert_allclose(
            policy._net.look(obs)["extras"][..., 0], obs["belief_value"], rtol=1e-6
        )
        obs, _, _, _, info = env.step(obs["belief_value"].argmax(axis=1))
        utility.append(info["utility"])
    done = run(agent, test, num_users=16, seed=5)
    np.testing.assert_allclose(done.utility, np.stack(utility, axis=1), rtol=1e-6)


# --- the losses -------------------------------------------------------------------------------


def told_of(features, action, log_chance, goal):
    n = len(action)
    return policies.Told(
        {"features": features}, torch.arange(n), action, log_chance, goal, goal
    )


def test_the_first_step_of_ppo_is_the_policy_gradient():
    """At the law it was drawn from: minus the mean of gain * grad log law, by hand."""
    torch.manual_seed(0)
    logits, values = (torch.randn(50, 8, requires_grad=True) for _ in range(2))
    action, goal = torch.randint(8, (50,)), torch.randn(50)
    law = torch.softmax(logits, -1).detach()
    chance = law.gather(1, action[:, None])[:, 0].log()
    told = told_of(torch.zeros(50, 8, 32), action, chance, goal)
    loss = training.PPO(entropy=0.0).loss(policies.Judged(logits, values), told)
    loss.backward()
    gain = (goal - (law * values).sum(1).detach()) / goal.std()
    one = torch.nn.functional.one_hot(action, 8)
    torch.testing.assert_close(logits.grad, -gain[:, None] * (one - law) / 50)
    expected = values.gather(1, action[:, None])[:, 0].detach()
    torch.testing.assert_close(values.grad, ((expected - goal) / 50)[:, None] * one)


def test_entropy_pulls_towards_the_uniform_law():
    """With nothing to gain the likelier action loses weight, and the others win."""
    logits = torch.zeros(2, 8)
    logits[:, 4] = 1.0
    logits.requires_grad_()
    chance = torch.log_softmax(logits, -1)[:, 4].detach()
    goal = torch.tensor([-1.0, 1.0])
    told = told_of(torch.zeros(2, 8, 32), torch.tensor([4, 4]), chance, goal)
    values = goal[:, None].expand(2, 8)  # as good as expected
    training.PPO(entropy=0.1).loss(policies.Judged(logits, values), told).backward()
    down = -logits.grad.sign()
    one = torch.nn.functional.one_hot(torch.tensor([4, 4]), 8)
    torch.testing.assert_close(down, 1.0 - 2 * one)


@pytest.mark.parametrize(
    ("ratio", "good", "moves"),
    [
        (1.0, True, True),
        (1.19, True, True),
        (1.3, True, False),
        (0.7, True, True),
        (0.81, False, True),
        (0.7, False, False),
        (1.3, False, True),
    ],
)
def test_ppo_stops_at_the_clip(ratio, good, moves):
    """What has become likelier by more than a fifth, and was good, is pushed no further.

    Nor what has become so much less likely, and was bad; but what went the wrong way is.
    """
    logits = torch.zeros(2, 8, requires_grad=True)
    chance = torch.full((2,), 1 / 8 / ratio).log()
    goal = torch.tensor([1.0, 3.0]) * (1 if good else -1)  # above the expected 0, or below
    told = told_of(torch.zeros(2, 8, 32), torch.tensor([2, 5]), chance, goal)
    judged = policies.Judged(logits, torch.zeros(2, 8))
    training.PPO(entropy=0.0).loss(judged, told).backward()
    assert bool((logits.grad != 0).any()) is moves


def test_regression_expects_what_is_said_of_what_was_shown():
    values = torch.zeros(3, 8, requires_grad=True)
    action, goal = torch.tensor([1, 5, 7]), torch.tensor([1.0, -2.0, 0.5])
    told = told_of(torch.zeros(3, 8, 32), action, torch.zeros(3), goal)
    training.Regression().loss(policies.Judged(values, values), told).backward()
    expected = torch.zeros(3, 8)
    expected[torch.arange(3), action] = -2 * goal / 3
    torch.testing.assert_close(values.grad, expected)


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_same_seed_trains_the_same_policy(name):
    def weights(seed):
        net = training.build(NETS[name], seed)
        training.train(net, PPO, QUICK, TRACK, seed)
        return torch.cat([w.detach().flatten() for w in net.parameters()])

    torch.manual_seed(123)  # which must not matter
    first = weights(0)
    torch.manual_seed(321)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_users_are_met_once(monkeypatch):
    """Only the first round has a seed: the environment goes on from where it was."""
    made, seeds = gym.make_vec, []

    def make_vec(*args, **kwargs):
        env = made(*args, **kwargs)
        reset = env.reset
        env.reset = lambda **given: seeds.append(given["seed"]) or reset(**given)
        return env

    monkeypatch.setattr(gym, "make_vec", make_vec)
    training.train(training.build(NETS["nothing"], 0), PPO, QUICK, TRACK, 0)
    assert seeds == [derived_seed(0, "training users"), None]


def test_policies_are_measured_on_the_test_side():
    size = adaptation.Size(users=5, seeds=2, history_users=5)
    expected = []
    for seed in range(2):
        test = TRACK.sides(load_bank(), seed).test
        agent = Uniform(prior_for(Uniform, test))
        expected.append(run(agent, test, num_users=5, seed=seed).regret)
    found = adaptation.regrets(lambda: find_agent("uniform"), size, range(2))
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-6)


def test_a_policy_without_memory_becomes_the_popular_one():
    """Half of the way from uniform to popular's utility is far more than chance explains."""
    net = training.build(NETS["nothing"], 0)
    schedule = training.Schedule(users=128, rounds=15, batches=4)
    training.train(net, PPO, schedule, TRACK, 0)
    test = TRACK.sides(load_bank(), 0).test
    prior = prior_for(PolicyAgent, test)
    agent = PolicyAgent(prior, policy=training.Greedy(net, PPO), parts=net.parts())
    utility = run(agent, test, num_users=200, seed=0).utility.mean(axis=1)
    assert utility.mean() - 4 * utility.std() / 200**0.5 > 0.25  # popular has .57, uniform 0


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    popular = rng.random((40, 100)).astype(np.float32)
    policy = {
        "regret": 0.5 * popular,
        "interactions": np.array([10, 100]),
        "on_the_way": np.stack([popular[:20], 0.5 * popular[:20]]),
        "seconds": np.array(1.0),
        "learnt_from": np.array(2_000_000),
    }
    agents = {"popular": popular, "linucb": 0.9 * popular, "oracle": 0 * popular}
    agents |= {"empirical-bayes": 0.8 * popular, "decoder-oracle": 0.3 * popular}
    agents |= {"feature-bayes": 0.4 * popular}
    names = (*page.MAIN, "regression, recurrent", page.LONGER)
    return page.Measured(agents, {name: [policy, policy] for name in names}, (20, 20))


def test_gains_are_exact_where_everybody_agrees(measured):
    names = ["popular", "oracle", "linucb", "PPO, belief"]
    for span in page.SPANS.values():
        found = page.gains(measured, names, span)
        assert found == ["0.000 ±0.000", "1.000 ±0.000", "0.100 ±0.000", "0.500 ±0.000"]
    rows = {
        line.split("|")[1].strip(): line
        for line in page.differences(measured).split("\n")[2:-1]
    }
    assert "+0.400 ±0.000 | +0.300 ±0.000" in rows["PPO, belief"]


def test_a_span_counts_its_own_interactions(measured):
    late = measured.agents["popular"].copy()
    late[:, 50:] *= 0.5
    changed = measured._replace(agents={**measured.agents, "linucb": late})
    found = [page.gains(changed, ["linucb"], span)[0][:5] for span in page.SPANS.values()]
    assert found[1:] == ["0.000", "0.000", "0.500"]
    assert 0.2 < float(found[0]) < 0.3


def test_the_page_keeps_what_people_wrote(measured, tmp_path):
    path = tmp_path / "docs" / "adaptation.md"
    path.parent.mkdir()
    path.write_text(f"# Mine\n\nBefore.\n\n{BEGIN}\nold\n{END}\nAfter.\n")
    page.write_page(path, measured)
    once = path.read_text("utf-8")
    assert once.startswith("# Mine\n\nBefore.\n")
    assert once.endswith("\nAfter.\n")
    assert "old" not in once
    for image in re.findall(r"!\[.*?\]\((.*?)\)", once):
        assert (path.parent / image).stat().st_size > 10_000
    page.write_page(path, measured)
    assert path.read_text("utf-8") == once
    path.write_text("no markers\n")
    with pytest.raises(ValueError, match="expected <!-- figures"):
        page.write_page(path, measured)


def test_what_was_trained_is_kept_and_not_trained_again(tmp_path):
    path, made = tmp_path / "deep" / "one.npz", []

    def make():
        made.append(np.arange(3.0) + len(made))
        return {"regret": made[-1]}

    for settings, expected in (("a", 0.0), ("a", 0.0), ("b", 1.0), ("b", 1.0)):
        found = adaptation.kept(path, settings, make)["regret"]
        np.testing.assert_array_equal(found, np.arange(3.0) + expected)
    assert len(made) == 2
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--size", "quick"], "needs --out"),
        (["--out", "none.md"], "none.md: expected a page"),
        (["--size", "quick", "--out", "bare.md"], "bare.md: expected <!-- figures"),
    ],
)
def test_a_page_that_cannot_be_written_is_found_beforehand(
    options, problem, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.md").write_text("no markers\n")
    monkeypatch.setattr(sys, "argv", ["adaptation", *options])
    with pytest.raises(SystemExit):
        adaptation.main()
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_command_runs_and_writes_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "adaptation --size quick --out docs/page.md --results results"
    monkeypatch.setattr(sys, "argv", command.split())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"{BEGIN}\n{END}\n")
    adaptation.main()
    assert capsys.readouterr().out.count("PPO, recurrent, seed") == 1
    text = (tmp_path / "docs" / "page.md").read_text("utf-8")
    assert text.count("| PPO, recurrent |") == 2
    assert {path.name for path in (tmp_path / "docs" / "images").iterdir()} == {
        "adaptation.png",
        "adaptation-training.png",
    }


# --- the examples and the pages ---------------------------------------------------------------


def example(name, steps, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(steps), "mine.png"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.png").stat().st_size > 10_000
    return done.stdout


def after_running(name, steps, tmp_path, monkeypatch):
    """Returns an example's variables at its end."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(steps)])
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize(("name", "steps"), [("ppo", 7680), ("recurrent_ppo", 6400)])
def test_the_example_has_the_advantages_and_the_loss_of_ppo(name, steps, tmp_path, monkeypatch):
    """After one update: sums of deltas for the recursion, cases for the clipped minimum."""
    end = after_running(name, steps, tmp_path, monkeypatch)
    num_steps, users = end["HORIZON"], end["USERS"]
    gain, goal = (x.view(num_steps, users) for x in end["data"][-2:])
    value, reward = goal - gain, end["reward"]
    after = torch.cat([value[1:], torch.zeros(1, users)])
    delta = reward + end["GAMMA"] * after - value
    share = (end["GAMMA"] * end["LAMBDA"]) ** torch.arange(num_steps)
    exact = [(share[: num_steps - t, None] * delta[t:]).sum(0) for t in range(num_steps)]
    torch.testing.assert_close(gain, torch.stack(exact), atol=1e-4, rtol=1e-3)
    noise = (reward - end["utility"]).std()  # .5: it learns from what is heard
    assert 0.45 < float(noise) < 0.55
    assert reward.var() > end["utility"].var() + 0.1

    policy, adv = end["policy"], end["adv"]  # of the last batch
    ratio = (policy.log_prob(end["a"]) - end["logp"]).exp()
    good = torch.minimum(ratio, torch.tensor(1.2)) * adv
    bad = torch.maximum(ratio, torch.tensor(0.8)) * adv
    actor = -torch.where(adv > 0, good, bad).mean()
    assert (torch.where(adv > 0, ratio > 1.2, ratio < 0.8)).any()
    wanted = end["target" if name == "ppo" else "goal"]
    critic = 0.5 * ((end["value"] - wanted[: len(end["value"])]) ** 2).mean()
    loss = actor + critic - 0.01 * policy.entropy().mean()
    torch.testing.assert_close(end["loss"], loss)


def test_targets_of_the_dqn_example_end_with_the_episode(tmp_path, monkeypatch):
    end = after_running("dqn", 64 * 115, tmp_path, monkeypatch)
    done, t, b = end["step"] + 1, end["t"], end["b"]
    going = torch.arange(done) % 30 != 29
    assert torch.equal(end["going"][:done, 0], going)
    past = ~going[t]
    assert past.any()
    reward = end["reward"][t, b]
    assert torch.equal(end["goal"][past], reward[past])
    ahead = end["target"](end["seen"][t + 1, b])[..., 0].amax(1)
    torch.testing.assert_close(end["goal"], reward + 0.5 * going[t] * ahead)
    assert (t < end["now"]).all()  # what comes next is known
    noise = end["reward"][end["now"]] - torch.from_numpy(end["info"]["utility"])
    assert 0.35 < float(noise.std()) < 0.65  # .5, from 64 draws


@pytest.mark.parametrize("name", ["ppo", "dqn", "recurrent_ppo"])
def test_the_example_says_what_it_takes(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "many"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "argument steps: invalid int value: 'many'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_example_learns(name, tmp_path):
    """The paired difference, over users, of what it does after and before."""
    said = example(name, 20_000, tmp_path)
    gained, error = map(float, re.search(r"gained: (\S+) ±(\S+)", said).groups())
    assert gained > 4 * error


@pytest.mark.slow
def test_the_recurrent_example_learns_within_the_episode(tmp_path):
    said = example("recurrent_ppo", 120_000, tmp_path)
    found = re.findall(r"learnt (\S+) ±(\S+)", said)
    (before, error), (after, its) = ((float(a), float(b)) for a, b in found)
    assert abs(before) < 2 * error
    assert after > 2 * its


def test_the_pages_code_runs():
    text = (ROOT / "docs" / "libraries" / "single-files.md").read_text("utf-8")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / "libraries" / link).exists(), link


def test_the_study_says_which_agent_is_which():
    text = (ROOT / "docs" / "adaptation.md").read_text("utf-8")
    figures = text.partition(BEGIN)[2].partition(END)[0]
    for name in (*page.MAIN, "linucb", "empirical-bayes", "feature-bayes", "decoder-oracle"):
        assert f"{name}" in figures
    gains = {
        name: float(re.search(rf"^\| {name} \| (\S+) ±", figures, re.MULTILINE)[1])
        for name in (*page.MAIN, "linucb")
    }
    assert all(gains["linucb"] < gains[name] for name in page.MAIN[1:])  # as the page says
