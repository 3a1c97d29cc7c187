"""Labels of a row: a class, a number, lists of them, or whether an answer is desirable."""

from __future__ import annotations

import math
import re
from typing import Any

from swift_core.data.columns import LABEL, SCORE, Columns
from swift_core.data.values import Refused, as_number, parse_json

_NUMBER = re.compile(r"[+-]?\d+")
_WORDS = {"true": True, "false": False}


def label_of(row: Columns) -> tuple[Any, str | None]:
    """Return the label of a row as its task takes it, and the column it stands in.

    Raises:
        Refused: when it cannot be one.
    """
    column = row.first(SCORE if row.task == "embedding" else LABEL)
    if column is None:
        empty = next((name for name in ("label", "labels") if row.raw.get(name) == []), None)
        # None of the classes: a label only where several classes may hold.
        return ([], empty) if empty and row.task == "seq_cls" else (None, None)
    return _label(row.values[column], row, row.what(column)), column


def _label(value: Any, row: Columns, what: str) -> Any:
    if isinstance(value, list):
        return [_label(item, row, what) for item in value]
    if isinstance(value, str):
        value = _from_text(value, row, what)
        if isinstance(value, list):
            return [_label(item, row, what) for item in value]
    if row.task == "kto" and value in (0, 1):
        return bool(value)
    if row.task in ("seq_cls", "embedding") and isinstance(value, bool):
        return int(value)
    if row.task in ("seq_cls", "embedding") and isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{what} is {value}, not a finite number")
    return value


def _from_text(text: str, row: Columns, what: str) -> Any:
    """Return what a CSV file has turned into a text; a name stays one."""
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if _NUMBER.fullmatch(word):
        return int(word)
    if word.startswith("[") and row.task == "seq_cls":
        return parse_json(word, what)
    try:
        return float(word)
    except ValueError:
        return text


def margin_of(row: Columns) -> tuple[float | None, str | None]:
    """Return by how much the preferred answer is better, and the column that says so.

    Raises:
        Refused: when it is no number.
    """
    if "margin" not in row.values:
        return None, None
    return as_number(row.values["margin"], row.what("margin")), "margin"
