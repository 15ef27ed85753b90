"""What the command ``log`` does: an agent's interactions, in a format by its name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalllm_env.envs.translate import task_from_settings
from personalllm_env.logged.log import Log
from personalllm_env.logged.preferences import Pairs, duel_pairs, reward_pairs, write_pairs
from personalllm_env.logged.record import build_agent, record_duels, record_log
from personalllm_env.registry import check_settings, find_agent
from personalllm_env.runner import Progress
from personalllm_env.task import Task

FORMATS = ("hub", "obp", "vw", "rllib", "minari", "dpo")


@dataclass(frozen=True)
class LogRequest:
    """What is to be logged.

    Attributes:
        agent: As for ``find_agent``.
        format: One of ``FORMATS``.
        out: The file or folder, where nothing is yet.
        settings: Keywords of ``PersonalLLM/Select-v0``, plain JSON; with ``num_shown=2`` those
            of ``Duel-v0``.
        num_users: How many.
        history_users: Other users that agents with ``fit`` learn from first.
        exploration: As for ``record_log``.
        seed: Of everything.
        truth: Whether the simulator's utilities are written, where the format has a place.
        texts: Whether a Minari data set has the words.
    """

    agent: str
    format: str
    out: Path
    settings: Mapping[str, Any]
    num_users: int
    history_users: int
    exploration: float
    seed: int
    truth: bool = False
    texts: bool = False

    def check(self) -> Task:
        """Returns the task; makes the folder of ``out``, if all is well.

        Raises:
            ValueError: If something does not fit together.
            LookupError: If there is no such agent.
            OSError: If there is something at ``out``, or nothing can be written there.
            ImportError: If the agent's or the format's library is missing.
        """
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}; known: {', '.join(FORMATS)}")
        if self.out.exists():
            raise FileExistsError(f"{self.out} exists; choose another path with --out")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration must be in [0, 1], got {self.exploration}")
        if self.truth and self.format not in ("hub", "obp"):
            raise ValueError(f"--truth is for the formats hub and obp, not {self.format}")
        if self.texts and self.format != "minari":
            raise ValueError(
                "--texts is for the format minari; hub and dpo hold the texts of a bank that "
                "has them"
            )
        task = task_from_settings(**self.settings)
        if task.num_shown > 1 and self.format != "dpo":
            raise ValueError(
                f"the format {self.format} is of tasks that show one response; duels are for "
                "the format dpo"
            )
        if (self.format == "dpo" or self.texts) and task.bank.texts is None:
            raise ValueError(
                f"the bank {task.bank.name!r} has no texts; --bank text has, for one"
            )
        self._check_format(task)
        check_settings([find_agent(self.agent)], task)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.out.parent).close()
        except OSError as error:
            raise OSError(
                f"{self.out} cannot be written ({error.strerror}); choose another path with "
                "--out"
            ) from error
        return task

    def _check_format(self, task: Task) -> None:
        """Checks what one format alone asks for; each is loaded when it is asked for."""
        match self.format:
            case "minari":
                from personalllm_env.logged.minari_files import need_minari

                need_minari(self.out.name)
            case "rllib":
                from personalllm_env.logged.rllib_files import need_parquet

                need_parquet(self.out)
            case "obp" if self.truth:
                from personalllm_env.logged.obp import check_expected

                check_expected(channel.name for channel in task.feedback.channels)


def export(request: LogRequest, progress: Progress | None = None) -> str:
    """Records what an agent shows and what users say, and writes it.

    Args:
        request: What.
        progress: As for ``runner.run``.

    Returns:
        What was written, in a sentence.

    Raises:
        ValueError, LookupError, OSError, ImportError: One sentence for the user.
    """
    task, entrant = request.check(), find_agent(request.agent)
    agent = build_agent(entrant, task, seed=request.seed, history_users=request.history_users)
    many: dict[str, Any] = {
        "num_users": request.num_users,
        "seed": request.seed,
        "exploration": request.exploration,
        "progress": progress,
    }
    if task.num_shown == 2:
        return _write_pairs(duel_pairs(record_duels(agent, task, **many)), task, request.out)
    log = record_log(agent, task, name=request.agent, **many)
    if request.format == "dpo":
        return _write_pairs(reward_pairs(log), task, request.out)
    num = _write(request, log, task)
    return f"{num} interactions of {log.num_users} users"


def _write_pairs(pairs: Pairs, task: Task, out: Path) -> str:
    write_pairs(pairs, task.bank, out)
    return f"{len(pairs.user)} pairs"


def _write(request: LogRequest, log: Log, task: Task) -> int:
    """Writes a log; returns how many of its interactions the format holds."""
    # Each format is loaded when it is asked for: some import a library.
    match request.format:
        case "hub":
            from personalllm_env.logged.hub import write_hub

            write_hub(log, request.out, task.bank, truth=request.truth)
        case "obp":
            from personalllm_env.logged.obp import bandit_feedback, save_bandit_feedback

            feedback = bandit_feedback(log, expected_reward=request.truth)
            save_bandit_feedback(feedback, request.out)
            return feedback["n_rounds"]
        case "vw":
            from personalllm_env.logged.vw import write_vw

            return write_vw(log, request.out)
        case "rllib":
            from personalllm_env.logged.rllib_files import write_rllib

            write_rllib(log, task, request.out)
        case "minari":
            import gymnasium as gym

            from personalllm_env.logged.minari_files import write_minari

            settings = {**request.settings, "texts": request.texts}
            write_minari(log, gym.make("PersonalLLM/Select-v0", **settings), request.out)
    return len(log)
