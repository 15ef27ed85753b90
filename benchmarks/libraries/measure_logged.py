"""Logs in other libraries' formats: interactions written per second, and read back by them.

Every speed is the best of three runs with 500 users, 20 interactions each, of the synthetic
bank; the peer is ``record_log``, which runs LinUCB to make the log.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
from rows import Row

from personalllm_env.logged.log import Log
from personalllm_env.logged.record import build_agent, record_log
from personalllm_env.registry import find_agent

_USERS, _INTERACTIONS, _REPEATS = 500, 20, 3


def rows() -> list[Row]:
    """Measures each format that the installed libraries take."""
    env = gym.make("PersonalLLM/Select-v0", horizon=_INTERACTIONS)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    agent = build_agent(find_agent("linucb"), task, history_users=500)

    def record() -> Log:
        return record_log(agent, task, num_users=_USERS, seed=0)

    log = record()
    peer = _speed(record)
    with tempfile.TemporaryDirectory() as folder:
        place = _Places(Path(folder))
        return [
            *_obp(log, place, peer),
            *_vowpal_wabbit(log, place, peer),
            *_parquet(log, task, place, peer),
            *_minari(log, env, place, peer),
        ]


class _Places:
    """A new path at every call, since nothing is overwritten."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._num = folder, 0

    def __call__(self, suffix: str) -> Path:
        self._num += 1
        return self._folder / f"log{self._num}{suffix}"


def _speed(work: Callable[[], object]) -> float:
    """Returns interactions per second, the best of several runs."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return _USERS * _INTERACTIONS / best


def _against(speed: float, peer: float) -> str:
    return f"{speed / peer:.2f} of recording the log with LinUCB"


def _obp(log: Log, place: _Places, peer: float) -> list[Row]:
    from personalllm_env.logged.obp import bandit_feedback, save_bandit_feedback

    speed = _speed(lambda: save_bandit_feedback(bandit_feedback(log), place(".npz")))
    ran = "`bandit_feedback` to an .npz file (obp itself needs Python below 3.11)"
    return [Row("obp", "keys of 0.5", ran, speed, _against(speed, peer))]


def _vowpal_wabbit(log: Log, place: _Places, peer: float) -> list[Row]:
    import vowpalwabbit

    from personalllm_env.logged.vw import vw_examples, write_vw

    path = place(".vw")
    write_vw(log, path)
    writing = _speed(lambda: write_vw(log, place(".vw")))
    flags = f"--cb_explore_adf --epsilon 0 --quiet -q ur -l 0.1 -d {path}"
    reading = _speed(lambda: vowpalwabbit.Workspace(flags).finish())
    workspace = vowpalwabbit.Workspace(flags)
    worth = np.empty(len(log))
    for i, lines in enumerate(vw_examples(log)):
        shown = 1 + log.action[i]
        lines[shown] = lines[shown].partition(" ")[2]
        law = np.array(workspace.predict(lines))
        worth[i] = law @ log.truth[i] / law.sum()
    workspace.finish()
    users = worth.reshape(_USERS, -1).mean(axis=1)
    random = log.truth.mean()
    learnt = (
        f"mean utility {random:.2f} (random) to {users.mean():.2f} "
        f"±{1.96 * users.std() / _USERS**0.5:.2f} on the prompts logged, {_USERS} users"
    )
    name = "vowpalwabbit"
    written = Row(name, version(name), "lines written", writing, _against(writing, peer))
    read = Row(name, version(name), "`--cb_explore_adf` reads them", reading, "", learnt)
    return [written, read]


def _parquet(log: Log, task: object, place: _Places, peer: float) -> list[Row]:
    import datasets

    from personalllm_env.logged.hub import write_hub
    from personalllm_env.logged.rllib_files import write_rllib

    folder, cache = place(""), place("")
    write_hub(log, folder, task.bank)  # type: ignore[attr-defined]
    hub = _speed(lambda: write_hub(log, place(""), task.bank))  # type: ignore[attr-defined]
    datasets.disable_progress_bars()
    start = time.perf_counter()
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    seconds = time.perf_counter() - start
    rllib = _speed(lambda: write_rllib(log, task, place(".parquet")))  # type: ignore[arg-type]
    load = f"; load_dataset takes {seconds:.1f} s for {len(loaded):,} rows"
    return [
        Row(
            "datasets",
            version("datasets"),
            "hub folder with a card",
            hub,
            _against(hub, peer) + load,
        ),
        Row("ray", version("ray"), "RLlib's columns", rllib, _against(rllib, peer)),
    ]


def _minari(log: Log, env: gym.Env, place: _Places, peer: float) -> list[Row]:
    from personalllm_env.logged.minari_files import write_minari

    speed = _speed(lambda: write_minari(log, env, place("-v0")))
    return [
        Row("minari", version("minari"), "hdf5, vectors", speed, _against(speed, peer)),
    ]
