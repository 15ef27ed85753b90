"""A user who is written to, as an OpenEnv environment over ``GenerateEnv``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata

from personalllm_env.adapters.openenv.episode import (
    Clock,
    begin,
    hidden,
    refused,
    told,
    user_of,
    weights_of,
)
from personalllm_env.adapters.openenv.models import (
    GenerateAction,
    GenerateObservation,
    PersonalState,
    check_action,
)
from personalllm_env.adapters.openenv.pages import generate_page, metadata
from personalllm_env.adapters.openenv.resets import ListedTasks, RequestError, read_reset
from personalllm_env.adapters.openenv.rubrics import OpenQuestion, UserRubric, written
from personalllm_env.envs.generate import GenerateEnv

_NOT_HERE = {
    "row": "every session is row 0 of its seed",
    "render_mode": "pages are drawn by render_web",
    "prompt_features": "what is observed is said with features",
}


class GenerateEnvironment(
    ListedTasks, Environment[GenerateAction, GenerateObservation, PersonalState]
):
    """Users ask, an action writes a response, the user may react.

    The episode of a seed is that of ``PersonalLLM/Generate-v0`` with the same settings, and
    everything else is as in ``SelectEnvironment``. Texts are scored in the calling thread (the
    server gives each session one), since real reward models take their time.

    Args:
        settings: Those of ``PersonalLLM/Generate-v0``; may be plain JSON.
        features: Whether observations hold the prompt's features.
        diagnostics: Whether ``metadata`` and ``state`` tell what is hidden.
        utility_reward: Whether the reward is the noise-free utility.
        num_tasks: How many tasks each split lists.

    Attributes:
        problem: What is asked, who reads it and what scores it; ``settings`` of others may
            have it (``{"problem": it}``) and then share it.

    Raises:
        ValueError: If a setting is unknown, means nothing here, or does not fit.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        features: bool = False,
        diagnostics: bool = False,
        utility_reward: bool = False,
        num_tasks: int = 1000,
    ) -> None:
        super().__init__()
        settings = dict(settings or {})
        refused(settings, _NOT_HERE)
        self._env = GenerateEnv(prompt_features=features, **settings)
        self.problem, self._task = self._env.problem, self._env.task
        self._diagnostics = diagnostics
        self._utility_reward = utility_reward
        self.tasks_per_split, self._clock = num_tasks, Clock(self._task.horizon)
        self._user: UserRubric | None = None
        self._prompt = ""

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any
    ) -> GenerateObservation:
        """Begins the next episode, or the first of a new seed.

        Args:
            seed: Of the episode.
            episode_id: Its name; by default a new one.
            kwargs: ``split``, ``index``, ``user`` and ``prompts``: see ``ResetRequest``.

        Raises:
            RequestError: If a keyword is unknown or does not fit; nothing has happened then.
        """
        request = read_reset({"seed": seed, "episode_id": episode_id, **kwargs})
        obs = begin(self._env, request, self)
        self._clock.begin(request.episode_id)
        self._prompt = obs["prompt"]
        self._meet()
        return self._observation(obs, None, metadata={})

    def _meet(self) -> OpenQuestion:
        """Makes the rubric of the user as they are now, and of what they ask."""
        question = OpenQuestion(self.problem, self._prompt)
        episodes = self._env.session.episodes
        self.rubric = self._user = user_of(self._task, episodes, self._clock.t, question)
        return question

    def step(
        self, action: GenerateAction, timeout_s: float | None = None, **kwargs: Any
    ) -> GenerateObservation:
        """Lets the user read a text (or two); they may react.

        Args:
            action: What was written.
            timeout_s: Not obeyed: half a score is none.
            kwargs: What the server adds; of no use here.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
            TypeError: If the action is of another kind.
            RequestError: If there are more or fewer texts than asked for; nothing has
                happened then.
        """
        check_action(action, GenerateAction)
        texts, num = written(action), self._task.num_shown
        if len(texts) != num:
            wanted = "text and other" if num == 2 else "text alone"
            raise RequestError(f"this user reads {num} at a time: expected {wanted}")
        obs, reward, left, truncated, info = self._env.step(texts[0] if num == 1 else texts)
        scores = np.asarray(info["scores"])
        self._meet().remember(texts, scores if num == 1 else scores.mean(axis=0))
        self._prompt = obs["prompt"]
        self._clock.tick(over=left or truncated)
        observation = self._observation(
            obs,
            info["utility"] if self._utility_reward else reward,
            metadata={"terminated": left, "truncated": truncated, "cut": info["cut"]},
        )
        self._apply_rubric(action, observation)
        if self._diagnostics:
            observation.metadata |= hidden(info["utility"], self._user)
        return observation

    def _observation(
        self, obs: dict[str, Any], reward: float | None, metadata: dict[str, Any]
    ) -> GenerateObservation:
        features = obs.get("prompt_features")
        return GenerateObservation(
            prompt=obs["prompt"],
            conversation=obs["conversation"],
            prompt_features=None if features is None else features.tolist(),
            **told(self._task, self._clock, obs, reward, metadata),
        )

    @property
    def state(self) -> PersonalState:
        """Where the episode is."""
        return self._clock.state(weights_of(self._user) if self._diagnostics else None)

    def get_metadata(self) -> EnvironmentMetadata:
        """Says what this environment is."""
        return metadata("PersonalLLM Generate", GenerateEnvironment)

    def render_web(self, observation: dict[str, Any]) -> str | None:
        """Draws the prompt, the conversation so far and what the user said."""
        return generate_page(observation)
