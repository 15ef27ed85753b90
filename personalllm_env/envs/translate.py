"""Between the core's records and Gymnasium's spaces; shared by the single and vector envs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_shared_memory
from jaxtyping import Float, Int, Shaped

from personalllm_env.bank import ResponseBank, Split
from personalllm_env.core import Fixed
from personalllm_env.data import load_bank
from personalllm_env.drift import Drift, GradualDrift, SuddenDrift
from personalllm_env.feedback import FeedbackSpec, built, feedback_model
from personalllm_env.task import Task
from personalllm_env.users import WEIGHTS_TOLERANCE, DirichletUsers, Population, check_weights

ObservationKind = Literal["features", "ids"]

_DRIFTS: dict[str, Callable[..., Drift]] = {
    "gradual": GradualDrift,
    "sudden": SuddenDrift,
}
_OF_SHELLS = ("observation", "regret", "render_mode", "texts")  # not of the task
OPTIONS = ("user", "weights", "prompts", "split", "reset_mask")


def task_from_settings(
    *,
    num_shown: int = 1,
    feedback: FeedbackSpec | None = None,
    bank: ResponseBank | str = "synthetic",
    population: Population | None = None,
    concentration: float | tuple[float, ...] | list[float] | None = None,
    horizon: int = 50,
    split: Split = "train",
    user_split: Split = "all",
    prompts_per_episode: int | None = None,
    shuffle: bool = False,
    drift: Drift | str | Mapping[str, Mapping[str, Any]] | None = None,
    recognise: bool = False,
    white_box: bool = False,
) -> Task:
    """Builds a task from an environment's keywords, all of which may be plain JSON."""
    loaded = load_bank(bank)
    if feedback is None:
        feedback = "choice" if num_shown == 2 else "reward"
    if population is None:
        laws = 0.05 if concentration is None else concentration
        laws = tuple(laws) if isinstance(laws, tuple | list) else laws
        population = DirichletUsers(loaded.num_reward_models, laws)
    elif concentration is not None:
        raise ValueError("give a population or a concentration, not both")
    return Task(
        bank=loaded,
        population=population,
        feedback=feedback_model(feedback),
        horizon=horizon,
        num_shown=num_shown,
        split=split,
        user_split=user_split,
        prompts_per_episode=prompts_per_episode,
        shuffle=shuffle,
        drift=_drift(drift),
        recognise=recognise,
        white_box=white_box,
    )


class UnknownSettingError(TypeError, ValueError):
    """A keyword that no setting has.

    A TypeError, as Python's own for such a keyword, in whose words libraries look for one that
    an environment does not take (TorchRL's ``frameskip``); a ValueError, as what is wrong with
    a setting is everywhere else here.
    """


