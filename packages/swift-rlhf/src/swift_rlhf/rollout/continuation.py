"""The tokens between an answer and the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from swift_core.errors import TemplateError
from swift_core.protocols import Message
from swift_core.templates.chat import ChatTemplate

_MARK = "swiftanswerstandshere"


class Prompter(Protocol):
    """Makes token ids of conversations."""

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> list[int]:
        """Return the tokens after which the model writes its next turn."""
        ...

    def continuation(
        self, messages: Sequence[Message], shown: Sequence[Message], tools: list[dict[str, Any]] | None, answer_ids: Sequence[int]
    ) -> list[int]:
        """Return the tokens that follow the last answer of `messages` when it is shown further messages, up to its next turn."""
        ...


class TemplatePrompter:
    """Makes them with the model's chat template, so that a played conversation has the tokens that inference would send.

    Args:
        template: of the model.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> list[int]:
        """Return the tokens after which the model writes its next turn."""
        return self._template.encode_prompt(messages, tools)

    def continuation(
        self, messages: Sequence[Message], shown: Sequence[Message], tools: list[dict[str, Any]] | None, answer_ids: Sequence[int]
    ) -> list[int]:
        """Return the tokens that follow the last answer of `messages`.

        The answer itself is left as it was sampled: a mark takes its place, and what the template writes after it is used. The end
        of the turn is left out where the model has written it.

        Raises:
            TemplateError: when the template drops or refuses the mark.
        """
        marked: list[Message] = [*messages[:-1], Message(role="assistant", content=_MARK), *shown]
        before, found, after = self._template.render(marked, tools, add_generation_prompt=True).rpartition(_MARK)
        if not found or not before:
            raise TemplateError("the chat template does not show earlier answers", fix="--history rebuild")
        if answer_ids and answer_ids[-1] in self._template.stop_token_ids:
            word = next((word for word in sorted(self._template.stop_words, key=len, reverse=True) if after.startswith(word)), "")
            after = after[len(word) :]
        return self._template.tokenizer.encode(after, add_special_tokens=False)
