"""The command line: ``personalllm-env COMMAND``. Importing a module adds its commands."""

from personalllm_env.cli import (
    benchmarking,
    comparing,
    logging,
    playing,
    scoring,
    serving,
    writing,
)
from personalllm_env.cli.app import app, parse_feedback

__all__ = [
    "app",
    "benchmarking",
    "comparing",
    "logging",
    "parse_feedback",
    "playing",
    "scoring",
    "serving",
    "writing",
]
