"""One interaction as an image: a chat with a card per response, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from personalllm_env.envs.render import Scene, wrap

WIDTH, HEIGHT = 1280, 720
_MARGIN, _GAP, _PAD = 32, 16, 14
_PAGE, _CARD, _LINE, _TRACK, _SHADE = "#f3f5f9", "#ffffff", "#d9dfe8", "#e2e7ef", "#e6eaf1"
_INK, _SOFT, _FAINT = "#1e2733", "#5b6675", "#87919f"
_BLUE, _GREEN, _RED, _GOLD = "#3366dd", "#1f9d63", "#d2434d", "#e8a317"
_BUBBLE, _ALARM, _PICKED = "#dfe9ff", "#fde4e4", "#f5f8ff"
_BADGES = {"preferred": _GREEN, "clicked": _GREEN}
_GLYPHS = {"choice": ("✔", _GREEN), "click": ("☞", _GREEN), "leave": ("➜", _RED)}
_ASPECT = 2.2  # a card's width over its height, if it could choose
_LOW = 96  # from card to card, where there are no words
_FAR = 3.0  # the reward at which its bar is full

Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the scene as an image of 720 by 1280."""
    page = _Page()
    page.header(scene)
    top = page.prompt(scene) + 24
    page.cards(scene, (_MARGIN, top, WIDTH - _MARGIN, HEIGHT - 100))
    page.reaction(scene, (_MARGIN, HEIGHT - 80, WIDTH - _MARGIN, HEIGHT - 28))
    return np.array(page.image)


