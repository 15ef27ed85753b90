"""Running: what is finished stays and is not done again, whatever happens in between."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personalllm_env.benchmark import run as run_module
from personalllm_env.benchmark.cellfile import encode
from personalllm_env.benchmark.cells import Size, make_cells, run_cell
from personalllm_env.benchmark.costs import Costs
from personalllm_env.benchmark.execute import OtherCodeError, Schedule, drive
from personalllm_env.benchmark.fingerprint import fingerprint, forget
from personalllm_env.benchmark.run import plan, run_benchmark
from personalllm_env.benchmark.store import Store, load_comparisons
from personalllm_env.benchmark.track import Track
from personalllm_env.benchmark.workers import LocalPool, Reply, produce
from personalllm_env.registry import UnknownAgentError
from personalllm_env.streams import derived_seed
from personalllm_env.testing import tiny_bank

TRACK = Track("short-v0", "?", environment={"horizon": 4})

# Writes a line when it starts on its users: its label, which seed it is, and its process.
AGENTS = """
import os, signal, time
import numpy as np

class Counting:
    privileges = frozenset()
    def __init__(self, prior, label=0, sleep=0.0):
        self.k, self.label, self.sleep = prior.num_responses, label, sleep
    def reset(self, num_users, rng):
        self.b, self.rng = num_users, rng
        line = f"{self.label} {int(rng.integers(2**62))} {os.getpid()}\\n"
        log = os.open(os.path.join(os.path.dirname(__file__), "log"),
                      os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, line.encode())
        os.close(log)
    def act(self, observation):
        time.sleep(self.sleep)
        return self.rng.integers(self.k, size=(self.b, 1))
    def update(self, observation, action, feedback):
        pass

class Learning(Counting):
    def fit(self, database):
        self.best = np.bincount(database.action[:, 0], database.reward, self.k).argmax()
    def act(self, observation):
        time.sleep(self.sleep)
        features = observation.response_features @ np.linspace(-1, 1, 32, dtype=np.float32)[
            : observation.response_features.shape[2]]
        features[:, self.best] += 1
        return features.argmax(axis=1)[:, None]

class Raises(Counting):
    def act(self, observation):
        if self.label == 7:
            raise SystemExit("out of the window")
        raise ArithmeticError("no such luck")

class Dies(Counting):
    def act(self, observation):
        os.kill(os.getpid(), signal.SIGKILL)

class DiesOnce(Counting):
    def act(self, observation):
        mark = os.path.join(os.path.dirname(__file__), f"died {self.label}")
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().act(observation)
"""

RUN = """
import sys
from personalllm_env.benchmark.cells import Size
from personalllm_env.benchmark.run import run_benchmark
from personalllm_env.benchmark.track import Track

def tell(progress):
    print("done", progress.done, flush=True)

if __name__ == "__main__":
    folder, bank, workers, *agents = sys.argv[1:]
    outcome = run_benchmark(
        [Track("short-v0", "?", environment={"horizon": 4})], agents,
        Size("test", 3, 3, 6), folder, bank=bank, workers=int(workers), on_progress=tell)
    print(outcome.summary(), flush=True)
    sys.exit(outcome.finished < len(outcome.cells))
