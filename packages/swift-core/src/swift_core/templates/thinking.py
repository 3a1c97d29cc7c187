"""Whether a model thinks before it answers, and what becomes of thoughts in prompts and in the loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from swift_core.config.sections import TemplateSection
from swift_core.errors import TemplateError
from swift_core.protocols import Message
from swift_core.templates.loss_scale import last_question

# How templates of different makers call the same switch; False where theirs means the opposite.
_ENABLE = ("enable_thinking", "thinking")
_PRESERVE = {"preserve_thinking": True, "keep_past_thinking": True, "clear_thinking": False, "truncate_history_thinking": False}
_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)

MEDIA_VARIABLES = frozenset({"max_pixels", "min_pixels", "video_max_pixels", "fps", "max_frames"})
"""Names that a row's `chat_template_kwargs` may hold for the processor; chat templates never see them."""


@dataclass(frozen=True, slots=True)
class ThinkingPolicy:
    """What the settings, or one row, say about thoughts; None leaves it to the template.

    Attributes:
        enable: whether the model is made to think, or kept from it.
        preserve: whether the thoughts of earlier answers stay in the prompt.
        add_non_thinking_prefix: whether answers without thoughts open with the template's empty thinking block.
        ignore_empty: whether an empty thinking block is left out of the loss.
        response_prefix: what a generated answer starts with.
    """

    enable: bool | None = None
    preserve: bool | None = None
    add_non_thinking_prefix: bool | None = None
    ignore_empty: bool | None = None
    response_prefix: str | None = None

    @classmethod
    def from_section(cls, section: TemplateSection) -> ThinkingPolicy:
        """Return the policy of the settings."""
        return cls(
            enable=section.enable_thinking,
            preserve=section.preserve_thinking,
            add_non_thinking_prefix=section.add_non_thinking_prefix,
            ignore_empty=section.ignore_empty_think,
            response_prefix=section.response_prefix,
        )

    def with_row(self, values: Mapping[str, Any]) -> tuple[ThinkingPolicy, dict[str, Any]]:
        """Return the policy with what a row or request says for itself, and the values that are plain template variables.

        Raises:
            TemplateError: when a switch is not true or false.
        """
        rest = {name: value for name, value in values.items() if name not in MEDIA_VARIABLES}
        changes: dict[str, Any] = {}
        for name, attribute in _ROW_NAMES.items():
            if name not in rest:
                continue
            value = rest.pop(name)
            kind = str if attribute == "response_prefix" else bool
            if value is not None and not isinstance(value, kind):
                wanted = "a text" if kind is str else "true or false"
                raise TemplateError(f"chat_template_kwargs: {name} is {value!r}", fix=f"give {wanted}")
            changes[attribute] = value
        return (replace(self, **changes) if changes else self), rest


_ROW_NAMES = {
    "enable_thinking": "enable",
    "preserve_thinking": "preserve",
    "add_non_thinking_prefix": "add_non_thinking_prefix",
    "ignore_empty_think": "ignore_empty",
    "response_prefix": "response_prefix",
}


@dataclass(frozen=True, slots=True)
class ThinkingFacts:
    """What one chat template does with thoughts, found out by looking at it and by rendering small conversations.

    Attributes:
        enable_name: its variable that switches thinking, or None.
        preserve_name: its variable about the thoughts of earlier answers, or None.
        always: its generation prompt opens a thinking block without being asked.
        keeps_past: it renders the thoughts of earlier answers.
        fills: it opens answers without thoughts with an empty block.
        fill_name: whether it has the variable `add_non_thinking_prefix`.
        empty: the empty thinking block that it opens an answer with to keep the model from thinking, or an empty text.
        field: key of a message that it takes thoughts from, or None where they stand in the content.
    """

    enable_name: str | None = None
    preserve_name: str | None = None
    always: bool = False
    keeps_past: bool = True
    fills: bool = False
    fill_name: bool = False
    empty: str = ""
    field: str | None = None

    @property
    def hybrid(self) -> bool:
        """Say whether models of this template can think or not."""
        return self.enable_name is not None

    def variables(self, policy: ThinkingPolicy) -> dict[str, Any]:
        """Return the template variables that carry out a policy.

        Raises:
            TemplateError: when the template cannot do what the policy says.
        """
        values: dict[str, Any] = {}
        if policy.enable is not None:
            if self.enable_name is not None:
                values[self.enable_name] = policy.enable
            elif not (policy.enable and self.always):
                raise TemplateError(
                    f"--enable_thinking {_word(policy.enable)}: the chat template has no switch for thinking",
                    fix="remove it, or choose a prompt format that has one with --template",
                )
        if policy.preserve is not None and self.preserve_name is not None:
            values[self.preserve_name] = policy.preserve == _PRESERVE[self.preserve_name]
        elif policy.preserve and not self.keeps_past:
            raise TemplateError(
                "--preserve_thinking true: the chat template removes the thoughts of earlier answers",
                fix="remove it, or choose a prompt format that keeps them with --template, such as qwen3",
            )
        if policy.add_non_thinking_prefix is not None:
            if self.fill_name:
                values["add_non_thinking_prefix"] = policy.add_non_thinking_prefix
            elif not policy.add_non_thinking_prefix and self.fills:
                raise TemplateError(
                    "--add_non_thinking_prefix false: the chat template adds an empty thinking block by itself",
                    fix="remove it, or choose another prompt format with --template",
                )
            elif policy.add_non_thinking_prefix and not self.fills and not self.empty:
                raise TemplateError("--add_non_thinking_prefix true: the chat template has no empty thinking block", fix="remove it")
        return values

    def prepared(self, messages: Sequence[Message], policy: ThinkingPolicy) -> Sequence[Message]:
        """Return messages with their thoughts where the template looks for them, and with what the policy asks of them."""
        strip = policy.preserve is False and self.preserve_name is None
        fill = self.empty if policy.add_non_thinking_prefix and not self.fill_name and not self.fills else ""
        last_user = last_question(messages)
        changed = [
            self._prepared(message, strip=strip and index < last_user, fill=fill) if message["role"] == "assistant" else message
            for index, message in enumerate(messages)
        ]
        return changed if any(new is not old for new, old in zip(changed, messages, strict=True)) else messages

    def _prepared(self, message: Message, *, strip: bool, fill: str) -> Message:
        values = cast("dict[str, Any]", message)
        content: Any = message["content"]
        if not isinstance(content, str):
            return message
        thoughts: Any = values.get("reasoning_content")
        match = _THOUGHTS.match(content)
        if strip and (match or thoughts):
            return cast(
                Message,
                {**{key: value for key, value in values.items() if key != "reasoning_content"}, "content": content[match.end() :]}
                if match
                else {key: value for key, value in values.items() if key != "reasoning_content"},
            )
        if thoughts and self.field != "reasoning_content":
            values = {key: value for key, value in values.items() if key != "reasoning_content"}
            if self.field:
                return cast(Message, {**values, self.field: thoughts})
            return cast(Message, {**values, "content": f"<think>\n{str(thoughts).strip(chr(10))}\n</think>\n\n{content}"})
        if match and self.field not in (None, "reasoning_content"):
            return cast(Message, {**values, cast(str, self.field): match.group(1).strip("\n"), "content": content[match.end() :]})
        if fill and not match and not thoughts:
            return cast(Message, {**values, "content": fill + content})
        return message


