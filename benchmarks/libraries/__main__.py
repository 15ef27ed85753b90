"""The table of docs/libraries.md: what runs with which library, how fast, and what it learns.

    python benchmarks/libraries measure sb3        # in an environment that has the library
    python benchmarks/libraries page               # writes the table from what was measured

``nox -- measure`` does the first for every library, each in an environment of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from personalllm_env.files import write_whole

HERE = Path(__file__).parent
MEASURED = HERE / "measured"
PAGE = HERE.parents[1] / "docs" / "libraries.md"
BEGIN, END = "<!-- table: made by benchmarks/libraries -->", "<!-- /table -->"
app = typer.Typer(add_completion=False, help=__doc__)


def known() -> list[str]:
    """Returns the keys of what can be measured."""
    return sorted(path.stem.removeprefix("measure_") for path in HERE.glob("measure_*.py"))


@app.command()
def measure(
    keys: Annotated[list[str], typer.Argument(help=f"Of {', '.join(known())}.")],
) -> None:
    """Runs the measurements of some libraries and keeps what they say."""
    if unknown := sorted(set(keys) - set(known())):
        raise typer.BadParameter(f"expected some of {', '.join(known())}; got {unknown}")
    for key in keys:
        try:
            rows = [row.record() for row in importlib.import_module(f"measure_{key}").rows()]
        except ImportError as error:
            raise typer.BadParameter(f"{key} cannot be measured here: {error}") from error
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "rows": rows,
        }
        MEASURED.mkdir(exist_ok=True)
        write_whole(MEASURED / f"{key}.json", json.dumps(record, indent=1) + "\n")
        print(table(rows))


@app.command()
def page() -> None:
    """Writes the table from everything that was measured."""
    records = {
        path.stem: json.loads(path.read_text("utf-8")) for path in MEASURED.glob("*.json")
    }
    if not records:
        raise typer.BadParameter("nothing was measured yet; see `measure`")
    rows = [row for key in sorted(records) for row in records[key]["rows"]]
    old = PAGE.read_text("utf-8")
    if BEGIN not in old or END not in old:
        raise typer.BadParameter(f"{PAGE.name}: expected {BEGIN} ... {END}")
    head, _, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2]
    text = f"{table(rows)}\n{_circumstances(records)}"
    write_whole(PAGE, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")
    print(f"{len(rows)} rows of {len(records)} libraries in {PAGE}")


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows in Markdown; a library is named at its first."""
    lines = [
        "| library | version | what was run | steps/s | compared with | learning result |",
        "|---|---|---|---:|---|---|",
    ]
    before = None
    for row in rows:
        name = (row["library"], row["version"])
        shown = ("", "") if name == before else name
        speed = row["steps_per_second"]
        cells = (*shown, row["ran"], _speed(speed), row["against"], row["learnt"])
        lines.append("| " + " | ".join(cells) + " |")
        before = name
    return "\n".join(lines) + "\n"


def _speed(steps: float | None) -> str:
    if steps is None:
        return ""
    digits = max(0, len(str(int(steps))) - 3)  # three are more than a busy machine can say
    return f"{round(steps, -digits):,.0f}" if steps >= 10 else f"{steps:.2g}"


def _circumstances(records: Mapping[str, Any]) -> str:
    dates = sorted({record["date"] for record in records.values()})
    pythons = sorted({record["python"] for record in records.values()})
    cores = sorted({str(record["cores"]) for record in records.values()})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"Measured {span} with Python {', '.join(pythons)} on {' or '.join(cores)} cores."


if __name__ == "__main__":
    app()
