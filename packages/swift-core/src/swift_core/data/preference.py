"""The answer of a row that is not preferred, as a whole conversation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from swift_core.data.columns import CHOSEN, REJECTED, Columns, text_of
from swift_core.data.media_tags import COLUMNS
from swift_core.data.turns import ANSWERS, Conversation, parse_turns
from swift_core.data.values import Refused, as_list, kind_of
from swift_core.protocols import Message


@dataclass(frozen=True, slots=True)
class Rejected:
    """What a row says about the answer that is not preferred.

    Attributes:
        conversation: the whole conversation with it, system text included where the row's turns hold it.
        used: columns it came from.
    """

    conversation: Conversation
    used: tuple[str, ...]


def pair_columns(row: Columns) -> tuple[str, str] | None:
    """Return the columns of the preferred and the other answer, where a row has both beside each other."""
    chosen, rejected = row.first(CHOSEN), row.first(REJECTED)
    if chosen and rejected and not row.compares and all(isinstance(row.values[name], str | list | dict) for name in (chosen, rejected)):
        return chosen, rejected
    return None


def whole_turns(row: Columns, column: str) -> list[Any] | None:
    """Return the turns of a column that holds a whole conversation, the question included; else None."""
    turns = as_turns(row.values[column])
    if turns is None or not any(_role(turn) in ("user", "human") for turn in turns):
        return None
    return turns


def as_turns(value: Any) -> list[Any] | None:
    """Return the turns of a value that is a turn or a list of turns; else None."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    return value if all("role" in turn or "from" in turn for turn in value) else None


def _role(turn: dict[str, Any]) -> str:
    return str(turn.get("role", turn.get("from"))).strip().lower()


def answer_of(row: Columns, column: str) -> Conversation:
    """Return the answer of a column, a text or turns.

    Raises:
        Refused: when it is neither.
    """
    turns = as_turns(row.values[column])
    if turns is not None:
        return parse_turns(turns)
    return Conversation([Message(role="assistant", content=row.text(column))])


def rejected_of(row: Columns, chosen: Conversation) -> Rejected | None:
    """Return the answer that is not preferred, or None where a row has none.

    A text or a single turn takes the place of the last answer, a list of turns that of everything after the last question,
    and a list with a question in it that of the whole conversation.

    Args:
        row: the row.
        chosen: the conversation with the preferred answer.

    Raises:
        Refused: when it cannot be read.
    """
    if "rejected_messages" in row.values:
        turns = as_list(row.values["rejected_messages"], row.what("rejected_messages"))
        return Rejected(_instead(chosen, turns), ("rejected_messages",))
    column = row.first(REJECTED)
    value = row.values.get(column or "")
    if column is None or isinstance(value, bool) or (column == "rejected" and isinstance(value, int | float)):
        return _other_media(row, chosen)
    return Rejected(_in_place(row, column, chosen), (column,))


def _in_place(row: Columns, column: str, chosen: Conversation) -> Conversation:
    value = row.values[column]
    turns = as_turns(value)
    if turns is not None and not isinstance(value, dict):
        return _instead(chosen, turns)
    if isinstance(value, list) and turns is None and len(value) != 1:
        raise Refused(f"{row.what(column)} holds {len(value)} answers", "write one row for each rejected answer")
    if turns is None and isinstance(value, dict):
        raise Refused(f"{row.what(column)} is {kind_of(value)} without a role", 'write {"role": "assistant", "content": "..."} or a text')
    answer = parse_turns(turns) if turns else Conversation([Message(role="assistant", content=text_of(value, row.what(column)))])
    last = len(chosen.messages) - (bool(chosen.messages) and chosen.messages[-1]["role"] in ANSWERS)
    return chosen.head(last).joined(answer)


def _instead(chosen: Conversation, turns: list[Any]) -> Conversation:
    rejected = parse_turns(turns)
    if any(message["role"] == "user" for message in rejected.messages):
        opening = [message for message in chosen.messages[:1] if message["role"] == "system"]
        return rejected if rejected.messages[0]["role"] == "system" or not opening else rejected.with_system(str(opening[0]["content"]))
    asked = [index for index, message in enumerate(chosen.messages) if message["role"] == "user"]
    return chosen.head(asked[-1] + 1 if asked else 0).joined(rejected)


def _other_media(row: Columns, chosen: Conversation) -> Rejected | None:
    """Return the same conversation where only its media or tools are other ones."""
    names = ("tools", *(name for aliases in COLUMNS.values() for name in aliases))
    return Rejected(replace(chosen), ()) if any(f"rejected_{name}" in row.values for name in names) else None
