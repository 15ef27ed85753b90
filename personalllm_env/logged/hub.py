"""A log as a folder in the hub's layout: Parquet under ``data/`` and a README card."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from personalllm_env.bank import ResponseBank
from personalllm_env.files import write_whole
from personalllm_env.logged.log import Log
from personalllm_env.logged.log_files import about_log, save_log

_FILE = "data/train-00000-of-00001.parquet"
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
_COLUMNS = {
    "user": "which user, from 0; rows are sorted by user and then by time",
    "t": "which of the user's interactions, from 0",
    "prompt": "row of the prompt in the bank, from 0",
    "order": "which of the bank's responses stood at each position",
    "action": "the position that was shown, from 0",
    "propensity": "how likely the agent was to show it, given all that it knew",
    "probabilities": "how likely it was to show each position",
    "reward": "the number that the user reported; 0 where silent",
    "heard": "whether the user said anything",
    "said_reward": "the utility of what was shown, with noise; 0 where silent",
    "said_like": "1 for a like, else 0",
    "said_stars": "how many stars; 0 where silent",
    "said_click": "the position that was clicked on; 0 where silent",
    "left": "whether the user left for good then",
    "identity": "row of the user in the population",
    "true_utility": "the simulator's noise-free utility of each position to the user",
    "prompt_text": "what was asked",
    "response_texts": "what was on offer, in the order shown",
}


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
        The Parquet file, which ``open_log`` reads.

    Raises:
        FileExistsError: If there is something already.
        ValueError: As for ``save_log``.
    """
    target = Path(folder)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        whole = scratch / target.name  # mkdtemp's own folder is for its owner alone
        save_log(log, whole / _FILE, bank, texts=bank.texts is not None, truth=truth)
        write_whole(whole / "README.md", log_card(whole / _FILE))
        whole.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target / _FILE


def log_card(path: str | os.PathLike[str]) -> str:
    """Returns a data card (a README for the hub, in Markdown) of a log's file.

    Raises:
        ValueError: If the file is no log of a known version.
    """
    from pyarrow import parquet

    about = about_log(path)
    columns = "\n".join(
        f"| `{field.name}` | {field.type} | {_COLUMNS.get(field.name, 'what was said')} |"
        for field in parquet.read_schema(path)
    )
    facts = "\n".join(f"- {name}: {value}" for name, value in about["facts"].items())
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    bank, num = about["bank"], about["num_interactions"]
    agent = about["facts"].get("agent", "an agent")
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
evaluation and learning from logged data. The bank is `{bank["name"]}`
({bank["num_prompts"]} prompts with {len(bank["responders"])} responses each; digest
`{bank["digest"]}`). Users are simulated: their tastes are mixtures of the reward models
{", ".join(bank["reward_models"])} (PersonalLLM, arXiv 2409.20296). The mixtures are not in
the file.

| column | type | holds |
|---|---|---|
{columns}

How it was recorded:

{facts or "- not known"}

```python
from datasets import load_dataset

rows = load_dataset("this/folder", split="train")
```

```python
from personalllm_env.logged.log_files import open_log

log = open_log("this/folder/{_FILE}", bank)
```
"""


def _size(num: int) -> str:
    """Returns the hub's word for how many rows there are."""
    for limit, word in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if num < limit:
            return word
    return "100K<n<1M" if num < 1_000_000 else "1M<n<10M"
