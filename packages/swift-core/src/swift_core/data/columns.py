"""The columns of a row, found by any of the names that people give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift_core.data.task_rows import Task, needs_answer
from swift_core.data.values import Refused, absent, plain_text

CONVERSATION = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "question", "problem", "instruction", "input")
RESPONSE = ("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "completion", "text", "content")
TEXT = ("text", "content", "response")
SYSTEM = ("system", "system_prompt")
LABEL = ("label", "labels", "kto_tag")
SCORE = ("label", "score", "similarity_score", "similarity")
CHOSEN = ("chosen", "chosen_response")
REJECTED = ("rejected_response", "rejected")
POSITIVE = ("positive_messages", "positive", "positives", "pos")
NEGATIVE = ("negative_messages", "negative", "negatives", "neg")
DOCUMENT = ("document", "documents", "passage", "passages")
PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
)
# What is still found where automatic mapping is off: one name for each thing, and the layouts that are defined by their names.
_CANONICAL = frozenset(
    {"messages", "query", "response", "system", "text", "label", "chosen", "rejected", "rejected_response", "positive_messages"}
    | {"negative_messages", "images", "videos", "audios"}
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a row that hold something, under lower-case names.

    Attributes:
        values: name -> value.
        raw: all columns, empty ones included.
        names: name -> its spelling in the file, for messages and for `Sample.extra`.
        given: the row as it is, for messages.
        empty: names of those that hold nothing.
        task: what the row is for; None for anything.
        need_answer: whether the row must hold something to train.
        auto: whether other names than the canonical ones are understood.
    """

    values: dict[str, Any]
    raw: dict[str, Any]
    names: dict[str, str]
    given: Mapping[str, Any]
    empty: frozenset[str]
    task: Task | None
    need_answer: bool
    auto: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], *, task: Task | None, need_answer: bool, auto: bool) -> Columns:
        """Return the view of a row; of two names that differ by case only, the lower-case one is the column."""
        names: dict[str, str] = {}
        for name in sorted(values, key=lambda name: (name == name.lower(), name)):
            key = name.lower() if auto else name
            if key not in names or not absent(values[name]):
                names[key] = name
        present = {key: values[name] for key, name in names.items() if not absent(values[name])}
        return cls(
            values=present,
            raw={key: values[name] for key, name in names.items()},
            names=names,
            given=values,
            empty=frozenset(key for key in names if key not in present),
            task=task,
            need_answer=need_answer and needs_answer(task),
            auto=auto,
        )

    @property
    def shown(self) -> str:
        """Return all columns, for messages."""
        return ", ".join(repr(name) if not absent(value) else f"{name!r} (empty)" for name, value in self.given.items())

    def first(self, aliases: tuple[str, ...]) -> str | None:
        """Return the first of some names that holds something."""
        for alias in aliases:
            if alias in self.values and (self.auto or alias in _CANONICAL):
                return alias
        return None

    def what(self, column: str) -> str:
        """Name a column for a message."""
        return f"column {self.names[column]!r}"

    def text(self, column: str) -> str:
        """Return the text of a column.

        Raises:
            Refused: when it is none.
        """
        return text_of(self.values[column], self.what(column))

    @property
    def system(self) -> str | None:
        """Return the system text beside the conversation."""
        column = self.first(SYSTEM)
        if column is None:
            return None
        value = self.values[column]
        if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            return "".join(plain_text(part.get("text"), self.what(column)) for part in value)
        return plain_text(value, self.what(column))

    @property
    def compares(self) -> bool:
        """Say whether the row is for a task that compares texts."""
        return self.task in ("embedding", "reranker")


def text_of(value: Any, what: str) -> str:
    """Return a text, which may be a number or the only entry of a list.

    Raises:
        Refused: when it is anything else.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # `answers` and `targets` are often lists of one text
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a CSV or a spreadsheet turns the answer "42" into a number
    return plain_text(value, what)


def rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with columns renamed.

    Raises:
        Refused: when the new name is taken by another column that holds something.
    """
    renamed = {name: value for name, value in values.items() if name not in columns}
    for old, new in columns.items():
        if old not in values:
            continue
        if not absent(renamed.get(new)):
            raise Refused(
                f"column {old!r} cannot be renamed to {new!r}: that column holds something too", "rename or drop one of them with --columns"
            )
        renamed[new] = values[old]
    return renamed
