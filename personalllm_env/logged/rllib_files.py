"""A log as the Parquet columns that RLlib's offline algorithms (BC, MARWIL) read.

The columns are those of ``ray.rllib.offline.offline_prelearner.SCHEMA`` (Ray 2.60, new API
stack): ``eps_id``, ``t``, ``obs``, ``actions``, ``rewards``, ``new_obs``, ``terminateds``,
``truncateds``, ``infos``; what is beyond them, here ``action_logp``, reaches learners as the
behaviour policy's output. Ray is not needed to write them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from personalllm_env.envs.translate import observation_space
from personalllm_env.files import written_whole
from personalllm_env.logged.log import Log
from personalllm_env.logged.replay import Episode, SelectStage, replay
from personalllm_env.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

_USERS_AT_ONCE = 128


def write_rllib(log: Log, task: Task, path: str | os.PathLike[str]) -> None:
    """Writes a row per interaction to a Parquet file, whole or not at all.

    Observations are the vectors that ``Flat(gym.make("PersonalLLM/Select-v0", ...))`` returns,
    and rewards come when that environment returns them: late where feedback is late, 0 in
    silence. ``infos`` holds the ``propensity`` of what was shown and ``action_logp`` its
    logarithm. An episode's rows are side by side.

    Args:
        log: Whole episodes that ``record_log`` recorded.
        task: The log's.
        path: The file, called ``*.parquet``: RLlib's ``input_`` finds no others, as a path or
            in a folder.

    Raises:
        ValueError: If the file's name ends otherwise, if the log cannot be played again on the
            task (``replay``), or if observations are not boxes alone (``recognise``).
    """
    from pyarrow import parquet

    need_parquet(path)
    if task.recognise:
        raise ValueError("a user's identity is no part of a vector: log without recognise")
    names = list(observation_space(task, "features").spaces)  # the order of Flat
    tables = _tables(log, replay(log, SelectStage(task)), names)
    first = next(tables)  # before there is a file
    with (
        written_whole(path) as scratch,
        parquet.ParquetWriter(scratch, first.schema, compression="zstd") as writer,
    ):
        for table in chain([first], tables):
            writer.write_table(table)


def need_parquet(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless RLlib would find a file of this name."""
    if Path(path).suffix != ".parquet":
        raise ValueError(f"RLlib finds files called *.parquet, such as log.parquet, got {path}")


def _tables(log: Log, episodes: Iterator[Episode], names: list[str]) -> Iterator[pa.Table]:
    """Yields some users' rows at a time."""
    import pyarrow as pa

    while some := list(islice(episodes, _USERS_AT_ONCE)):
        yield pa.concat_tables([_table(log, episode, names) for episode in some])


def _table(log: Log, episode: Episode, names: list[str]) -> pa.Table:
    import pyarrow as pa

    seen, n = flat_observations(episode, names), len(episode.rewards)
    propensity = log.propensity[episode.rows]
    vectors = [
        pa.ListArray.from_arrays(
            np.arange(n + 1, dtype=np.int32) * seen.shape[1], np.ascontiguousarray(part).ravel()
        )
        for part in (seen[:-1], seen[1:])
    ]
    return pa.table(
        {
            "eps_id": pa.array([str(episode.user)] * n),
            "t": log.t[episode.rows],
            "obs": vectors[0],
            "actions": episode.actions,
            "rewards": episode.rewards,
            "new_obs": vectors[1],
            "terminateds": episode.terminated,
            "truncateds": episode.truncated,
            "infos": pa.array([{"propensity": p} for p in propensity.tolist()]),
            "action_logp": np.log(propensity).astype(np.float32),
        }
    )


def flat_observations(episode: Episode, names: list[str]) -> Float[np.ndarray, "n1 W"]:
    """Returns an episode's n + 1 observations as vectors, as ``Flat`` lays them out."""
    n = len(episode.rewards) + 1
    return np.concatenate([episode.observations[name].reshape(n, -1) for name in names], axis=1)
