"""JSON lines, JSON arrays of any size and concatenated JSON objects, row by row, going on after broken ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from swift_core.data.report import BadRow
from swift_core.data.window import CHUNK, Window

_WRAPPED = re.compile(r'[\s\ufeff]*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*(?=[{\]])')
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
# A list under one of these names is a row's own content, not the rows of the file.
_ROW_COLUMNS = frozenset(
    {"messages", "conversation", "conversations", "history", "tools", "images", "videos", "audios", "prompt", "chosen", "rejected"}
)
# Faults that more text can cure are reported at the very end of the text, except that of an open string.
_NEAR_END = 16

Found = tuple[int, dict[str, Any] | BadRow]


def _constant(word: str) -> float | None:
    return None if word == "NaN" else math.copysign(math.inf, -1 if word.startswith("-") else 1)


# strict=False lets raw tabs and line ends stand inside strings; NaN means missing, as data frames write it.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_constant)

_STRICT = json.JSONDecoder()


def undecodable(text: str) -> str | None:
    """Say where a text holds bytes that are not UTF-8 (read as lone surrogates), or return None."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"byte 0x{ord(text[error.start]) & 0xFF:02x} at column {error.start + 1} is not UTF-8"
    return None


RECODE = "convert the file, for example: iconv -f GB18030 -t UTF-8 IN > OUT"


def read_json(stream: TextIO, name: str) -> Iterator[Found]:
    """Yield (line, values or BadRow) of a text that holds JSON in any of the accepted layouts.

    One object a line, an array of objects, one object whose only key holds an array of objects, or objects one after another.
    """
    first, window = _first_line(stream)
    if first is None:
        return
    if first.lstrip("\ufeff \t").startswith("["):
        yield from _stream_rows(window, name, array=True)
    elif _is_lines(window):
        yield from _line_rows(window, name)
    else:
        wrapped = _WRAPPED.match(window.ahead(CHUNK))
        inside = wrapped is not None and wrapped[1] not in _ROW_COLUMNS
        if wrapped and inside:
            window.advance(wrapped.end())
        yield from _stream_rows(window, name, array=inside, wrapped=inside)


def _first_line(stream: TextIO) -> tuple[str | None, Window]:
    window = Window(stream)
    window.skip_space()
    return (None, window) if window.at_end else (window.line_ahead(), window)


def _is_lines(window: Window) -> bool:
    # One whole object in the first or second line means that lines are rows, even when the other one is broken.
    lines = [line for line in window.lines_ahead(4) if line.strip()][:2]
    return any(_whole_object(line, only=len(lines) == 1) for line in lines)


