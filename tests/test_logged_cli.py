"""The command ``log``, end to end: every format, and one-sentence errors."""

import json
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from tiny_texts import text_bank
from typer.testing import CliRunner

from personalllm_env.bank import open_bank
from personalllm_env.cli import app
from personalllm_env.logged.log_files import about_log, open_log
from personalllm_env.logged.obp import open_bandit_feedback
from personalllm_env.logged.vw import read_vw
from personalllm_env.testing import tiny_bank

SIZES = ("--users", "6", "--interactions", "4", "--history", "20")


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("banks")
    tiny_bank().save(folder / "tiny")
    text_bank().save(folder / "words")
    return {name: str(folder / name) for name in ("tiny", "words")}


def invoke(*arguments):
    return CliRunner().invoke(app, ["log", *(str(a) for a in arguments)])


def good(result, *words):
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output


def test_a_folder_for_the_hub(banks):
    sizes = ("--users", "6", "--horizon", "4", "--history", "20")  # as compare calls it
    arguments = ("--bank", banks["tiny"], "--out", "log", "--exploration", ".5", *sizes)
    good(invoke(*arguments), "24 interactions of 6 users, logged by linucb, in log (hub)")
    [file] = Path("log/data").iterdir()
    log = open_log("log", banks["tiny"])
    assert set(log.propensity) == {0.125, 0.625}
    assert log.truth is None
    assert about_log(file)["facts"]["agent"] == "linucb"
    assert "rl-environment" in Path("log/README.md").read_text(encoding="utf-8")
    good(invoke(*arguments[:3], "known", "--truth", *SIZES))
    [file] = Path("known/data").iterdir()
    assert open_log(file, open_bank(banks["tiny"])).truth is not None
    refused(invoke(*arguments), "log exists; choose another path with --out")


def test_formats_that_are_one_file(banks):
    bank = ("--bank", banks["tiny"], *SIZES)
    good(invoke("--format", "obp", "--out", "log.npz", "--truth", *bank), "24 interactions")
    feedback = open_bandit_feedback("log.npz")
    assert feedback["n_rounds"] == 24
    assert feedback["expected_reward"].shape == (24, 4)
    good(invoke("--format", "vw", "--out", "log.vw", "--agent", "uniform", *bank))
    assert (read_vw("log.vw").propensity == 0.25).all()
    good(invoke("--format", "rllib", "--out", "log.parquet", *bank))
    assert parquet.read_table("log.parquet").num_rows == 24


def test_a_minari_data_set(banks):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    from personalllm_env.logged.minari_files import open_minari

    words = ("--bank", banks["words"], "--texts", *SIZES)
    good(invoke("--format", "minari", "--out", "mine-v0", *words), "in mine-v0 (minari)")
    data = open_minari("mine-v0")
    assert (data.total_episodes, data.total_steps) == (6, 24)
    env = data.recover_environment().unwrapped
    assert env.task.bank.name == "tiny words"
    refused(invoke("--format", "minari", "--out", "mine", *words), "such as linucb-v0")


def test_pairs(banks):
    bank = ("--format", "dpo", "--bank", banks["words"], *SIZES)
    good(invoke("--out", "choices.parquet", "--agent", "uniform", *bank), "24 pairs")
    assert parquet.read_schema("choices.parquet").names[:3] == ["prompt", "chosen", "rejected"]
    rated = ("--feedback", "stars", "--prompts", "1", "--exploration", "1")
    good(invoke("--out", "rated.parquet", *rated, *bank), "pairs")
    feedback = json.dumps({"choice": {"temperature": 0}})
    good(invoke("--out", "sure.parquet", "--feedback", feedback, *bank), "pairs")


def test_errors_are_one_sentence(banks):
    bank = ("--bank", banks["tiny"], *SIZES)
    refused(invoke("--format", "csv", "--out", "x", *bank), "unknown format 'csv'; known: hub")
    refused(invoke("--agent", "linucbb", "--out", "x", *bank), "did you mean 'linucb'?")
    refused(invoke("--exploration", "2", "--out", "x", *bank), "exploration must be in [0, 1]")
    refused(invoke("--users", "0", "--out", "x"), "users must be at least 1, got 0")
    refused(invoke("--feedback", "smile", "--out", "x", *bank), "unknown feedback 'smile'")
    refused(invoke("--feedback", "choice", "--out", "x", *bank), "duels are for the format dpo")
    refused(invoke("--format", "dpo", "--out", "x", *bank), "has no texts; --bank text has")
    refused(invoke("--format", "vw", "--truth", "--out", "x", *bank), "--truth is for")
    refused(invoke("--texts", "--out", "x", *bank), "--texts is for the format minari")
    refused(invoke("--bank", "nowhere", "--out", "x"), "nowhere")
    refused(
        invoke("--agent", "linucb@foo=3", "--out", "x", *bank), "agent 'linucb@foo=3'", "foo"
    )
    Path("file").write_text("here")
    for format, name in {"hub": "x", "obp": "x", "vw": "x", "rllib": "x.parquet"}.items():
        beneath = Path("file", name)
        refused(
            invoke("--format", format, "--out", beneath, *bank), f"{beneath} cannot be written"
        )
    Path("file").unlink()
    assert not list(Path().iterdir())


def test_what_cannot_be_written_is_not_recorded(banks, monkeypatch):
    from personalllm_env.logged import export

    monkeypatch.delattr(export, "record_log")
    bank = ("--bank", banks["tiny"], *SIZES)
    likes = ("--format", "obp", "--truth", "--feedback", "like")
    refused(invoke(*likes, "--out", "x", *bank), "the expected reward is known")
    refused(invoke("--format", "rllib", "--out", "x.rllib", *bank), "called *.parquet, such as")
    assert not list(Path().iterdir())


OWN = """
import numpy as np

class Mine:
    privileges = frozenset()

    def __init__(self, prior):
        self.k = prior.num_responses

    def reset(self, num_users, rng):
        self.b = num_users

    def act(self, observation):
        return np.full((self.b, 1), 2)

    def update(self, observation, action, feedback):
        pass

class Nan(Mine):
    def probabilities(self, observation):
        return np.full((self.b, self.k), np.nan)

class Never(Mine):
    def probabilities(self, observation):
        return np.eye(self.k)[np.zeros(self.b, int)]
"""


@pytest.mark.parametrize("format", ["hub", "obp", "vw", "rllib", "minari", "dpo"])
def test_a_law_that_is_none_leaves_nothing_in_any_format(banks, monkeypatch, format):
    if format == "minari":
        pytest.importorskip("minari")
        pytest.importorskip("h5py")
    Path("own_laws.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "own_laws", raising=False)
    feedback = ("--feedback", "stars", "--prompts", "1")
    given = (*feedback, "--exploration", "0", "--bank", banks["words"], *SIZES)
    out = {"rllib": "x.parquet", "minari": "x-v0"}.get(format, "x")
    for name, words in {"Nan": "got [nan, nan", "Never": "act shows response 2"}.items():
        agent = ("--agent", f"own_laws:{name}", "--format", format, "--out", out)
        refused(invoke(*agent, *given), f"{name}.probabilities", words)
    assert {p.name for p in Path().iterdir()} <= {"own_laws.py", "__pycache__"}


def test_an_interrupt_leaves_nothing(banks, monkeypatch):
    from personalllm_env.logged import export

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "record_log", interrupted)
    result = invoke("--bank", banks["tiny"], "--out", "log", *SIZES)
    assert result.exit_code == 130
    assert "Interrupted; nothing is in log." in result.output
    assert not list(Path().iterdir())
