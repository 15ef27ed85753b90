"""A log as a folder in the hub's layout: Parquet under ``data/`` and a README card."""

from __future__ import annotations

import os
from pathlib import Path

from personalllm_env.bank import ResponseBank
from personalllm_env.files import folder_written_whole, write_whole
from personalllm_env.histories import COLUMNS, card_body
from personalllm_env.logged.log import Log
from personalllm_env.logged.log_files import HUB_FILE, about_log, save_log

TAGS = (
    "rl-environment",
    "reinforcement-learning",
    "offline-rl",
    "contextual-bandit",
    "off-policy-evaluation",
    "personalisation",
    "preferences",
    "simulated",
)
_COLUMNS = COLUMNS | {
    "t": "which of the user's interactions, from 0",
    "order": "which of the bank's responses stood at each position",
    "action": "the position that was shown, from 0",
    "propensity": "how likely the agent was to show it, given all that it knew",
    "probabilities": "how likely it was to show each position",
    "said_click": "the position that was clicked on; 0 where silent",
    "left": "whether the user left for good then",
    "true_utility": "the simulator's noise-free utility of each position to the user",
    "response_texts": "what was on offer, in the order shown",
}

_SEED = (
    "The file's metadata has the seed of the episodes, from which the simulator can\n"
    "draw its users again, tastes and all.\n\n"
)


def write_hub(
    log: Log, folder: str | os.PathLike[str], bank: ResponseBank, *, truth: bool = False
) -> Path:
    """Writes a folder that ``datasets.load_dataset`` loads and the hub takes as it is.

    Whole or not at all. Where the bank has texts they are written out.

    Args:
        log: The interactions.
        folder: Where; nothing is there yet.
        bank: The bank that they are about.
        truth: Whether the simulator's utilities are published, too.

    Returns:
        The Parquet file; ``open_log`` reads it, or the folder.

    Raises:
        FileExistsError: If there is something already.
        ValueError: As for ``save_log``.
    """
    with folder_written_whole(folder) as scratch:
        save_log(log, scratch / HUB_FILE, bank, texts=bank.texts is not None, truth=truth)
        write_whole(scratch / "README.md", log_card(scratch / HUB_FILE))
    return Path(folder) / HUB_FILE


def log_card(path: str | os.PathLike[str]) -> str:
    """Returns a data card (a README for the hub, in Markdown) of a log's file.

    Raises:
        ValueError: If the file is no log of a known version.
    """
    about = about_log(path)
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    num, agent = about["num_interactions"], about["facts"].get("agent", "an agent")
    seed = "" if about["seed"] is None else _SEED
    return f"""---
pretty_name: Interactions logged by {agent} (PersonalLLM environment)
task_categories:
- reinforcement-learning
size_categories:
- {_size(num)}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
{tags}
---
# {num} interactions of {about["num_users"]} simulated users, logged by {agent}

What an agent showed, how likely it was to show it, and what users said: for off-policy
evaluation and learning from logged data. They are about
{card_body(about, path, _COLUMNS)}
{seed}```python
from datasets import load_dataset

rows = load_dataset("this/folder", split="train")
```

```python
from personalllm_env.logged.log_files import open_log

log = open_log("this/folder", bank)
```
"""


def _size(num: int) -> str:
    """Returns the hub's word for how many rows there are."""
    for limit, word in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if num < limit:
            return word
    return "100K<n<1M" if num < 1_000_000 else "1M<n<10M"
