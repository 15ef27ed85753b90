"""A user who is shown responses, as an OpenEnv environment over ``PersonalEnv``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    PersonalState,
    SelectAction,
    SelectObservation,
    check_action,
)
from personalllm_env.adapters.openenv.pages import (
    candidate_buttons,
    metadata,
    select_page,
)
from personalllm_env.adapters.openenv.resets import ListedTasks, RequestError, read_reset
from personalllm_env.adapters.openenv.rubrics import Candidates, UserRubric
from personalllm_env.data import load_bank
from personalllm_env.envs.single import PersonalEnv

_NOT_HERE = {
    "num_shown": "an action shows one response",
    "observation": "what is observed is said with features",
    "texts": "texts are shown wherever the bank has them",
    "regret": "what is not observed is shown with diagnostics",
    "white_box": "what is not observed is shown with diagnostics",
    "row": "every session is row 0 of its seed",
    "render_mode": "pages are drawn by render_web",
}


class SelectEnvironment(
    ListedTasks, Environment[SelectAction, SelectObservation, PersonalState]
):
    """Users ask, an action picks one of K responses, the user may react.

    The episode of a seed is that of ``PersonalLLM/Select-v0`` with the same settings. Reward
    is what the user reports. The user is ``rubric``, a ``WeightedSum`` of one rubric per
    reward model, made anew at every reset; its last score is the utility of what was shown.
    No observation and no state tells of weights, scores or utilities without ``diagnostics``.

    Args:
        settings: Those of ``PersonalLLM/Select-v0`` that concern users, prompts and feedback;
            may be plain JSON. The bank is ``"text"`` by default.
        features: Whether observations hold features; by default where there are no texts.
        diagnostics: Whether ``metadata`` and ``state`` tell what is hidden.
        utility_reward: Whether the reward is the noise-free utility, the simulator's
            privilege, in place of what the user reports.
        num_tasks: How many tasks each split lists.

    Raises:
        ValueError: If a setting is unknown, means nothing here, or does not fit.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        features: bool | None = None,
        diagnostics: bool = False,
        utility_reward: bool = False,
        num_tasks: int = 1000,
    ) -> None:
        super().__init__()
        settings = {"bank": "text"} | dict(settings or {})
        refused(settings, _NOT_HERE)
        bank = settings["bank"] = load_bank(settings["bank"])
        self._texts = bank.texts is not None
        self._features = not self._texts if features is None else features
        if not self._texts and not self._features:
            raise ValueError(
                f"bank {bank.name!r} has no texts: without features, too, observations would "
                "be empty; take features=True"
            )
        # The scores are for the rubric; clients do not get them.
        self._env = PersonalEnv(texts=self._texts, white_box=True, **settings)
        self._task, self._diagnostics = self._env.task, diagnostics
        self._utility_reward = utility_reward
        self.tasks_per_split, self._clock = num_tasks, Clock(self._task.horizon)
        self._user: UserRubric | None = None

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any
    ) -> SelectObservation:
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
        self._next = obs["privileged_scores"]
        self._question = Candidates(self._next)
        self._meet()
        return self._observation(obs, None, metadata={})

    def _meet(self) -> None:
        """Makes the rubric of the user as they are now."""
        episodes = self._env.session.episodes
        self.rubric = self._user = user_of(self._task, episodes, self._clock.t, self._question)

    async def reset_async(
        self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any
    ) -> SelectObservation:
        """Does as ``reset``: a look-up is done sooner than a thread is found for it."""
        return self.reset(seed, episode_id, **kwargs)

    def step(
        self, action: SelectAction, timeout_s: float | None = None, **kwargs: Any
    ) -> SelectObservation:
        """Shows a response; the user may react.

        Args:
            action: Which.
            timeout_s: Of no use: a step is a look-up.
            kwargs: What the server adds; of no use here.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
            TypeError: If the action is of another kind.
            RequestError: If there is no such response; nothing has happened then.
        """
        check_action(action, SelectAction)
        try:
            obs, reward, left, truncated, info = self._env.step(action.response)
        except ValueError as error:
            raise RequestError(str(error)) from None
        self._question.table = self._next
        if self._task.drift is not None and self._clock.t:
            self._meet()
        self._next = obs["privileged_scores"]
        self._clock.tick(over=left or truncated)
        observation = self._observation(
            obs,
            info["utility"] if self._utility_reward else reward,
            metadata={"terminated": left, "truncated": truncated},
        )
        self._apply_rubric(action, observation)
        if self._diagnostics:
            observation.metadata |= hidden(info["utility"], self._user)
        return observation

    async def step_async(
        self, action: SelectAction, timeout_s: float | None = None, **kwargs: Any
    ) -> SelectObservation:
        """Does as ``step``: a look-up is done sooner than a thread is found for it."""
        return self.step(action, timeout_s)

    def _observation(
        self, obs: dict[str, Any], reward: float | None, metadata: dict[str, Any]
    ) -> SelectObservation:
        return SelectObservation(
            prompt=obs.get("prompt_text"),
            responses=list(obs["response_texts"]) if self._texts else None,
            prompt_features=obs["prompt_features"].tolist() if self._features else None,
            response_features=obs["response_features"].tolist() if self._features else None,
            **told(self._task, self._clock, obs, reward, metadata),
        )

    @property
    def state(self) -> PersonalState:
        """Where the episode is."""
        return self._clock.state(weights_of(self._user) if self._diagnostics else None)

    def get_metadata(self) -> EnvironmentMetadata:
        """Says what this environment is."""
        return metadata("PersonalLLM Select", SelectEnvironment)

    def web_actions(self, observation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Returns one button per candidate."""
        return candidate_buttons(observation)

    def render_web(self, observation: dict[str, Any]) -> str | None:
        """Draws the prompt, the candidates and what the user said."""
        return select_page(observation)
