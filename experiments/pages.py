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
        ValueError: If there is no such page, or it has no such markers.
    """
    head, begin, tail = _around(page, made_by)
    write_whole(DOCS / page, f"{head}{begin}\n\n{text.strip()}\n\n{_END}{tail}")


def check_page(page: str | Path, made_by: str) -> None:
    """Checks that ``replace_figures`` will have a place, before long work.

    Raises:
        ValueError: If there is no such page, or it has no such markers.
    """
    _around(page, made_by)


def _around(page: str | Path, made_by: str) -> tuple[str, str, str]:
    """Returns what stands before the figures, the marker they begin at, and the rest."""
    path, begin = DOCS / page, _BEGIN.format(made_by)
    if not path.is_file():
        raise ValueError(f"{page}: expected a page with {begin} ... {_END}, found none")
    head, _, rest = path.read_text("utf-8").partition(begin)
    if _END not in rest:
        raise ValueError(f"{page}: expected {begin} ... {_END}")
    return head, begin, rest.partition(_END)[2]
