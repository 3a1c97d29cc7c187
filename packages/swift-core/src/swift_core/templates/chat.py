"""A model's chat template plus a loss mask: messages to token ids and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from swift_core.config.sections import TemplateSection
from swift_core.errors import NotFoundError, TemplateError
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.registry import TEMPLATES
from swift_core.templates.mask import Span, TurnEnd, find_answers, label_by_offsets, label_by_prefixes, probe_turn_end

LossScale = Literal["default", "last_round", "all"]

_GENERATION_MARK = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered sample and the characters of it that are trained.

    Attributes:
        text: the whole conversation.
        spans: characters [start, end) that carry loss, ascending.
        notes: what is special about this sample's mask, one line each.
        origin: as in `Sample`.
    """

    text: str
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    origin: str = ""


class ChatTemplate:
    """Renders, tokenises and masks conversations for one tokenizer.

    Training and inference share this object's rendering, so the prompt of a generation is made of the same tokens as the
    part before the answer in a training sample.

    Args:
        tokenizer: tokenizer of the model.
        jinja: chat template to use instead of the tokenizer's own.
        stop_words: texts that end a turn in that template besides special tokens.
        system: system message for conversations without one.
        variables: further variables of the chat template.
        loss_scale: what is trained: `default` every answer, `last_round` the answers after the last user message,
            `all` every token; a message's own `loss` beats it.
        use_chat_template: False joins the texts of the messages as they are, with the bos token that the tokenizer adds
            in front and the eos token at the end.

    Raises:
        TemplateError: when there is no chat template to use, or a variable is unknown to it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        jinja: str | None = None,
        stop_words: Iterable[str] = (),
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        loss_scale: LossScale = "default",
        use_chat_template: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.loss_scale: LossScale = loss_scale
        self.use_chat_template = use_chat_template
        self._jinja = jinja
        self._variables = dict(variables or {})
        self._special = dict(tokenizer.special_tokens_map)
        self._own_rendering = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        self._eos: str = str(tokenizer.eos_token or "")
        if use_chat_template:
            if jinja is None and not tokenizer.chat_template and not self._own_rendering:
                raise TemplateError(
                    f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
                    fix="add --template chatml (see `swift list templates`), or for plain text --use_chat_template false or `swift pt`",
                )
            self._check_variables()
            self._turn_end = self._probe(tuple(stop_words))
        else:
            self._turn_end = TurnEnd((self._eos,) if self._eos else ())
        self.stop_words: list[str] = list(dict.fromkeys([*self._turn_end.words, *stop_words, *([self._eos] if self._eos else [])]))
        self.stop_token_ids: list[int] = self._single_tokens(self.stop_words)

    # --- rendering ---

    def render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None, *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        messages = self._with_system(messages)
        return self._render(messages, tools, add_generation_prompt) if self.use_chat_template else _joined(messages)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.system is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def _source(self, tools: Any) -> str:
        return self._jinja if self._jinja is not None else self.tokenizer.get_chat_template(None, tools)

    def _render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str:
        try:
            if self._own_rendering:
                text = self.tokenizer.apply_chat_template(
                    list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **self._variables
                )
                return str(text)
            texts, _ = self._jinja_call(messages, tools, add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise _refusal(error, messages) from error
        return texts[0]

    def _jinja_call(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, add_generation_prompt: bool, marks: bool = False
    ) -> tuple[list[str], list[list[Span]]]:
        conversation = [{key: value for key, value in message.items() if key != "loss"} for message in messages]
        return render_jinja_template(  # pyright: ignore[reportReturnType]  it returns a pair, whatever its annotation says
            [conversation],
            tools=tools,  # pyright: ignore[reportArgumentType]
            chat_template=self._source(tools),
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=marks,
            **{**self._special, **self._variables},
        )

    # --- training ---

    def mark(self, sample: Sample) -> MarkedText:
        """Render a sample and find the characters that are trained.

        Raises:
            TemplateError: when the messages cannot be rendered or masked; the message starts with the sample's origin.
        """
        try:
            return self._mark_chat(sample) if self.use_chat_template else self._mark_plain(sample)
        except TemplateError as error:
            if not sample.origin:
                raise
            raise TemplateError(f"{sample.origin}: {error.message}", fix=error.fix) from error

    def _mark_chat(self, sample: Sample) -> MarkedText:
        messages = self._with_system(sample.messages)
        self._check_tools(messages, sample.tools)
        trained, untrained = _choose(messages, self.loss_scale)
        wanted = untrained if self.loss_scale == "all" else trained
        text, spans, notes = self._answers(messages, sample.tools, wanted)
        if self._turn_end.missing and messages and messages[-1]["role"] == "assistant" and not self._ends_turn(text):
            spans = [(start, stop + len(self._turn_end.missing) * (stop == len(text))) for start, stop in spans]
            text += self._turn_end.missing
        if self.loss_scale == "all":
            spans = _complement(spans, len(text))
        if sample.tools and not self._mentions("tools", sample.tools):
            notes = [*notes, "tools are left out: the chat template has no place for them"]
        return MarkedText(text, tuple(spans), tuple(notes), sample.origin)

    def _ends_turn(self, text: str) -> bool:
        return self._turn_end.trim(text) < len(text)

    def _answers(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, wanted: list[int]
    ) -> tuple[str, list[Span], list[str]]:
        def render(part: Sequence[Message], add_generation_prompt: bool) -> str:
            return self._render(part, tools, add_generation_prompt)

        if not self._own_rendering and _GENERATION_MARK.search(self._source(tools)):
            text, spans = self._marked_answers(messages, tools, wanted)
            if spans is not None:
                return text, spans, []
        else:
            text = render(messages, False)
        answers = find_answers(messages, wanted, text, render, self._turn_end)
        notes = [f"turn not trained: {reason}" for reason in answers.skipped.values()]
        if answers.skipped and self.loss_scale == "all":
            raise TemplateError(f"cannot leave message {min(answers.skipped) + 1} out of the loss: {notes[0]}")
        if answers.altered:
            notes.append("the chat template changes or drops part of an answer")
        return text, sorted(answers.spans.values()), notes

    def _marked_answers(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, wanted: list[int]
    ) -> tuple[str, list[Span] | None]:
        try:
            texts, found = self._jinja_call(messages, tools, False, marks=True)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise _refusal(error, messages) from error
        text, marked = texts[0], found[0]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marked) != len(answers):
            return text, None
        spans: list[Span] = []
        for index, (start, stop) in zip(answers, marked, strict=True):
            content: Any = messages[index]["content"]
            if isinstance(content, str) and content.strip() not in text[start:stop]:
                return text, None
            if index in wanted:
                bare = start + self._turn_end.trim(text[start:stop])
                spans.append((start, self._turn_end.close(text, bare if bare > start else stop)))
        return text, spans

    def _mark_plain(self, sample: Sample) -> MarkedText:
        messages = self._with_system(sample.messages)
        trained, untrained = _choose(messages, self.loss_scale)
        texts = [_content(message, index) for index, message in enumerate(messages)]
        ends = [sum(map(len, texts[: index + 1])) for index in range(len(texts))]
        chosen = untrained if self.loss_scale == "all" else trained
        spans = [(ends[index] - len(texts[index]), ends[index]) for index in chosen]
        total = ends[-1] if ends else 0
        return MarkedText("".join(texts), tuple(_complement(spans, total) if self.loss_scale == "all" else spans), (), sample.origin)

    def tokenize(self, marked: Sequence[MarkedText]) -> list[EncodedSample]:
        """Return token ids and labels of marked texts; all texts go through a fast tokenizer in one call."""
        if not marked:
            return []
        texts = [item.text for item in marked]
        fast = bool(self.tokenizer.is_fast)
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=fast,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encoded: list[EncodedSample] = []
        for number, item in enumerate(marked):
            ids: list[int] = batch["input_ids"][number]
            if fast:
                labels = label_by_offsets(ids, batch["offset_mapping"][number], item.text, item.spans)
            else:
                labels = label_by_prefixes(ids, self._ids, item.text, item.spans)
            if not self.use_chat_template:
                ids, labels = self._framed(ids, labels, item)
            encoded.append(EncodedSample(ids, labels, item.origin))
        return encoded

    def _framed(self, ids: list[int], labels: list[int], item: MarkedText) -> tuple[list[int], list[int]]:
        bos = self._leading()
        eos: Any = self.tokenizer.eos_token_id
        every = self.loss_scale == "all"
        ending = [] if eos is None else [int(eos)]
        trained = bool(item.spans) and item.spans[-1][1] == len(item.text)
        return [*bos, *ids, *ending], [*(bos if every else [-100] * len(bos)), *labels, *(ending if trained else [-100] * len(ending))]

    def encode(self, sample: Sample) -> EncodedSample:
        """Return the whole conversation as token ids, with the ids as labels where they are trained and -100 elsewhere.

        Raises:
            TemplateError: when the messages cannot be rendered or masked.
        """
        return self.tokenize([self.mark(sample)])[0]

    # --- inference ---

    def encode_prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Return the token ids after which the model writes the next assistant turn.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        if self.use_chat_template:
            self._check_tools(messages, tools)
        ids = self._ids(self.render(messages, tools, add_generation_prompt=True))
        return ids if self.use_chat_template else [*self._leading(), *ids]

    # --- what the template and the tokenizer are like ---

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _leading(self) -> list[int]:
        bos: Any = self.tokenizer.bos_token_id
        added: Any = self.tokenizer("a")["input_ids"]
        return [int(bos)] if bos is not None and added[:1] == [bos] else []

    def _single_tokens(self, words: Iterable[str]) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        ids = [vocabulary[word] for word in words if word in vocabulary]
        eos: Any = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*ids, *([] if eos is None else [int(eos)])]))

    def _probe(self, stop_words: tuple[str, ...]) -> TurnEnd:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        markers = dict.fromkeys([*stop_words, *added, *self.tokenizer.all_special_tokens])
        bos: Any = self.tokenizer.bos_token
        return probe_turn_end(
            lambda messages, prompt: self._render(messages, None, prompt), markers=markers, eos_token=self._eos or None, bos_token=bos
        )

    def _mentions(self, variable: str, tools: Any = None) -> bool:
        return self._own_rendering or re.search(rf"\b{re.escape(variable)}\b", self._source(tools)) is not None

    def _check_variables(self) -> None:
        unknown = [name for name in self._variables if not self._mentions(name)]
        if unknown:
            raise TemplateError(
                f"--chat_template_kwargs: the chat template has no variable {unknown[0]!r}", fix="remove it or correct its name"
            )

    def _check_tools(self, messages: Sequence[Message], tools: Any) -> None:
        if any(message.get("tool_calls") for message in messages) and not self._mentions("tool_calls", tools):
            raise TemplateError(
                "the row has tool calls and the chat template cannot render them",
                fix="choose a model or a --template that supports tools, or write the calls into the content",
            )


def _content(message: Message, index: int) -> str:
    content: Any = message["content"]
    if isinstance(content, list):
        parts: list[Any] = content
        if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise TemplateError(f"message {index + 1} has no text to join: {content!r}", fix="give it a content, or use the chat template")
    return content


def _joined(messages: Sequence[Message]) -> str:
    return "".join(_content(message, index) for index, message in enumerate(messages))


def _choose(messages: Sequence[Message], loss_scale: LossScale) -> tuple[list[int], list[int]]:
    """Return the indices of the messages that are trained, and of those that a message's own `loss` keeps out."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last_user = users[-1] if users else -1
    trained: list[int] = []
    untrained: list[int] = []
    for index, message in enumerate(messages):
        own = message.get("loss")
        if message["role"] != "assistant":
            if own is not None and own != (loss_scale == "all"):
                raise TemplateError(
                    f"message {index + 1} has loss: {str(own).lower()}, but its role is {message['role']!r}",
                    fix="set loss on assistant messages only; --loss_scale all trains every token",
                )
            continue
        wanted = own if own is not None else (loss_scale != "last_round" or index > last_user)
        (trained if wanted else untrained).append(index)
    return trained, untrained


