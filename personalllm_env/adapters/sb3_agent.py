"""A trained Stable-Baselines3 model as an agent of the benchmark."""

from __future__ import annotations

import inspect
import io
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from jaxtyping import Int

from personalllm_env.adapters.policies import PolicyAgent, Sight, check_fit
from personalllm_env.adapters.sb3_checks import check_masks, sizes_of
from personalllm_env.adapters.sb3_env import Masks, SB3VecEnv
from personalllm_env.envs.augmentations import Augmentation, Parts, several
from personalllm_env.extras import require
from personalllm_env.files import written_whole
from personalllm_env.types import PriorKnowledge

_ENTRY = "personalllm_env.pkl"  # beside SB3's own entries, which SB3 reads and this one not


@dataclass(frozen=True)
class _Saved:
    """What a model's weights do not tell.

    Attributes:
        algorithm: The model's class.
        parts: What observations carried besides.
        flat: Whether they were laid flat.
        masks: What might be shown, for a model that is asked with masks.
        normalise: The state of SB3's ``VecNormalize`` of the observations, if there was one.
    """

    algorithm: type[Any]
    parts: tuple[Augmentation, ...]
    flat: bool
    masks: Masks | None
    normalise: dict[str, Any] | None


def save_agent(
    model: Any,
    path: str | os.PathLike[str],
    *,
    parts: Parts | None = None,
    flat: bool | None = None,
) -> Path:
    """Saves a model as ``model.save`` does, and with it what its policy was shown.

    The file is an ordinary model of SB3's (``PPO.load`` reads it) that ``SB3Agent`` reads too.
    As in any model of SB3's there is pickled code in it: load what you trust.

    Args:
        model: A trained model with its environment. One loaded from a callback's checkpoint
            needs it again: ``PPO.load("best_model", env=env)``.
        path: The file; ``.zip`` is added where there is no ending.
        parts: What observations carried besides. By default that of the model's ``SB3VecEnv``;
            needed where it was trained in another one, or on wrappers of your own.
        flat: Whether observations were laid flat; likewise.

    Returns:
        Where the file is.

    Raises:
        ValueError: If it is unknown what the policy was shown, or no agent is shown that.
    """
    cloudpickle = require("cloudpickle", "sb3")  # as SB3 pickles what is in its files
    shown, normalise = _base(model.get_env()), model.get_vec_normalize_env()
    if parts is None or flat is None:
        if not isinstance(shown, SB3VecEnv) or not shown.plain:
            what = (
                "has no environment" if shown is None else "was not trained in a bare SB3VecEnv"
            )
            given = {"parts=[...]": parts, "flat=...": flat}
            missing = [name for name, value in given.items() if value is None]
            raise ValueError(
                f"the model {what}, so say what it was shown: save_agent(model, path, "
                f"parts=[...], flat=...), of which you left out {' and '.join(missing)}"
            )
        parts = shown.parts if parts is None else parts
        flat = shown.flat if flat is None else flat
    asked = "action_masks" in inspect.signature(model.predict).parameters
    masks = shown.masks if asked and isinstance(shown, SB3VecEnv) else None
    _check_shown(model.observation_space)
    saved = _Saved(type(model), several(parts), flat, masks, _state(normalise))
    content = io.BytesIO()
    model.save(content)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(_ENTRY, cloudpickle.dumps(vars(saved)))
    target = _with_ending(path)
    with written_whole(target) as scratch:
        scratch.write_bytes(content.getvalue())
    return target


def _check_shown(space: Any) -> None:
    """Raises ValueError for observations that no agent is shown."""
    if isinstance(space, spaces.Dict) and "response_features" not in space.spaces:
        raise ValueError(
            f"no agent is shown {', '.join(space.spaces)} alone: train the model with "
            "observation='features'"
        )


def _base(env: Any) -> Any:
    """Returns the environment below SB3's wrappers.

    Raises:
        ValueError: If a wrapper changes what the policy is shown.
    """
    from stable_baselines3.common import vec_env

    known = (vec_env.VecNormalize, vec_env.VecMonitor, vec_env.VecCheckNan)
    while isinstance(env, vec_env.VecEnvWrapper):
        if type(env) not in known:
            raise ValueError(
                f"no agent is shown what {type(env).__name__} shows; use parts=[...], such as "
                "History, in its place"
            )
        env = env.venv
    return env


