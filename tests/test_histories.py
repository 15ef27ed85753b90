"""Histories in files: bit for bit there and back, refused when damaged, PersonalLLM's too."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from personalllm_env.bank import Texts
from personalllm_env.database import Database, check_database, record_history
from personalllm_env.feedback import Choice, Leave, Reward, Silence, feedback_model
from personalllm_env.files import written_whole
from personalllm_env.fingerprints import bank_digest
from personalllm_env.histories import (
    about_history,
    history_card,
    open_database,
    read_paper_interactions,
    save_database,
    write_history,
    write_paper_interactions,
)
from personalllm_env.registry import find_agent
from personalllm_env.runner import measure
from personalllm_env.task import Task
from personalllm_env.testing import tiny_bank, tiny_tasks
from personalllm_env.users import UserPopulation

ROOT = Path(__file__).parents[1]
BANK = tiny_bank()
TEXTS = Texts(
    tuple(f"Was ist {i}? — “{i}”" for i in range(60)),
    tuple(tuple(f"{i}, sagt {k}\n\t🙂" for k in range(4)) for i in range(60)),
)
WORDY = replace(BANK, texts=TEXTS, name="wordy")
USERS = UserPopulation(np.random.default_rng(0).dirichlet(np.ones(3), 7))
MOUTHS = {
    "reward": (1, ["reward"]),
    "like": (1, ["like"]),
    "stars": (1, ["stars", "like"]),
    "click": (1, ["click"]),
    "choice": (2, ["choice"]),
    "choice and reward": (2, ["choice", "reward"]),
}


def duel(bank=WORDY, *feedback, **settings):
    parts = feedback_model(feedback or ["choice"])
    return Task(bank, USERS, parts, **{"horizon": 6, "num_shown": 2, **settings})


def assert_equal(one, other):
    """Asserts that two databases hold the same bits, of the same types."""

    def same(a, b):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()

    assert list(one.said) == list(other.said)
    for name in one.said:
        same(one.said[name], other.said[name])
    for name in Database.__dataclass_fields__.keys() - {"said"}:
        same(getattr(one, name), getattr(other, name))


@settings(max_examples=40, deadline=None)
@given(
    mouth=st.sampled_from(sorted(MOUTHS)),
    silence=st.sampled_from([None, 0.5, 1.0]),
    leave=st.booleans(),
    recognise=st.booleans(),
    white_box=st.booleans(),
    texts=st.booleans(),
    num_users=st.integers(1, 12),
    horizon=st.integers(1, 9),
    seed=st.integers(0, 2**64),
)
def test_a_file_gives_back_what_was_saved(
    tmp_path_factory,
    mouth,
    silence,
    leave,
    recognise,
    white_box,
    texts,
    num_users,
    horizon,
    seed,
):
    num_shown, parts = MOUTHS[mouth]
    parts = [
        *parts,
        *([Silence(silence)] if silence else []),
        *([Leave(0, 1)] if leave else []),
    ]
    task = Task(
        WORDY,
        USERS,
        feedback_model(parts),
        horizon=horizon,
        num_shown=num_shown,
        shuffle=True,
        recognise=recognise,
        white_box=white_box,
    )
    path = tmp_path_factory.mktemp("history") / "h.parquet"
    database = write_history(task, num_users, seed, path, texts=texts)
    assert_equal(database, record_history(task, num_users=num_users, seed=seed))
    assert_equal(open_database(path, WORDY), database)
    about = about_history(path)
    assert about["num_users"] == num_users
    assert about["num_interactions"] == len(database.user)
    assert about["facts"]["seed"] == seed
    assert about["facts"]["horizon"] == horizon


def test_odd_numbers_keep_their_bits(tmp_path):
    """Signed zeros, subnormals and other types of numbers; users of whom nothing is left."""
    odd = np.array([0.0, -0.0, 1e-45, -0.0, 3e38, 0.0], np.float32)
    database = Database(
        user=np.array([0, 0, 2, 2, 2, 5], np.int32),
        prompt=np.array([5, 5, 0, 59, 3, 3], np.int16),
        action=np.asfortranarray(np.array([[0, 1], [1, 1], [3, 2], [0, 3], [2, 1], [0, 0]])),
        reward=odd.astype(np.float64) / 3,
        heard=np.array([1, 0, 1, 1, 0, 1], bool),
        said={"reward": odd, "x y": -odd},
        prompt_features=BANK.prompt_features,
        response_features=BANK.response_features,
    )
    save_database(database, tmp_path / "h.parquet", BANK)
    assert_equal(open_database(tmp_path / "h.parquet", BANK), database)
    interactions = parquet.read_table(tmp_path / "h.parquet")["interaction"].to_pylist()
    assert interactions == [1, 2, 1, 2, 3, 1]


def test_columns_by_hand(tmp_path):
    database = Database(
        user=np.array([0, 0, 1]),
        prompt=np.array([7, 2, 7]),
        action=np.array([[3, 0], [1, 2], [0, 3]]),
        reward=np.array([1, 0, -1], np.float32),
        heard=np.array([True, False, True]),
        said={"choice": np.array([1, 0, -1], np.float32)},
        prompt_features=WORDY.prompt_features,
        response_features=WORDY.response_features,
        identity=np.array([6, 4]),
    )
    save_database(database, tmp_path / "h.parquet", WORDY, texts=True)
    assert parquet.read_table(tmp_path / "h.parquet").to_pydict() == {
        "user": [0, 0, 1],
        "interaction": [1, 2, 1],
        "prompt": [7, 2, 7],
        "shown": [[3, 0], [1, 2], [0, 3]],
        "reward": [1, 0, -1],
        "heard": [True, False, True],
        "said_choice": [1, 0, -1],
        "identity": [6, 6, 4],
        "prompt_text": [TEXTS.prompts[i] for i in (7, 2, 7)],
        "shown_text": [
            [TEXTS.responses[7][3], TEXTS.responses[7][0]],
            [TEXTS.responses[2][1], TEXTS.responses[2][2]],
            [TEXTS.responses[7][0], TEXTS.responses[7][3]],
        ],
    }


def test_texts_of_many_blocks(tmp_path):
    task = duel(horizon=50)
    database = write_history(task, 200, 0, tmp_path / "h.parquet", texts=True)
    table = parquet.read_table(tmp_path / "h.parquet")
    assert parquet.ParquetFile(tmp_path / "h.parquet").num_row_groups == 2
    assert table["prompt_text"].to_pylist() == [TEXTS.prompts[p] for p in database.prompt]
    second = [
        TEXTS.responses[p][a]
        for p, a in zip(database.prompt, database.action[:, 1], strict=True)
    ]
    assert [pair[1] for pair in table["shown_text"].to_pylist()] == second
    assert_equal(open_database(tmp_path / "h.parquet", WORDY), database)


@pytest.mark.parametrize("name", sorted(tiny_tasks()))
@pytest.mark.parametrize("agent", ["linucb", "popular", "thompson"])
def test_agents_learn_the_same_from_a_file(tmp_path, name, agent):
    task = tiny_tasks()[name]
    original = write_history(task, 25, 1, tmp_path / "h.parquet")
    reopened = open_database(tmp_path / "h.parquet", task.bank)
    test = replace(task, split="test")
    runs = [
        measure(find_agent(agent), test, lambda d=database: d, num_users=10, seed=3)
        for database in (original, reopened, None)
    ]
    np.testing.assert_array_equal(runs[0].utility, runs[1].utility)
    assert (runs[0].utility != runs[2].utility).any(), "the history plays a part"


@pytest.mark.parametrize("texts", [False, True])
def test_the_datasets_library_reads_it(tmp_path, monkeypatch, texts):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    path = str(tmp_path / "h.parquet")
    database = write_history(duel(), 5, 0, path, texts=texts)
    cache = str(tmp_path / "cache")
    by_name = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
    by_class = datasets.Dataset.from_parquet(path, cache_dir=cache)
    for rows in (by_name, by_class):
        features = rows.features
        assert features["user"] == datasets.Value("int64")
        assert features["heard"] == datasets.Value("bool")
        assert features["said_choice"] == datasets.Value("float32")
        assert features["shown"] == datasets.List(datasets.Value("int64"), length=2)
        columns = rows.with_format("numpy")[:]
        np.testing.assert_array_equal(columns["user"], database.user)
        np.testing.assert_array_equal(columns["shown"], database.action)
        np.testing.assert_array_equal(columns["said_choice"], database.said["choice"])
        if texts:
            assert features["prompt_text"] == datasets.Value("string")
            first, (row, action) = rows[0], (database.prompt[0], database.action[0])
            assert first["prompt_text"] == TEXTS.prompts[row]
            assert first["shown_text"] == [TEXTS.responses[row][k] for k in action]


# What is refused.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a good file and its table."""
    path = tmp_path_factory.mktemp("good") / "h.parquet"
    write_history(duel(BANK, recognise=True), 4, 0, path)
    return path, parquet.read_table(path)


