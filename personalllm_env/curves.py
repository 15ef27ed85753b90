"""Curves over interactions with their bands, apart from any drawing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from personalllm_env.estimates import linearised

WINDOW = 5
"""Interactions in the moving average."""

_Z = 1.96  # of a 95 % band


class Curve(NamedTuple):
    """A mean per interaction and half its 95 % band, NaN where there is none."""

    middle: Float[np.ndarray, "T"]
    half: Float[np.ndarray, "T"]


def moving_average(values: Float[np.ndarray, "N T"], window: int = WINDOW) -> np.ndarray:
    """Returns the centred moving average over interactions.

    At the start the window shrinks on both sides: the first interactions borrow nothing from
    what was learnt after them. At the end, where there is only a past, it shrinks on one.
    """
    at = np.arange(values.shape[-1])
    back = np.minimum(window // 2, at)
    ahead = np.minimum(back, at[::-1])
    total = np.pad(values, ((0, 0), (1, 0))).cumsum(axis=-1)
    return np.asarray((total[:, at + ahead + 1] - total[:, at - back]) / (ahead + back + 1))


def mean_curve(values: Float[np.ndarray, "N T"]) -> Curve:
    """Returns the mean over users and half its 95 % band (normal)."""
    num = len(values)
    sd = values.std(axis=0, ddof=1) if num > 1 else np.full(values.shape[1], np.nan)
    return Curve(values.mean(axis=0), _Z * sd / num**0.5)


def normalised_curve(
    agent: Float[np.ndarray, "N T"],
    uniform: Float[np.ndarray, "N T"],
    oracle: Float[np.ndarray, "N T"],
    window: int = WINDOW,
) -> Curve:
    """Returns mean(agent - uniform) / mean(oracle - uniform) per interaction, smoothed.

    Both means are smoothed before the division. The band is paired: it is that of a ratio's
    linearisation (the delta method), in which a user's three utilities stay together. NaN
    where the oracle is no better than uniform. Bands take users as independent.
    """
    gained = moving_average(agent - uniform, window)
    gap = moving_average(oracle - uniform, window)
    gap = np.where(gap.mean(axis=0) > 0, gap, 0.0)
    value, influence = linearised(gained, gap, users=-2)
    return Curve(value, mean_curve(influence).half)
