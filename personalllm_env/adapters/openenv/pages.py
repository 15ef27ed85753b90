"""How an observation looks at ``/web``, and the buttons beside it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from openenv.core.env_server.types import EnvironmentMetadata

_LABEL = 60  # characters of a candidate on its button
# As wide as OpenEnv's column: its box would grow with the longest line.
_STYLE = "max-width: min(34em, 80vw); overflow-wrap: anywhere"


def candidate_buttons(observation: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns one button per candidate, none once the episode is over."""
    if observation.get("done"):
        return []
    texts = observation.get("responses")
    if texts is None:
        texts = [""] * len(observation.get("response_features") or ())
    return [(_label(k, text), {"response": k}) for k, text in enumerate(texts)]


def _label(k: int, text: str) -> str:
    words = " ".join(text.split())
    if len(words) > _LABEL:
        words = words[: _LABEL - 1].rstrip() + "…"
    return f"{k + 1}. {words}" if words else f"Response {k + 1}"


def select_page(observation: Mapping[str, Any]) -> str:
    """Draws the prompt, the candidates in full, and what the user said last."""
    texts = observation.get("responses") or ()
    items = "".join(f"<li>{_paragraphs(text)}</li>" for text in texts)
    return _page(observation, f"<ol>{items}</ol>" if items else "")


def generate_page(observation: Mapping[str, Any]) -> str:
    """Draws the prompt, the conversation so far, and what the user said last."""
    conversation = observation.get("conversation") or ""
    so_far = f"<details open><summary>So far</summary>{_paragraphs(conversation)}</details>"
    return _page(observation, so_far if conversation else "")


def _page(observation: Mapping[str, Any], body: str) -> str:
    step, horizon = observation.get("step", 0), observation.get("horizon", 0)
    if observation.get("done"):
        head = f"<p><b>The episode is over</b> after {step} interactions.</p>"
        body = ""
    else:
        asked = _paragraphs(str(observation.get("prompt") or ""))
        head = f"<p>Interaction {step + 1} of {horizon}. The user asks:</p>"
        head += f"<blockquote>{asked}</blockquote>"
    return f'<div style="{_STYLE}">{_said(observation)}{head}{body}</div>'


def _said(observation: Mapping[str, Any]) -> str:
    if not observation.get("step"):
        return ""
    said = observation.get("said") or {}
    if not said:
        return "<p>The user said nothing.</p>"
    words = ", ".join(f"{escape(str(name))} {value:.3g}" for name, value in said.items())
    return f"<p>The user said: <b>{words}</b></p>"


def _paragraphs(text: str) -> str:
    """Returns words as HTML; whatever they are, they are shown and not obeyed."""
    return f'<span style="white-space: pre-wrap">{escape(text)}</span>'


def metadata(name: str, environment: type) -> EnvironmentMetadata:
    """Returns what ``/metadata`` says, in the words of an environment's docstring."""
    try:
        ours = version("personalllm-env")
    except PackageNotFoundError:
        ours = "0"
    paragraph = (environment.__doc__ or "").partition("\n")[0]
    return EnvironmentMetadata(name=name, description=paragraph, version=ours)
