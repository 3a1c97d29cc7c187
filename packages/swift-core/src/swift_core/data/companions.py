"""Texts that belong or do not belong to the text of a row, for embedding and reranker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swift_core.data.columns import DOCUMENT, NEGATIVE, PAIRS, POSITIVE, RESPONSE, Columns, text_of
from swift_core.data.preference import as_turns
from swift_core.data.turns import Conversation, parse_turns
from swift_core.data.values import Refused, as_list, kind_of
from swift_core.protocols import Message

_NUMBERED = re.compile(r"neg(?:ative)?_(\d+)")


@dataclass(slots=True)
class Companions:
    """Texts beside the text of a row.

    Attributes:
        positives: those that belong to it.
        negatives: those that do not.
        used: columns they came from.
    """

    positives: list[Conversation] = field(default_factory=list[Conversation])
    negatives: list[Conversation] = field(default_factory=list[Conversation])
    used: tuple[str, ...] = ()


def text_pair(row: Columns) -> tuple[str, str] | None:
    """Return the columns of two texts that stand side by side."""
    if not row.auto:
        return None
    return next((pair for pair in PAIRS if pair[0] in row.values and pair[1] in row.values), None)


def companions_of(row: Columns, label: Any) -> Companions:
    """Return the texts to compare with; other tasks than embedding and reranker only know them by their full names.

    Args:
        row: the row.
        label: for the reranker, a document with a label over 0 belongs to the query; a list has one for each document.

    Raises:
        Refused: when they cannot be read.
    """
    found = Companions()
    for side, aliases, target in (("positive", POSITIVE, found.positives), ("negative", NEGATIVE, found.negatives)):
        column = row.first(aliases if row.compares else aliases[:1])
        if column is not None:
            target += _conversations(row, column, side)
            found.used += (column,)
    if not row.compares or not row.auto:
        return found
    numbered = sorted((int(match[1]), name) for name in row.values if (match := _NUMBERED.fullmatch(name)))
    for _, column in numbered:
        found.negatives += _conversations(row, column, "negative")
        found.used += (column,)
    if not found.positives:
        _from_answers(row, found)
    if not found.positives and not found.negatives:
        _from_documents(row, label, found)
    return found


def _from_answers(row: Columns, found: Companions) -> None:
    """Take the columns of questions and answers, as older data of ms-swift does."""
    answer = row.first(RESPONSE)
    if answer is None or "text_pair" in row.values:
        return
    found.positives += _conversations(row, answer, "positive")
    found.used += (answer,)
    if "rejected_response" in row.values and not found.negatives:
        found.negatives += _conversations(row, "rejected_response", "negative")
        found.used += ("rejected_response",)


def _from_documents(row: Columns, label: Any, found: Companions) -> None:
    pair = text_pair(row)
    column = pair[1] if pair else row.first(DOCUMENT)
    if column is None:
        return
    documents = _conversations(row, column, "positive")
    found.used += (column,)
    if row.task == "embedding":
        found.positives += documents
        return
    labels = label if isinstance(label, list) else [1 if label is None else label] * (len(documents) if label is None else 1)
    if len(labels) != len(documents):
        raise Refused(f"{len(documents)} documents and {len(labels)} labels", "give one label for each document")
    for document, relevance in zip(documents, labels, strict=True):
        if not isinstance(relevance, bool | int | float):
            raise Refused(f"the label of a document is {relevance!r}", "write 1 where it belongs to the query, else 0")
        (found.positives if relevance > 0 else found.negatives).append(document)


def _conversations(row: Columns, column: str, side: str) -> list[Conversation]:
    value, what = row.values[column], row.what(column)
    if column.endswith("_messages"):
        value = as_list(value, what)
    if isinstance(value, dict) or not isinstance(value, list):
        value = [value]
    if len(value) > 1 and as_turns(value) is not None:
        raise Refused(f"{what} holds turns, and it is not clear which belong together", "write a list of lists: [[turn, ...], ...]")
    return [_conversation(row, item, f"{side} {number} of {what}") for number, item in enumerate(value, start=1)]


def _conversation(row: Columns, item: Any, what: str) -> Conversation:
    turns = as_turns(item)
    if turns is not None:
        return parse_turns(turns)
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) != 1:
        raise Refused(f"{what} is {kind_of(item)}, not a text or a list of turns", "write a list of lists: [[turn, ...], ...]")
    text = text_of(item, what)
    if not text.strip():
        raise Refused(f"{what} is empty")
    return Conversation([Message(role="assistant" if row.task == "reranker" else "user", content=text)])