def _word(value: bool) -> str:
    return "true" if value else "false"


_QUESTION, _ANSWER, _THOUGHT = "swiftprobequestion", "swiftprobeanswer", "swiftprobethought"

Draw = Callable[[Sequence[Message], bool, Mapping[str, Any]], str]
"""Renders messages, with the generation prompt or without, with variables of the template; raises TemplateError."""


def probe_thinking(draw: Draw, *, reads: Callable[[str], bool], source: str) -> ThinkingFacts:
    """Find out what a template does with thoughts.

    Args:
        draw: renders messages with the template.
        reads: says whether the template reads a variable.
        source: the template's text; empty where it is Python code.
    """
    enable = next((name for name in _ENABLE if reads(name)), None)
    preserve = next((name for name in _PRESERVE if reads(name)), None)
    field = _field(source)
    ask: list[Message] = [{"role": "user", "content": _QUESTION}]
    answer = Message(role="assistant", content=_ANSWER)
    plain = _try(draw, [*ask, answer], False)
    prompt = _try(draw, ask, True) or ""
    empty = _empty_block(draw, ask, enable) if enable else ""
    body = plain.split(_QUESTION)[-1].split(_ANSWER)[0] if plain and _ANSWER in plain else ""
    fills = bool(empty.strip()) and body.rstrip().endswith(empty.strip())
    return ThinkingFacts(
        enable_name=enable,
        preserve_name=preserve,
        always=prompt.rstrip().endswith("<think>"),
        keeps_past=_keeps_past(draw, ask, field),
        fills=fills,
        fill_name=reads("add_non_thinking_prefix"),
        empty=empty,
        field=field,
    )


def _field(source: str) -> str | None:
    if "reasoning_content" in source:
        return "reasoning_content"
    return "thinking" if re.search(r"""\.thinking\b|\[['"]thinking['"]\]|\.get\(['"]thinking['"]""", source) else None


def _empty_block(draw: Draw, ask: Sequence[Message], name: str) -> str:
    """Return what switching thinking off adds to the generation prompt."""
    with_thoughts, without = (_try(draw, ask, True, {name: value}) for value in (True, False))
    if with_thoughts is None or without is None:
        return ""
    on, off = with_thoughts.split(_QUESTION)[-1], without.split(_QUESTION)[-1]
    shared = next((at for at, (one, other) in enumerate(zip(on, off, strict=False)) if one != other), min(len(on), len(off)))
    shared -= shared > 0 and on[shared - 1] == "<"  # two marks that differ after their first character
    # Both may open the block; it belongs to the answer as a whole.
    opened = on[:shared].rfind("<think>")
    closed = off[opened:] if opened >= 0 and "</think>" not in on[opened:shared] else off[shared:]
    return closed if "think" in closed else ""


def _keeps_past(draw: Draw, ask: Sequence[Message], field: str | None) -> bool:
    past = Message(role="assistant", content=f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}")
    if field == "thinking":
        past = cast(Message, {"role": "assistant", "content": _ANSWER, "thinking": _THOUGHT})
    text = _try(draw, [*ask, past, *ask, {"role": "assistant", "content": _ANSWER}], False)
    return text is None or _THOUGHT in text


def _try(draw: Draw, messages: Sequence[Message], generation_prompt: bool, variables: Mapping[str, Any] | None = None) -> str | None:
    try:
        return draw(messages, generation_prompt, variables or {})
    except TemplateError:
        return None