def _whole_object(line: str, *, only: bool) -> bool:
    try:
        values, end = _DECODER.raw_decode(line.strip().lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    rest = line.strip().lstrip("\ufeff")[end:].strip()
    if not isinstance(values, dict) or rest not in ("", ","):
        return False
    if only and len(values) == 1:
        key, inner = next(iter(values.items()))
        return key in _ROW_COLUMNS or not (isinstance(inner, list) and all(isinstance(item, dict) for item in inner))
    return True


def _line_rows(window: Window, name: str) -> Iterator[Found]:
    for number, line in window.lines():
        text = line.strip().lstrip("\ufeff")
        if text:
            yield number, parse_line(text, f"{name}:{number}")


def parse_line(text: str, origin: str) -> dict[str, Any] | BadRow:
    """Return the object on one line of JSON lines, or what is wrong with it."""
    fault = undecodable(text)
    if fault:
        return BadRow(origin, fault, text, RECODE)
    try:
        values, end = _DECODER.raw_decode(text)
    except JSONDecodeError as error:
        cut = _unended(error) or error.pos >= len(text.rstrip())
        return _broken(origin, text, error, f"column {error.pos + 1}", cut=cut)
    except (ValueError, RecursionError) as error:
        return BadRow(origin, f"broken JSON: {error}", text)
    if text[end:].strip() not in ("", ","):
        return _broken(origin, text, JSONDecodeError("more text after the object", text, end), f"column {end + 1}", cut=False)
    return _row(values, origin, text)


def _broken(origin: str, raw: str, error: JSONDecodeError, where: str, *, cut: bool, more: str = "") -> BadRow:
    unended = _unended(error)
    near = error.doc[max(0, error.pos - (0 if unended else 20)) : error.pos + 40 - (0 if unended else 20)].strip()
    message = "this text has no closing quote" if unended else error.msg
    reason = f"broken JSON at {where}: {message}" + (f", near {near!r}" if near else "") + more
    return BadRow(origin, reason, raw, "the row looks cut off: write it out again" if cut else "")


def _unended(error: JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated string")


def _row(values: Any, origin: str, raw: str) -> dict[str, Any] | BadRow:
    if isinstance(values, dict):
        return values
    kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(values), "a number")
    return BadRow(origin, f"the row is {kind}, not an object", raw, 'write one {"column": value} object for each row')


def _stream_rows(window: Window, name: str, *, array: bool, wrapped: bool = False) -> Iterator[Found]:
    if array and not wrapped:
        window.advance(1)
    broken = False
    while True:
        window.skip_space(commas=True)
        if window.at_end:
            # A row that is cut off takes the end of the list with it: one fault, one report.
            if array and not broken:
                reason = "the file ends inside the list: ']' is missing"
                yield window.line, BadRow(f"{name}:{window.line}", reason, "", "the file looks cut off: write it out again")
            return
        if array and window.char == "]":
            window.advance(1)
            yield from _after_list(window, name, wrapped=wrapped)
            return
        line, found = _next_value(window, name)
        broken = isinstance(found, BadRow)
        yield line, found


def _after_list(window: Window, name: str, *, wrapped: bool) -> Iterator[Found]:
    window.skip_space()
    if wrapped and not window.at_end and window.char == "}":
        window.advance(1)
        window.skip_space()
    if not window.at_end:
        raw = window.ahead(200)
        fix = "keep one list of rows in the file" if wrapped else "keep one list in the file, or one object for each line"
        yield window.line, BadRow(f"{name}:{window.line}", f"more text after the list of rows: {raw[:40]!r}", raw, fix)


def _next_value(window: Window, name: str) -> Found:
    line = window.line
    origin = f"{name}:{line}"
    while True:
        try:
            values, end = _DECODER.raw_decode(window.text, window.position)
        except JSONDecodeError as error:
            curable = error.msg.startswith("Unterminated string") or error.pos > len(window.text) - _NEAR_END
            if curable and window.grow():
                continue
            return line, _skip_broken(window, origin, error)
        except (ValueError, RecursionError) as error:
            return line, BadRow(origin, f"broken JSON: {error}", window.pass_over(_next_start(window)))
        if end == len(window.text) and not isinstance(values, dict) and window.grow():
            continue  # a number may go on in the next piece of the file
        raw = window.text[window.position : end]
        window.advance(end - window.position)
        fault = undecodable(raw)
        return line, BadRow(origin, fault, raw, RECODE) if fault else _row(values, origin, raw)


def _earliest(error: JSONDecodeError, start: int) -> JSONDecodeError:
    """Return the fault of a text that runs on past its line, where that comes first: the closing quote is missing there."""
    try:
        _STRICT.raw_decode(error.doc, start)
    except JSONDecodeError as strict:
        if strict.pos < error.pos and error.doc[strict.pos] == "\n":
            return JSONDecodeError("the line ends inside a text", strict.doc, strict.pos)
    return error


def _skip_broken(window: Window, origin: str, error: JSONDecodeError) -> BadRow:
    error = _earliest(error, window.position)
    fault_line = window.line + error.doc.count("\n", window.position, error.pos)
    column = error.pos - error.doc.rfind("\n", 0, error.pos)
    shares_line = not _own_lines(window)
    raw = window.pass_over(_next_start(window))
    more = "; rows that follow on the same line may be lost with it" if shares_line else ""
    return _broken(origin, raw, error, f"line {fault_line} column {column}", cut=_unended(error) and window.at_end, more=more)


def _own_lines(window: Window) -> bool:
    return window.margin.strip("[ \t") == ""


def _next_start(window: Window) -> int:
    """Return where the row after a broken one starts, as an index into the window's text (its end if there is none)."""
    if _own_lines(window):
        # The next line that opens an object with the same margin, or the end of the list.
        opening = re.compile(r"\n(?:" + re.escape(window.margin.replace("[", "")) + r"(?=\{)|[ \t]*(?=\]\s*\Z))")
        while True:
            found = opening.search(window.text, window.position + 1)
            if found:
                return found.end()
            if not window.grow():
                return len(window.text)
    while window.grow():
        pass
    start = window.position
    depth = 0
    for token in _TOKEN.finditer(window.text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth <= 0 and token[0] in "}]":
            return token.end() if depth == 0 else token.start()
    return len(window.text)
