"""What clients may ask of ``reset``, and the tasks that can be listed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personalllm_env.adapters.openenv.models import Whole
from personalllm_env.streams import derived_seed

SPLITS = ("train", "test")
_LARGEST_SEED = 2**128 - 1
_LARGEST_ROW = 2**31 - 1


class RequestError(ValueError):
    """A request that cannot be met; it says what was expected and what was found."""


class ResetRequest(BaseModel):
    """The keywords of ``reset``.

    Attributes:
        seed: The same seed gives the episode that Gymnasium's environment gives.
        episode_id: A name for the episode.
        split: Whose prompts: of the train or the test split.
        index: With ``split``: which of its tasks.
        user: A row of the population, where there is a finite one.
        prompts: Bank rows to ask, repeated up to the horizon.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[Whole, Field(ge=0, le=_LARGEST_SEED)] | None = None
    episode_id: Annotated[str, Field(max_length=255)] | None = None
    split: Literal["train", "test"] | None = None
    index: Annotated[Whole, Field(ge=0, le=_LARGEST_ROW)] | None = None
    user: Annotated[Whole, Field(ge=0, le=_LARGEST_ROW)] | None = None
    prompts: list[Annotated[Whole, Field(ge=0, le=_LARGEST_ROW)]] | None = None

    def options(self) -> dict[str, Any]:
        """Returns what Gymnasium's ``reset`` takes as options."""
        given = {"split": self.split, "user": self.user, "prompts": self.prompts}
        return {name: value for name, value in given.items() if value is not None}


def read_reset(data: Mapping[str, Any]) -> ResetRequest:
    """Reads the keywords of ``reset``.

    Raises:
        RequestError: For the first that is unknown or does not fit.
    """
    try:
        request = ResetRequest.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(ResetRequest.model_fields)
            raise RequestError(f"reset: unknown {where!r:.60}; known: {known}") from None
        found = f"{first['input']!r:.60}"
        raise RequestError(f"reset: {where:.60}: {first['msg']}, got {found}") from None
    if request.index is not None:
        if request.split is None:
            raise RequestError(
                "reset: index is the number of a task of a split: give split, too"
            )
        if request.seed is not None:
            raise RequestError("reset: a task has its own seed: give index or seed, not both")
    return request


class ListedTasks:
    """OpenEnv's ``TaskProvider``: a task is a user of a split and prompts of the same split.

    Attributes:
        tasks_per_split: How many there are.
    """

    tasks_per_split: int

    def list_splits(self) -> list[str]:
        """Returns whose prompts may be asked."""
        return list(SPLITS)

    def num_tasks(self, split: str) -> int:
        """Returns how many tasks a split has.

        Raises:
            RequestError: If there is no such split.
        """
        if split not in SPLITS:
            raise RequestError(f"split must be one of {', '.join(SPLITS)}, got {split!r:.60}")
        return self.tasks_per_split

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Returns one; ``reset(split=split, index=index)`` begins it.

        Users of the two splits share nothing.

        Raises:
            RequestError: If there is no such split.
            IndexError: If there is no such task.
        """
        num = self.num_tasks(split)
        if not 0 <= index < num:
            raise IndexError(f"index must be in 0..{num - 1}, got {index}")
        # Below 2 ** 53: JSON's numbers are floats to some who read them.
        seed = derived_seed(index, f"openenv task, {split}") % 2**53
        return {"id": f"{split}-{index}", "split": split, "index": index, "seed": seed}

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """Returns all tasks of a split."""
        return self.get_task_range(split)

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        """Returns some by the rules of Python's slices."""
        return [self.get_task(split, i) for i in range(self.num_tasks(split))[start:stop]]
