"""A log as a Minari data set: episodes as an environment returned them, on disk.

Minari's own collector needs jax; its writer does not, and a log needs no collector. Vectors
come from ``PersonalLLM/Select-v0``, words from its ``texts=True`` and from
``PersonalLLM/Generate-v0``, whose actions are texts.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from personalllm_env.envs.generate import GenerateEnv
from personalllm_env.envs.single import PersonalEnv
from personalllm_env.extras import require
from personalllm_env.files import folder_written_whole
from personalllm_env.logged.log import Log, check_log
from personalllm_env.logged.replay import Episode, GenerateStage, SelectStage, Stage, replay

_ROOT = "MINARI_DATASETS_PATH"


def write_minari(
    log: Log,
    env: gym.Env[Any, Any],
    path: str | os.PathLike[str],
    *,
    data_format: Literal["hdf5", "arrow"] = "hdf5",
    author: str = "personalllm-env",
    author_email: str = "",
    code_permalink: str = "",
) -> Any:
    """Writes a log as a Minari data set, whole or not at all.

    Infos have, beside each step's outcome, the ``propensity`` of what was shown, and the
    ``probabilities`` of all positions where they are known; at the reset they are 0. Like all
    infos in Minari they are one longer than actions: entry i + 1 belongs to action i. Each
    episode's metadata names its ``user``, and with the seed of the log
    ``gym.make(..., row=user).reset(seed=seed)`` begins it again.

    Args:
        log: Whole episodes that ``record_log`` recorded.
        env: What ``gym.make`` made of the log's task: ``Select-v0``, ``Generate-v0`` where the
            bank has texts (what was shown is taken to have been written), or ``Flat`` of
            Select. ``recover_environment`` makes it again if its keywords are plain JSON.
        path: Where: its last part, such as ``linucb-v0``, is the data set's name, and the
            folder that it is in is Minari's root (``MINARI_DATASETS_PATH``).
        data_format: One file, or a folder of small ones per episode.
        author: For the data set's metadata.
        author_email: For the data set's metadata.
        code_permalink: For the data set's metadata.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        FileExistsError: If there is something at the path.
        ImportError: If Minari is not installed.
        ValueError: If the name is none that Minari takes, or the log cannot be played again in
            the environment (``replay``).
    """
    check_log(log)
    minari = need_minari(Path(path).name)
    if env.spec is None:
        raise ValueError("the environment must come from gym.make, which gives it a spec")
    stage = stage_of(env)
    with (
        folder_written_whole(Path(path).resolve()) as scratch,
        _minari_root(scratch.parent),
        _without_reminders(),
    ):
        minari.create_dataset_from_buffers(
            scratch.name,
            _buffers(log, stage, env.observation_space),
            env=env,
            eval_env=env,
            algorithm_name=str(log.facts.get("agent", "unknown")),
            author=author,
            author_email=author_email,
            code_permalink=code_permalink,
            description=_description(log),
            data_format=data_format,
        )
    return open_minari(path)


def need_minari(name: str) -> ModuleType:
    """Returns Minari, if it can write a data set of this name.

    Raises:
        ImportError: If it, or what it writes with, is not installed.
        ValueError: If the name is none that Minari takes.
    """
    if not re.fullmatch(r"[-\w]+-v\d+", name):
        raise ValueError(f"Minari's data sets have names such as linucb-v0, got {name!r}")
    require("h5py", "minari")
    return require("minari", "minari")


def open_minari(path: str | os.PathLike[str]) -> Any:
    """Returns the Minari data set that ``write_minari`` wrote.

    ``minari.load_dataset(name)`` does the same with ``MINARI_DATASETS_PATH`` set to the folder
    that it is in.
    """
    return require("minari", "minari").MinariDataset(Path(path) / "data")


def stage_of(env: gym.Env[Any, Any]) -> Stage:
    """Returns where a log is played again to see what an environment would have returned.

    Raises:
        ValueError: If that is not known of such an environment.
    """
    inner, space = env.unwrapped, env.observation_space
    if isinstance(inner, GenerateEnv):
        names = getattr(space, "spaces", {})
        limit = names["conversation"].max_length if "conversation" in names else 0
        return GenerateStage(
            inner.problem, max_conversation=limit, prompt_features="prompt_features" in names
        )
    if not isinstance(inner, PersonalEnv):
        raise ValueError(f"expected PersonalLLM/Select-v0 or Generate-v0, got {inner!r}")
    return SelectStage(inner.task, texts="prompt_text" in getattr(space, "spaces", {}))


def _buffers(log: Log, stage: Stage, space: spaces.Space[Any]) -> Iterator[Any]:
    """Yields one of Minari's buffers per user."""
    buffer = require("minari.data_collector.episode_buffer", "minari").EpisodeBuffer
    for episode in replay(log, stage):
        # A list: Minari's arrow format writes arrays of one axis that it cannot read again.
        infos: dict[str, Any] = {"propensity": _after(log.propensity[episode.rows]).tolist()}
        if log.probabilities is not None:
            infos["probabilities"] = _after(log.probabilities[episode.rows])
        yield buffer(
            seed=None,
            options={"user": episode.user},
            observations=_laid_out(episode, space),
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminated,
            truncations=episode.truncated,
            infos=infos,
        )


def _after(values: Float[np.ndarray, "n *K"]) -> Float[np.ndarray, "n1 *K"]:
    """Returns values beside what came after them; 0 at the reset."""
    return np.concatenate([np.zeros_like(values[:1]), values])


def _laid_out(episode: Episode, space: spaces.Space[Any]) -> Any:
    """Returns observations as Minari stores those of a space."""
    seen = episode.observations
    if isinstance(space, spaces.Dict):
        if missing := sorted(set(space.spaces) ^ set(seen)):
            raise ValueError(f"observations cannot have, or lack, {', '.join(missing)}")
        return {name: _columns(part, seen[name]) for name, part in space.spaces.items()}
    vectors = [np.reshape(x, (len(x), -1)) for _, x in sorted(seen.items())]  # as Flat does
    flat = np.concatenate(vectors, axis=1)
    if flat.shape[1:] != space.shape:
        raise ValueError(f"expected the observations of Select or of Flat, got {space}")
    return flat


def _columns(space: spaces.Space[Any], values: Any) -> Any:
    """Returns a tuple of columns for what is a list of tuples."""
    return (
        tuple(map(list, zip(*values, strict=True)))
        if isinstance(space, spaces.Tuple)
        else values
    )


def _description(log: Log) -> str:
    facts = "; ".join(f"{name}: {value}" for name, value in log.facts.items())
    return f"Simulated users of personalllm-env. Episode seed {log.seed}. {facts}"


@contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    """Points Minari at another root for a while; it reads the variable at every call."""
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ROOT]
        else:
            os.environ[_ROOT] = before


@contextmanager
def _without_reminders() -> Iterator[None]:
    """Silences Minari's remarks about metadata that need not be there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is set to None.*", category=UserWarning)
        yield