class _Page:
    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), _PAGE)
        self.pen = ImageDraw.Draw(self.image)

    def header(self, scene: Scene) -> None:
        """Draws which interaction this is, and how much of the episode is over."""
        self.text((_MARGIN, 28), scene.title, _font(18, bold=True), _INK)
        over = (scene.t + (scene.said is not None)) / max(scene.horizon, 1)
        width = WIDTH - 2 * _MARGIN
        self.rounded((_MARGIN, 46, _MARGIN + width, 52), 3, _TRACK)
        if over > 0:
            done = max(min(over, 1) * width, 6)
            self.rounded((_MARGIN, 46, _MARGIN + done, 52), 3, _BLUE)

    def prompt(self, scene: Scene) -> float:
        """Draws what the user asks, and returns where it ends."""
        font, left, top = _font(19), _MARGIN + 64, 72
        lines = wrap(scene.prompt, WIDTH - _MARGIN - left - 40, 3, _ruler(19)) or [" "]
        bottom = top + 26 * len(lines) + 26
        right = left + max(40, *(font.getlength(line) for line in lines)) + 40
        self.image.paste(_person(), (_MARGIN, top + 2))
        self.rounded((left, top, right, bottom), 18, _BUBBLE)
        for i, line in enumerate(lines):
            self.text((left + 20, top + 26 + 26 * i), line, font, _INK)
        return bottom

    def cards(self, scene: Scene, box: Box) -> None:
        """Draws a card per response."""
        left, top, right, bottom = box
        columns, rows = _grid(len(scene.responses), right - left, bottom - top)
        across, down = (right - left + _GAP) / columns, (bottom - top + _GAP) / rows
        if not _wordy(scene):  # low cards, in the middle
            top, down = max(top, (top + bottom - rows * _LOW) / 2), min(down, _LOW)
        for k in range(len(scene.responses)):
            x, y = round(left + k % columns * across), round(top + k // columns * down)
            self.card(scene, k, (x, y, x + int(across) - _GAP, y + int(down) - _GAP))

    def card(self, scene: Scene, k: int, box: Box) -> None:
        """Draws response ``k``: number, responder, as many words as fit, and its badges."""
        left, top, right, bottom = box
        badges = scene.badges(k)
        radius = min(12.0, (bottom - top) / 3)
        edge, colour = (3, _BADGES.get(badges[-1], _BLUE)) if badges else (1, _LINE)
        self.rounded((left, top + 3, right, bottom + 3), radius, _SHADE)
        self.rounded(box, radius, colour)
        inner = (left + edge, top + edge, right - edge, bottom - edge)
        self.rounded(inner, max(radius - edge, 1), _PICKED if badges else _CARD)
        self.face(scene, k, box, colour)
        x = right - 10.0
        for badge in reversed(badges):
            x = self.badge(badge, x, top, _BADGES.get(badge, _BLUE)) - 5

    def face(self, scene: Scene, k: int, box: Box, colour: str) -> None:
        """Writes on a card."""
        left, top, right, bottom = box
        width, height = max(right - left, 1), max(bottom - top, 1)
        picked = bool(scene.badges(k))
        dim = bool(scene.picked) and not picked
        ample = (width * height) ** 0.5 / 18 if _wordy(scene) else min(width / 12, 16)
        size = int(np.clip(ample, 11, 18))
        pad, line = min(_PAD, height // 8), round(size * 1.4)
        lines = int((height - pad - line - 12) // line) if _wordy(scene) else 0
        y = top + pad + line / 2 if lines > 0 else (top + bottom) / 2
        x, chip = left + max(pad, 8), _font(size - 1, bold=True)
        after = x + max(chip.getlength(str(k + 1)) + 10, line - 2)
        self.rounded((x, y - line / 2 + 1, after, y + line / 2 - 1), line, colour)
        self.text(((x + after) / 2, y), str(k + 1), chip, _CARD if picked else _SOFT, "mm")
        responder, words = scene.responses[k]
        ruler, room = _ruler(size, bold=True), right - pad - after - 8
        names = wrap(responder, room, 1, ruler) if room > 20 else []
        if names and names[0].endswith("…"):  # its organisation can be spared: google/gemini
            names = wrap(responder.rpartition("/")[2], room, 1, ruler) or names
        for name in names:
            self.text((after + 8, y), name, _font(size, bold=True), _SOFT if dim else _INK)
        y += line + 4
        for text in wrap(words, width - 2 * pad, lines, _ruler(size)):
            self.text((left + pad, y), text, _font(size), _FAINT if dim else _INK)
            y += line

    def badge(self, words: str, right: float, middle: float, colour: str) -> float:
        """Draws a pill that ends at ``right``, and returns where it begins."""
        font = _font(12, bold=True)
        left = right - font.getlength(words) - 16
        self.rounded((left, middle - 10, right, middle + 10), 10, colour)
        self.text(((left + right) / 2, middle), words, font, _CARD, "mm")
        return left

    def reaction(self, scene: Scene, box: Box) -> None:
        """Draws what the user says and whether they leave; nothing before they could speak."""
        sentences = scene.sentences()
        if not sentences:
            return
        left, top, right, bottom = box
        left += 64
        sentences[1:] = [(c, s.removeprefix(f"{scene.who} ")) for c, s in sentences[1:]]
        for size in range(19, 8, -1):
            width = sum(self.utter(scene, *s, None, size) for s in sentences)
            width += 40 + 28 * (len(sentences) - 1)
            if width <= right - left:
                break
        self.image.paste(_person(), (_MARGIN, int(top) + 2))
        end = min(left + width, right)
        self.rounded((left, top, end, bottom), 18, _ALARM if scene.left else _BUBBLE)
        x = left + 20
        for channel, sentence in sentences:
            x += self.utter(scene, channel, sentence, (x, (top + bottom) / 2), size) + 28

    def utter(
        self,
        scene: Scene,
        channel: str,
        sentence: str,
        at: tuple[float, float] | None,
        size: int,
    ) -> float:
        """Draws one sentence with its sign, and returns its width; only measures at None."""
        sign, colour = _sign(scene, channel)
        font, glyphs = _font(size), _font(size + 4)
        start = _ruler(size + 4)(sign) + 10 if sign else 0.0
        if at is not None:
            self.text(at, sign, glyphs, colour)
            self.text((at[0] + start, at[1]), sentence, font, _INK)
        width = start + _ruler(size)(sentence)
        if channel != "reward":
            return width
        if at is not None:
            self.bar((scene.said or {})["reward"], at[0] + width + 14, at[1], 4 * size)
        return width + 14 + 8 * size

    def bar(self, reward: float, x: float, y: float, half: int) -> None:
        """Draws a reward as a bar to the right (green) or to the left (red) of 0."""
        self.rounded((x, y - 5, x + 2 * half, y + 5), 5, _CARD)
        zero, colour = x + half, _GREEN if reward > 0 else _RED
        start, end = sorted((zero, zero + half * min(max(reward / _FAR, -1), 1)))
        if end - start >= 1:
            self.rounded((start, y - 5, end, y + 5), 3, colour)
        self.pen.line((zero, y - 9, zero, y + 9), _SOFT, 2)

    def text(
        self,
        at: tuple[float, float],
        words: str,
        font: ImageFont.FreeTypeFont,
        colour: str,
        anchor: str = "lm",
    ) -> None:
        """Writes one line."""
        self.pen.text(at, words, colour, font, anchor)

    def rounded(self, box: Box, radius: float, colour: str) -> None:
        """Fills a box with rounded corners."""
        left, top, right, bottom = (round(edge) for edge in box)
        size = (max(right - left, 1), max(bottom - top, 1))
        self.image.paste(colour, (left, top), _mask(*size, round(radius)))


def _sign(scene: Scene, channel: str) -> tuple[str, str]:
    """Returns a sign for what is said through a channel, and its colour."""
    value = (scene.said or {}).get(channel, 0.0)
    if channel == "like":
        return ("♥", _RED) if value > 0.5 else ("♡", _FAINT)
    if channel == "stars":
        most = min(max(scene.most_stars, 1), 10)
        stars = int(np.clip(round(value), 0, most))
        return "★" * stars + "☆" * (most - stars), _GOLD
    return _GLYPHS.get(channel, ("", _INK))


def _wordy(scene: Scene) -> bool:
    """Says whether any response has words; a synthetic bank's have none."""
    return any(words and not words.isspace() for _, words in scene.responses)


def _grid(count: int, width: float, height: float) -> tuple[int, int]:
    """Returns columns and rows: few holes, and cards about as wide as they like to be."""

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        aspect = (width / columns) / (height / rows)
        return abs(float(np.log(aspect / _ASPECT))) + 4 * (rows * columns - count) / count

    columns = min(range(1, count + 1), key=cost, default=1)
    return columns, max(-(-count // columns), 1)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


@cache
def _ruler(size: int, *, bold: bool = False) -> Callable[[str], float]:
    """Returns what measures words in pixels; it remembers them, for words recur."""
    return lru_cache(maxsize=4096)(_font(size, bold=bold).getlength)


@lru_cache(maxsize=256)
def _mask(width: int, height: int, radius: int) -> Image.Image:
    """Returns a box with smooth round corners: each is drawn four times as large."""
    radius = max(min(radius, width // 2, height // 2), 0)
    mask = Image.new("L", (width, height), 255)
    if radius:
        corner = Image.new("L", (4 * radius, 4 * radius), 0)
        ImageDraw.Draw(corner).ellipse((0, 0, 8 * radius - 1, 8 * radius - 1), 255)
        corner = corner.reduce(4)
        for turn, place in enumerate(
            [
                (0, 0),
                (0, height - radius),
                (width - radius, height - radius),
                (width - radius, 0),
            ]
        ):
            mask.paste(corner.rotate(90 * turn), place)
    return mask


@cache
def _person() -> Image.Image:
    """Returns a disc with a head and shoulders."""
    figure = Image.new("RGB", (192, 192), _BLUE)
    pen = ImageDraw.Draw(figure)
    pen.ellipse((62, 36, 129, 103), _BUBBLE)
    pen.ellipse((32, 116, 159, 260), _BUBBLE)
    disc = Image.new("RGB", (192, 192), _PAGE)
    disc.paste(figure, (0, 0), _mask(192, 192, 96))
    return disc.reduce(4)
