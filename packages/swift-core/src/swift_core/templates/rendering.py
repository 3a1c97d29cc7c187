"""Messages to text through a Jinja chat template, rendered by transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, cast

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from swift_core.errors import TemplateError
from swift_core.protocols import Message
from swift_core.templates.mask import Span
from swift_core.templates.skeleton import Skeleton, only_writes_contents, stand_ins

_MARK = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")

# Keys of messages that are meant for training, not for the template.
_OURS = ("loss", "loss_scale")
_KNOWN = {"role", "content", *_OURS}

# What template code raises on messages it was not written for.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)

_HELD = 1000
"""Sequences of roles whose rendering is held; when there are more, it starts again."""


def without_marks(jinja: str) -> str:
    """Return a chat template without its `{% generation %}` marks, which not every program understands."""
    return _MARK.sub("", jinja)


class Renderer:
    """Renders conversations with a tokenizer's chat template or with another one in its place.

    Args:
        tokenizer: gives the template and the special tokens.
        jinja: chat template to use instead of the tokenizer's own.
        variables: further variables of the chat template.

    Raises:
        TemplateError: when there is no chat template, or it knows nothing of a variable.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, jinja: str | None = None, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._jinja = jinja
        self._variables = dict(variables or {})
        self._tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._skeletons: dict[Any, Skeleton | None] = {}
        # Some tokenizers (Mistral's own among them) render in Python code and have no template text.
        self._by_code = jinja is None and type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        if jinja is None and not tokenizer.chat_template and not self._by_code:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
                fix="add --template chatml (see `swift list templates`), or for plain text --use_chat_template false or `swift pt`",
            )
        self.check(self._variables, "--chat_template_kwargs")

    def check(self, variables: Mapping[str, Any], where: str) -> None:
        """Refuse variables that the template knows nothing of.

        Raises:
            TemplateError: when there is one; the message starts with `where`.
        """
        unknown = [name for name in variables if not self.mentions(name)]
        if unknown:
            raise TemplateError(f"{where}: the chat template has no variable {unknown[0]!r}", fix="remove it or correct its name")

    @property
    def source(self) -> str:
        """Return the template text; empty where the template is Python code."""
        return "" if self._by_code else self._source(None)

    def reads(self, variable: str) -> bool:
        """Say whether the template reads a variable from outside, rather than a key of that name."""
        return variable in self._outer or re.search(rf"\b{re.escape(variable)} is (?:not )?defined\b", self.source) is not None

    @cached_property
    def _outer(self) -> set[str]:
        if self._by_code:
            return set()
        environment = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        try:
            return meta.find_undeclared_variables(environment.parse(without_marks(self.source)))
        except jinja2.TemplateError:
            return set()

    def mentions(self, variable: str, tools: Any = None) -> bool:
        """Say whether the template text contains a name; of templates in Python code that is taken for granted."""
        return self._by_code or re.search(rf"\b{re.escape(variable)}\b", self._source(tools)) is not None

    def has_marks(self, tools: Any = None) -> bool:
        """Say whether the template marks what the assistant writes with `{% generation %}`."""
        return not self._by_code and _has_marks(self._source(tools))

    def text(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        *,
        generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation; `variables` are added to those of the whole run.

        Raises:
            TemplateError: when the template refuses the messages.
        """
        if not self._by_code:
            return self._call(messages, tools, generation_prompt, variables, marks=False)[0]
        tokenizer: Any = self._tokenizer
        try:
            return tokenizer.apply_chat_template(
                _plain(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **{**self._variables, **(variables or {})},
            )
        except _REFUSALS as error:
            raise _refusal(error, messages) from error

    def marked(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, variables: Mapping[str, Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Return the text of a conversation and the characters that the template marks as the assistant's.

        Raises:
            TemplateError: when the template refuses the messages.
        """
        return self._call(messages, tools, False, variables, marks=True)

    def _source(self, tools: Any) -> str:
        return self._jinja if self._jinja is not None else self._tokenizer.get_chat_template(None, tools)

    def _call(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        generation_prompt: bool,
        variables: Mapping[str, Any] | None,
        *,
        marks: bool,
    ) -> tuple[str, list[Span]]:
        source = self._source(tools)
        if tools is None and _only_writes_contents(source):
            filled = self._filled(source, messages, generation_prompt, variables or {}, marks=marks)
            if filled is not None:
                return filled
        return self._run(messages, tools, generation_prompt, variables, marks=marks)

    def _filled(
        self, source: str, messages: Sequence[Message], generation_prompt: bool, variables: Mapping[str, Any], *, marks: bool
    ) -> tuple[str, list[Span]] | None:
        """Return what an earlier rendering of the same roles says about this one; None where nothing is known."""
        try:
            contents = [message["content"] for message in messages if len(message) == 2 or not message.keys() - _KNOWN]
            key = (source, tuple([message["role"] for message in messages]), generation_prompt, marks, *variables.items())
            known = key in self._skeletons
        except (KeyError, TypeError):  # a message without content, variables that are lists
            return None
        if len(contents) != len(messages) or not all(type(content) is str for content in contents):
            return None
        if not known:
            if len(self._skeletons) >= _HELD:
                self._skeletons.clear()
            self._skeletons[key] = self._skeleton(messages, contents, generation_prompt, variables, marks=marks)
        skeleton = self._skeletons[key]
        return None if skeleton is None else skeleton.fill(contents)

    def _skeleton(
        self, messages: Sequence[Message], contents: Sequence[str], generation_prompt: bool, variables: Mapping[str, Any], *, marks: bool
    ) -> Skeleton | None:
        stood_in: list[Message] = [
            Message(role=message["role"], content=content) for message, content in zip(messages, stand_ins(len(messages)), strict=True)
        ]
        try:
            skeleton = Skeleton.of(*self._run(stood_in, None, generation_prompt, variables, marks=marks))
            expected = self._run(messages, None, generation_prompt, variables, marks=marks)
        except TemplateError:
            return None
        return skeleton if skeleton is not None and skeleton.fill(contents) == expected else None

    def _run(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        generation_prompt: bool,
        variables: Mapping[str, Any] | None,
        *,
        marks: bool,
    ) -> tuple[str, list[Span]]:
        try:
            rendered = render_jinja_template(
                [_plain(messages)],
                tools=cast(Any, tools),
                chat_template=self._source(tools),
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=marks,
                **{**self._tokens, **self._variables, **(variables or {})},
            )
        except _REFUSALS as error:
            raise _refusal(error, messages) from error
        texts, spans = cast("tuple[list[str], list[list[Span]]]", rendered)
        return texts[0], spans[0] if marks else []


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if key not in _OURS} for message in messages]


def _refusal(error: Exception, messages: Sequence[Message]) -> TemplateError:
    roles = " ".join(message["role"] for message in messages)
    return TemplateError(
        f"the chat template refuses these messages (roles: {roles}): {error}",
        fix="change the messages, or choose another prompt format with --template",
    )


@cache
def _has_marks(source: str) -> bool:
    return _MARK.search(source) is not None


@cache
def _only_writes_contents(source: str) -> bool:
    return only_writes_contents(without_marks(source))
