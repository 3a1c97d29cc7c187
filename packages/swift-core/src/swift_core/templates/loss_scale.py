"""Which messages of a conversation carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from swift_core.errors import TemplateError
from swift_core.protocols import Message

LossScale = Literal["default", "last_round", "all"]

# Joined texts keep tool calls as turns of their own; chat templates get them inside assistant messages.
_ANSWERS = ("assistant", "tool_call")


def choose_messages(messages: Sequence[Message], loss_scale: LossScale) -> tuple[list[int], list[int]]:
    """Return the indices of the assistant messages that are trained, and of those that are not.

    `default` and `all` train every assistant message, `last_round` those after the last user message (an answer with tool calls
    is several messages). A message's own `loss` beats the rule.

    Raises:
        TemplateError: when a message of another role has a `loss` that contradicts the rule.
    """
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last_user = users[-1] if users else -1
    trained: list[int] = []
    untrained: list[int] = []
    for index, message in enumerate(messages):
        own = message.get("loss")
        if message["role"] not in _ANSWERS:
            if own is not None and own != (loss_scale == "all"):
                raise TemplateError(
                    f"message {index + 1} has loss: {str(own).lower()}, but its role is {message['role']!r}",
                    fix="set loss on assistant messages only; --loss_scale all trains every token",
                )
            continue
        wanted = own if own is not None else (loss_scale != "last_round" or index > last_user)
        (trained if wanted else untrained).append(index)
    return trained, untrained
