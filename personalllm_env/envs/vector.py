"""B users in lockstep: a native ``gymnasium.vector.VectorEnv`` over the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int, Shaped

from personalllm_env.envs.buffers import Buffers
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
Arrays = dict[str, Any]


class PersonalVectorEnv(gym.vector.VectorEnv[Obs, Any, Any]):
    """``PersonalEnv`` for B users at once; row b equals ``PersonalEnv(row=b)`` bit for bit.

    Observations, rewards and infos are arrays with B in front. Their memory is fresh for the
    caller: it is used again only once nobody holds it.

    Args:
        num_envs: B.
        autoreset_mode: What happens after an episode's end, as in ``gymnasium.vector``:
            NEXT_STEP (the following step ignores the row's action and returns the first
            observation of its next episode), SAME_STEP (the step itself returns that, and
            ``info["final_obs"]`` the last observation) or DISABLED (the caller resets the rows
            with ``reset(options={"reset_mask": mask})``).
        observation: ``"features"`` or ``"ids"``.
        regret: Whether ``info`` carries regret, which costs as much as the step.
        settings: As for ``PersonalEnv``; texts are looked up by ``info["prompt"]`` instead.

    Raises:
        ValueError: If a setting is unknown, out of range or does not fit the bank.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        observation: ObservationKind = "features",
        texts: bool = False,
        regret: bool = False,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if texts:
            raise ValueError(
                "the vector env keeps text out of its observations: look it up with "
                "env.unwrapped.task.bank.texts.prompts[info['prompt'][b]]"
            )
        if render_mode is not None:
            raise ValueError("the vector env does not render; make a single env to look at")
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        check_names(settings)
        self.task: Task = task_from_settings(**settings)
        check_kind(observation, self.task, texts=False)
        self.num_envs, self.render_mode, self._kind = num_envs, None, observation
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        k, s = self.task.bank.num_responses, self.task.num_shown
        self.single_observation_space = observation_space(self.task, observation)
        self.single_action_space = (
            spaces.Discrete(k) if s == 1 else spaces.MultiDiscrete([k] * s)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._session = Session(self.task, np.arange(num_envs), regret=regret)
        self._buffers = Buffers()
        self._width = self.task.feedback.width(k)
        self._num_responses = np.uint64(k)
        self._over: Bool[np.ndarray, "B"] | None = None  # None before the first reset
        self._any_over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Arrays]:
        """Begins the next episode of every row, or of those in ``options["reset_mask"]``.

        Args:
            seed: A root seed, any non-negative integer; rows share it and nothing else.
            options: ``reset_mask`` ((B,) bool), and what to hold fixed in the episodes that
                begin: ``user``, ``weights``, ``prompts``, ``split``.

        Raises:
            ValueError: If an option is unknown or does not fit.
        """
        super().reset(seed=seed)
        fixed = read_options(options, self.task, self.num_envs)
        mask = self._reset_mask(options or {}, seed)
        self._session.begin(seed, mask, fixed)
        self._over = np.zeros(self.num_envs, bool) if mask is None else self._over_but(mask)
        self._any_over = bool(self._over.any())
        said, heard, utility, regret = self._nothing()
        if mask is not None:  # other rows see what they saw
            said[~mask], heard[~mask] = self._told[0][~mask], self._told[1][~mask]
        return self._observe(said, heard), self._info(utility, regret)

    def _nothing(self) -> tuple[Any, Any, Any, Any]:
        """Returns said, heard, utility and regret before anything has happened."""
        zero = np.zeros((3, self.num_envs), np.float32)
        return np.zeros((self.num_envs, self._width), np.float32), *zero

    def step(self, actions: Shaped[np.ndarray, "B *S"]) -> tuple[Obs, Any, Any, Any, Arrays]:
        """Shows every user what ``actions`` say and hears, or does not hear, from them.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset, and in mode DISABLED while a
                row's episode is over.
            ValueError: If actions are not B (pairs of) integers in 0..K-1.
        """
        if self._over is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        if self._any_over:
            return self._step_over(self._checked(actions), self._over)
        return self._step(self._checked(actions))

    def _step(
        self, actions: Int[np.ndarray, "B S"], resume: Bool[np.ndarray, "B"] | None = None
    ) -> tuple[Obs, Any, Any, Any, Arrays]:
        """Steps all rows; those in ``resume`` begin their next episode instead."""
        session = self._session
        feedback, diagnostics = session.step(actions)
        terminated, truncated = feedback.left, session.over()
        reward, heard = feedback.reward, feedback.heard.astype(np.float32)
        said = self.task.feedback.encode(feedback, self.task.bank.num_responses)
        utility, regret = diagnostics.utility, diagnostics.regret
        if resume is not None:
            session.begin(mask=resume)
            zero = (reward, heard, said, utility, terminated, truncated)
            for array in zero if regret is None else (*zero, regret):
                array[resume] = 0
        self._over = terminated | truncated
        self._any_over = not session.nobody_left() and bool(self._over.any())
        extra: Arrays = {}
        if self._any_over and self.autoreset_mode is AutoresetMode.SAME_STEP:
            extra = self._final(said, heard, utility, regret)
            session.begin(mask=self._over)
            said, heard = said.copy(), heard.copy()
            said[self._over], heard[self._over] = 0, 0
            self._over, self._any_over = np.zeros_like(self._over), False
        info = self._info(utility, regret) | extra
        return self._observe(said, heard), reward, terminated, truncated, info

    def _step_over(
        self, actions: Int[np.ndarray, "B S"], over: Bool[np.ndarray, "B"]
    ) -> tuple[Obs, Any, Any, Any, Arrays]:
        if self.autoreset_mode is AutoresetMode.DISABLED:
            rows = np.flatnonzero(over)
            raise gym.error.ResetNeeded(
                f"the episodes of {len(rows)} rows are over (first: row {rows[0]}); call "
                "reset(options={'reset_mask': mask}) for them"
            )
        if not over.all():
            return self._step(actions, resume=over)
        self._session.begin()
        self._over, self._any_over = np.zeros_like(over), False
        said, heard, utility, regret = self._nothing()
        ended, reward = np.zeros((2, self.num_envs), bool), np.zeros_like(utility)
        return self._observe(said, heard), reward, *ended, self._info(utility, regret)

    def _checked(self, actions: Any) -> Int[np.ndarray, "B S"]:
        array, expected = np.asarray(actions), self.action_space.shape
        if array.shape != expected or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape {expected}, got {array.dtype} {array.shape}"
            )
        array = array.astype(np.int64, copy=False).reshape(self.num_envs, -1)
        # A negative number is a huge one when read as unsigned: one comparison for both ends.
        wrong = array.view(np.uint64) >= self._num_responses
        if np.count_nonzero(wrong):  # quicker than any()
            row = int(np.flatnonzero(wrong.any(axis=1))[0])
            raise ValueError(
                f"actions must be in 0..{int(self._num_responses) - 1}; "
                f"row {row} is {array[row].tolist()}"
            )
        return array

    def _observe(self, said: Float[np.ndarray, "B W"], heard: Float[np.ndarray, "B"]) -> Obs:
        session, task = self._session, self.task
        self._told = said.copy(), heard.copy()  # the caller may write to what they are given
        obs: Obs = {"feedback": said, "heard": heard[:, None], "step": session.elapsed()}
        if self._kind == "ids":
            prompt = obs["prompt"] = session.episodes.prompt[session.at].copy()
            user = session.episodes.user.copy() if task.recognise else None
            scores = task.bank.scores[prompt] if task.white_box else None
        else:
            seen = session.observe(take=self._buffers.take)
            obs["prompt_features"] = seen.prompt_features
            obs["response_features"] = seen.response_features
            user, scores = seen.user, seen.scores
        if user is not None:
            obs["user"] = user
        if scores is not None:
            obs["privileged_scores"] = scores
        return obs

    def _info(
        self, utility: Float[np.ndarray, "B"], regret: Float[np.ndarray, "B"] | None
    ) -> Arrays:
        session = self._session
        filled = np.empty(self.num_envs, dtype=bool)
        filled[:] = True
        info = {
            "utility": utility,
            "prompt": session.episodes.prompt[session.at].copy(),
            "user": session.episodes.user.copy(),
            # As SyncVectorEnv says which rows have an entry; Gymnasium 1.1 asks for it.
            "_utility": filled,
            "_prompt": filled,
            "_user": filled,
        }
        if session.regret and regret is not None:
            info["regret"], info["_regret"] = regret, filled
        return info

    def _final(
        self,
        said: Float[np.ndarray, "B W"],
        heard: Float[np.ndarray, "B"],
        utility: Float[np.ndarray, "B"],
        regret: Float[np.ndarray, "B"] | None,
    ) -> Arrays:
        """Returns the last observations and infos of the rows whose episode is over.

        ``final_obs`` is an array of per-row observations, as Gymnasium's own wrappers and
        ``SyncVectorEnv`` have it; everything else is a plain array.
        """
        over = self._over
        assert over is not None, "called from step"
        obs, rows = self._observe(said, heard), np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(over):
            rows[row] = {name: value[row] for name, value in obs.items()}
        info = self._info(utility, regret)
        masked = {name: over.copy() if name[0] == "_" else x for name, x in info.items()}
        return {
            "final_obs": rows,
            "_final_obs": over.copy(),
            "final_info": masked,
            "_final_info": over.copy(),
        }

    def _over_but(self, mask: Bool[np.ndarray, "B"]) -> Bool[np.ndarray, "B"]:
        assert self._over is not None, "a first reset has no mask"
        return self._over & ~mask

    def _reset_mask(
        self, options: Mapping[str, Any], seed: int | None
    ) -> Bool[np.ndarray, "B"] | None:
        mask = options.get("reset_mask")
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must be a ({self.num_envs},) bool array")
        if mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                "options['reset_mask'] must be of bools, at least one of them True"
            )
        if mask.all():
            return None
        if seed is not None or self._over is None:
            raise ValueError(
                "the first reset, and one with a new seed, begins all rows: no mask"
            )
        return mask


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    known = {m.name: m for m in AutoresetMode} | {m.value: m for m in AutoresetMode}
    if mode not in known:
        raise ValueError(f"autoreset_mode must be one of {', '.join(known)}, got {mode!r}")
    return known[mode]
