"""The page about logged data and its example: what they say runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "libraries" / "logged-data.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    for library in ("vowpalwabbit", "minari", "h5py", "datasets"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "2000 [" in printed
    assert "2000.0 interactions read" in printed
    assert "'chosen'" in printed


@pytest.mark.slow
def test_the_example_learns(tmp_path):
    pytest.importorskip("vowpalwabbit")
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "libraries" / "log_data.py")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env=kept | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"VW after +(\d+) .*: ([\d.-]+) ±([\d.]+)", done.stdout)
    assert [int(n) for n, _, _ in found] == [0, 5, 10, 20, 40]
    before, after = float(found[0][1]), float(found[-1][1])
    assert after - before > 2 * (float(found[0][2]) + float(found[-1][2]))
    assert (tmp_path / "log_data.png").read_bytes().startswith(b"\x89PNG")
