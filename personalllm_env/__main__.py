"""``python -m personalllm_env`` is the command line."""

from personalllm_env.cli import app

app()
