"""Histories as data sets of their own: recorded and written in one go, and described."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalllm_env.database import Database, record_history
from personalllm_env.history_files import about_history, open_database, save_database
from personalllm_env.paper_files import read_paper_interactions, write_paper_interactions
from personalllm_env.task import Task

__all__ = [
    "COLUMNS",
    "about_history",
    "card_body",
    "history_card",
    "open_database",
    "read_paper_interactions",
    "save_database",
    "write_history",
    "write_paper_interactions",
]


def write_history(
    task: Task,
    num_users: int,
    seed: int,
    path: str | os.PathLike[str],
    *,
    paper: bool = False,
    texts: bool = False,
) -> Database:
    """Records a history of a task's train side and writes it to a Parquet file.

    Args:
        task: As for ``record_history``.
        num_users: How many users, at least 1.
        seed: Of the history.
        path: The file.
        paper: Write PersonalLLM's columns, a row per user, instead of our own.
        texts: Write what was asked and shown too, in our own format.

    Returns:
        What was recorded.

    Raises:
        ValueError: If the format has no place for the task's feedback, or the bank no texts.
    """
    if num_users < 1:
        raise ValueError(f"a history needs at least 1 user, got {num_users}")
    database = record_history(task, num_users=num_users, seed=seed)
    if paper:
        write_paper_interactions(database, task.bank, path)
    else:
        facts = {"seed": seed, **_facts(task)}
        save_database(database, path, task.bank, facts=facts, texts=texts)
    return database


def _facts(task: Task) -> dict[str, Any]:
    """Returns, as plain JSON, how a task's histories come about."""
    feedback = task.feedback
    modifiers = [part for part in (feedback.silence, feedback.leave) if part is not None]
    return {
        "policy": "uniformly random",
        "horizon": task.horizon,
        "feedback": [repr(part) for part in (*feedback.channels, *modifiers)],
        "population": repr(task.population),
        "prompts_per_episode": task.prompts_per_episode,
        "drift": None if task.drift is None else repr(task.drift),
    }


COLUMNS = {
    "user": "which user, from 0; rows are sorted by user and then by time",
    "interaction": "which of the user's interactions, from 1",
    "prompt": "row of the prompt in the bank, from 0",
    "shown": "which of the bank's responses to it were shown, from 0",
    "reward": "the number that the user reported; 0 where silent",
    "heard": "whether the user said anything",
    "said_reward": "the utility of what was shown, with noise; 0 where silent",
    "said_like": "1 for a like, else 0",
    "said_stars": "how many stars; 0 where silent",
    "said_choice": "1 if the first of two shown was preferred, -1 the second; 0 where silent",
    "said_click": "which of all the responses was clicked on, from 0; 0 where silent",
    "identity": "row of the user in the population",
    "prompt_text": "what was asked",
    "shown_text": "what was shown",
}
"""What the columns of a history hold, for data cards."""


def history_card(path: str | os.PathLike[str]) -> str:
    """Returns a data card (a README for the hub, in Markdown) of a history's file.

    Raises:
        ValueError: If the file is no history of a known version.
    """
    about, file = about_history(path), Path(path).name
    return f"""---
configs:
- config_name: default
  data_files: {file}
tags:
- personalisation
- preferences
- simulated
---
# Interactions of {about["num_users"]} simulated users

{about["num_interactions"]} interactions with {card_body(about, path, COLUMNS)}
```python
from datasets import load_dataset

rows = load_dataset("parquet", data_files="{file}", split="train")
```

```python
from personalllm_env.histories import open_database

agent.fit(open_database("{file}", bank))
```
"""


def card_body(
    about: Mapping[str, Any], path: str | os.PathLike[str], columns: Mapping[str, str]
) -> str:
    """Returns what a data card says of a file of interactions, from "the bank ..." on.

    Args:
        about: What the file says of itself.
        path: The file.
        columns: What columns hold, by name.
    """
    from pyarrow import parquet

    bank = about["bank"]
    rows = "\n".join(
        f"| `{field.name}` | {field.type} | {columns.get(field.name, 'what was said')} |"
        for field in parquet.read_schema(path)
    )
    facts = "\n".join(f"- {name}: {value}" for name, value in about["facts"].items())
    return f"""the bank `{bank["name"]}`
({bank["num_prompts"]} prompts with {len(bank["responders"])} responses each; digest
`{bank["digest"]}`). Users are simulated: their tastes are mixtures of the reward models
{", ".join(bank["reward_models"])} (PersonalLLM, arXiv 2409.20296). The mixtures are not in
the file.

| column | type | holds |
|---|---|---|
{rows}

How it was recorded:

{facts or "- not known"}
"""
