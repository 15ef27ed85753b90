"""The benchmark from the command line: run, go on, report, and what is refused."""

import csv
import json

import pytest
from typer.testing import CliRunner

from personalllm_env.cli import app

pytest.importorskip("jinja2")
PART = ["--track", "clicks-v0", "--track", "meta-learning-v0", "--agent", "linucb"]
SMALL = ["--users", "6", "--seeds", "2", "--size", "smoke", "--workers", "1"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    result = invoke("benchmark", *PART, *SMALL, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_it_says_what_it_will_take_and_what_it_did(done):
    _, output = done
    assert (
        "2 tracks x 4 agents x 2 seeds, 6 users each: 0 cells are finished, 16 to run" in output
    )
    assert "Estimate: " in output
    assert "16 of 16 cells are finished: 0 from before, 16 run now" in output
    assert "clicks-v0" in output


def test_the_report_is_beside_the_results(done):
    folder, _ = done
    names = {path.name for path in (folder / "report").iterdir()}
    assert {"report.html", "leaderboard.csv", "curves.csv"} <= names
    assert {"clicks-v0.png", "clicks-v0.svg", "meta-learning-v0.png"} <= names
    with (folder / "report" / "leaderboard.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["agent"] for row in rows} == {"uniform", "popular", "oracle", "linucb"}
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "personalllm-env benchmark --size smoke --users 6 --seeds 2" in page
    assert str(folder.parent) not in page.replace(str(folder), "")


def test_the_same_command_runs_nothing_again(done):
    folder, _ = done
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*.parquet")}
    assert len(before) == 16
    result = invoke("benchmark", *PART, *SMALL, "--out", folder)
    assert result.exit_code == 0
    assert "16 cells are finished, 0 to run" in result.output
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*.parquet")} == before


def test_the_report_alone_from_what_is_stored(done, tmp_path):
    folder, _ = done
    target = tmp_path / "docs" / "leaderboard.md"
    result = invoke("report", folder, "--out", tmp_path / "page", "--markdown", target)
    assert result.exit_code == 0, result.output
    text = target.read_text(encoding="utf-8")
    assert "meta-learning-v0" in text
    assert "linucb" in text
    first = (folder / "report" / "leaderboard.csv").read_bytes()
    assert (tmp_path / "page" / "leaderboard.csv").read_bytes() == first


def test_an_estimate_runs_nothing(tmp_path):
    result = invoke("benchmark", *PART, *SMALL, "--out", tmp_path / "new", "--estimate")
    assert result.exit_code == 0
    assert "16 to run" in result.output
    assert not (tmp_path / "new").exists()


def test_a_failing_agent_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    (tmp_path / "broken_agents.py").write_text(
        "class Broken:\n"
        "    privileges = frozenset()\n"
        "    def __init__(self, prior): raise RuntimeError('no such luck')\n"
    )
    monkeypatch.chdir(tmp_path)
    part = ["--track", "meta-learning-v0", "--agent", "broken_agents:Broken"]
    result = invoke("benchmark", *part, *SMALL, "--out", "out")
    assert result.exit_code == 1
    assert "broken_agents:Broken" in result.output
    assert "no such luck" in result.output
    assert "6 of 8 cells are finished" in result.output
    assert (tmp_path / "out" / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--track", "clicks-v1"], "did you mean 'clicks-v0'?"),
        (["--agent", "linubc"], "did you mean 'linucb'?"),
        (["--size", "huge"], "size must be one of smoke, default, paper, got 'huge'"),
        (["--users", "0"], "num_users must be at least 1, got 0"),
        (["--seeds", "0"], "num_seeds must be at least 1, got 0"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--bank", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(tmp_path, arguments, message):
    result = invoke("benchmark", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.glob("out/*/*"))


def test_a_report_of_nothing_says_what_to_do(tmp_path):
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no benchmark; `personalllm-env benchmark --out" in result.output
    (tmp_path / "benchmark.json").write_text("{")
    assert "cannot be read" in invoke("report", tmp_path).output
    (tmp_path / "benchmark.json").write_text(json.dumps({"tracks": ["clicks-v0"]}))
    assert "holds no finished results of this code" in invoke("report", tmp_path).output


def test_tracks_are_listed():
    output = invoke("tracks").output
    assert "white-box-v0" in output
    assert "in ten?" in output


def test_a_history_is_written(tmp_path):
    path = tmp_path / "history.parquet"
    result = invoke("history", "--users", 20, "--interactions", 5, "--out", path)
    assert result.exit_code == 0, result.output
    assert "100 interactions of 20 users" in result.output
    assert path.exists()
    bad = invoke("history", "--users", 0, "--out", path)
    assert bad.exit_code == 2
    assert "users must be at least 1" in bad.output
