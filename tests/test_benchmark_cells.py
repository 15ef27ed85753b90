"""Cells and what their results depend on; what they are expected to cost."""

import json
import os
import runpy
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from personalllm_env import database as database_module
from personalllm_env import runner as runner_module
from personalllm_env.benchmark import cells as cells_module
from personalllm_env.benchmark import fingerprint as fingerprint_module
from personalllm_env.benchmark.cellfile import encode
from personalllm_env.benchmark.cells import SIZES, Cell, Size, make_cells, prepare, run_cell
from personalllm_env.benchmark.costs import (
    UNKNOWN,
    Costs,
    Rate,
    estimate,
    shipped_table,
    write_table,
)
from personalllm_env.benchmark.fingerprint import closure, difference, fingerprint, forget
from personalllm_env.benchmark.store import Store
from personalllm_env.benchmark.track import Track
from personalllm_env.database import record_history
from personalllm_env.registry import UnknownAgentError, find_agent
from personalllm_env.runner import measure
from personalllm_env.testing import tiny_bank

SHORT = Track("short-v0", "?", environment={"horizon": 4})


@pytest.fixture(autouse=True)
def _nothing_remembered():
    forget()
    yield
    forget()


@pytest.fixture
def saved_bank(tmp_path):
    tiny_bank().save(tmp_path / "bank")
    return str(tmp_path / "bank")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder on the path, for agents and what they import."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


AGENT = """
import numpy as np

class Agent:
    privileges = frozenset()
    def __init__(self, prior, **settings):
        self.k, self.s = prior.num_responses, prior.num_shown
    def reset(self, num_users, rng):
        self.b, self.rng = num_users, rng
    def act(self, observation):
        return self.rng.random((self.b, self.k)).argsort(axis=1)[:, : self.s]
    def update(self, observation, action, feedback):
        pass
"""


def one(saved_bank, agent="uniform", track=SHORT, **changes):
    return Cell(
        **({"num_users": 5, "history_users": 6, "seed": 0} | changes),
        track=track,
        agent=agent,
        bank=saved_bank,
    )


# Which cells there are


def test_all_tracks_seeds_and_agents_once():
    tracks = [replace(SHORT, history_users=10), replace(SHORT, name="other-v0")]
    cells = make_cells(tracks, ["uniform", "linucb"], Size("s", 3, 2, 40))
    assert [c.name for c in cells] == [
        f"{track} / {agent} / seed {seed}"
        for track in ("short-v0", "other-v0")
        for seed in (0, 1)
        for agent in ("uniform", "linucb")
    ]
    assert {c.history_users for c in cells[:4]} == {10}, "the track's own, which is less"
    assert {c.history_users for c in cells[4:]} == {40}, "the size's, which is less"
    assert {c.num_users for c in cells} == {3}
    assert len({c.group for c in cells}) == 4
    assert cells[0].group == cells[1].group != cells[2].group


def test_a_history_of_those_who_come_back_is_whole():
    known = replace(SHORT, environment={"horizon": 4, "recognise": True}, history_users=1000)
    strangers = replace(known, environment={"horizon": 4, "recognise": False}, name="new-v0")
    cells = make_cells([known, strangers], ["uniform"], Size("s", 3, 1, 40))
    assert [cell.history_users for cell in cells] == [1000, 40]


@pytest.mark.parametrize("side", ["environment", "history"])
@pytest.mark.parametrize("name", ["split", "user_split", "bank", "population"])
def test_sides_are_the_tracks_own(side, name):
    track = replace(SHORT, **{side: {name: "train"}})
    with pytest.raises(ValueError, match=f"{name} cannot be an environment's"):
        track.sides(tiny_bank(), 0)


def test_sizes():
    assert {name: (s.num_users, s.num_seeds) for name, s in SIZES.items()} == {
        "smoke": (12, 2),
        "default": (200, 3),
        "paper": (1000, 10),
    }
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        Size("none", 1, 0, 0)


@pytest.mark.parametrize(
    ("tracks", "agents", "message"),
    [
        ([SHORT, SHORT], ["uniform"], "every track once, got twice: short-v0"),
        ([SHORT], ["uniform", "oracle", "uniform"], "every agent once, got twice: uniform"),
        ([replace(SHORT, name="../up")], ["uniform"], "a track's name is made of"),
        ([replace(SHORT, environment={"drift": object()})], ["a"], "'short-v0' must be plain"),
    ],
)
def test_cells_that_cannot_be(tracks, agents, message):
    with pytest.raises(ValueError, match=message):
        make_cells(tracks, agents, SIZES["smoke"])


