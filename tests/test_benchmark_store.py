"""The store: whole files or none, nothing mixed in, nothing believed that is damaged."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalllm_env.benchmark import cellfile
from personalllm_env.benchmark.cellfile import DamagedFileError, decode, encode, read_header
from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.fingerprint import fingerprint, forget
from personalllm_env.benchmark.store import Store, load_comparisons, slug
from personalllm_env.benchmark.track import Track
from personalllm_env.files import write_whole, written_whole
from personalllm_env.runner import Run

TRACK = Track("short-v0", "?", environment={"horizon": 4})
CELL = Cell(TRACK, "linucb", 1, 3, 6)


def some_run(seed=0, users=3, **changes):
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal((2, users, 4)).astype(np.float32)
    present = np.arange(4) < rng.integers(1, 5, users)[:, None]
    run = Run(numbers[0], np.abs(numbers[1]), present, 0.25, 0.125, 7.5)
    return run._replace(**changes)


RUN = some_run()
ENCODED = encode(CELL, RUN, 1.5)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def save(store, cell, run, wall_seconds=float("nan")):
    store.write(cell, encode(cell, run, wall_seconds))


def same(one, other):
    return all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(one[:3], other[:3], strict=True)
    )


def test_what_is_stored_comes_back(store):
    assert not store.has(CELL)
    with pytest.raises(FileNotFoundError):
        store.load(CELL)
    save(store, CELL, RUN, 1.5)
    assert store.has(CELL)
    found = store.load(CELL)
    assert same(found, RUN)
    assert found[3:] == RUN[3:]
    assert found.utility.dtype == np.float32
    header = read_header(store.path(CELL))
    expected = {"track": "short-v0", "agent": "linucb", "seed": 1, "num_users": 3}
    expected |= {"horizon": 4, "history_users": 6, "history_interactions": 24}
    expected |= {"privileges": [], "seconds": 0.25, "fit_seconds": 0.125, "memory_mb": 7.5}
    expected |= {"wall_seconds": 1.5, "bank": "synthetic"}
    assert {key: header[key] for key in expected} == expected
    assert list(store.headers()) == [header]


def test_anybody_can_read_the_columns(store):
    save(store, CELL, RUN)
    table = pyarrow.parquet.read_table(store.path(CELL))
    assert table.column_names == ["utility", "regret", "present"]
    assert table.column("utility").to_numpy().reshape(3, 4).tolist() == RUN.utility.tolist()


def test_what_was_not_measured_is_not_a_number(store):
    save(store, CELL, RUN._replace(memory_mb=float("nan")))
    assert np.isnan(store.load(CELL).memory_mb)
    header = read_header(store.path(CELL))
    assert header["memory_mb"] is header["wall_seconds"] is None, "NaN is not JSON"


def test_every_cell_has_its_own_file(store):
    cells = [
        CELL,
        replace(CELL, seed=2),
        replace(CELL, agent="oracle"),
        replace(CELL, num_users=4),
        replace(CELL, track=replace(TRACK, environment={"horizon": 5})),
    ]
    assert len({store.path(cell) for cell in cells}) == len(cells)
    assert store.path(CELL).relative_to(store.folder).as_posix() == (
        f"short-v0/linucb/1-{fingerprint(CELL).hex[:12]}.parquet"
    )


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_slugs_are_safe_and_different(one, other):
    for text in (one, other):
        name = slug(text)
        assert 0 < len(name) <= 60
        assert name == name.lower(), "file systems that ignore case"
        assert not set(name) & set('/\\:*?"<>| ')
        assert not name.startswith((".", "~"))
    assert (slug(one) == slug(other)) == (one == other)


def test_slugs_of_common_names():
    assert slug("linucb") == "linucb"
    assert slug("my.agents:Mine@a=1").startswith("my.agents_mine_a_1_")
    assert slug("Mine") != slug("mine")


# Whole or not at all


def test_a_crash_while_storing_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(store, CELL, RUN)
    assert not store.has(CELL)
    assert [p for p in store.folder.rglob("*") if p.is_file()] == []


def test_writers_that_meet_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "new" / "file"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("first")
        other.write_text("second")
    assert path.read_text() == "first", "whose turn came last"
    assert write_whole(path, "ä\n") == path
    assert path.read_bytes() == "ä\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_has_its_name(store, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (done.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), rename(a, b)))
    save(store, CELL, RUN)
    assert done == ["fsync", "replace", "fsync"], "the file's, the name's"


def test_a_file_cut_anywhere_is_missing(store):
    save(store, CELL, RUN)
    for length in sorted({0, 1, 4, 100, *range(0, len(ENCODED), 97), len(ENCODED) - 1}):
        store.path(CELL).write_bytes(ENCODED[:length])
        assert not store.has(CELL)
    found = store.scan([CELL])
    assert found.missing == [CELL]
    assert found.finished == []
    assert list(found.damaged) == [str(store.path(CELL))]
    save(store, CELL, RUN)
    assert store.scan([CELL]).finished == [CELL], "it can be done again"


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_a_changed_byte_is_noticed_or_harmless(position, change):
    broken = bytearray(ENCODED)
    broken[position] ^= change
    try:
        header, run = decode(bytes(broken), "here")
    except DamagedFileError as error:
        assert str(error).startswith("here: ")  # noqa: PT017 - both ways are right
    else:
        assert same(run, RUN)
        assert run[3:] == RUN[3:]
        assert header["fingerprint"] == fingerprint(CELL).hex


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"hello" * 100, b"PAR1" + bytes(50) + b"PAR1"]
)
def test_foreign_files(store, content):
    store.path(CELL).parent.mkdir(parents=True)
    store.path(CELL).write_bytes(content)
    assert store.scan([CELL]).missing == [CELL]
    assert list(store.headers()) == []
    with pytest.raises(DamagedFileError, match="not a cell's result"):
        store.load(CELL)
    neighbour = store.path(CELL).with_name("1-0123456789ab.parquet")
    neighbour.write_bytes(content)
    assert set(store.scan([CELL]).damaged) == {str(store.path(CELL)), str(neighbour)}


def test_settings_and_times_are_guarded_too(monkeypatch):
    header = cellfile._header

    def changed(schema, where):
        return header(schema, where) | {"seconds": 0.75}

    monkeypatch.setattr(cellfile, "_header", changed)
    with pytest.raises(DamagedFileError, match="not those that were written"):
        decode(ENCODED, "here")


def test_a_table_of_something_else(store):
    store.path(CELL).parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"utility": [1.0]}), store.path(CELL))
    with pytest.raises(DamagedFileError, match="not a cell's result, or of another format"):
        store.load(CELL)


def test_another_cells_file_under_this_name(store):
    store.path(CELL).parent.mkdir(parents=True)
    store.path(CELL).write_bytes(encode(replace(CELL, num_users=4), some_run(users=4), 1.0))
    with pytest.raises(DamagedFileError, match="holds another cell's result"):
        store.load(CELL)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        Store(tmp_path / "file")


# Other code and settings


def test_other_settings_are_recognised_and_not_used(store):
    other = replace(CELL, num_users=4)
    save(store, other, some_run(users=4))
    found = store.scan([CELL, other])
    assert (found.finished, found.missing) == ([other], [CELL])
    assert found.stale == {CELL.name: "other settings: num_users"}
    save(store, replace(CELL, num_users=7, history_users=9), some_run(users=7))
    assert store.scan([CELL]).stale == {CELL.name: "other settings: num_users"}, "the nearest"
    assert store.scan([replace(CELL, seed=5)]).stale == {}, "another seed is another cell"


def test_other_code_is_recognised_and_not_used(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited_agent.py"
    path.write_text("class Agent:\n    privileges = frozenset()\n")
    cell = replace(CELL, agent="edited_agent:Agent")
    save(store, cell, RUN)
    assert store.has(cell)
    path.write_text(path.read_text() + "    better = True\n")
    forget()
    assert not store.has(cell)
    assert store.scan([cell]).stale == {cell.name: "other code: edited_agent"}
    save(store, cell, some_run(1))
    assert same(store.load(cell), some_run(1))
    path.write_text("class Agent:\n    privileges = frozenset()\n")
    forget()
    assert same(store.load(cell), RUN), "and back again: nothing was overwritten"
    sys.modules.pop("edited_agent")
    forget()


def test_which_machines_ran_some_cells(store, monkeypatch):
    cells = [replace(CELL, seed=seed) for seed in range(5)]
    for seed, machine in enumerate(("slow", "fast", "fast")):
        monkeypatch.setattr(cellfile.platform, "system", lambda m=machine: m)
        monkeypatch.setattr(cellfile.platform, "machine", lambda: "box")
        monkeypatch.setattr(cellfile.os, "cpu_count", lambda: 3)
        save(store, cells[seed], RUN)
    monkeypatch.undo()
    store.path(cells[3]).write_bytes(b"cut")
    found = store.machines(cells)
    assert list(found.items()) == [("fast box, 3 cores", 2), ("slow box, 3 cores", 1)]
    assert store.machines(cells[:1]) == {"slow box, 3 cores": 1}, "those cells' only"
    assert store.machines(cells[3:]) == {}


def test_a_result_of_another_format_is_not_read(store, monkeypatch):
    monkeypatch.setattr(cellfile, "_FORMAT", 2)
    save(store, CELL, RUN)
    monkeypatch.undo()
    assert not store.has(CELL)


def test_comparisons_have_whole_agents_only(store):
    tracks = [TRACK, replace(TRACK, name="other-v0")]
    cells = [
        replace(CELL, track=track, agent=agent, seed=seed)
        for track in tracks
        for agent in ("uniform", "oracle")
        for seed in (0, 1)
    ]
    for i, cell in enumerate(cells[:-1]):
        save(store, cell, some_run(i))
    found = load_comparisons(store, cells)
    assert found.missing == {"short-v0": (), "other-v0": ("oracle",)}
    first, second = found.comparisons["short-v0"], found.comparisons["other-v0"]
    assert list(first.runs) == ["uniform", "oracle"]
    assert list(second.runs) == ["uniform"]
    assert first.seeds == (0, 1)
    assert first.privileges == {"uniform": (), "oracle": ("scores", "weights")}
    assert same(first.runs["oracle"][1], some_run(3))
    assert same(second.runs["uniform"][0], some_run(4))
    store.path(cells[0]).write_bytes(b"")
    assert load_comparisons(store, cells).missing["short-v0"] == ("uniform",)


# Several runs in one folder


def test_a_claim_is_had_once(store):
    twin = Store(store.folder)
    with store.claim(CELL) as mine:
        assert mine
        with twin.claim(CELL) as theirs, twin.claim(replace(CELL, seed=2)) as other:
            assert not theirs
            assert other
    with twin.claim(CELL) as theirs:
        assert theirs, "given back"
    assert list((store.folder / ".claims").iterdir()) == []


HOLD = """
import sys, time
from personalllm_env.benchmark.cells import Cell
from personalllm_env.benchmark.store import Store
from personalllm_env.benchmark.track import Track
cell = Cell(Track("short-v0", "?", environment={"horizon": 4}), "linucb", 1, 3, 6)
with Store(sys.argv[1]).claim(cell) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_killed_run_holds_no_claim(store):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(store.folder)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"True\n"
        with store.claim(CELL) as mine:
            assert not mine
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with store.claim(CELL) as mine:
        assert mine


def test_what_killed_runs_left_is_removed(store):
    save(store, CELL, RUN)
    folder, claims = store.path(CELL).parent, store.folder / ".claims"
    claims.mkdir()
    old = [folder / ".1-0123456789ab.parquet.77-0a.tmp", claims / "left.lock"]
    young = folder / ".1-0123456789ab.parquet.78-0b.tmp"
    for path in (*old, young):
        path.write_bytes(b"half")
    with store.claim(CELL) as mine:
        assert mine
        for path in (*old, *claims.iterdir()):
            os.utime(path, (time.time() - 7200,) * 2)
        assert store.clean() == 2
        assert len(list(claims.iterdir())) == 1, "held, however old"
    assert young.exists()
    assert not any(map(Path.exists, old))
    assert store.has(CELL)
    assert store.clean(older_than=-1) == 1
