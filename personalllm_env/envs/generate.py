"""One user who is written to: a ``gymnasium.Env`` whose action is text."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from personalllm_env.envs.lockstep import Known, Obs, report
from personalllm_env.envs.render import Scene, render
from personalllm_env.envs.translate import read_options
from personalllm_env.envs.writing import (
    WritingRows,
    writing_action_space,
    writing_observation_space,
)
from personalllm_env.envs.writing_settings import (
    check_writing_names,
    writing_task_from_settings,
)
from personalllm_env.generation.problem import WritingTask
from personalllm_env.task import Task


class GenerateEnv(gym.Env[Obs, Any]):
    """A simulated user asks, the agent writes a response, the user may react.

    Registered as ``PersonalLLM/Generate-v0``. Users, prompts, noise and feedback are those of
    ``PersonalLLM/Select-v0`` under the same settings and seed; what is written is scored by
    the reward models that scored the bank.

    Action:
        A text of any characters; beyond ``max_characters`` it is cut. With ``num_written=2``
        a tuple of two texts, and the user says which is better.
    Observation:
        A ``Dict``: ``prompt`` (text), ``conversation`` (text: what the user preferred before
        the episode, then what was asked, written and said; the oldest entries are dropped
        where it gets too long), ``feedback`` (W,), ``heard`` (1,) and ``step`` (1,) as in
        Select, and on request ``prompt_features`` (D,) and ``user``.
    Reward:
        The number the user reports (see ``personalllm_env.feedback``), 0 in silence.
    Episode end:
        Truncated after ``horizon`` interactions; terminated when the user leaves.
    Hidden state:
        The user's weights over reward models, drawn anew at every reset.
    Info:
        ``utility`` of what was written (the mean of two), ``scores`` (M,) per reward model
        ((2, M) of two), ``best_of_bank`` (the utility of the best of the bank's K responses),
        ``percentile`` (of the utility among theirs), ``cut`` (whether a text was too long):
        all of the interaction just over, and 0 at reset. ``prompt`` (bank row now asked),
        ``user`` (row in the population, -1 for a user who never recurs). It is for logging;
        nothing in it is needed for learning.
    Versions:
        v0: first.

    Args:
        bank: A ``ResponseBank`` with texts or what ``load_bank`` takes.
        ensemble: What scores texts: an ``Ensemble``, or what ``load_ensemble`` takes. By
            default what scored the bank's responses.
        num_written: 1, or 2 to be compared.
        past: How many pairs of the bank's responses the user compared before the episode, or
            ``"all"`` for one of every prompt of the train split; prompts that the episode
            asks are replaced by others, so that there are no answers to copy.
        past_rule: ``"pair"``, drawn at random, or ``"extremes"``, the user's best and worst.
        max_characters: Where a text is cut.
        max_conversation: How many characters ``conversation`` may have; 0 for none.
        prompt_features: Whether observations carry them.
        row: Which row of a vector env this env equals.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``; pictures show utilities.
        settings: ``population``, ``concentration``, ``feedback``, ``horizon``, ``split``,
            ``user_split``, ``prompts_per_episode``, ``drift`` and ``recognise``, as for
            ``PersonalEnv``.
        problem: What all settings of the task, from ``bank`` to ``max_characters`` and
            ``settings``, describe, made already: environments may share it.

    Attributes:
        problem: What is asked, who reads it, and what scores it.
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
        max_conversation: int = 16_000,
        prompt_features: bool = False,
        row: int = 0,
        render_mode: str | None = None,
        problem: WritingTask | None = None,
        **settings: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode must be one of {modes}, got {render_mode!r}")
        check_writing_names(settings, type(self).__init__)
        if problem is None:
            problem = writing_task_from_settings(**settings)
        elif settings or not isinstance(problem, WritingTask):
            raise ValueError(
                "problem must be a WritingTask, in place of what describes one; got "
                f"{problem!r:.60} beside {', '.join(settings) or 'nothing'}"
            )
        self.problem: WritingTask = problem
        self.task: Task = self.problem.task
        self.render_mode = render_mode
        self._rows = WritingRows(
            self.problem, np.array([row]), max_conversation, prompt_features=prompt_features
        )
        self.session = self._rows.session
        self.observation_space = writing_observation_space(
            self.problem, max_conversation, prompt_features=prompt_features
        )
        self.action_space = writing_action_space(self.problem)
        self._under_way = False

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
        self._rows.begin(seed, None, read_options(options, self.task, 1))
        self._under_way = True
        if self.render_mode == "human":
            self.render()
        said = np.zeros((1, self.task.feedback.width(self.task.bank.num_responses)), np.float32)
        obs = self._rows.observe(said, np.zeros(1, np.float32))
        return _row(obs), self._info(self._rows.nothing())

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Lets the user read a text (or two) and hears, or does not hear, from them.

        Raises:
            gymnasium.error.ResetNeeded: If no episode is under way.
            TypeError: If the action is not text; nothing has happened then.
            ValueError: If there are not ``num_written`` texts.
        """
        if not self._under_way:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is under way")
        written = [[action] if self.task.num_shown == 1 else action]
        feedback, known = self._rows.serve(written, None)
        said = self.task.feedback.encode(feedback, self.task.bank.num_responses)
        obs = self._rows.observe(said, feedback.heard.astype(np.float32))
        left, truncated = bool(feedback.left[0]), bool(self.session.over()[0])
        self._under_way = not (left or truncated)
        if self.render_mode == "human":
            self.render()
        return _row(obs), float(feedback.reward[0]), left, truncated, self._info(known)

    def _info(self, known: Known) -> dict[str, Any]:
        info = report(self.session, known)
        return {name: _plain(values[0]) for name, values in info.items()}

    def render(self) -> Any:
        """Returns (or prints, in mode human) the prompt, what was written, and what was said.

        Utilities stand beside what was written and beside the bank's best response. After a
        reset it is the first prompt alone.
        """
        if self.render_mode is None:
            gym.logger.warn("nothing is rendered: the environment has no render_mode")
            return None
        if self.session.seed is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return render(_scene(self._rows), self.render_mode, most_lines=8)


def _row(obs: Obs) -> Obs:
    return {name: values[0] for name, values in obs.items()}


def _plain(value: NDArray[Any] | np.generic) -> Any:
    """Returns a number as Python's own, and an array as it is."""
    return value.item() if np.ndim(value) == 0 else value


def _scene(rows: WritingRows) -> Scene:
    """Returns what happened last, with the bank's best response as one more card."""
    task, last = rows.problem.task, rows.last
    if last is None:
        first = rows.problem.texts.prompts[rows.session.episodes.prompt[0, 0]]
        return Scene(0, task.horizon, first, ())
    [turn] = last.turns
    utilities, best = last.verdict.bank[0], int(last.verdict.bank[0].argmax())
    cards = [
        (f"written, utility {_signed(utility)}", text)
        for utility, text in zip(last.shown[0], turn.written, strict=True)
    ]
    responder = task.bank.responders[best]
    label = f"best of the bank ({responder}), utility {_signed(utilities[best])}"
    words = rows.problem.texts.responses[last.prompt[0]][best]
    return Scene(
        t=turn.t,
        horizon=task.horizon,
        prompt=turn.prompt,
        responses=(*cards, (label, words)),
        picked=tuple(range(len(cards))),
        said=turn.said,
        delay=task.feedback.delay,
        left=turn.left,
        most_stars=task.feedback.num_stars,
    )


def _signed(utility: float) -> str:
    return f"{round(float(utility), 2) + 0.0:+.2f}"