def put(table, name, row, value):
    """Returns the table with one cell changed."""
    cells = table[name].to_pylist()
    cells[row] = value
    return table.set_column(
        table.column_names.index(name), name, pa.array(cells, table.schema.field(name).type)
    )


CORRUPTIONS = {
    "user, row 1: expected sorted and not negative, got -1": lambda t: t.set_column(
        0, "user", pa.array(np.repeat([-1, 1, 2, 3], 6))
    ),
    "row 7: expected rows by user and then by interaction, from 1 without gaps; user 0": (
        lambda t: put(t, "user", 6, 0)
    ),
    "row 1: expected rows by user": lambda t: put(t, "interaction", 0, 2),
    "row 3: expected rows by user": lambda t: put(t, "interaction", 2, 4),
    "row 19: expected rows by user": lambda t: pa.concat_tables(
        [t.slice(0, 12), t.slice(18, 6), t.slice(12, 6)]
    ),
    "prompt, row 9: expected in 0..59, got 60": lambda t: put(t, "prompt", 8, 60),
    "prompt, row 1: expected in 0..59, got -1": lambda t: put(t, "prompt", 0, -1),
    "action, row 24: expected in 0..3, got [0, 4]": lambda t: put(t, "shown", 23, [0, 4]),
    "reward, row 5: expected finite, got nan": lambda t: put(t, "reward", 4, float("nan")),
    "said choice, row 5: expected finite, got inf": (
        lambda t: put(t, "said_choice", 4, float("inf"))
    ),
    "column 'heard', row 2: no value (null)": lambda t: put(t, "heard", 1, None),
    "column 'shown', row 2: no value (null)": lambda t: put(t, "shown", 1, None),
    "column 'shown' cannot be of type": lambda t: put(t, "shown", 1, [1, None]),
    "missing columns said_choice": lambda t: t.drop_columns(["said_choice"]),
    "missing columns prompt, identity": lambda t: t.drop_columns(["prompt", "identity"]),
    "column 'reward' cannot be of type int64": lambda t: t.set_column(
        4, "reward", pa.array([1] * 24)
    ),
    "column 'shown' must be lists of 2, got int64": lambda t: t.set_column(
        3, "shown", pa.array([1] * 24)
    ),
    "expected 24 interactions, got 23": lambda t: t.slice(0, 23),
    "identities of 4 users, but interactions of 4 among 0..4": lambda t: t.set_column(
        0, "user", pa.array(np.repeat([0, 1, 2, 4], 6))
    ),
}


