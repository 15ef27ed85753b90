"""Which JSON is passed on to OpenEnv's server: what it can both read and quote in an error."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_DEEPEST = 32
_HALVES = re.compile("[\ud800-\udfff]")


class BadMessage(ValueError):
    """A message that is answered with an error.

    Args:
        code: OpenEnv's code of the error.
        words: What was expected and found.
    """

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.20} is beyond the range of numbers")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)


def checked(text: str) -> str:
    """Returns a message as it is, or with halves of surrogate pairs as U+FFFD.

    Raises:
        BadMessage: If it is no JSON object, has numbers that are none or have thousands of
            digits, or is nested too deeply.
    """
    try:
        message = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # of the decoder, of the numbers, of too many digits
        raise BadMessage("INVALID_JSON", f"Invalid JSON: {error}") from None
    if not isinstance(message, dict):
        found = type(message).__name__
        raise BadMessage("VALIDATION_ERROR", f"expected a JSON object, got {found}")
    _check_depth(message, _DEEPEST)
    # Such halves come as escapes: as characters they would be no UTF-8.
    if "\\u" in text:
        whole = json.dumps(message, ensure_ascii=False)
        if _HALVES.search(whole):
            return _HALVES.sub("\ufffd", whole)
    return text


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise _too_deep()
    if isinstance(value, dict):
        for part in value.values():
            _check_depth(part, left - 1)
    elif isinstance(value, list):
        for part in value:
            _check_depth(part, left - 1)


def _too_deep() -> BadMessage:
    return BadMessage("INVALID_JSON", f"nested more than {_DEEPEST} deep")
