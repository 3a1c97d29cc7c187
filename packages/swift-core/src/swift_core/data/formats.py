"""Rows of every accepted format as samples. Each format is one small function, chosen by the columns that hold something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift_core.data.agent import tools_of
from swift_core.data.columns import CONVERSATION, QUERY, RESPONSE, SYSTEM, TEXT, Columns, rename
from swift_core.data.companions import companions_of, text_pair
from swift_core.data.grounding import read_objects
from swift_core.data.labels import label_of, margin_of
from swift_core.data.media_tags import COLUMNS, Media, media_list, place, split_legacy
from swift_core.data.preference import answer_of, as_turns, pair_columns, rejected_of, whole_turns
from swift_core.data.task_rows import Task, check_task
from swift_core.data.turns import ROLES, Conversation, check_order, check_texts, parse_turns
from swift_core.data.values import Refused, absent, as_list, as_object, kind_of, plain_text
from swift_core.errors import DataError
from swift_core.protocols import Message, Sample

__all__ = ["ACCEPTED", "convert", "rename", "to_sample"]

ACCEPTED = (
    "messages/conversations (list of role+content, from+value or human+assistant turns); instruction+input+output; "
    "query+response (or prompt, question, problem, ... + answer, output, completion, ...); text; for pairs also chosen+rejected"
)
_COMPARED = ("anchor", "sentence", "text", "content")
# Answer columns such as `solution` are also what rewards compare with: they stay among the extra columns too.
_KEPT = ("solution", "label", "labels", "kto_tag")


@dataclass(slots=True)
class _Layout:
    """The conversation of a row, the columns it came from, and how the report calls its format."""

    conversation: Conversation
    used: tuple[str, ...]
    name: str


@dataclass(slots=True)
class _Parts:
    """What all samples of one row share, and what has been used for them."""

    row: Columns
    origin: str
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    used: set[str] = field(default_factory=set[str])


def to_sample(
    values: Mapping[str, Any], origin: str, *, need_answer: bool = True, task: Task | None = "causal_lm", auto_columns: bool = True
) -> Sample:
    """Turn a row into a sample.

    Args:
        values: column -> value; columns that hold null, an empty text or an empty list count as absent.
        origin: `file:line`, for the error and for `Sample.origin`.
        need_answer: whether the row must hold something to train; false for prompts.
        task: what the sample is for; None takes any row without checking its kind.
        auto_columns: whether other names than the canonical ones are understood.

    Raises:
        DataError: when no format fits, the row breaks the rules of its format, or it is of no use for the task.
    """
    task = "prompt" if task == "causal_lm" and not need_answer else task
    try:
        sample, _ = convert(values, origin, need_answer=need_answer, task=task, auto_columns=auto_columns)
        if task is not None:
            check_task(sample, task)
    except Refused as refused:
        raise DataError(refused.reason, location=origin, fix=refused.fix or "mend the row") from None
    return sample


def convert(
    values: Mapping[str, Any],
    origin: str,
    *,
    need_answer: bool = True,
    task: Task | None = "causal_lm",
    auto_columns: bool = True,
) -> tuple[Sample, str]:
    """Return the sample of a row and the name of its format; `check_task` says whether the task can use it.

    Args:
        values: as for `to_sample`.
        origin: as for `to_sample`.
        need_answer: as for `to_sample`.
        task: as for `to_sample`; decides what a column such as `text` or `label` means.
        auto_columns: as for `to_sample`.

    Raises:
        Refused: when no format fits, or the row breaks the rules of its format.
    """
    row = Columns.of(values, task=task, need_answer=need_answer, auto=auto_columns)
    label, label_column = label_of(row)
    layout = next((read(row) for fits, read in _FORMATS if fits(row)), None)
    if layout is None:
        raise _no_format(row)
    parts = _Parts(row, origin, used={*layout.used, *SYSTEM, *filter(None, [label_column])})
    parts.kwargs = _template_kwargs(parts)
    sample = _sample(parts, layout.conversation.with_system(row.system), "", need_answer=row.need_answer)
    sample.label = label
    sample.margin, margin_column = margin_of(row) if row.task in ("preference", None) else (None, None)
    sample.channel = _channel(parts)
    parts.used.update(filter(None, [margin_column]))
    _put_rejected(parts, sample, layout)
    _put_companions(parts, sample, label)
    sample.extra = {name: value for name, value in values.items() if not absent(value) and _is_extra(parts, name)}
    return sample, layout.name


def _is_extra(parts: _Parts, name: str) -> bool:
    key = name.lower() if parts.row.auto else name
    return key not in parts.used or key in _KEPT or parts.row.names[key] != name


# --- samples


def _sample(
    parts: _Parts, conversation: Conversation, prefix: str, *, need_answer: bool, given: Media | None = None, entry: int | None = None
) -> Sample:
    """Return a sample of one conversation of the row.

    Args:
        parts: the row.
        conversation: the turns.
        prefix: of the columns with its media, tools and boxes, such as `rejected_`.
        need_answer: whether it must end with an answer.
        given: media to use instead of those of the columns.
        entry: which entry of the columns is meant, where they have one for each of several samples.
    """
    check_order(conversation.messages, need_answer=need_answer)
    given = _given(parts, prefix, entry) if given is None else given
    messages, media = place(conversation.messages, conversation.sources, given)
    check_texts(messages)
    return Sample(
        messages=messages,
        tools=_tools(parts, prefix, entry),
        images=media["images"],
        videos=media["videos"],
        audios=media["audios"],
        objects=_objects(parts, prefix, entry, messages, len(media["images"])),
        chat_template_kwargs=parts.kwargs,
        origin=parts.origin,
    )


def _given(parts: _Parts, prefix: str, entry: int | None) -> Media:
    given: Media = {}
    for kind, names in COLUMNS.items():
        column = next((prefix + name for name in names if prefix + name in parts.row.values), None) if prefix else parts.row.first(names)
        if column is None:
            continue
        value = _entry(parts, column, entry)
        if not absent(value):
            given[kind] = media_list(value, kind, parts.row.what(column))
    return given


def _entry(parts: _Parts, column: str, entry: int | None) -> Any:
    """Return the value of a column, or what it holds for one of several samples."""
    parts.used.add(column)
    value = parts.row.values[column]
    if entry is None:
        return value
    entries = as_list(value, parts.row.what(column))
    return entries[entry] if entry < len(entries) else None


def _tools(parts: _Parts, prefix: str, entry: int | None) -> list[dict[str, Any]] | None:
    column = f"{prefix}tools" if f"{prefix}tools" in parts.row.values else "tools"
    if column not in parts.row.values or (column == "tools" and entry is not None):
        return None
    return tools_of(_entry(parts, column, entry), parts.row.what(column))


def _objects(parts: _Parts, prefix: str, entry: int | None, messages: Sequence[Message], images: int) -> dict[str, Any] | None:
    column = f"{prefix}objects"
    if column not in parts.row.values and prefix == "rejected_":
        column = "objects"
    value = parts.row.values.get(column)
    # Only a column that holds what grounding data hold is taken for them.
    marks = value if entry is None or not isinstance(value, list) or entry >= len(value) else value[entry]
    if not (isinstance(marks, dict) and {"ref", "bbox"} & marks.keys()) and not (isinstance(marks, str) and marks.lstrip().startswith("{")):
        return None
    return read_objects(_entry(parts, column, entry), messages, images, parts.row.what(column))


def _template_kwargs(parts: _Parts) -> dict[str, Any]:
    column = "chat_template_kwargs"
    if column not in parts.row.values:
        return {}
    parts.used.add(column)
    # Parquet fills in the keys that other rows have.
    return {key: value for key, value in as_object(parts.row.values[column], parts.row.what(column)).items() if value is not None}


def _channel(parts: _Parts) -> str | None:
    value = parts.row.values.get("channel")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused(f"{parts.row.what('channel')} is {kind_of(value)}, not a name", "name the channel with a short text")
    parts.used.add("channel")
    return str(value)


def _put_rejected(parts: _Parts, sample: Sample, layout: _Layout) -> None:
    if parts.row.compares:
        return
    rejected = rejected_of(parts.row, layout.conversation)
    if rejected is None:
        return
    parts.used.update(rejected.used)
    has_own = any(f"rejected_{name}" in parts.row.values for names in COLUMNS.values() for name in names)
    # Both answers are about the same media, unless the row says otherwise.
    given = None if has_own else _given(parts, "", None)
    conversation = rejected.conversation.with_system(parts.row.system)
    sample.rejected = _sample(parts, conversation, "rejected_", need_answer=parts.row.need_answer, given=given)
    sample.rejected.channel = sample.channel


def _put_companions(parts: _Parts, sample: Sample, label: Any) -> None:
    found = companions_of(parts.row, label)
    parts.used.update(found.used)
    if parts.row.task == "reranker" and isinstance(label, list):
        sample.label = None  # one for each document: it has said which of them belong to the query
    for side, conversations, target in (("positive_", found.positives, sample.positives), ("negative_", found.negatives, sample.negatives)):
        for number, conversation in enumerate(conversations):
            target.append(_sample(parts, conversation.with_system(None), side, need_answer=False, entry=number))


def _no_format(row: Columns) -> Refused:
    if not row.shown:
        return Refused("the row has no columns")
    if row.empty & set(CONVERSATION):
        return Refused(f"the conversation is empty: columns {row.shown}")
    question = row.first(QUERY)
    if question is None and row.empty & set(QUERY) and row.first(RESPONSE):
        return Refused(f"the question is empty: columns {row.shown}")
    fix = f'accepted: {ACCEPTED}; rename columns with --columns \'{{"mine": "query"}}\''
    if question:
        return Refused(f"there is a question ({row.names[question]!r}) but no answer: columns {row.shown}", fix)
    return Refused(f"no format fits the columns {row.shown}", fix)


# --- conversations


def _is_whole_pair(row: Columns) -> bool:
    pair = pair_columns(row)
    return pair is not None and all(whole_turns(row, column) is not None for column in pair)


def _whole_pair(row: Columns) -> _Layout:
    chosen, _ = pair_columns(row) or ("", "")
    conversation = parse_turns(whole_turns(row, chosen) or [])
    texts = [message["content"] for message in conversation.messages]
    repeated = tuple(name for name in (*CONVERSATION, "prompt") if _repeats(row.values.get(name), row.values[chosen], texts))
    return _Layout(conversation, (chosen, *repeated), "chosen/rejected")


def _repeats(value: Any, turns: Any, texts: list[Any]) -> bool:
    """Say whether a column beside a whole conversation only says again what that holds."""
    return value in texts if isinstance(value, str) else isinstance(value, list) and value == turns[: len(value)]


def _has_conversation(row: Columns) -> bool:
    return row.first(CONVERSATION) is not None


def _conversation(row: Columns) -> _Layout:
    column = row.first(CONVERSATION) or ""
    turns = as_list(row.values[column], row.what(column))
    keys = {str(key) for turn in turns if isinstance(turn, dict) for key in turn}
    if keys and not keys & {"role", "from"} and keys & ROLES.keys():
        turns, name = _unfold_pairs(turns), "ShareGPT pairs"
    else:
        name = "ShareGPT" if keys & {"from", "value"} and "role" not in keys else "messages"
    return _with_chosen(row, parse_turns(turns), (column,), name)


def _unfold_pairs(turns: list[Any]) -> list[Any]:
    unfolded: list[Any] = []
    for number, pair in enumerate(turns, start=1):
        if not isinstance(pair, dict):
            raise Refused(f"turn {number} is {kind_of(pair)}, not an object")
        named = {ROLES[key.lower()]: value for key, value in pair.items() if key.lower() in ROLES and value is not None}
        unfolded += [{"role": role, "content": named[role]} for role in ("system", "user", "assistant") if role in named]
    return unfolded


def _with_chosen(row: Columns, conversation: Conversation, used: tuple[str, ...], name: str) -> _Layout:
    """Put the preferred answer behind turns that end with the question."""
    pair = pair_columns(row)
    if pair is None:
        return _Layout(conversation, used, name)
    answer = answer_of(row, pair[0])
    length = len(answer.messages)
    if conversation.messages and conversation.messages[-1]["role"] == "assistant":
        if conversation.messages[-length:] != answer.messages:
            raise Refused(f"the turns end with an answer, and {row.what(pair[0])} has another one", "end the turns with the question")
        answer = Conversation()
    return _Layout(conversation.joined(answer), (*used, pair[0]), f"{name} + chosen")


def _has_prompt_turns(row: Columns) -> bool:
    column = row.first(QUERY)
    return column is not None and as_turns(row.values[column]) is not None


def _prompt_turns(row: Columns) -> _Layout:
    column = row.first(QUERY) or ""
    conversation = parse_turns(as_turns(row.values[column]) or [])
    answer = row.first(RESPONSE)
    if pair_columns(row) or answer is None or row.compares:
        return _with_chosen(row, conversation, (column,), f"{column} turns")
    return _Layout(conversation.joined(answer_of(row, answer)), (column, answer), f"{column} turns/{answer}")


# --- question and answer in columns


def _has_text_pair(row: Columns) -> bool:
    return (row.compares or row.task == "seq_cls") and text_pair(row) is not None and row.first(QUERY) is None


def _text_pair(row: Columns) -> _Layout:
    pair = text_pair(row) or ("", "")
    if row.compares:
        return _Layout(_asked(row.text(pair[0])), (pair[0],), f"{pair[0]}/{pair[1]}")
    return _Layout(_asked("\n".join(row.text(column) for column in pair)), pair, f"{pair[0]}/{pair[1]}")


def _has_alpaca(row: Columns) -> bool:
    # Rows of one alpaca file may have `input` empty, hence absent here.
    return "instruction" in row.values and not any(name in row.values for name in ("query", "prompt", "question", "problem"))


def _alpaca(row: Columns) -> _Layout:
    question = "\n".join(row.text(column) for column in ("instruction", "input") if column in row.values)
    answer = "output" if "output" in row.values else row.first(RESPONSE)
    return _turns(row, question, answer, ("instruction", "input"), "alpaca" if answer in (None, "output") else f"instruction/{answer}")


def _has_query(row: Columns) -> bool:
    return row.first(QUERY) is not None


def _query(row: Columns) -> _Layout:
    column = row.first(QUERY) or ""
    answer = row.first(RESPONSE)
    return _turns(row, row.text(column), answer, (column,), f"{column}/{answer or '-'}")


def _turns(row: Columns, question: str, answer: str | None, used: tuple[str, ...], name: str) -> _Layout:
    pair = pair_columns(row)
    if pair is not None and answer is None:
        answer, name = pair[0], f"{used[0]}/chosen"
    if row.compares:
        answer, name = None, used[0]
    if answer is None and row.need_answer:
        raise _no_format(row)
    conversation = _history(row).joined(_asked(question))
    if answer is not None:
        conversation, used = conversation.joined(answer_of(row, answer)), (*used, answer)
    return _Layout(conversation, (*used, "history"), name)


def _asked(question: str) -> Conversation:
    text, sources = split_legacy(question)
    conversation = Conversation()
    conversation.add(Message(role="user", content=text), sources)
    return conversation


def _history(row: Columns) -> Conversation:
    conversation = Conversation()
    if "history" not in row.values:
        return conversation
    for number, pair in enumerate(as_list(row.values["history"], "column 'history'"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused(f"entry {number} of 'history' is not a pair", 'write history as [["question", "answer"], ...]')
        question, answer = (plain_text(part, f"entry {number} of 'history'") for part in pair)
        conversation = conversation.joined(_asked(question))
        conversation.add(Message(role="assistant", content=answer))
    return conversation


# --- plain text


def _has_question_text(row: Columns) -> bool:
    return (row.compares or row.task == "seq_cls") and row.first(_COMPARED) is not None


def _question_text(row: Columns) -> _Layout:
    column = row.first(_COMPARED) or ""
    return _Layout(_asked(row.text(column)), (column,), column)


def _has_text(row: Columns) -> bool:
    # `response` is an answer wherever a column for the question exists: without its text the row is broken, not plain text,
    # unless a picture is what is asked.
    column = row.first(TEXT)
    if column != "response" or any(row.first(names) for names in COLUMNS.values()):
        return column is not None
    return not (row.empty | row.values.keys()) & {*QUERY, *CONVERSATION}


def _plain(row: Columns) -> _Layout:
    column = row.first(TEXT) or ""
    return _Layout(Conversation([Message(role="assistant", content=row.text(column))]), (column,), "text")


_FORMATS: tuple[tuple[Callable[[Columns], bool], Callable[[Columns], _Layout]], ...] = (
    (_is_whole_pair, _whole_pair),
    (_has_conversation, _conversation),
    (_has_prompt_turns, _prompt_turns),
    (_has_text_pair, _text_pair),
    (_has_alpaca, _alpaca),
    (_has_query, _query),
    (_has_question_text, _question_text),
    (_has_text, _plain),
)