@pytest.mark.parametrize("message", sorted(CORRUPTIONS))
def test_corruptions_are_named(saved, tmp_path, message):
    parquet.write_table(CORRUPTIONS[message](saved[1]), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_database(tmp_path / "bad.parquet", BANK)
    assert "bad.parquet" in str(caught.value)


def test_the_table_without_a_change_is_fine(saved, tmp_path):
    parquet.write_table(saved[1], tmp_path / "good.parquet")
    assert_equal(open_database(tmp_path / "good.parquet", BANK), open_database(saved[0], BANK))


def test_clicks_out_of_range(tmp_path):
    write_history(tiny_tasks()["click"], 3, 0, tmp_path / "h.parquet")
    for value in (4.0, 0.5):
        table = put(parquet.read_table(tmp_path / "h.parquet"), "said_click", 1, value)
        parquet.write_table(table, tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=rf"said click, row 2: .* in 0..3, got {value}"):
            open_database(tmp_path / "bad.parquet", BANK)


def test_other_versions_and_other_files(saved, tmp_path):
    path = tmp_path / "other.parquet"
    table = saved[1]
    about = json.loads(table.schema.metadata[b"personalllm_env"])
    newer = {b"personalllm_env": json.dumps({**about, "format": 2})}
    parquet.write_table(table.replace_schema_metadata(newer), path)
    for reader in (about_history, history_card, lambda p: open_database(p, BANK)):
        with pytest.raises(ValueError, match="expected a history of format 1, got 2"):
            reader(path)
    parquet.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match="no metadata 'personalllm_env'"):
        open_database(path, BANK)
    with pytest.raises(FileNotFoundError):
        open_database(tmp_path / "none.parquet", BANK)


