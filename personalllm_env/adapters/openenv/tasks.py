"""Tasks that can be listed: which user asks which prompts, by split and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from personalllm_env.adapters.openenv.resets import RequestError
from personalllm_env.streams import derived_seed

SPLITS = ("train", "test")


@dataclass(frozen=True)
class TaskList:
    """So many episodes per split: ``index`` names the user, the split the prompts.

    Attributes:
        num_tasks: Per split.
    """

    num_tasks: int = 1000

    def check(self, split: object) -> None:
        """Raises RequestError unless this is a split."""
        if split not in SPLITS:
            raise RequestError(f"split must be one of {', '.join(SPLITS)}, got {split!r:.60}")

    def seed(self, split: str, index: int) -> int:
        """Returns the root seed of a task; users of the two splits share nothing.

        Raises:
            RequestError: If there is no such split.
            IndexError: If there is no such task.
        """
        self.check(split)
        if not 0 <= index < self.num_tasks:
            raise IndexError(f"index must be in 0..{self.num_tasks - 1}, got {index}")
        # Below 2 ** 53: JSON's numbers are floats to some who read them.
        return derived_seed(index, f"openenv task, {split}") % 2**53

    def get(self, split: str, index: int) -> dict[str, Any]:
        """Returns a task; ``reset(split=split, index=index)`` begins it."""
        seed = self.seed(split, index)
        return {"id": f"{split}-{index}", "split": split, "index": index, "seed": seed}

    def some(self, split: str, start: int | None, stop: int | None) -> list[dict[str, Any]]:
        """Returns tasks by the rules of Python's slices."""
        self.check(split)
        return [self.get(split, index) for index in range(self.num_tasks)[start:stop]]


class ListedTasks:
    """OpenEnv's ``TaskProvider`` for an environment that has ``tasks``."""

    tasks: TaskList

    def list_splits(self) -> list[str]:
        """Returns whose prompts may be asked."""
        return list(SPLITS)

    def num_tasks(self, split: str) -> int:
        """Returns how many tasks a split has."""
        self.tasks.check(split)
        return self.tasks.num_tasks

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """Returns all tasks of a split."""
        return self.tasks.some(split, None, None)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Returns one; ``reset(split=split, index=index)`` begins it."""
        return self.tasks.get(split, index)

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        """Returns some by the rules of Python's slices."""
        return self.tasks.some(split, start, stop)
