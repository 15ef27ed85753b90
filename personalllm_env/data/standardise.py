"""Standardised scores: raw ones minus a mean, over a standard deviation, per reward model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

from personalllm_env.bank import BankError


def standardise(
    raw: Float[np.ndarray, "P K M"],
    is_test: Bool[np.ndarray, "P"],
    reward_models: Iterable[str],
    constants: dict[str, tuple[float, float]] | None = None,
) -> tuple[Float[np.ndarray, "P K M"], dict[str, tuple[float, float]]]:
    """Standardises raw scores per reward model: (raw - mean) / sd.

    Args:
        raw: (P, K, M) raw scores.
        is_test: (P,) the test split, which the constants do not see.
        reward_models: M names.
        constants: Mean and sd per reward model; by default those of the train split.

    Returns:
        Scores as float32 and the constants used.

    Raises:
        BankError: If a reward model is constant, or its constants are missing or not positive.
    """
    used: dict[str, tuple[float, float]] = {}
    for m, model in enumerate(reward_models):
        if constants is None:
            column = raw[~is_test, :, m].astype(np.float64)
            used[model] = (float(column.mean()), float(column.std()))
        elif model in constants:
            used[model] = constants[model]
        else:
            raise BankError(
                f"no standardisation constants for reward model {model!r}; given for: "
                f"{', '.join(constants)}"
            )
        mean, sd = used[model]
        if not sd > 1e-12 * max(1.0, abs(mean)):
            raise BankError(
                f"reward model {model!r} is constant over the train split "
                f"(mean {mean:.6g}, sd {sd:.3g}); it says nothing, leave it out"
            )
    centre, scale = np.array(list(used.values())).T
    return ((raw - centre) / scale).astype(np.float32), used