def test_how_much_there_is_to_do():
    track = replace(SHORT, history={"horizon": 7})
    cell = make_cells([track, Track("long-v0", "?")], ["uniform"], Size("s", 3, 1, 10))
    assert (cell[0].decisions, cell[0].history_interactions) == (12, 70)
    assert (cell[1].decisions, cell[1].history_interactions) == (150, 500)


# What a cell's result is


@pytest.mark.parametrize("agent", ["linucb", "uniform", "decoder-oracle"])
def test_a_cell_is_the_runner_in_single_precision(saved_bank, agent):
    cell = one(saved_bank, agent, seed=3)
    sides = SHORT.sides(tiny_bank(), 3)
    expected = measure(
        find_agent(agent),
        sides.test,
        lambda: record_history(sides.history, num_users=6, seed=3),
        num_users=5,
        seed=3,
    )
    found = run_cell(cell)
    assert found.utility.dtype == found.regret.dtype == np.float32
    assert np.array_equal(found.utility, expected.utility.astype(np.float32))
    assert np.array_equal(found.regret, expected.regret.astype(np.float32))
    assert np.array_equal(found.present, expected.present)


def test_what_ran_before_does_not_matter(saved_bank):
    cells = [
        one(saved_bank, agent, seed=seed, history_users=users)
        for agent in ("thompson", "linucb")
        for seed in (0, 1)
        for users in (6, 0)
    ]
    first = [run_cell(cell) for cell in cells]
    again = [run_cell(cell) for cell in reversed(cells)][::-1]
    for one_way, other_way in zip(first, again, strict=True):
        assert np.array_equal(one_way.utility, other_way.utility)
    assert len({run.utility.tobytes() for run in first}) == len(cells), "each is its own"


def test_a_group_records_its_history_once(saved_bank, monkeypatch):
    recorded = []

    def counting(task, **settings):
        recorded.append(settings)
        return record_history(task, **settings)

    monkeypatch.setattr(database_module, "record_history", counting)
    for agent in ("uniform", "linucb", "popular", "thompson"):
        run_cell(one(saved_bank, agent))
    assert recorded == [{"num_users": 6, "seed": 0}]
    run_cell(one(saved_bank, "linucb", history_users=0))
    assert len(recorded) == 1, "no users, no history"
    run_cell(one(saved_bank, "linucb", seed=1))
    assert recorded[1:] == [{"num_users": 6, "seed": 1}]
    assert prepare(one(saved_bank, seed=1)) is prepare(one(saved_bank, "linucb", seed=1))


LATE = AGENT.replace("self.k, self.s =", "self.fit = lambda database: None; self.k, self.s =")


