"""The turns of a conversation: role names, contents and order made one, or the reason why not."""

from __future__ import annotations

import json
import re
from typing import Any, cast

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
_ANSWERS = ("assistant", "tool_call")
_RESULTS = ("tool", "tool_response")
# Fields of a turn that chat templates read.
_KEPT = ("reasoning_content", "tool_call_id", "name")
# <video> and <audio> are HTML elements too: they mean media only at the edge of a question.
_MEDIA_TAG = re.compile(r"<image>|^\s*<(?:video|audio)>|<(?:video|audio)>\s*$")
MEDIA_REASON = "it holds images, videos or audio, and only text can be trained so far"
MEDIA_FIX = "train on text rows"


class Refused(ValueError):
    """Why a row cannot become a sample, and what to do about it."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def parse_turns(turns: list[Any], *, system: str | None, need_answer: bool) -> list[Message]:
    """Return the messages of a list of `{role, content}` or `{from, value}` turns.

    Args:
        turns: turns as a row gives them.
        system: system text given beside the turns.
        need_answer: whether the last turn must be an answer; false for prompts.

    Raises:
        Refused: when the conversation cannot be used.
    """
    messages = [_parse_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    return check_order(with_system(messages, system), need_answer=need_answer)


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


def check_order(messages: list[Message], *, need_answer: bool) -> list[Message]:
    """Return the messages if every turn may stand where it stands.

    Raises:
        Refused: otherwise.
    """
    roles = [message["role"] for message in messages]
    if not [role for role in roles if role != "system"]:
        raise Refused("the conversation is empty")
    for number, (before, role) in enumerate(zip(["", *roles], roles, strict=False), start=1):
        _check_place(before, role, number)
    for number, message in enumerate(messages, start=1):
        _check_text(message, number, last=number == len(messages))
    if need_answer and roles[-1] not in _ANSWERS:
        raise Refused(f"the last turn is from {roles[-1]}, so there is no answer to train", "end every conversation with an assistant turn")
    if not need_answer and roles[-1] == "system":
        raise Refused("there is no question after the system text")
    return messages


def _check_place(before: str, role: str, number: int) -> None:
    if role == "system" and number > 1:
        raise Refused(f"turn {number} is from system, which may only come first")
    if role == "user" and before == "user":
        raise Refused(f"turns {number - 1} and {number} are both from user", "join them, or put the answer between them")
    if role == "assistant" and before == "assistant":
        raise Refused(f"turns {number - 1} and {number} are both from assistant", "join them, or put the question between them")
    if role in _RESULTS and before not in (*_ANSWERS, *_RESULTS):
        raise Refused(f"turn {number} is a tool result, but no tool was called before it", "put the tool_call turn before it")


def _check_text(message: Message, number: int, *, last: bool) -> None:
    text, role = str(message["content"]), message["role"]
    if role == "user" and _MEDIA_TAG.search(text):
        raise Refused(MEDIA_REASON, MEDIA_FIX)
    if text.strip() or message.get("tool_calls") or role in _RESULTS:
        return
    if role == "assistant" and not last:
        return
    what = {"user": "question", "assistant": "answer"}.get(role, f"{role} turn")
    raise Refused(f"the {what} in turn {number} is empty")


def _parse_turn(turn: Any, number: int) -> Message:
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
    message = Message(role=role, content=_content(turn.get(text_key), role, number, calls=bool(turn.get("tool_calls"))))
    _put_calls(message, turn.get("tool_calls"), number)
    _put_loss(message, turn, number)
    for key in _KEPT:
        if turn.get(key) is not None:
            cast("dict[str, Any]", message)[key] = plain_text(turn[key], f"{key} of turn {number}")
    return message


def _content(value: Any, role: str, number: int, *, calls: bool) -> str:
    if isinstance(value, str):
        return plain_text(value, f"turn {number}")
    if value is None and calls:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return "".join(_part(part, number) for part in value)
    if isinstance(value, dict | list) and role in ("tool_call", *_RESULTS):
        return plain_text(json.dumps(value, ensure_ascii=False), f"turn {number}")
    raise Refused(f"the content of turn {number} ({role}) is {kind_of(value)}, not a text")


def _part(part: dict[str, Any], number: int) -> str:
    if part["type"] == "text" and isinstance(part.get("text"), str):
        return plain_text(part["text"], f"turn {number}")
    if part["type"] in ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio"):
        raise Refused(MEDIA_REASON, MEDIA_FIX)
    raise Refused(f"turn {number} holds a content part of type {part['type']!r}", "only parts of type 'text' can be trained so far")


def _put_calls(message: Message, calls: Any, number: int) -> None:
    if not calls:
        return
    if isinstance(calls, str):
        calls = parse_json(calls, f"tool_calls of turn {number}")
    if message["role"] != "assistant" or not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Refused(f"tool_calls of turn {number} must be a list of objects in an assistant turn")
    message["tool_calls"] = calls


def _put_loss(message: Message, turn: dict[str, Any], number: int) -> None:
    if turn.get("loss_scale") is not None:
        raise Refused(
            f"turn {number} has its own loss_scale, which is not supported",
            "use 'loss': true or false for each turn, or --loss_scale for all rows",
        )
    key = "loss" if turn.get("loss") is not None else "weight"
    value = turn.get(key)
    if value is None:
        return
    if value not in (0, 1):
        raise Refused(f"{key!r} of turn {number} is {value!r}", "write true or false (weight: 1 or 0)")
    message["loss"] = bool(value)


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


def kind_of(value: Any) -> str:
    """Name the JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), f"a {type(value).__name__}"
    )