def test_no_damaged_byte_goes_unseen(saved, tmp_path):
    """Every cut, and every byte of the columns turned over: an error, or the same history."""
    good, whole = open_database(saved[0], BANK), saved[0].read_bytes()
    path, footer = tmp_path / "bad.parquet", int.from_bytes(whole[-8:-4], "little") + 8
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"bad\.parquet: not Parquet, or a damaged"):
            open_database(path, BANK)
    unseen = 0
    places = range(4, len(whole) - footer, 7)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = open_database(path, BANK)
        except ValueError:
            continue
        assert_equal(found, good)
        unseen += 1  # bytes that say nothing of the columns, such as statistics
    assert unseen < len(places) / 3


def test_another_bank_is_refused(saved):
    other = tiny_bank(seed=1)
    with pytest.raises(ValueError, match="other scores, split or texts than the bank 'tiny'"):
        open_database(saved[0], other)
    smaller = tiny_bank(num_prompts=59)
    with pytest.raises(ValueError, match=r"other num_prompts .* expected 60, got 59"):
        open_database(saved[0], smaller)
    database = open_database(saved[0], other, same_bank=False)
    np.testing.assert_array_equal(database.response_features, other.response_features)
    tiny = tiny_bank(num_prompts=20)
    with pytest.raises(ValueError, match=r"prompt, row \d+: expected in 0..19"):
        open_database(saved[0], tiny, same_bank=False)


def test_what_the_digest_covers():
    digest = bank_digest(WORDY)
    scores, is_test = WORDY.scores.copy(), WORDY.is_test.copy()
    scores[3, 1, 2] = np.nextafter(scores[3, 1, 2], np.float32(9))
    is_test[0] = True
    responses = list(TEXTS.responses)
    responses[0] = (*responses[0][:3], "another")
    others = [
        replace(WORDY, scores=scores),
        replace(WORDY, is_test=is_test),
        replace(WORDY, texts=None),
        replace(WORDY, texts=Texts(TEXTS.prompts, tuple(responses))),
        replace(WORDY, responders=tuple("abcd")),
        replace(WORDY, reward_models=tuple("abc")),
    ]
    assert len({digest, *map(bank_digest, others)}) == 7
    features = -WORDY.response_features
    assert bank_digest(replace(WORDY, response_features=features, name="x")) == digest