def check_names(settings: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Raises UnknownSettingError for the first keyword that is not known.

    Args:
        settings: What is left of an environment's keywords once it has taken its own.
        known: The names it knows; by default those of a task and, to be listed, of the shells.
    """
    of_task = known or signature(task_from_settings).parameters
    listed = {*of_task, *(() if known else _OF_SHELLS)}
    for name in settings:
        if name not in of_task:
            others = sorted(listed - {name})
            near = difflib.get_close_matches(name, others, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownSettingError(
                f"unexpected keyword argument {name!r}; {hint}known: {', '.join(others)}"
            )


def _drift(spec: Drift | str | Mapping[str, Mapping[str, Any]] | None) -> Drift | None:
    if spec is None or isinstance(spec, GradualDrift | SuddenDrift):
        return spec
    named: Any = {spec: {}} if isinstance(spec, str) else spec
    if not isinstance(named, Mapping) or len(named) != 1 or not set(named) <= set(_DRIFTS):
        raise ValueError(f"drift must name one of {', '.join(_DRIFTS)}, got {spec!r}")
    [(name, settings)] = named.items()
    return built(f"drift {name!r}", _DRIFTS[name], settings)


class AnyText(spaces.Text):
    """Text of any characters, up to a length; ``spaces.Text`` admits a fixed alphabet only."""

    def contains(self, x: Any) -> bool:
        """Says whether ``x`` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        """Says how long a text may be, and no alphabet, of which there is none."""
        return f"AnyText(max_length={self.max_length})"


@create_shared_memory.register(AnyText)
def _no_shared_memory(space: AnyText, n: int = 1, ctx: Any = None) -> None:
    # Gymnasium's holds alphabets, and what it gives back of them is never the text.
    raise ValueError(
        "texts do not fit into shared memory: make_vec(..., vectorization_mode='async', "
        "vector_kwargs={'shared_memory': False})"
    )


def check_kind(kind: str, task: Task, *, texts: bool) -> None:
    """Raises ValueError where an observation of this kind cannot be built."""
    if texts and task.bank.texts is None:
        raise ValueError(f"texts=True needs a bank with texts; {task.bank.name!r} has none")
    if kind not in ("features", "ids"):
        raise ValueError(f"observation must be 'features' or 'ids', got {kind!r}")
    if kind == "ids" and task.shuffle:
        raise ValueError(
            "observation='ids' does not tell the order of the responses; use shuffle=False"
        )


def observation_space(task: Task, kind: ObservationKind, *, texts: bool = False) -> spaces.Dict:
    """Returns the space of one row's observation, its bounds finite and the bank's."""
    bank, k = task.bank, task.bank.num_responses
    limit = float(np.abs(bank.scores).max()) * (1 + WEIGHTS_TOLERANCE)
    parts = spaces_of_everybody(task, limit)
    if kind == "ids":
        parts["prompt"] = spaces.Discrete(bank.num_prompts)
    else:
        parts["prompt_features"] = box_of(bank.prompt_features, (bank.num_features,))
        parts["response_features"] = box_of(bank.response_features, (k, bank.num_features))
    if task.white_box:
        parts["privileged_scores"] = box_of(bank.scores, (k, bank.num_reward_models))
    if texts and bank.texts is not None:
        longest = max(len(text) for row in bank.texts.responses for text in row)
        parts["prompt_text"] = AnyText(max(map(len, bank.texts.prompts)), min_length=0)
        parts["response_texts"] = spaces.Tuple([AnyText(longest, min_length=0)] * k)
    return spaces.Dict(parts)


def spaces_of_everybody(task: Task, limit: float) -> dict[str, spaces.Space[Any]]:
    """Returns the spaces of what every environment shows: what was said, the time, the user.

    Args:
        task: Whose.
        limit: The largest absolute utility there is.
    """
    widths = [
        (channel, channel.width(task.bank.num_responses)) for channel in task.feedback.channels
    ]
    bounds = [channel.bounds(limit) for channel, width in widths for _ in range(width)]
    low, high = np.array([(min(lo, 0.0), hi) for lo, hi in bounds], dtype=np.float32).T
    parts: dict[str, spaces.Space[Any]] = {
        "feedback": spaces.Box(low, high, dtype=np.float32),
        "heard": spaces.Box(0, 1, (1,), np.float32),
        "step": spaces.Box(0, 1, (1,), np.float32),
    }
    if task.recognise:
        num_users = len(getattr(task.population, "weights", ()))
        if num_users == 0:
            raise ValueError("recognise=True needs a finite population, whose users recur")
        parts["user"] = spaces.Discrete(num_users)
    return parts


def box_of(table: np.ndarray, shape: tuple[int, ...]) -> spaces.Box:
    """Returns the box that a table's rows lie in."""
    limit = float(np.abs(table).max()) or 1.0
    return spaces.Box(-limit, limit, shape, np.float32)


def read_options(options: Mapping[str, Any] | None, task: Task, num_rows: int) -> Fixed:
    """Reads ``reset(options=...)``.

    Args:
        options: ``user`` (a row of the population, or one per env), ``weights`` ((M,) or
            (B, M), on the simplex), ``prompts`` (bank rows, repeated up to the horizon),
            ``split``.
        task: What they apply to.
        num_rows: B.

    Raises:
        ValueError: If a key is unknown or a value does not fit.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"reset options must be a dict or None, got {options!r:.60}")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"unknown reset options {unknown}; known: {', '.join(OPTIONS)}")
    user, weights, prompts = (options.get(key) for key in ("user", "weights", "prompts"))
    for one, other in (("user", "weights"), ("prompts", "split")):
        if options.get(one) is not None and options.get(other) is not None:
            raise ValueError(f"reset options {one!r} and {other!r} exclude each other")
    if user is not None:
        user = _spread("user", _integers("user", user), (num_rows,))
    if weights is not None:
        if task.recognise:
            raise ValueError(
                "options['weights'] make a user who is nobody in the population; "
                "with recognise=True give options['user']"
            )
        m = task.bank.num_reward_models
        given = _numbers("weights", weights)
        weights = check_weights(_spread("weights", given, (num_rows, m)))
    if prompts is not None:
        prompts = _check_prompts(prompts, task.bank.num_prompts)
    return Fixed(user, weights, prompts, options.get("split"))


def _spread(option: str, given: Shaped[np.ndarray, "..."], shape: tuple[int, ...]) -> Any:
    try:
        return np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(
            f"options[{option!r}] must be one for all or have shape {shape}, got {given.shape}"
        ) from None


def _check_prompts(prompts: Any, num_prompts: int) -> Int[np.ndarray, "T"]:
    ids = np.atleast_1d(_integers("prompts", prompts))
    if ids.ndim != 1 or len(ids) == 0 or (ids < 0).any() or (ids >= num_prompts).any():
        raise ValueError(
            f"options['prompts'] must be bank rows in 0..{num_prompts - 1}, got {prompts}"
        )
    return ids


def _numbers(option: str, given: Any) -> Float[np.ndarray, "..."]:
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"options[{option!r}] must be numbers, got {given!r:.60}") from None


def _integers(option: str, given: Any) -> Int[np.ndarray, "..."]:
    try:
        array = np.asarray(given)
    except ValueError:  # rows of different lengths
        array = np.asarray("ragged")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"options[{option!r}] must be integers, got {given!r}")
    return array.astype(np.int64)