def _complement(spans: Sequence[Span], length: int) -> list[Span]:
    borders = [0, *(border for span in spans for border in span), length]
    return [(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if start < stop]


def _refusal(error: Exception, messages: Sequence[Message]) -> TemplateError:
    roles = " ".join(message["role"] for message in messages)
    return TemplateError(
        f"the chat template refuses these messages (roles: {roles}): {error}",
        fix="change the roles, or choose another prompt format with --template",
    )


def build_template(tokenizer: PreTrainedTokenizerBase, section: TemplateSection) -> ChatTemplate:
    """Return the template that the settings describe.

    A named template also becomes the tokenizer's own (without its `{% generation %}` marks), so that a checkpoint saved
    with this tokenizer is prompted as it was trained.

    Raises:
        TemplateError: when there is no chat template to use, or settings exclude one another.
        RegistryError: when the named template is unknown.
        NotFoundError: when the file with the system message is absent.
    """
    if not section.use_chat_template:
        clash = next((name for name in ("template", "chat_template_kwargs") if getattr(section, name)), None)
        if clash:
            raise TemplateError(
                f"--{clash} has no effect when texts are joined as they are", fix=f"remove --{clash} or --use_chat_template false"
            )
    spec = TEMPLATES.get(section.template) if section.template else None
    template = ChatTemplate(
        tokenizer,
        jinja=spec.jinja if spec else None,
        stop_words=spec.stop_words if spec else (),
        system=_system_text(section.system),
        variables=section.chat_template_kwargs,
        loss_scale=section.loss_scale,
        use_chat_template=section.use_chat_template,
    )
    if spec is not None:
        tokenizer.chat_template = _GENERATION_MARK.sub("", spec.jinja)
    return template


def _system_text(system: str | None) -> str | None:
    if system is None or not system.endswith(".txt"):
        return system
    file = Path(system).expanduser()
    if not file.is_file():
        raise NotFoundError(f"--system {system}: there is no such file", fix="give the text itself or the path of a .txt file")
    return file.read_text(encoding="utf-8").strip()