def _state(normalise: Any) -> dict[str, Any] | None:
    """Returns what a ``VecNormalize`` pickles of itself, without the last observations."""
    if normalise is None:
        return None
    return {**normalise.__getstate__(), "old_obs": None, "old_reward": None}


def _with_ending(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix else Path(f"{path}.zip")


class SB3Agent(PolicyAgent):
    """A model trained with Stable-Baselines3 or sb3-contrib, as ``save_agent`` saved it.

    Args:
        prior: What is known of the task.
        path: The file.
        deterministic: Whether the likeliest response is shown; else one is drawn, where the
            algorithm learnt a law to draw from.
        device: Where the policy is computed.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it needs a library that is not installed.
        ValueError: If it was not saved by ``save_agent``, or the model was trained on a task
            of another shape.
    """

    privileges: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        prior: PriorKnowledge,
        *,
        path: str,
        deterministic: bool = True,
        device: str = "cpu",
    ) -> None:
        saved, model = _load(_with_ending(path), device)
        sight = Sight(prior, saved.parts, flat=saved.flat)
        check_fit(model.observation_space, model.action_space, sight, prior, path)
        policy = _Model(model, saved, deterministic=deterministic)
        super().__init__(prior, policy=policy, parts=saved.parts, flat=saved.flat)


def _load(path: Path, device: str) -> tuple[_Saved, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no model at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(_ENTRY)
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is no model of Stable-Baselines3's, or a damaged one: expected a file "
            "that save_agent(model, path) wrote"
        ) from None
    except KeyError:
        raise ValueError(
            f"{path} does not say what its policy was shown: save the model with "
            "personalllm_env.adapters.sb3.save_agent(model, path) instead of model.save(path)"
        ) from None
    try:
        return _unpickled(path, content, device)
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library == "sb3_contrib":
            remedy = "install it: pip install 'personalllm-env[sb3]'"
        else:
            remedy = "install it, or run in the folder that has it (PYTHONPATH)"
        raise ImportError(
            f"{path} was trained with code of {library!r}, which cannot be imported here: "
            f"{remedy}"
        ) from error


def _unpickled(path: Path, content: bytes, device: str) -> tuple[_Saved, Any]:
    """Loads what is in a file, for which the code that it was trained with is needed."""
    saved = _Saved(**pickle.loads(content))
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    # Without a seed, since a model that has one sets the global ones when it is loaded, and
    # without room for what it will never record.
    plain: dict[str, Any] = {"seed": None, "n_envs": 1, "tensorboard_log": None}
    if issubclass(saved.algorithm, OffPolicyAlgorithm):
        plain["buffer_size"] = 1
    with require("torch", "sb3").random.fork_rng(devices=[]):  # weights are first drawn
        return saved, saved.algorithm.load(path, device=device, **plain)


class _Model:
    """A model of SB3's as a ``Policy``."""

    def __init__(self, model: Any, saved: _Saved, *, deterministic: bool) -> None:
        from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
        from stable_baselines3.common.vec_env import VecNormalize

        if not deterministic and not isinstance(model, OnPolicyAlgorithm):
            raise ValueError(
                f"{type(model).__name__} has no law to draw from: use deterministic=True"
            )
        self._model, self._saved, self._deterministic = model, saved, deterministic
        self._normalise = None
        if saved.normalise is not None:
            self._normalise = VecNormalize.__new__(VecNormalize)
            self._normalise.__setstate__(saved.normalise)
        self._torch, self._sizes = require("torch", "sb3"), sizes_of(model.action_space)

    def reset(self, num_users: int, rng: np.random.Generator) -> None:
        """Forgets what a recurrent policy remembers."""
        self._state, self._rng = None, rng
        self._first = np.ones(num_users, bool)

    def act(self, seen: Any) -> Int[np.ndarray, "B *S"]:
        """Returns what the model predicts, as in ``model.predict``."""
        more: dict[str, Any] = {}
        if self._saved.masks is not None:
            masks = self._saved.masks(seen)
            more["action_masks"] = check_masks(masks, len(self._first), self._sizes)
        if self._normalise is not None:
            seen = self._normalise.normalize_obs(seen)
        with self._torch.random.fork_rng(devices=[], enabled=not self._deterministic):
            if not self._deterministic:
                self._torch.manual_seed(int(self._rng.integers(2**63)))
            chosen, self._state = self._model.predict(
                seen, self._state, self._first, deterministic=self._deterministic, **more
            )
        self._first = np.zeros_like(self._first)
        return np.asarray(chosen)
