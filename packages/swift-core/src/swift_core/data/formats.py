"""Rows of every accepted format as samples. Each format is one small function, chosen by the columns that hold something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swift_core.data.turns import (
    MEDIA_FIX,
    MEDIA_REASON,
    ROLES,
    Refused,
    check_order,
    kind_of,
    parse_json,
    parse_turns,
    plain_text,
    with_system,
)
from swift_core.errors import DataError
from swift_core.protocols import Message, Sample

CONVERSATION = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "question", "problem", "instruction", "input")
RESPONSE = ("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "completion", "text", "content")
TEXT = ("text", "content", "response")
SYSTEM = ("system", "system_prompt")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_PAIRS = "pairs need a preference method; sft and pt train one conversation a row"
_CLAIMED_BY_ALL = (*SYSTEM, "tools")
ACCEPTED = (
    "messages/conversations (list of role+content, from+value or human+assistant turns); instruction+input+output; "
    "query+response (or prompt, question, problem, ... + answer, output, completion, ...); text"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """The columns of a row that hold something, under lower-case names.

    `names` keeps the spelling of the file, for messages and for `Sample.extra`; `shown` lists all columns for messages,
    `empty` those that hold nothing.
    """

    values: dict[str, Any]
    names: dict[str, str]
    shown: str
    empty: frozenset[str]
    need_answer: bool

    def first(self, aliases: tuple[str, ...]) -> str | None:
        return next((alias for alias in aliases if alias in self.values), None)

    @property
    def system(self) -> str | None:
        column = self.first(SYSTEM)
        return plain_text(self.values[column], f"column {self.names[column]!r}") if column else None


# A format returns the messages, the columns it used, and how the report calls it.
_Converted = tuple[list[Message], tuple[str, ...], str]


def to_sample(values: Mapping[str, Any], origin: str, *, need_answer: bool = True) -> Sample:
    """Turn a row into a sample.

    Args:
        values: column -> value; columns that hold null, an empty text or an empty list count as absent.
        origin: `file:line`, for the error and for `Sample.origin`.
        need_answer: whether the row must hold something to train; false for prompts.

    Raises:
        DataError: when no format fits, or the row breaks the rules of its format.
    """
    try:
        return convert(values, origin, need_answer=need_answer)[0]
    except Refused as refused:
        raise DataError(refused.reason, location=origin, fix=refused.fix or "mend the row") from None


def convert(values: Mapping[str, Any], origin: str, *, need_answer: bool = True) -> tuple[Sample, str]:
    """Return the sample of a row and the name of its format.

    Raises:
        Refused: when no format fits, or the row breaks the rules of its format.
    """
    present = {name: value for name, value in values.items() if not _absent(value)}
    shown = ", ".join(repr(name) if name in present else f"{name!r} (empty)" for name in values)
    row = _Row(
        values={name.lower(): value for name, value in present.items()},
        names={name.lower(): name for name in present},
        shown=shown,
        empty=frozenset(name.lower() for name in values if name not in present),
        need_answer=need_answer,
    )
    if row.first(_MEDIA):
        raise Refused(MEDIA_REASON, MEDIA_FIX)
    for fits, read in _FORMATS:
        if fits(row):
            messages, used, name = read(row)
            break
    else:
        raise _no_format(row)
    claimed = {*used, *_CLAIMED_BY_ALL}
    # An answer column such as `solution` is also what rewards compare with: it stays among the extra columns.
    extra = {row.names[key]: value for key, value in row.values.items() if key not in claimed or key == "solution"}
    return Sample(messages=messages, tools=_tools(row), extra=extra, origin=origin), name


def rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with columns renamed.

    Raises:
        Refused: when the new name is taken by another column that holds something.
    """
    renamed = {name: value for name, value in values.items() if name not in columns}
    for old, new in columns.items():
        if old not in values:
            continue
        if not _absent(renamed.get(new)):
            raise Refused(
                f"column {old!r} cannot be renamed to {new!r}: that column holds something too", "rename or drop one of them with --columns"
            )
        renamed[new] = values[old]
    return renamed


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value) or value != value


def _no_format(row: _Row) -> Refused:
    if not row.shown:
        return Refused("the row has no columns")
    if row.empty & set(CONVERSATION):
        return Refused(f"the conversation is empty: columns {row.shown}")
    question = row.first(QUERY)
    if question and isinstance(row.values[question], list):
        return Refused(f"column {row.names[question]!r} holds turns", f'rename it: --columns \'{{"{row.names[question]}": "messages"}}\'')
    if {"chosen", "rejected"} <= row.values.keys():
        return Refused(f"columns {row.shown} are a preference pair, not one conversation", _PAIRS)
    if question is None and row.empty & set(QUERY) and row.first(RESPONSE):
        return Refused(f"the question is empty: columns {row.shown}")
    fix = f'accepted: {ACCEPTED}; rename columns with --columns \'{{"mine": "query"}}\''
    if question:
        return Refused(f"there is a question ({row.names[question]!r}) but no answer: columns {row.shown}", fix)
    return Refused(f"no format fits the columns {row.shown}", fix)


# --- conversations


def _has_conversation(row: _Row) -> bool:
    return row.first(CONVERSATION) is not None


