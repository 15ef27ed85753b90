"""Writes the table of costs that estimates start from, from a folder of results.

    personalllm-env benchmark --out results/benchmark
    python benchmarks/costs.py results/benchmark

What agents take is measured where the results were: on other machines the table is off by
their speed, until a run has results of its own to go by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personalllm_env.benchmark.costs import write_table
from personalllm_env.benchmark.store import Store

TABLE = Path(__file__).parents[1] / "personalllm_env" / "benchmark" / "costs.json"


def main(
    folder: Annotated[Path, typer.Argument(help="Where `benchmark` put its results.")],
    out: Annotated[Path, typer.Option(help="The table.")] = TABLE,
) -> None:
    """Writes each agent's median costs over all results of a folder."""
    if not any(Store(folder).headers()):
        raise typer.BadParameter(f"{folder} holds no results")
    print(f"{len(write_table(Store(folder), out))} agents in {out}")


if __name__ == "__main__":
    typer.run(main)
