"""An agent's look on the page: the figures' colours, made readable on light and on dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from personalllm_env.plots import line_styles

LIGHT, DARK = "#FFFFFF", "#14171C"
"""Backgrounds of the page's charts; the style sheet has the same."""

_LINE_CONTRAST, _TEXT_CONTRAST = 3.0, 4.5  # WCAG 2.1, 1.4.11 and 1.4.3 (AA)
_DASHES = ("7 3", "2 3", "9 3 2 3", "12 4")
_STEPS = 50
_ON_DARK = {"#000000": "#F2F2F2", "#332200": "#D9C9A3"}  # black stays the ink's colour


class Look(NamedTuple):
    """How an agent is drawn.

    Attributes:
        line: Colour of its line on light and on dark.
        text: Colour of its name on light and on dark.
        dash: SVG's ``stroke-dasharray``; empty for a solid line.
        marker: Which of the markers it carries, or -1 for none.
        wide: Whether its line is drawn wider, to be seen behind others.
    """

    line: tuple[str, str]
    text: tuple[str, str]
    dash: str
    marker: int
    wide: bool


def looks(privileges: Mapping[str, tuple[str, ...]]) -> dict[str, Look]:
    """Returns each agent's look, the same as in the figures beside the page.

    Args:
        privileges: Per agent, in the order in which colours are given out.
    """
    found, dashed = {}, 0
    for name, style in line_styles(privileges).items():
        colour, dash = str(style["color"]), ""
        if privileges[name]:
            dash = _DASHES[dashed % len(_DASHES)]
            dashed += 1
        dark = _ON_DARK.get(colour, colour)
        line, text = _LINE_CONTRAST, _TEXT_CONTRAST
        found[name] = Look(
            line=(readable(colour, LIGHT, line), readable(dark, DARK, line)),
            text=(readable(colour, LIGHT, text), readable(dark, DARK, text)),
            dash=dash,
            marker="os^Dv".find(str(style.get("marker", "?"))),
            wide=style["lw"] > 2,
        )
    return found


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two ``#RRGGBB`` colours, 1 to 21 (WCAG 2.1)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def readable(colour: str, background: str, wanted: float) -> str:
    """Returns the colour, moved towards black or white until it stands out enough."""
    end = "#000000" if _luminance(background) > 0.18 else "#FFFFFF"
    for step in range(_STEPS + 1):
        mixed = _mix(colour, end, step / _STEPS)
        if contrast(mixed, background) >= wanted:
            return mixed
    return end


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _mix(one: str, other: str, share: float) -> str:
    pairs = zip(_channels(one), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02X}" for a, b in pairs)


def _luminance(colour: str) -> float:
    parts = [c / 255 for c in _channels(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