@pytest.mark.parametrize("code", [AGENT, LATE], ids=["learns nothing", "fit is no method"])
def test_whoever_is_first_finds_everything_made(saved_bank, project, monkeypatch, code):
    """Else its clock and memory pay for what the others of its group then have for nothing."""
    made = []

    def watched(task, **settings):
        made.append("history")
        return record_history(task, **settings)

    def resetting():
        test = cells_module._LAST[cell.group].sides.test
        assert {"prompts", "flat_scores"} <= vars(test).keys()
        assert "_log_quantiles" in vars(test.population)
        made.append("window")
        return 0.0

    (project / "first.py").write_text(code)
    monkeypatch.setattr(database_module, "record_history", watched)
    monkeypatch.setattr(cells_module, "_reset_peak", resetting)
    cell = one(saved_bank, "first:Agent")
    run_cell(cell)
    assert made == ["history", "window"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_an_agent_is_told_is_not_its_memory(saved_bank, monkeypatch):
    find = runner_module.linear_decoder

    def hungry(bank):
        np.ones(2**26, np.uint8).sum()
        return find(bank)

    monkeypatch.setattr(runner_module, "linear_decoder", hungry)
    found = run_cell(one(saved_bank, "decoder-oracle")).memory_mb
    if np.isnan(found):
        pytest.skip("this system does not let a process reset its peak")
    assert found < 10, "not the 64 MB of the least squares"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_agents_peak(saved_bank, project):
    extra = "    def fit(self, database):\n        np.ones(2**26, np.uint8).sum()\n"
    (project / "hungry.py").write_text(AGENT + extra)
    lends = (
        "    def fit(self, database):\n        self.x = [bytes(1000) for _ in range(40_000)]\n"
    )
    (project / "frugal.py").write_text(AGENT)
    (project / "small.py").write_text(AGENT + lends)
    if np.isnan(run_cell(one(saved_bank)).memory_mb):
        pytest.skip("this system does not let a process reset its peak")
    assert 63 < run_cell(one(saved_bank, "hungry:Agent")).memory_mb < 80, "64 MB, given back"
    assert run_cell(one(saved_bank, "frugal:Agent")).memory_mb < 10, "not the one before it"
    for _ in range(2):  # small blocks, which are kept for the next rather than given back
        assert 39 < run_cell(one(saved_bank, "small:Agent")).memory_mb < 50


def test_memory_where_it_cannot_be_measured(saved_bank, monkeypatch, tmp_path):
    monkeypatch.setattr(cells_module, "_CLEAR", tmp_path / "no" / "such")
    assert np.isnan(run_cell(one(saved_bank)).memory_mb)


# What a result depends on


def test_settings_that_make_another_result(saved_bank, tmp_path):
    base = one(saved_bank)
    tiny_bank(seed=1).save(tmp_path / "other")
    changed = [
        replace(base, seed=1),
        replace(base, num_users=6),
        replace(base, history_users=7),
        replace(base, agent="linucb"),
        replace(base, agent="oracle"),
        replace(base, agent="linucb@ridge=2"),
        replace(base, bank=str(tmp_path / "other")),
        replace(base, bank="synthetic"),
        replace(base, track=replace(SHORT, name="short-v1")),
        replace(base, track=replace(SHORT, environment={"horizon": 5})),
        replace(base, track=replace(SHORT, population={"dirichlet": {"num_users": 9}})),
        replace(base, track=replace(SHORT, history={"feedback": "reward"})),
    ]
    assert len({fingerprint(cell).hex for cell in [base, *changed]}) == len(changed) + 1
    words = replace(SHORT, question="Other words?", reported=(1,), yardstick="oracle")
    assert fingerprint(replace(base, track=words)) == fingerprint(base)


def test_the_order_of_channels_counts(saved_bank):
    both = [{"reward": {}, "click": {}}, {"click": {}, "reward": {}}]
    tracks = [replace(SHORT, environment={"feedback": given}) for given in both]
    first, second = (fingerprint(one(saved_bank, track=track)).hex for track in tracks)
    assert first != second, "the first channel is the reward"


def test_parts_are_as_they_come_back_from_a_file(saved_bank):
    track = replace(SHORT, environment={"concentration": (0.01, 0.1)})
    parts = fingerprint(one(saved_bank, track=track)).parts
    assert json.loads(json.dumps(parts)) == parts
    assert parts["settings"]["environment"] == {"concentration": [0.01, 0.1]}


def test_a_bank_is_its_content(saved_bank, tmp_path):
    tiny_bank().save(tmp_path / "copy")
    copy = one(str(tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(one(saved_bank)), "wherever it is"
    tiny_bank(seed=1).save(tmp_path / "copy")
    before = fingerprint(copy)
    forget()
    assert fingerprint(copy) != before
    assert difference(before.parts, fingerprint(copy).parts) == "other bank: content"


def test_the_code_is_what_the_runner_and_the_agent_import(saved_bank):
    code = set(fingerprint(one(saved_bank, "linucb")).parts["code"])
    package = {name.removeprefix("personalllm_env.") for name in code}
    assert {"runner", "core", "session", "streams", "users", "database", "types"} <= package
    assert {"benchmark.cells", "benchmark.track", "agents.linear", "belief"} <= package
    others = {"benchmark.tracks", "report", "plots", "cli", "commands", "agents.bayes"}
    assert not package & (others | {"agents", "benchmark.store", "data.tables", "testing"})
    bayes = set(fingerprint(one(saved_bank, "exact-bayes")).parts["code"])
    assert "personalllm_env.agents.bayes" in bayes
    assert "personalllm_env.agents.linear" not in bayes


_read = fingerprint_module._read.__wrapped__


def edited(monkeypatch, module):
    """Makes the next fingerprints see another source of ``module``."""
    forget()

    def other(name):
        found = _read(name)
        return found._replace(digest="edited") if name == module else found

    other.cache_clear = lambda: None
    monkeypatch.setattr(fingerprint_module, "_read", other)


@pytest.mark.parametrize(
    ("module", "agent", "counts"),
    [
        ("personalllm_env.core", "uniform", True),
        ("personalllm_env.envs.translate", "uniform", True),
        ("personalllm_env.benchmark.tracks", "uniform", False),
        ("personalllm_env.report", "uniform", False),
        ("personalllm_env.agents.linear", "uniform", False),
        ("personalllm_env.agents.linear", "linucb", True),
        ("personalllm_env.agents", "linucb", False),
    ],
)
def test_an_edit_counts_where_it_matters(saved_bank, monkeypatch, module, agent, counts):
    cell = one(saved_bank, agent)
    before = fingerprint(cell)
    edited(monkeypatch, module)
    after = fingerprint(cell)
    assert (after.hex != before.hex) is counts
    expected = f"other code: {module}" if counts else ""
    assert difference(before.parts, after.parts) == expected


def test_the_synthetic_bank_is_its_code(monkeypatch):
    cell = one("synthetic")
    before = fingerprint(cell)
    edited(monkeypatch, "personalllm_env.data.tables")
    assert fingerprint(cell) == before, "it reads no tables"
    edited(monkeypatch, "personalllm_env.data.synthetic")
    assert difference(before.parts, fingerprint(cell).parts) == "other bank: made by"


def test_a_new_version_of_a_library_counts(saved_bank, monkeypatch):
    before = fingerprint(one(saved_bank))
    assert set(before.parts["versions"]) == {"python", "numpy", "scipy"}
    forget()
    monkeypatch.setattr(fingerprint_module, "version", lambda name: f"9 of {name}")
    after = fingerprint(one(saved_bank))
    assert difference(before.parts, after.parts) == "other versions: numpy, scipy"


def test_an_agent_of_ones_own(saved_bank, project):
    (project / "mine").mkdir()
    (project / "mine" / "__init__.py").write_text("from .impl import Agent\n")
    (project / "mine" / "impl.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .unseen import X\n"
        f"import rich.table\n{AGENT}\ndef late():\n    from . import lazy\n    import beside\n"
    )
    (project / "mine" / "lazy.py").write_text("from .deep import thing\n")
    (project / "mine" / "deep.py").write_text("thing = 1\n")
    (project / "mine" / "unseen.py").write_text("X = 1\n")
    (project / "beside.py").write_text("import json\n")
    cell = one(saved_bank, "mine:Agent@x=1")
    parts = fingerprint(cell).parts
    own = {name for name in parts["code"] if not name.startswith("personalllm_env")}
    assert own == {"mine", "mine.impl", "mine.lazy", "mine.deep", "beside"}
    assert set(parts["versions"]) == {"python", "numpy", "scipy", "rich"}
    assert parts["agent"]["class"] == "mine.impl:Agent"
    assert "mine.lazy" not in sys.modules, "reading is not running"
    for name in ("mine/deep.py", "beside.py", "mine/impl.py"):
        before = fingerprint(cell)
        path = project / name
        path.write_text(path.read_text() + "# changed\n")
        forget()
        after = fingerprint(cell)
        module = name.removesuffix(".py").replace("/", ".")
        assert difference(before.parts, after.parts) == f"other code: {module}"


def test_every_process_finds_the_same(saved_bank, project):
    (project / "loose.py").write_text(AGENT)
    spec = "loose:Agent@choices=[1],x=1"
    script = textwrap.dedent(f"""
        from personalllm_env.benchmark.cells import Cell
        from personalllm_env.benchmark.fingerprint import fingerprint
        from personalllm_env.benchmark.track import Track
        track = Track("short-v0", "?", environment={{"horizon": 4}})
        print(fingerprint(Cell(track, {spec!r}, 0, 5, 6, {saved_bank!r})).hex)
    """)
    ours = fingerprint(one(saved_bank, spec)).hex
    for hash_seed in ("1", "2"):
        path = os.pathsep.join(filter(None, (str(project), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == ours, done.stderr


def test_an_unknown_agent_is_named(saved_bank):
    with pytest.raises(UnknownAgentError, match="no agent is called 'nobody'"):
        fingerprint(one(saved_bank, "nobody"))


def test_a_closure_that_leads_in_circles(project):
    (project / "ring_a.py").write_text("import ring_b\nimport not_installed_anywhere\n")
    (project / "ring_b.py").write_text("from ring_a import *\n")
    assert set(closure({"ring_a"}, own={"ring_a"})) == {"ring_a", "ring_b"}
    assert closure({"no_such_module_at_all"}, own=set()) == {}


def test_differences_are_short():
    many = {"code": {f"m{i}": "1" for i in range(9)}, "agent": "x"}
    text = difference(many, {"code": {}, "agent": "y"})
    assert text == "other agent; other code: m0, m1, m2, 6 more"
    assert difference(many, many) == ""
    swapped = {"settings": {"a": {"x": 1, "y": 2}}}
    assert difference(swapped, {"settings": {"a": {"x": 1, "y": 3}}}) == "other settings: a"


# What it will cost


def header(agent="linucb", track="short-v0", num_users=5, wall=1.0, fit=0.2, memory=3.0):
    return {
        "agent": agent,
        "track": track,
        "num_users": num_users,
        "horizon": 4,
        "history_interactions": 24,
        "wall_seconds": wall,
        "fit_seconds": fit,
        "memory_mb": memory,
    }


def test_an_earlier_result_predicts_itself():
    cell = one("synthetic", "linucb")
    costs = Costs([header()])
    assert costs.seconds(cell) == pytest.approx(1.0)
    assert costs.rate(cell).memory_mb == 3.0
    assert costs.seconds(replace(cell, num_users=10)) == pytest.approx(0.2 + 2 * 0.8)
    assert costs.seconds(replace(cell, history_users=12)) == pytest.approx(2 * 0.2 + 0.8)


def test_a_busy_machine_is_not_dearer():
    waited = header(wall=10.0, fit=2.0) | {"queued_seconds": 9.0}
    assert Costs([waited]).rate(one("synthetic", "linucb")) == pytest.approx(
        Costs([header()]).rate(one("synthetic", "linucb"))
    )


def test_the_nearest_results_predict_best():
    cell = one("synthetic", "linucb")
    headers = [
        header(wall=9.0, track="other-v0"),
        header(wall=7.0, num_users=500),
        *(header(wall=w) for w in (1.0, 2.0, 30.0)),
    ]
    assert Costs(headers).seconds(cell) == pytest.approx(2.0), "the median of the same"
    assert Costs(headers[:2]).seconds(cell) == pytest.approx(0.2 + 6.8 / 100), "same track"
    large = replace(cell, num_users=400)
    assert Costs(headers).seconds(large) == pytest.approx(0.2 + 6.8 * 400 / 500), "same size"


def test_without_any_result(monkeypatch):
    from personalllm_env.benchmark import costs as costs_module

    monkeypatch.setattr(costs_module, "shipped_table", lambda: {"linucb": Rate(10.0, 1.0, 2.0)})
    costs = Costs([header(wall=None), {"agent": "linucb"}])
    assert costs.rate(one("synthetic", "linucb")) == Rate(10.0, 1.0, 2.0)
    assert costs.rate(one("synthetic", "linucb@ridge=2")) == Rate(10.0, 1.0, 2.0)
    assert costs.rate(one("synthetic", "new:Agent")) == UNKNOWN
    cells = [one("synthetic", agent) for agent in ("linucb", "new:Agent", "linucb@ridge=2")]
    assert estimate(cells, costs, 2).guessed == ("new:Agent",)


def test_the_estimate_adds_up():
    cells = [one("synthetic", "linucb", seed=seed) for seed in range(10)]
    costs = Costs([header()])
    for workers, seconds in ((1, 10.0), (2, 5.0), (4, 2.5), (64, 1.0)):
        found = estimate(cells, costs, workers)
        assert found.core_seconds == pytest.approx(10.0)
        assert seconds < found.wall_seconds < seconds + 5
        assert found.workers == min(workers, 10)
    assert estimate([], costs, 2).wall_seconds == 0
    assert estimate(cells, costs, 1).memory_mb * 2 == estimate(cells, costs, 2).memory_mb


def test_a_table_made_of_results(saved_bank, tmp_path):
    store = Store(tmp_path / "store")
    for seed in range(3):
        cell = one(saved_bank, "linucb", seed=seed)
        run = run_cell(cell)._replace(fit_seconds=0.1, memory_mb=float("nan"))
        store.write(cell, encode(cell, run, 0.1 + 0.01 * (seed + 1)))
    table = write_table(store, tmp_path / "costs.json")
    assert table["linucb"][:2] == (pytest.approx(1000.0), pytest.approx(1e5 / 24, abs=0.01))
    assert np.isnan(table["linucb"].memory_mb)
    saved = json.loads((tmp_path / "costs.json").read_text())
    assert saved == {"linucb": [1000.0, 4166.67, None]}
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_the_shipped_table_is_written_by_a_script(saved_bank, tmp_path, capsys):
    script = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "costs.py"))
    assert json.loads(script["TABLE"].read_text("utf-8")).keys() == shipped_table().keys() != {}
    store, cell = Store(tmp_path / "store"), one(saved_bank, "linucb")
    with pytest.raises(typer.BadParameter, match="store holds no results"):
        script["main"](store.folder, tmp_path / "costs.json")
    store.write(cell, encode(cell, run_cell(cell), 0.5))
    script["main"](store.folder, tmp_path / "costs.json")
    assert json.loads((tmp_path / "costs.json").read_text("utf-8")).keys() == {"linucb"}
    assert capsys.readouterr().out.startswith("1 agents in ")
