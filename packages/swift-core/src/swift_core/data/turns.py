"""The turns of a conversation: role names, contents and order made one, or the reason why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from swift_core.data.media_tags import Sources
from swift_core.data.parts import Content, is_parts, read_parts
from swift_core.data.values import Refused, kind_of, parse_json, plain_text
from swift_core.protocols import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "tool_call": "tool_call",
    "function_call": "tool_call",
    "tool": "tool",
    "tool_response": "tool_response",
    "function_response": "tool_response",
    "observation": "tool_response",
    "observations": "tool_response",
}
ANSWERS = ("assistant", "tool_call")
_RESULTS = ("tool", "tool_response")
# Fields of a turn that chat templates read.
_KEPT = ("reasoning_content", "tool_call_id", "name")


@dataclass(slots=True)
class Conversation:
    """Messages whose media are not placed yet.

    Attributes:
        messages: the turns, with a tag in the text for each medium.
        sources: sources that content parts brought, by the place of their tag.
    """

    messages: list[Message] = field(default_factory=list[Message])
    sources: Sources = field(default_factory=dict[tuple[int, int], Any])

    def add(self, message: Message, sources: Mapping[int, Any] | None = None) -> None:
        """Append a turn and the sources in its text."""
        self.sources.update({(len(self.messages), at): source for at, source in (sources or {}).items()})
        self.messages.append(message)

    def head(self, length: int) -> Conversation:
        """Return the first turns."""
        return Conversation(self.messages[:length], {key: source for key, source in self.sources.items() if key[0] < length})

    def joined(self, after: Conversation) -> Conversation:
        """Return this conversation with the turns of another one behind it."""
        moved = {(index + len(self.messages), at): source for (index, at), source in after.sources.items()}
        return Conversation([*self.messages, *after.messages], self.sources | moved)

    def with_system(self, system: str | None) -> Conversation:
        """Return the conversation with a system text in front.

        Raises:
            Refused: when it opens with another system text.
        """
        messages = with_system(self.messages, system)
        shift = len(messages) - len(self.messages)
        return Conversation(messages, {(index + shift, at): source for (index, at), source in self.sources.items()})


def parse_turns(turns: Sequence[Any]) -> Conversation:
    """Return the conversation of a list of `{role, content}` or `{from, value}` turns.

    Raises:
        Refused: when a turn cannot be read.
    """
    conversation = Conversation()
    for number, turn in enumerate(turns, start=1):
        _parse_turn(conversation, turn, number)
    return conversation


def rename_turns(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a row whose turns have their keys and roles renamed, such as `{"speaker": "role", "BOT": "assistant"}`.

    Args:
        values: the row; its turns are recognised by the key that holds the role.
        names: name in the file -> ours.
    """
    if not names:
        return dict(values)
    keys = {theirs for theirs, ours in names.items() if ours == "role"} or {"role", "from"}
    return {column: _renamed(value, names, keys) for column, value in values.items()}


def _renamed(value: Any, names: Mapping[str, str], keys: set[str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names, keys) for item in value]
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            found = json.loads(value, strict=False)
        except ValueError:
            return value
        renamed = _renamed(found, names, keys)
        return value if renamed == found else renamed
    if not isinstance(value, dict) or not keys & value.keys():
        return value
    turn: dict[str, Any] = {}
    for key, item in value.items():
        known = isinstance(item, str) and key in keys
        turn[names.get(key, key)] = names.get(item, item) if known else item
    return turn


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """Return the messages with a system text in front.

    Raises:
        Refused: when the messages open with another system text.
    """
    opening = messages[0] if messages and messages[0]["role"] == "system" else None
    if opening is not None and not str(opening["content"]).strip():
        messages, opening = messages[1:], None
    if not system or not system.strip():
        return messages
    if opening is None:
        return [Message(role="system", content=system), *messages]
    if opening["content"] == system:
        return messages
    raise Refused("two different system texts: one in the column 'system', one in the first turn", "keep one of them")


def check_order(messages: list[Message], *, need_answer: bool) -> None:
    """Check that every turn may stand where it stands.

    Raises:
        Refused: otherwise.
    """
    roles = [message["role"] for message in messages]
    if not [role for role in roles if role != "system"]:
        raise Refused("the conversation is empty")
    for number, (before, role) in enumerate(zip(["", *roles], roles, strict=False), start=1):
        _check_place(before, role, number)
    if need_answer and roles[-1] not in ANSWERS:
        raise Refused(f"the last turn is from {roles[-1]}, so there is no answer to train", "end every conversation with an assistant turn")


