"""Tool turns of rows in the form that chat templates take: calls inside assistant messages, results as role `tool`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from swift_core.errors import TemplateError
from swift_core.protocols import Message

_FIX = 'write calls as {"name": "...", "arguments": {...}}'


def with_tool_turns(messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages with `tool_call` turns folded into assistant messages and `tool_response` turns renamed to `tool`.

    Calls in a row become one message with several calls; an assistant text right before them belongs to it too, unless
    its `loss` differs. Arguments become objects, as templates expect them.

    Raises:
        TemplateError: when a call is not JSON of the form that templates take.
    """
    if all(message["role"] in ("system", "user", "assistant") and not message.get("tool_calls") for message in messages):
        return messages
    folded: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool_response":
            folded.append({**message, "role": "tool"})
        elif message["role"] == "tool_call":
            _fold(folded, message, _calls(message["content"], index))
        elif message.get("tool_calls"):
            folded.append({**message, "tool_calls": [_call(call, index) for call in message.get("tool_calls", [])]})
        else:
            folded.append(message)
    return folded


def _fold(folded: list[Message], message: Message, calls: list[dict[str, Any]]) -> None:
    before = folded[-1] if folded else None
    if before is not None and before["role"] == "assistant" and before.get("loss") == message.get("loss"):
        folded[-1] = {**before, "tool_calls": [*before.get("tool_calls", []), *calls]}
    else:
        folded.append({**message, "role": "assistant", "content": "", "tool_calls": calls})


def _calls(content: Any, index: int) -> list[dict[str, Any]]:
    value = _parsed(content, index)
    return [_call(call, index) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, index: int) -> dict[str, Any]:
    function: Any = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TemplateError(f"message {index + 1}: the tool call has no name", fix=_FIX)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, index) if arguments.strip() else {}
    identity = {"id": call["id"]} if "id" in call else {}
    return {"type": "function", **identity, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(text: Any, index: int) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TemplateError(f"message {index + 1}: the tool call is not JSON ({error})", fix=_FIX) from error


@dataclass(frozen=True, slots=True)
class CallForm:
    """How one chat template wants messages with calls.

    Attributes:
        bare: content of a message that holds calls only.
        as_text: arguments are JSON text rather than objects.
        end: text that a turn with calls ends with in this template.
    """

    bare: str | None = ""
    as_text: bool = False
    end: str = ""

    def shaped(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages with their calls in this form."""
        if self.bare == "" and not self.as_text:
            return messages
        return [self._shaped(message) if message.get("tool_calls") else message for message in messages]

    def _shaped(self, message: Message) -> Message:
        calls = [_as_text(call) for call in message.get("tool_calls", [])] if self.as_text else message.get("tool_calls", [])
        return cast(Message, {**message, "content": message["content"] or self.bare, "tool_calls": calls})


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


_NAME, _KEY = "swiftprobefunction", "swiftprobeargument"


def probe_calls(draw: Callable[[Sequence[Message]], str]) -> CallForm:
    """Find out in which form a template shows calls, by rendering a small conversation in each.

    Args:
        draw: renders messages; raises TemplateError when the template refuses them.
    """
    call = {"type": "function", "id": "call00000", "function": {"name": _NAME, "arguments": {_KEY: 1}}}
    for form in (CallForm(), CallForm(as_text=True), CallForm(bare=None), CallForm(bare=None, as_text=True)):
        turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            text = draw(form.shaped(turns))
        except TemplateError:
            continue
        if _NAME in text and _KEY in text:
            return CallForm(form.bare, form.as_text, text.rpartition(_KEY)[2].rstrip())
    return CallForm()
