"""What both environments share: the clock, resets, what is told and what is not."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from openenv.core.rubrics import Rubric

from personalllm_env.adapters.openenv.models import PersonalState
from personalllm_env.adapters.openenv.resets import ListedTasks, RequestError, ResetRequest
from personalllm_env.adapters.openenv.rubrics import Question, UserRubric
from personalllm_env.core import Episodes, weights_at
from personalllm_env.task import Task


class Clock:
    """Where an episode is.

    Args:
        horizon: Its interactions, unless the user leaves.

    Attributes:
        t: Interactions so far.
        done: Whether no episode is under way.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon, self.t, self.done = horizon, 0, True
        self._episode_id: str | None = None

    def begin(self, episode_id: str | None) -> None:
        """Begins an episode, under a new name unless one is given."""
        self._episode_id = str(uuid.uuid4()) if episode_id is None else episode_id
        self.t, self.done = 0, False

    def tick(self, *, over: bool) -> None:
        """Ends an interaction, and the episode if it is over."""
        self.t, self.done = self.t + 1, over

    def state(self, weights: dict[str, float] | None) -> PersonalState:
        """Returns what clients may know of it."""
        return PersonalState(
            episode_id=self._episode_id,
            step_count=self.t,
            horizon=self.horizon,
            done=self.done,
            weights=weights,
        )


def last_scores(rubric: Rubric) -> dict[str, float | None]:
    """Returns what each reward model scored last, by name."""
    return {name: child.last_score for name, child in rubric.named_rubrics()}


def hidden(utility: float, user: UserRubric | None) -> dict[str, Any]:
    """Returns utility and scores of what was just shown, for those who ask for diagnostics."""
    return {"utility": utility, "scores": {} if user is None else last_scores(user)}


def begin(env: gym.Env[Any, Any], request: ResetRequest, tasks: ListedTasks) -> dict[str, Any]:
    """Begins an episode of a Gymnasium environment and returns its observation.

    Raises:
        RequestError: If something asked for does not fit.
    """
    seed = request.seed
    try:
        if request.index is not None:
            seed = tasks.get_task(str(request.split), request.index)["seed"]
        obs, _ = env.reset(seed=seed, options=request.options())
    except (ValueError, IndexError) as error:
        raise RequestError(f"reset: {error}") from None
    return obs


def refused(settings: Mapping[str, Any], not_here: Mapping[str, str]) -> None:
    """Raises ValueError for the first setting that means nothing here."""
    for name in settings:
        if name in not_here:
            raise ValueError(f"setting {name!r} means nothing here: {not_here[name]}")


def user_of(task: Task, episodes: Episodes, t: int, question: Question) -> UserRubric:
    """Returns the user of an episode's interaction as rubrics."""
    return UserRubric(task.bank.reward_models, weights_at(episodes, t)[0], question)


def weights_of(user: UserRubric | None) -> dict[str, float] | None:
    """Returns a user's weights by reward model; None for nobody."""
    if user is None:
        return None
    names = [name for name, _ in user.named_children()]
    return dict(zip(names, user.weights, strict=True))


def told(
    task: Task,
    clock: Clock,
    obs: Mapping[str, Any],
    reward: float | None,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Returns what observations of both kinds tell: what was said, by whom, and when."""
    said: dict[str, float] = {}
    if obs["heard"][0]:
        heard = task.feedback.decode(obs["feedback"][None], task.bank.num_responses)
        said = {channel: float(value[0]) for channel, value in heard.items()}
    return {
        "said": said,
        "heard": bool(said),
        "step": clock.t,
        "horizon": clock.horizon,
        "user": int(obs["user"]) if "user" in obs else None,
        "reward": reward,
        "done": clock.done,
        "metadata": metadata,
    }