def _check_place(before: str, role: str, number: int) -> None:
    if role == "system" and number > 1:
        raise Refused(f"turn {number} is from system, which may only come first")
    if role == "user" and before == "user":
        raise Refused(f"turns {number - 1} and {number} are both from user", "join them, or put the answer between them")
    if role == "assistant" and before == "assistant":
        raise Refused(f"turns {number - 1} and {number} are both from assistant", "join them, or put the question between them")
    if role in _RESULTS and before not in (*ANSWERS, *_RESULTS):
        raise Refused(f"turn {number} is a tool result, but no tool was called before it", "put the tool_call turn before it")


def check_texts(messages: list[Message]) -> None:
    """Check that no turn that matters is empty.

    Raises:
        Refused: otherwise.
    """
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if str(message["content"]).strip() or message.get("tool_calls") or role in _RESULTS:
            continue
        if role == "assistant" and number < len(messages):
            continue
        what = {"user": "question", "assistant": "answer"}.get(role, f"{role} turn")
        raise Refused(f"the {what} in turn {number} is empty")


def _parse_turn(conversation: Conversation, turn: Any, number: int) -> None:
    if not isinstance(turn, dict):
        raise Refused(f"turn {number} is {kind_of(turn)}, not an object", 'write turns as {"role": "user", "content": "..."}')
    role_key = "role" if "role" in turn else "from"
    text_key = "content" if "content" in turn else "value"
    if role_key not in turn or (text_key not in turn and not turn.get("tool_calls")):
        keys = ", ".join(map(repr, turn)) or "no keys"
        raise Refused(f"turn {number} has {keys}", "give every turn 'role' and 'content' (or 'from' and 'value')")
    given = turn[role_key]
    role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise Refused(f"turn {number} has the role {given!r}", f"allowed roles: {', '.join(ROLES)}")
    content = _content(turn.get(text_key), role, number, calls=bool(turn.get("tool_calls")))
    for identity, result in content.results:
        _add_result(conversation, identity, result, role, number)
    if content.results and not content.text:
        return
    message = Message(role=role, content=content.text)
    _put_calls(message, turn.get("tool_calls") or content.calls, number)
    _put_loss(message, turn, number)
    if content.thoughts:
        cast("dict[str, Any]", message)["reasoning_content"] = content.thoughts
    for key in _KEPT:
        if turn.get(key) is not None:
            cast("dict[str, Any]", message)[key] = plain_text(turn[key], f"{key} of turn {number}")
    conversation.add(message, content.sources)


def _add_result(conversation: Conversation, identity: Any, result: Content, role: str, number: int) -> None:
    if role != "user":
        raise Refused(f"turn {number} is from {role} and holds a tool_result", "put tool results into a user turn, or use the role 'tool'")
    message = Message(role="tool", content=result.text)
    if identity is not None:
        cast("dict[str, Any]", message)["tool_call_id"] = plain_text(identity, f"tool_use_id of turn {number}")
    conversation.add(message, result.sources)


def _content(value: Any, role: str, number: int, *, calls: bool) -> Content:
    content = Content()
    if isinstance(value, str):
        text = plain_text(value, f"turn {number}")
        if role == "user":
            content.add_text(text)
        else:
            content.text = text
        return content
    if value is None and calls:
        return content
    parts: Any = [value] if isinstance(value, dict) and role not in ("tool_call", *_RESULTS) else value
    if is_parts(parts, known=role in ("tool_call", *_RESULTS)):
        return read_parts(parts, number)
    if isinstance(value, dict | list) and role in ("tool_call", *_RESULTS):
        content.text = plain_text(json.dumps(value, ensure_ascii=False), f"turn {number}")
        return content
    raise Refused(f"the content of turn {number} ({role}) is {kind_of(value)}, not a text")


def _put_calls(message: Message, calls: Any, number: int) -> None:
    if not calls:
        return
    if isinstance(calls, str):
        calls = parse_json(calls, f"tool_calls of turn {number}")
    if message["role"] != "assistant" or not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Refused(f"tool_calls of turn {number} must be a list of objects in an assistant turn")
    message["tool_calls"] = calls


def _put_loss(message: Message, turn: dict[str, Any], number: int) -> None:
    scale = turn.get("loss_scale")
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < float("inf"):
            raise Refused(f"'loss_scale' of turn {number} is {scale!r}", "write a number that is 0 or more")
        message["loss_scale"] = float(scale)
    key = "loss" if turn.get("loss") is not None else "weight"
    value = turn.get(key)
    if value is None:
        return
    if value not in (0, 1):
        raise Refused(f"{key!r} of turn {number} is {value!r}", "write true or false (weight: 1 or 0)")
    message["loss"] = bool(value)