def _conversation(row: _Row) -> _Converted:
    column = row.first(CONVERSATION) or ""
    turns = _as_list(row.values[column], f"column {row.names[column]!r}")
    keys = {str(key) for turn in turns if isinstance(turn, dict) for key in turn}
    if keys and not keys & {"role", "from"} and keys & ROLES.keys():
        turns, name = _unfold_pairs(turns), "ShareGPT pairs"
    else:
        name = "ShareGPT" if keys & {"from", "value"} and "role" not in keys else "messages"
    try:
        return parse_turns(turns, system=row.system, need_answer=row.need_answer), (column,), name
    except Refused as refused:
        if {"chosen", "rejected"} <= row.values.keys():
            raise Refused(f"{refused.reason}; 'chosen' and 'rejected' make it a preference pair", _PAIRS) from None
        raise


def _unfold_pairs(turns: list[Any]) -> list[Any]:
    unfolded: list[Any] = []
    for number, pair in enumerate(turns, start=1):
        if not isinstance(pair, dict):
            raise Refused(f"turn {number} is {kind_of(pair)}, not an object")
        named = {ROLES[key.lower()]: value for key, value in pair.items() if key.lower() in ROLES and value is not None}
        unfolded += [{"role": role, "content": named[role]} for role in ("system", "user", "assistant") if role in named]
    return unfolded


# --- question and answer in columns


def _has_alpaca(row: _Row) -> bool:
    # Rows of one alpaca file may have `input` empty, hence absent here.
    return "instruction" in row.values and not any(name in row.values for name in ("query", "prompt", "question", "problem"))


def _alpaca(row: _Row) -> _Converted:
    question = "\n".join(_text(row, column) for column in ("instruction", "input") if column in row.values)
    answer = "output" if "output" in row.values else row.first(RESPONSE)
    return _turns(row, question, answer, ("instruction", "input"), "alpaca" if answer in (None, "output") else f"instruction/{answer}")


def _has_query(row: _Row) -> bool:
    column = row.first(QUERY)
    return column is not None and not isinstance(row.values[column], list)


def _query(row: _Row) -> _Converted:
    column = row.first(QUERY) or ""
    answer = row.first(RESPONSE)
    return _turns(row, _text(row, column), answer, (column,), f"{column}/{answer or '-'}")


def _turns(row: _Row, question: str, answer: str | None, used: tuple[str, ...], name: str) -> _Converted:
    if answer is None and row.need_answer:
        raise _no_format(row)
    messages = _history(row)
    messages.append(Message(role="user", content=question))
    if answer is not None:
        messages.append(Message(role="assistant", content=_text(row, answer)))
        used = (*used, answer)
    messages = check_order(with_system(messages, row.system), need_answer=row.need_answer)
    return messages, (*used, "history"), name


def _history(row: _Row) -> list[Message]:
    if "history" not in row.values:
        return []
    messages: list[Message] = []
    for number, pair in enumerate(_as_list(row.values["history"], "column 'history'"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused(f"entry {number} of 'history' is not a pair", 'write history as [["question", "answer"], ...]')
        question, answer = (plain_text(part, f"entry {number} of 'history'") for part in pair)
        messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return messages


# --- plain text


def _has_text(row: _Row) -> bool:
    # `response` is an answer wherever a column for the question exists: without its text the row is broken, not plain text.
    column = row.first(TEXT)
    return column is not None and (column != "response" or not (row.empty | row.values.keys()) & {*QUERY, *CONVERSATION})


def _plain(row: _Row) -> _Converted:
    column = row.first(TEXT) or ""
    messages = with_system([Message(role="assistant", content=_text(row, column))], row.system)
    return check_order(messages, need_answer=row.need_answer), (column,), "text"


def _text(row: _Row, column: str) -> str:
    value = row.values[column]
    what = f"column {row.names[column]!r}"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # `answers` and `targets` are often lists of one text
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a CSV or a spreadsheet turns the answer "42" into a number
    return plain_text(value, what)


def _as_list(value: Any, what: str) -> list[Any]:
    if isinstance(value, str):
        value = parse_json(value, what)  # CSV files keep lists as JSON texts
    if not isinstance(value, list):
        raise Refused(f"{what} is {kind_of(value)}, not a list")
    return value


def _tools(row: _Row) -> list[dict[str, Any]] | None:
    if "tools" not in row.values:
        return None
    value = row.values["tools"]
    if isinstance(value, str):
        if not value.strip():
            return None
        value = parse_json(value, "column 'tools'")
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list):
        raise Refused(f"column 'tools' is {kind_of(tools)}, not a list of function schemas")
    return [_schema(tool, number) for number, tool in enumerate(tools, start=1)] or None


def _schema(tool: Any, number: int) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = parse_json(tool, f"tool {number}")
    if not isinstance(tool, dict):
        raise Refused(f"tool {number} is {kind_of(tool)}, not a function schema")
    if "function" not in tool and "name" in tool:
        return {"type": "function", "function": tool}
    return tool


_FORMATS: tuple[tuple[Callable[[_Row], bool], Callable[[_Row], _Converted]], ...] = (
    (_has_conversation, _conversation),
    (_has_alpaca, _alpaca),
    (_has_query, _query),
    (_has_text, _plain),
)
