"""A Ray cluster of two nodes on this machine: the same bits, whoever dies on the way."""

import os
import signal
import sys
import uuid
import warnings
from collections import Counter

import pytest

from personalllm_env.benchmark.cells import Size, make_cells
from personalllm_env.benchmark.cluster import RayPool, run_cells_on_ray
from personalllm_env.benchmark.execute import OtherCodeError, drive, run_cells
from personalllm_env.benchmark.fingerprint import forget
from personalllm_env.benchmark.run import run_benchmark
from personalllm_env.benchmark.store import Store
from personalllm_env.benchmark.track import Track
from personalllm_env.testing import tiny_bank

TRACK = Track("short-v0", "?", environment={"horizon": 4})

AGENT = """
import os, time
import numpy as np

class Agent:
    privileges = frozenset()
    def __init__(self, prior, label=0):
        self.k, self.label = prior.num_responses, label
    def fit(self, database):
        self.best = np.bincount(database.action[:, 0], database.reward, self.k)
    def reset(self, num_users, rng):
        self.b, self.rng = num_users, rng
        threads = os.environ.get("OMP_NUM_THREADS"), os.environ.get("PYTHONHASHSEED")
        line = f"{os.getpid()} {os.getppid()} {threads}\\n"
        with open(os.path.join(os.path.dirname(__file__), "log"), "a") as log:
            log.write(line)
    def act(self, observation):
        time.sleep(0.1)
        if self.label == 99:
            raise ArithmeticError("no such luck")
        return (self.best + self.rng.random((self.b, self.k))).argmax(axis=1)[:, None]
    def update(self, observation, action, feedback):
        pass
"""


def log(folder):
    path = folder / "log"
    return (
        [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "ray_agent.py").write_text(AGENT)
    tiny_bank().save(folder / "bank")
    return folder


@pytest.fixture(scope="module")
def cluster(folder):
    """Two nodes with one core each; only this machine can reach them."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Ray's own: a setting whose meaning is to change, and sockets left to the collector.
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))  # where the nodes' workers find the agent
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Everything stays on the loopback, and even there a token is asked for.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        (folder / "token").write_text(uuid.uuid4().hex)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        node |= {"node_ip_address": "127.0.0.1"}
        forget()
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    sys.modules.pop("ray_agent", None)
    forget()


def cells_of(folder, num, seeds=2):
    agents = [f"ray_agent:Agent@label={i}" for i in range(num)] + ["thompson"]
    return make_cells([TRACK], agents, Size("test", 3, seeds, 6), str(folder / "bank"))


def numbers(store, cells):
    return [tuple(x.tobytes() for x in store.load(cell)[:3]) for cell in cells]


@pytest.mark.slow
def test_a_worker_and_a_node_die_and_nothing_is_lost(cluster, folder, tmp_path):
    cells = cells_of(folder, 7)
    store, told = Store(tmp_path / "ray"), []

    def on_done(reply):
        assert store.has(reply.cell), "stored before it is told"
        told.append(reply.cell.name)
        if len(told) == 3:
            os.kill(int(log(folder)[-1][0]), signal.SIGKILL)
        if len(told) == 8:
            cluster.remove_node(cluster.second, allow_graceful=False)

    replies = run_cells_on_ray(cells, store, cluster.address, on_done)
    assert Counter(r.status for r in replies) == {"done": len(cells)}
    assert store.scan(cells).finished == cells
    assert len({node for _, node, _ in log(folder)}) == 2, "both nodes' daemons took part"
    assert {threads for *_, threads in log(folder)} == {"('1', '0')"}
    assert len({pid for pid, *_ in log(folder)}) >= 3, "two, and who came for the dead"
    ours = [cell for cell in cells if cell.agent.startswith("ray_agent")]
    assert len(log(folder)) > len(ours), "some cell was begun twice: the dead were at work"
    local = Store(tmp_path / "local")
    assert {r.status for r in run_cells(cells, local, workers=1)} == {"done"}
    assert numbers(store, cells) == numbers(local, cells)


@pytest.mark.slow
def test_one_option(cluster, folder, tmp_path):
    agents = ["ray_agent:Agent@label=99", "thompson"]
    settings = dict(size=Size("test", 3, 1, 6), bank=str(folder / "bank"))
    outcome = run_benchmark([TRACK], agents, folder=tmp_path, ray=cluster.address, **settings)
    assert (outcome.finished, len(outcome.failed)) == (1, 1)
    assert "ArithmeticError: no such luck" in outcome.summary()
    assert "raise ArithmeticError" in outcome.failed[0].details
    again = run_benchmark([TRACK], agents[1:], folder=tmp_path, ray="auto", **settings)
    assert (again.kept, again.replies) == (1, [])


@pytest.mark.slow
def test_workers_with_other_code(cluster, folder, tmp_path):
    cells = cells_of(folder, 0)
    path, agent = folder / "late_agent.py", "late_agent:Agent"
    path.write_text(AGENT)
    cells = make_cells([TRACK], [agent], Size("test", 3, 1, 6), str(folder / "bank"))
    store = Store(tmp_path)
    expected = store.path(cells[0])  # remembers the source as it is
    path.write_text(AGENT + "# edited\n")
    pool = RayPool(cluster.address)
    with pytest.raises(OtherCodeError, match=r"other code: late_agent.*same code everywhere"):
        drive(cells, store, pool)
    assert not expected.exists()
    sys.modules.pop("late_agent", None)


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'personalllm-env\[ray\]'"):
        run_cells_on_ray([], Store(tmp_path), "auto")
