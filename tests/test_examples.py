"""Examples and the README's code run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from personalllm_env.testing import check_agent

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_says_something(script, tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80


def test_readme_code_runs(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)  # a model is saved
    names: dict = {}
    shapes = []
    for block in fenced("python"):
        exec(block, names)  # one after the other, as a reader would
        shapes.append(np.shape(names["obs"].get("response_features")))
    assert shapes[0] == (8, 32)
    check_agent(names["RememberBest"])
    assert 0 <= names["info"]["percentile"] <= 100
    assert "preferred" in names["obs"]["conversation"]


def test_the_agent_that_learns_from_a_history_runs():
    names: dict = {}
    [block] = fenced("python", page("agents.md"))
    exec(block, names)
    check_agent(names["AverageTaste"])


def test_a_track_of_your_own_runs_as_the_page_says(tmp_path):
    track, script = fenced("python", page("tracks/README.md"))
    (tmp_path / "mytracks.py").write_text(track)
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Estimate(") == 4


def test_readme_commands_name_real_options():
    from typer.main import get_command

    from personalllm_env.cli import app

    known = {
        option
        for command in get_command(app).commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    commands = [line for block in fenced("sh") for line in block.splitlines()]
    ours = [
        line.split("personalllm-env ", 1)[1] for line in commands if "personalllm-env " in line
    ]
    assert ours
    for line in ours:
        name, *arguments = line.split()
        assert name in get_command(app).commands
        assert {a for a in arguments if a.startswith("--")} <= known
