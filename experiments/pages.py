"""Figures in Markdown pages that commands keep up to date."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from personalllm_env.files import write_whole

DOCS = Path(__file__).parents[1] / "docs"
_BEGIN, _END = "<!-- figures: made by {} -->", "<!-- /figures -->"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; columns after the first are aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def replace_figures(page: str | Path, made_by: str, text: str) -> None:
    """Puts ``text`` between the markers of a page, a full path or one in ``docs/``.

    Raises:
        ValueError: If the page has no such markers.
    """
    path, begin = DOCS / page, _BEGIN.format(made_by)
    old = path.read_text("utf-8")
    if begin not in old or _END not in old:
        raise ValueError(f"{page}: expected {begin} ... {_END}")
    head, _, rest = old.partition(begin)
    tail = rest.partition(_END)[2]
    write_whole(path, f"{head}{begin}\n\n{text.strip()}\n\n{_END}{tail}")