def test_what_does_not_fit_is_not_written(tmp_path):
    path = tmp_path / "h.parquet"
    database = write_history(duel(), 3, 0, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="prompt, row"):
        save_database(replace(database, prompt=database.prompt + 60), path, WORDY)
    with pytest.raises(ValueError, match="texts=True needs a bank with texts; 'tiny' has none"):
        save_database(database, path, BANK, texts=True)
    with pytest.raises(ValueError, match="at least 1 user, got 0"):
        write_history(duel(), 0, 0, path)
    with pytest.raises(TypeError):
        save_database(database, path, WORDY, facts={"seed": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "a" / "b.txt"

    def fail():
        with written_whole(path) as scratch:
            scratch.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(path.parent.iterdir()) == []
    with written_whole(path) as scratch:
        scratch.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_card(saved, tmp_path):
    card = history_card(saved[0])
    assert card.startswith("---\nconfigs:\n- config_name: default\n  data_files: h.parquet\n")
    assert "# Interactions of 4 simulated users" in card
    assert "24 interactions with the bank `tiny`" in card
    assert "- feedback: ['Choice(temperature=0.25)']" in card
    for name in saved[1].column_names:
        assert f"| `{name}` |" in card
    database = record_history(tiny_tasks()["reward"], num_users=2, seed=0)
    save_database(database, tmp_path / "bare.parquet", BANK)
    assert "- not known" in history_card(tmp_path / "bare.parquet")


# PersonalLLM's columns.


@settings(max_examples=30, deadline=None)
@given(
    wordy=st.booleans(),
    silence=st.sampled_from([None, 0.5, 1.0]),
    leave=st.booleans(),
    num_users=st.integers(1, 12),
    horizon=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_there_and_back_in_the_papers_columns(
    tmp_path_factory, wordy, silence, leave, num_users, horizon, seed
):
    parts = [
        Choice(),
        *([Silence(silence)] if silence else []),
        *([Leave(0, 1)] if leave else []),
    ]
    bank = WORDY if wordy else BANK
    task = duel(bank, *parts, horizon=horizon, shuffle=True)
    path = tmp_path_factory.mktemp("paper") / "h.parquet"
    database = write_history(task, num_users, seed, path, paper=True)
    assert_equal(read_paper_interactions(path, bank), database)


def rows_of(path, rows, columns=None):
    """Writes dictionaries as PersonalLLM's script would; what is missing is empty."""
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    data = {name: [row.get(name) for row in rows] for name in names}
    parquet.write_table(pa.table(data), path)
    return path


def duel_row(*interactions, texts=TEXTS, **more):
    """Returns a row of (prompt, first, second, chosen) in PersonalLLM's columns."""
    row = {"person_weight": [0.2, 0.3, 0.5], **more}
    for j, (prompt, a, b, chosen) in enumerate(interactions, start=1):
        row[f"prompt_{j}"] = texts.prompts[prompt]
        row[f"response_{j}_a"] = texts.responses[prompt][a]
        row[f"response_{j}_b"] = texts.responses[prompt][b]
        row[f"chosen_{j}"] = chosen
    return row


def test_the_papers_columns_by_hand(tmp_path):
    rows = [
        duel_row((7, 3, 0, "a"), (2, 1, 2, "b"), length=2.0, person_id=0),
        duel_row((7, 0, 3, None), length=1.0, person_id=1),
    ]
    columns = [*rows[0], "prompt_1_embedding"]
    path = rows_of(tmp_path / "h.parquet", rows, columns)
    database = read_paper_interactions(path, WORDY)
    expected = {
        "user": [0, 0, 1],
        "prompt": [7, 2, 7],
        "action": [[3, 0], [1, 2], [0, 3]],
        "reward": [1, -1, 0],
        "heard": [True, True, False],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(database, name), values)
    np.testing.assert_array_equal(database.said["choice"], [1, -1, 0])
    write_paper_interactions(database, WORDY, path)
    written = parquet.read_table(path).to_pylist()
    for row, before in zip(written, rows, strict=True):
        kept = {name: value for name, value in row.items() if value is not None}
        assert kept == {
            n: v for n, v in before.items() if v is not None and n != "person_weight"
        }
    assert list(written[0])[:6] == [
        *("person_id", "length", "prompt_1", "response_1_a", "response_1_b", "chosen_1")
    ]


def test_many_users_in_the_papers_columns(tmp_path):
    """More than are written at a time, in several files of different lengths."""
    database = write_history(duel(), 1100, 0, tmp_path / "h.parquet", paper=True)
    assert_equal(read_paper_interactions(tmp_path / "h.parquet", WORDY), database)
    table = parquet.read_table(tmp_path / "h.parquet")
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(table.slice(0, 300), folder / "train-0.parquet")
    parquet.write_table(table.slice(300), folder / "train-1.parquet")
    assert_equal(read_paper_interactions(folder.parent, WORDY), database)
    assert_equal(read_paper_interactions(folder, WORDY), database)
    short = table.slice(0, 300).select(table.column_names[:10])
    parquet.write_table(short, folder / "train-0.parquet")
    fewer = read_paper_interactions(folder, WORDY)
    np.testing.assert_array_equal(np.bincount(fewer.user), np.repeat([2, 6], [300, 800]))


def test_a_hub_id_goes_through_datasets(tmp_path, monkeypatch):
    from personalllm_env.data import sources

    database = write_history(duel(), 4, 0, tmp_path / "h.parquet", paper=True)
    table = parquet.read_table(tmp_path / "h.parquet")
    asked = []

    def read_hub(name):
        asked.append(name)
        return [sources.Part(table, name)]

    monkeypatch.setattr(sources, "read_hub", read_hub)
    assert_equal(read_paper_interactions("some-lab/Interactions", WORDY), database)
    assert asked == ["some-lab/Interactions"]


def test_texts_that_the_bank_has_twice(tmp_path):
    """The row whose responses fit; of equal responses the first, and the last beside it."""
    responses = list(TEXTS.responses)
    responses[5] = ("same", "five", "same", "other")
    responses[6] = ("same", "six", "same", "other")
    responses[9] = ("same", "nine", "same", "other")
    prompts = list(TEXTS.prompts)
    prompts[6] = prompts[9] = prompts[5]
    twice = replace(BANK, texts=Texts(tuple(prompts), tuple(responses)))
    row = duel_row(
        *((5, 1, 3, "a"), (6, 3, 1, "a"), (9, 1, 0, "b"), (9, 3, 2, "a"), (9, 0, 2, "b")),
        texts=twice.texts,
    )
    path = rows_of(tmp_path / "h.parquet", [row])
    database = read_paper_interactions(path, twice)
    np.testing.assert_array_equal(database.prompt, [5, 6, 9, 5, 5])
    np.testing.assert_array_equal(database.action, [[1, 3], [3, 1], [1, 0], [3, 0], [0, 2]])


GOOD = duel_row((7, 3, 0, "a"), (2, 1, 2, "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_2": "What?"}, "column 'prompt_2', row 2: 'What?' is not in the bank 'wordy'"),
        ({"response_2_a": "Oh"}, "column 'response_2_a', row 2: 'Oh' is not in the bank"),
        ({"response_1_b": "Oh"}, "column 'response_1_b', row 2: 'Oh' is not in the bank"),
        (
            {"response_1_a": "Oh", "response_1_b": "No"},
            "column 'response_1_a', row 2: 'Oh' is not in the bank",
        ),
        ({"response_1_b": None}, "column 'response_1_b', row 2: no value (null) is not in"),
        (
            {"response_1_a": TEXTS.responses[8][0]},
            "column 'response_1_a', row 2: '8, sagt 0\\n\\t🙂' is not in the bank",
        ),
        ({"prompt_1": "x" * 999}, f"row 2: 'x{'x' * 78} is not in"),
    ],
)
def test_unmatched_texts(tmp_path, change, message):
    path = rows_of(tmp_path / "h.parquet", [GOOD, GOOD | change, GOOD])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_paper_interactions(path, WORDY)
    assert "h.parquet" in str(caught.value)
    assert "unmatched='skip'" in str(caught.value)
    with pytest.warns(UserWarning, match="left out 1 of 6 interactions"):
        database = read_paper_interactions(path, WORDY, unmatched="skip")
    np.testing.assert_array_equal(database.user, [0, 0, 1, 2, 2])
    lost = int(re.search(r"_(\d)", next(iter(change)))[1])
    np.testing.assert_array_equal(database.prompt, [7, 2, {1: 2, 2: 7}[lost], 7, 2])


@pytest.mark.parametrize("chosen", ["A", "1", TEXTS.responses[2][1], ""])
def test_chosen_is_a_or_b(tmp_path, chosen):
    path = rows_of(tmp_path / "h.parquet", [GOOD, {**GOOD, "chosen_2": chosen}])
    with pytest.raises(ValueError, match=r"column 'chosen_2', row 2: expected 'a' or 'b'"):
        read_paper_interactions(path, WORDY, unmatched="skip")


def test_what_is_no_file_of_the_papers(tmp_path, unchecked_shapes):
    path = tmp_path / "h.parquet"
    rows_of(path, [{n: v for n, v in GOOD.items() if n != "response_2_b"}])
    with pytest.raises(ValueError, match="missing columns response_2_b"):
        read_paper_interactions(path, WORDY)
    write_history(duel(), 2, 0, path)
    with pytest.raises(ValueError, match="missing columns prompt_1, response_1_a"):
        read_paper_interactions(path, WORDY)
    rows_of(path, [GOOD, {n: v for n, v in GOOD.items() if "1" not in n}])
    with pytest.raises(ValueError, match="row 2 has prompt_2 but no prompt_1"):
        read_paper_interactions(path, WORDY)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"h\.parquet: not Parquet, or a damaged file"):
        read_paper_interactions(path, WORDY)
    for source in (tmp_path / "none.parquet", "no such file", tmp_path):
        path.unlink(missing_ok=True)
        with pytest.raises(ValueError, match="expected a Parquet file, a folder of them"):
            read_paper_interactions(source, WORDY)
    with pytest.raises(ValueError, match="unmatched must be 'error' or 'skip'"):
        read_paper_interactions(path, WORDY, unmatched="drop")
    rows_of(path, [GOOD])
    with pytest.raises(ValueError, match="none of its 2 interactions is with the bank 'tiny'"):
        read_paper_interactions(path, BANK, unmatched="skip")


