"""One user at a time: a ``gymnasium.Env`` shell over the core."""

from __future__ import annotations

from collections import deque
from operator import index
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int

from personalllm_env import core
from personalllm_env.core import Fixed
from personalllm_env.envs.outcomes import Outcomes
from personalllm_env.envs.render import Scene, render
from personalllm_env.envs.translate import (
    ObservationKind,
    check_kind,
    check_names,
    observation_space,
    read_options,
    task_from_settings,
)
from personalllm_env.session import Session
from personalllm_env.task import Task

Obs = dict[str, Any]


class PersonalEnv(gym.Env[Obs, Any]):
    """A simulated user asks, the agent shows one or more of K responses, the user may react.

    Registered as ``PersonalLLM/Select-v0`` (``num_shown=1``) and ``PersonalLLM/Duel-v0``
    (``num_shown=2``).

    Action:
        Select: ``Discrete(K)``, the response to show. Duel: ``MultiDiscrete([K, K])``, the two
        to compare (they may be the same).
    Observation:
        A ``Dict`` of float32 boxes, fresh memory at every call: ``prompt_features`` (D,),
        ``response_features`` (K, D), ``feedback`` (W,) what the user said last, encoded
        channel after channel and 0 in silence, ``heard`` (1,) whether they said anything,
        ``step`` (1,) the share of the episode that is over. With ``observation="ids"`` the
        bank row ``prompt`` stands in place of the features. On request ``user`` (identity),
        ``privileged_scores`` (K, M), ``prompt_text`` and ``response_texts``.
    Reward:
        The number the user reports (see ``personalllm_env.feedback``), 0 in silence. The
        noise-free utility is in ``info["utility"]``; ``UtilityReward`` swaps it in.
    Episode end:
        Truncated after ``horizon`` interactions; terminated when the user leaves.
    Hidden state:
        The user's weights over reward models, drawn anew at every reset, and the scores.
    Info:
        ``utility`` of what was shown (0 at reset), ``prompt`` (bank row now asked), ``user``
        (row in the population, -1 for a user who never recurs), and ``regret`` on request. It
        is for logging; nothing in it is needed for learning.
    Versions:
        v0: first.

    Args:
        bank: A ``ResponseBank`` or what ``load_bank`` takes. By default ``"synthetic"``, and
            ``"text"`` where words are shown: with ``texts`` or a ``render_mode``.
        population: Who asks; by default users who are always new, of this concentration.
        concentration: The Dirichlet parameter (the paper's alpha), or several.
        feedback: What the user says: see ``personalllm_env.feedback.feedback_model``. By
            default a noisy reward in Select and a choice in Duel.
        horizon, split, user_split, prompts_per_episode, shuffle, drift, recognise, white_box:
            See ``personalllm_env.task.Task``.
        num_shown: How many responses an action shows.
        observation: ``"features"`` or ``"ids"``.
        texts: Whether observations carry the words.
        regret: Whether ``info`` carries regret.
        row: Which row of a vector env this env equals.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Attributes:
        task: The decision problem.
        session: The clock, and the episode under way with all that is hidden in it.

    Raises:
        ValueError: If a setting is unknown, out of range or does not fit the bank.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["ansi", "human", "rgb_array"],
        "render_fps": 1,
    }

    def __init__(
        self,
        *,
        observation: ObservationKind = "features",
        texts: bool = False,
        regret: bool = False,
        row: int = 0,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode must be one of {modes}, got {render_mode!r}")
        check_names(settings)
        if texts or render_mode is not None:  # words are for reading: real ones
            settings = {"bank": "text"} | settings
        self.task: Task = task_from_settings(**settings)
        check_kind(observation, self.task, texts=texts)
        self.render_mode = render_mode
        self._kind, self._texts = observation, texts
        self.observation_space = observation_space(self.task, observation, texts=texts)
        k, s = self.task.bank.num_responses, self.task.num_shown
        self.action_space = spaces.Discrete(k) if s == 1 else spaces.MultiDiscrete([k] * s)
        self._actions = np.ascontiguousarray(np.indices((k,) * s).reshape(s, -1).T)
        self.session = Session(self.task, np.array([row]), regret=regret)
        self._width = self.task.feedback.width(k)
        self._t: int | None = None
        self._scene: Scene | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begins the next episode of the row's stream, or the first of a new seed.

        Args:
            seed: A root seed, any non-negative integer.
            options: What to hold fixed in this episode: ``user``, ``weights``, ``prompts``,
                ``split``.

        Raises:
            ValueError: If an option is unknown or does not fit.
        """
        super().reset(seed=seed)
        self._begin(seed, read_options(options, self.task, 1))
        if self.render_mode == "human":
            self.render()
        return self._observe(0, self._silent.copy(), heard=False), self._info(0, 0.0, 0.0)

    def _begin(self, seed: int | None, fixed: Fixed) -> None:
        session, horizon = self.session, self.task.horizon
        session.begin(seed, fixed=fixed)
        at = (np.arange(horizon + 1), np.zeros(horizon + 1, dtype=np.int64))
        self._seen = core.observe(self.task, session.episodes, at)
        self._prompt: list[int] = self._seen.prompt.tolist()
        self._user = int(session.episodes.user[0])
        self._outcomes = Outcomes(session, 0, self._actions)
        self._silent = np.zeros(self._width, dtype=np.float32)
        self._late = deque([(0.0, False, self._silent)] * self.task.feedback.delay)
        self._t, self._scene = 0, None

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Shows a response (two in Duel) and hears, or does not hear, from the user.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
            ValueError: If the action is not in the action space.
        """
        t, table = self._t, self._outcomes_at(self._t)
        assert t is not None, "_outcomes_at checks it"
        row = table.row(t, self._number(action))
        reward, heard, said = table.reward[row], table.heard[row], table.said[row]
        if self._late:
            self._late.append((reward, heard, said))
            reward, heard, said = self._late.popleft()
        left, truncated = table.left[row], t + 1 >= self.task.horizon
        self._t = None if left or truncated else t + 1
        observation = self._observe(t + 1, said.copy(), heard=heard)
        regret = table.regret[row] if table.regret else 0.0
        info = self._info(t + 1, table.utility[row], regret)
        if self.render_mode is not None:
            self._remember(t, action, said, heard=heard, left=left)
        return observation, reward, left, truncated, info

    def _outcomes_at(self, t: int | None) -> Outcomes:
        if t is None:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is under way")
        if t >= self._outcomes.last:
            self._outcomes = Outcomes(self.session, t, self._actions)
        return self._outcomes

    def _number(self, action: Any) -> int:
        """Returns the number of an action, counting pairs row by row."""
        k, s = self.task.bank.num_responses, self.task.num_shown
        if s == 1:
            try:
                number = index(action)
            except TypeError:  # no integer
                number = -1
            if 0 <= number < k:
                return number
        elif np.shape(action) == (s,):
            pair = np.asarray(action)
            if pair.dtype.kind in "iu" and pair.min() >= 0 and pair.max() < k:
                return int(np.ravel_multi_index(tuple(pair), (k,) * s))
        shape = "an integer" if s == 1 else f"{s} integers"
        raise ValueError(f"action must be {shape} in 0..{k - 1}, got {action!r}")

    def _observe(self, t: int, said: Float[np.ndarray, "W"], *, heard: bool) -> Obs:
        seen = self._seen
        obs: Obs = {
            "feedback": said,
            "heard": np.array([heard], dtype=np.float32),
            "step": np.array([t], dtype=np.float32) / np.float32(self.task.horizon),
        }
        if self._kind == "ids":
            obs["prompt"] = np.int64(self._prompt[t])
        else:
            obs["prompt_features"] = seen.prompt_features[t].copy()
            obs["response_features"] = seen.response_features[t].copy()
        if seen.user is not None:
            obs["user"] = np.int64(seen.user[t])
        if seen.scores is not None:
            obs["privileged_scores"] = seen.scores[t].copy()
        if self._texts and self.task.bank.texts is not None:
            words = self.task.bank.texts.responses[self._prompt[t]]
            obs["prompt_text"] = self.task.bank.texts.prompts[self._prompt[t]]
            obs["response_texts"] = tuple(words[k] for k in self._order(t))
        return obs

    def _order(self, t: int) -> Int[np.ndarray, "K"]:
        order = self.session.episodes.order
        return np.arange(self.task.bank.num_responses) if order is None else order[t, 0]

    def _info(self, t: int, utility: float, regret: float) -> dict[str, Any]:
        info = {"utility": utility, "prompt": self._prompt[t], "user": self._user}
        if self.session.regret:
            info["regret"] = regret
        return info

    def render(self) -> Any:
        """Returns (or prints, in mode human) the prompt, the responses, and what happened.

        After a step that is the interaction just over; after a reset, the first prompt.
        """
        if self.render_mode is None:
            gym.logger.warn("nothing is rendered: the environment has no render_mode")
            return None
        if not hasattr(self, "_prompt"):
            raise gym.error.ResetNeeded("call reset() before render()")
        scene = self._scene or Scene.of(self.task, self._prompt[0], self._order(0), t=0)
        return render(scene, self.render_mode)

    def _remember(
        self, t: int, action: Any, said: Float[np.ndarray, "W"], *, heard: bool, left: bool
    ) -> None:
        k = self.task.bank.num_responses
        told = self.task.feedback.decode(said[None], k) if heard else {}
        self._scene = Scene.of(
            self.task,
            self._prompt[t],
            self._order(t),
            t=t,
            picked=tuple(np.atleast_1d(action).tolist()),
            said={name: float(value[0]) for name, value in told.items()},
            left=left,
        )
        if self.render_mode == "human":
            self.render()