"""


def on_path(folder):
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


class Project:
    """A folder with agents, a bank, results, and a log of who ran."""

    def __init__(self, folder):
        self.folder, self.store = folder, Store(folder / "results")
        self.bank, self.log = str(folder / "bank"), folder / "log"
        tiny_bank().save(folder / "bank")
        (folder / "counting_agents.py").write_text(AGENTS)
        (folder / "run.py").write_text(RUN)

    def agents(self, *classes, num=1, sleep=0.0):
        given = f",sleep={sleep}" if sleep else ""
        return [f"counting_agents:{c}@label={i}{given}" for c in classes for i in range(num)]

    def cells(self, agents, seeds=3):
        return make_cells([TRACK], agents, Size("test", 3, seeds, 6), self.bank)

    def runs(self):
        """How often each (label, seed) was begun."""
        seed_of = {}
        for seed in range(5):
            rng = np.random.default_rng(derived_seed(seed, "agent"))
            seed_of[int(rng.integers(2**62))] = seed
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        parts = [line.split() for line in lines]
        return Counter((int(label), seed_of[int(first)]) for label, first, _ in parts)

    def workers(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return {int(line.split()[2]) for line in lines}

    def start(self, agents, workers=2):
        command = [sys.executable, "run.py", str(self.store.folder), self.bank, str(workers)]
        return subprocess.Popen(
            [*command, *agents],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": on_path(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("counting_agents", None)
    forget()
    yield Project(tmp_path)
    sys.modules.pop("counting_agents", None)
    forget()


def numbers(store, cells):
    return [tuple(x.tobytes() for x in store.load(cell)[:3]) for cell in cells]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Here:
    """A pool that is this process: what the loop does, without any waiting."""

    def __init__(self, size=1, before=None, after=None):
        self.size, self.cells, self.order, self.stopped = size, [], [], False
        self.before, self.after = before or (lambda _: None), after or (lambda r: r)

    def free(self):
        return self.size - len(self.cells)

    def group(self):
        return self.order[-1].group if self.order else None

    def start(self, cell):
        assert self.free() > 0
        self.cells.append(cell)
        self.order.append(cell)

    def wait(self, seconds):
        cell = self.cells.pop(0)
        self.before(cell)
        return [self.after(produce(cell, fingerprint(cell)))]

    def stop(self):
        self.stopped = True


# The loop


def test_everything_is_run_once_and_stored(project):
    cells = project.cells(project.agents("Counting", num=3))
    pool, told = Here(), []
    replies = drive(cells, project.store, pool, told.append)
    assert replies == told
    assert sorted(r.cell.name for r in replies) == sorted(c.name for c in cells)
    assert {r.status for r in replies} == {"done"}
    assert set(project.runs().values()) == {1}
    assert project.store.scan(cells).finished == cells
    assert pool.stopped
    again = drive(cells, project.store, Here())
    assert {r.status for r in again} == {"found"}
    assert set(project.runs().values()) == {1}
    groups = [cell.group for cell in pool.order]
    assert groups == sorted(groups, key=groups.index), "a group at a time"


def test_a_result_is_on_the_disk_when_it_is_told(project):
    cells = project.cells(project.agents("Counting", num=2))
    stored = []
    drive(cells, project.store, Here(), lambda r: stored.append(project.store.has(r.cell)))
    assert stored == [True] * len(cells)


def test_the_dearest_group_comes_first_and_workers_stay():
    agents = ["uniform", "linucb"]
    cheap = make_cells([TRACK], agents, Size("s", 3, 2, 6))
    dear = make_cells([replace(TRACK, name="dear-v0")], agents, Size("s", 300, 1, 6))
    schedule = Schedule([*cheap, *dear], Costs())
    first = schedule.next(None)
    assert first.track.name == "dear-v0"
    assert schedule.next(first.group).track.name == "dear-v0"
    one = schedule.next(None)
    other = schedule.next(None)
    assert one.group != other.group, "two workers, two groups"
    assert schedule.next(one.group).group == one.group
    assert schedule.next(one.group).group == other.group, "then they help each other"
    assert not schedule


def test_a_cell_claimed_elsewhere_is_returned_to(project):
    cells = project.cells(project.agents("Counting", num=2), seeds=1)
    claim = project.store.claim(cells[0])
    assert claim.__enter__()
    threading.Timer(0.7, lambda: claim.__exit__(None, None, None)).start()
    replies = drive(cells, project.store, Here(size=2))
    assert [r.cell for r in replies] == cells[::-1], "the other one first"
    assert [r.status for r in replies] == ["done", "done"]


def test_a_cell_that_another_run_finishes_is_found(project):
    cells = project.cells(project.agents("Counting", num=2), seeds=1)
    run = run_cell(cells[0])
    claim = project.store.claim(cells[0])
    assert claim.__enter__()

    def finish(cell):
        if cell is cells[1]:
            project.store.write(cells[0], encode(cells[0], run, 1.0))
            claim.__exit__(None, None, None)

    replies = drive(cells, project.store, Here(before=finish))
    assert {r.cell.agent: r.status for r in replies} == {
        cells[1].agent: "done",
        cells[0].agent: "found",
    }
    assert project.runs()[0, 0] == 1


def test_other_code_stops_the_run(project):
    cells = project.cells(project.agents("Counting", num=2))
    expected = fingerprint(cells[0])
    edited = {**expected.parts, "code": expected.parts["code"] | {"counting_agents": "x"}}
    reply = produce(cells[0], expected._replace(hex="0", parts=edited))
    assert (reply.status, reply.encoded) == ("other code", None)
    assert reply.reason.endswith("other code: counting_agents")
    assert not project.runs(), "nothing was run"
    pool = Here(after=lambda r: reply._replace(cell=r.cell))
    with pytest.raises(OtherCodeError, match="the worker's code is not this process's"):
        drive(cells, project.store, pool)
    assert pool.stopped
    with project.store.claim(pool.order[0]) as free:
        assert free


def test_a_worker_that_dies_gets_another_chance_alone(project):
    cells = project.cells(project.agents("Counting", num=3), seeds=1)
    died, sizes = [], []

    def after(reply):
        sizes.append(len(pool.cells))
        if reply.cell is cells[1] or (reply.cell is cells[0] and cells[0] not in died):
            died.append(reply.cell)
            return Reply(reply.cell, "died", "killed")
        return reply

    pool = Here(size=3, after=after)
    replies = {r.cell.agent: r for r in drive(cells, project.store, pool)}
    assert [replies[c.agent].status for c in cells] == ["done", "failed", "done"]
    assert replies[cells[1].agent].reason == "twice: killed"
    assert sizes[3:] == [0, 0], "one at a time"
    assert project.store.scan(cells).missing == [cells[1]]


def test_workers_that_never_live(project):
    cells = project.cells(project.agents("Counting", num=4))
    pool = Here(after=lambda r: Reply(r.cell, "died", "status 1"))
    with pytest.raises(RuntimeError, match=r"no worker stays alive: status 1.*__main__"):
        drive(cells, project.store, pool)
    assert len(pool.order) == 5


def test_what_cannot_be_stored_has_failed_alone(project, monkeypatch):
    cells = project.cells(project.agents("Counting", num=2), seeds=1)
    rename = os.replace

    def full(scratch, target):
        if Path(target) == project.store.path(cells[0]):
            raise OSError("disk full")
        rename(scratch, target)

    monkeypatch.setattr(os, "replace", full)
    replies = {r.cell.agent: r for r in drive(cells, project.store, Here())}
    assert [replies[cell.agent].status for cell in cells] == ["failed", "done"]
    assert replies[cells[0].agent].reason == "could not be stored: disk full"
    assert project.store.scan(cells).missing == cells[:1]
    with project.store.claim(cells[0]) as free:
        assert free, "to be run again"


# Processes


def test_agents_that_fail_fail_alone(project):
    good = project.agents("Counting")
    names = ["counting_agents:Raises", "counting_agents:Raises@label=7"]
    names += ["counting_agents:Dies", "counting_agents:DiesOnce", "linucb@nonsense=1"]
    seen = []
    outcome = run_benchmark(
        [TRACK],
        good + names,
        Size("test", 3, 1, 6),
        project.store.folder,
        bank=project.bank,
        workers=2,
        on_progress=seen.append,
    )
    reasons = {reply.cell.agent: reply.reason for reply in outcome.failed}
    assert set(reasons) == {n for n in names if "DiesOnce" not in n}
    assert reasons[names[0]].startswith("ArithmeticError: no such luck; agent 'counting")
    assert "out of the window" in reasons[names[1]]
    assert reasons[names[2]].startswith("twice: its process was killed (signal 9), perhaps")
    assert "unexpected keyword argument 'nonsense'" in reasons[names[4]]
    (raised,) = (r for r in outcome.failed if r.cell.agent == names[0])
    assert 'raise ArithmeticError("no such luck")' in raised.details
    assert (outcome.finished, outcome.kept, outcome.interrupted) == (2, 0, False)
    text = outcome.summary()
    assert text.startswith("2 of 6 cells are finished: 0 from before, 2 run now, in ")
    assert "Failed: short-v0 / counting_agents:Raises / seed 0: ArithmeticError" in text
    assert text.endswith("The same command tries the failed cells again, and only those.")
    assert [(p.done, p.failed) for p in (seen[0], seen[-1])] == [(0, 0), (2, 4)]
    assert all(p.total == 6 for p in seen)
    assert seen[0].seconds_left > 0
    assert seen[-1].seconds_left == pytest.approx(0, abs=1e-9)
    loaded = load_comparisons(project.store, outcome.cells)
    assert set(loaded.missing["short-v0"]) == set(reasons)
    assert len(loaded.comparisons["short-v0"].runs) == 2


def test_any_number_of_workers_any_bits(project, tmp_path):
    agents = [*project.agents("Learning", num=2), "thompson", "popular", "exact-bayes"]
    cells = project.cells(agents, seeds=2)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, workers in ((one, 1), (two, 2)):
        assert {r.status for r in drive(cells, store, LocalPool(store, workers))} == {"done"}
    here = Store(tmp_path / "here")
    drive(cells[::-1], here, Here())
    assert numbers(one, cells) == numbers(two, cells) == numbers(here, cells)
    assert len(set(numbers(one, cells))) > len(cells) / 2, "not all the same"
    assert len(project.workers() - {os.getpid()}) == 3, "one, and then two"


def test_workers_compute_with_one_thread(project, monkeypatch):
    spy = AGENTS + (
        "\nclass Spy(Counting):\n    def act(self, observation):\n"
        "        names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED')\n"
        "        raise ValueError(str([os.environ.get(name) for name in names]))\n"
    )
    (project.folder / "counting_agents.py").write_text(spy)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    cells = project.cells(["counting_agents:Spy"], seeds=1)
    (reply,) = drive(cells, project.store, LocalPool(project.store, 1))
    assert "['1', '1', '0']" in reply.reason
    assert os.environ["OMP_NUM_THREADS"] == "2", "and this process keeps its own"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_workers_is_a_number(project):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        LocalPool(project.store, 0)


def test_what_is_wrong_is_said_before_anything_runs(project):
    size = Size("test", 3, 1, 6)
    with pytest.raises(UnknownAgentError, match="did you mean 'linucb'"):
        run_benchmark([TRACK], ["uniform", "linucv"], size, project.store.folder)
    assert not project.store.folder.exists()


def test_the_plan_counts_what_is_missing(project):
    agents = ["uniform", "linucb"]
    cells = project.cells(agents, seeds=2)
    drive(cells[:3], project.store, Here())
    scan, cost = plan(
        [TRACK],
        agents,
        Size("test", 3, 2, 6),
        project.store.folder,
        bank=project.bank,
        workers=2,
    )
    assert (scan.finished, scan.missing) == (cells[:3], cells[3:])
    assert (cost.num_cells, cost.workers, cost.guessed) == (1, 1, ())
    assert 0 < cost.core_seconds < cost.wall_seconds < 10


def test_stale_results_are_counted_and_not_used(project, monkeypatch):
    monkeypatch.setattr(run_module, "_pool", lambda *_: Here())
    agents = project.agents("Counting")
    settings = dict(bank=project.bank)
    first = run_benchmark([TRACK], agents, Size("a", 3, 2, 6), project.store.folder, **settings)
    other = run_benchmark([TRACK], agents, Size("b", 4, 2, 6), project.store.folder, **settings)
    assert first.stale == {}
    assert list(other.stale.values()) == ["other settings: num_users"] * 2
    assert "2 older results were not used (other settings: num_users)." in other.summary()
    path = project.folder / "counting_agents.py"
    path.write_text(path.read_text() + "\n# Better now.\n")
    third = run_benchmark([TRACK], agents, Size("a", 3, 2, 6), project.store.folder, **settings)
    assert list(third.stale.values()) == ["other code: counting_agents"] * 2
    assert set(project.runs().values()) == {3}
    assert (third.kept, third.finished) == (0, 2)


def test_time_left_follows_the_costs(project, monkeypatch):
    cells = project.cells(project.agents("Counting", num=2), seeds=1)
    scan = project.store.scan(cells)

    class Known(Costs):
        def seconds(self, cell):
            return 90.0 if cell is cells[0] else 10.0

    clock = iter([0.0, 80.0, 95.0])
    monkeypatch.setattr(run_module.time, "monotonic", lambda: next(clock))
    seen = []
    meter = run_module._Meter(scan, Known(), 0.0, seen.append)
    meter.tell()
    meter.take(Reply(cells[0], "done"))
    meter.take(Reply(cells[1], "failed"))
    assert seen[0].seconds_left == 100
    assert seen[1].seconds_left == pytest.approx(10 * 85 / 95), "faster than expected"
    assert [(p.done, p.failed, p.elapsed) for p in seen[1:]] == [(1, 0, 80.0), (1, 1, 95.0)]
    assert seen[2].seconds_left == 0


# Runs that end early, and runs side by side


def read_until(process, num):
    for line in process.stdout:
        if line.startswith("done") and int(line.split()[1]) >= num:
            return
    pytest.fail(process.stderr.read())


def kill_and_resume(project, agents, moments, rng):
    """Kills runs with SIGKILL at given moments; checks that nothing finished is done again."""
    cells = project.cells(agents)
    labels = {
        cell.name: (int(cell.agent.partition("label=")[2][0]), cell.seed) for cell in cells
    }
    for stored in moments:
        process = project.start(agents)
        if stored is not None:
            read_until(process, stored)
        time.sleep(rng.uniform(0, 0.3 if stored is not None else 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while any(map(alive, project.workers())):
            assert time.monotonic() < deadline, "workers outlive the run"
            time.sleep(0.02)
        finished = {
            c.name: project.runs()[labels[c.name]] for c in project.store.scan(cells).finished
        }
        assert len(finished) >= (stored or 0)
        yield finished, labels


@pytest.mark.parametrize(
    "moments",
    [[3], pytest.param([None, 1, None, 3, 4, 6, 8, None], marks=pytest.mark.slow)],
)
def test_a_killed_run_is_resumed_and_repeats_nothing(project, tmp_path, moments):
    agents = project.agents("Learning", num=4, sleep=0.03)
    cells, rng = project.cells(agents), random.Random(len(moments))
    seen = list(kill_and_resume(project, agents, moments, rng))
    last = project.start(agents)
    out, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    total = project.runs()
    for finished, labels in seen:
        for name, times in finished.items():
            assert total[labels[name]] == times, f"{name} was finished and was run again"
    assert f"12 of 12 cells are finished: {len(seen[-1][0])} from before" in out
    assert set(total) == {(label, seed) for label in range(4) for seed in range(3)}
    assert project.store.scan(cells).finished == cells
    project.store.clean(older_than=-1)
    files = [p for p in project.store.folder.rglob("*") if p.is_file()]
    assert len(files) == len(cells), "and nothing else is left"
    whole = Store(tmp_path / "whole")
    drive(cells, whole, Here())
    assert numbers(project.store, cells) == numbers(whole, cells)


@pytest.mark.parametrize("stored", [0, 2])
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(project, stored):
    long = "counting_agents:Counting@label=9,sleep=5.0"  # is not waited for
    agents = [long, *project.agents("Counting", num=3, sleep=0.1)]  # the last comes first
    process = project.start(agents)
    read_until(process, stored)
    time.sleep(0.15)  # with 0 stored: while the workers are starting
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    out, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 3
    assert process.returncode == 1
    assert errors == "", "no traceback, from nobody"
    told = int(re.search(r"(\d+) of 12 cells are finished", out)[1])
    assert stored <= told <= len(project.store.scan(project.cells(agents)).finished) < 12
    assert out.endswith("Interrupted. What is finished is kept; the same command goes on.\n")
    assert not any(map(alive, project.workers()))
    assert "Traceback" not in out


def test_two_runs_share_a_folder(project):
    agents = project.agents("Counting", num=4, sleep=0.05)
    cells = project.cells(agents)
    both = [project.start(agents, workers=1) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "12 of 12 cells are finished" in out
    assert project.store.scan(cells).finished == cells
    assert sum(project.runs().values()) == len(cells), "each cell by one of them"
    files = [p for p in project.store.folder.rglob("*") if p.is_file()]
    assert len(files) == len(cells)
    assert len(project.workers()) == 2