@pytest.mark.parametrize("mouth", sorted(set(MOUTHS) - {"choice"}))
def test_only_choices_fit_into_the_papers_columns(tmp_path, mouth):
    num_shown, parts = MOUTHS[mouth]
    task = Task(WORDY, USERS, feedback_model(parts), num_shown=num_shown)
    with pytest.raises(
        ValueError, match=r"choices between two and nothing else; .*'(re|li|st|cl)"
    ):
        write_history(task, 3, 0, tmp_path / "h.parquet", paper=True)
    assert list(tmp_path.iterdir()) == []


def test_the_papers_file_teaches_the_same(tmp_path):
    task = tiny_tasks()["duel"]
    original = write_history(task, 25, 1, tmp_path / "h.parquet", paper=True)
    again = read_paper_interactions(tmp_path / "h.parquet", task.bank)
    one, other = (
        measure(find_agent("linucb"), task, lambda d=d: d, num_users=10, seed=3)
        for d in (original, again)
    )
    np.testing.assert_array_equal(one.utility, other.utility)


def test_checks_of_a_database(unchecked_shapes):
    database = record_history(
        Task(BANK, USERS, feedback_model([Reward()]), horizon=3, recognise=True),
        num_users=3,
        seed=0,
    )
    check_database(database, BANK)
    with pytest.raises(
        ValueError, match="database: identities of 2 users, but interactions of 3"
    ):
        check_database(replace(database, identity=np.arange(2)), BANK)
    for name in ("reward", "prompt", "heard"):
        short = {name: getattr(database, name)[1:]}
        with pytest.raises(ValueError, match=f"here: {name} has 8 rows beside 9 of user"):
            check_database(replace(database, **short), BANK, "here")
    with pytest.raises(ValueError, match="here: said x has 1 rows beside 9 of user"):
        check_database(replace(database, said={"x": np.ones(1)}), BANK, "here")
    with pytest.raises(ValueError, match=r"here: user, row 4: expected sorted .* got 1"):
        check_database(replace(database, user=database.user[::-1]), BANK, "here")


def test_the_documents_code_runs(tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "histories.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 4
    assert {path.name for path in tmp_path.glob("*.*")} >= {"history.parquet", "README.md"}
    assert "regret" in capsys.readouterr().out
