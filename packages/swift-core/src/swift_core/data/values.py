"""Values of a row as they must be: texts, numbers, lists and JSON inside texts, or the reason why not."""

from __future__ import annotations

import json
import math
from typing import Any


class Refused(ValueError):
    """Why a row cannot become a sample, and what to do about it."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def absent(value: Any) -> bool:
    """Say whether a column holds nothing: null, NaN, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value) or (isinstance(value, float) and math.isnan(value))


def parse_json(text: str, what: str) -> Any:
    """Return the value of a JSON text inside a row.

    Raises:
        Refused: when it is broken.
    """
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is not valid JSON: {error}") from None


def plain_text(value: Any, what: str) -> str:
    """Return a text that can be tokenised.

    Raises:
        Refused: when it is no text, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise Refused(f"{what} is {kind_of(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(
                f"{what} holds half of a character (\\u{ord(value[error.start]):04x})", "the text was cut inside an emoji: mend it"
            ) from None
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """Return a list, which may be written as a JSON text, as CSV files do.

    Raises:
        Refused: when it is none.
    """
    if isinstance(value, str):
        value = parse_json(value, what)
    if not isinstance(value, list):
        raise Refused(f"{what} is {kind_of(value)}, not a list")
    return value


def as_object(value: Any, what: str) -> dict[str, Any]:
    """Return an object, which may be written as a JSON text.

    Raises:
        Refused: when it is none.
    """
    if isinstance(value, str):
        value = parse_json(value, what)
    if not isinstance(value, dict):
        raise Refused(f"{what} is {kind_of(value)}, not an object")
    return value


def as_number(value: Any, what: str) -> float:
    """Return a finite number, which may be written as a text.

    Raises:
        Refused: when it is none.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Refused(f"{what} is {value!r}, not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{what} is {kind_of(value)}, not a number")
    if not math.isfinite(value):
        raise Refused(f"{what} is {value}, not a finite number")
    return float(value)


def kind_of(value: Any) -> str:
    """Name the JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), f"a {type(value).__name__}"
    )
