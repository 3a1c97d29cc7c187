"""A model's chat template plus a loss mask: messages to token ids and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import TemplateSection
from swift_core.errors import NotFoundError, TemplateError
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.registry import TEMPLATES
from swift_core.templates.loss_scale import LossScale, choose_messages
from swift_core.templates.mask import IGNORED, Span, TurnEnd, complement, find_answers, label_by_offsets, label_by_prefixes, probe_turn_end
from swift_core.templates.rendering import Renderer, without_marks
from swift_core.templates.tools import with_tool_turns

Tools = list[dict[str, Any]]


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
        use_chat_template: False joins the texts of the messages as they are, with nothing between them, with the bos token that
            the tokenizer adds in front and the eos token at the end.
        make_renderer: makes the renderer from tokenizer, `jinja` and `variables`.

    Attributes:
        stop_words: texts at which a generation ends.
        stop_token_ids: those that are one token; generation ends at any of them.

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
        make_renderer: Callable[..., Renderer] = Renderer,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.loss_scale: LossScale = loss_scale
        self._renderer = make_renderer(tokenizer, jinja=jinja, variables=variables) if use_chat_template else None
        self._bos = leading_bos(tokenizer)
        eos: Any = tokenizer.eos_token
        self._turn_end = self._probe(tuple(stop_words), eos) if use_chat_template else TurnEnd((eos,) if eos else ())
        words = [*self._turn_end.words, *stop_words, *([eos] if eos else [])]
        vocabulary = tokenizer.get_vocab()
        self.stop_words: list[str] = list(dict.fromkeys(words))
        self.stop_token_ids: list[int] = [vocabulary[word] for word in self.stop_words if word in vocabulary]

    @property
    def use_chat_template(self) -> bool:
        """Say whether messages are rendered, rather than joined as they are."""
        return self._renderer is not None

    def _probe(self, stop_words: tuple[str, ...], eos: str | None) -> TurnEnd:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        bos: Any = self.tokenizer.bos_token
        return probe_turn_end(
            lambda messages, prompt: self._text(messages, None, prompt),
            markers=dict.fromkeys([*stop_words, *added, *self.tokenizer.all_special_tokens]),
            eos_token=eos,
            bos_token=bos,
        )

    # --- rendering ---

    def render(self, messages: Sequence[Message], tools: Tools | None = None, *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        return self._text(self._completed(messages), tools, add_generation_prompt)

    def _completed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages as the template takes them: with the default system message, and tool turns in its form."""
        if self.use_chat_template:
            messages = with_tool_turns(messages)
        if self.system is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def _text(self, messages: Sequence[Message], tools: Tools | None, generation_prompt: bool) -> str:
        if self._renderer is None:
            return "".join(_content(message, index) for index, message in enumerate(messages))
        return self._renderer.text(messages, tools, generation_prompt=generation_prompt)

    # --- training ---

    def mark(self, sample: Sample) -> MarkedText:
        """Render a sample and find the characters that are trained.

        Raises:
            TemplateError: when the messages cannot be rendered or masked; the message starts with the sample's origin.
        """
        try:
            messages = self._completed(sample.messages)
            trained, untrained = choose_messages(messages, self.loss_scale)
            wanted = untrained if self.loss_scale == "all" else trained
            if self._renderer is None:
                text, spans, notes = self._plain_answers(messages, wanted)
            else:
                text, spans, notes = self._answers(self._renderer, messages, sample.tools, wanted)
        except TemplateError as error:
            if not sample.origin:
                raise
            raise TemplateError(f"{sample.origin}: {error.message}", fix=error.fix) from error
        if self.loss_scale == "all":
            spans = complement(spans, len(text))
        return MarkedText(text, tuple(spans), tuple(notes), sample.origin)

    def _answers(
        self, renderer: Renderer, messages: Sequence[Message], tools: Tools | None, wanted: list[int]
    ) -> tuple[str, list[Span], list[str]]:
        _check_tool_calls(renderer, messages, tools)
        notes = (
            ["its tools are left out: the chat template has no place for them"] if tools and not renderer.mentions("tools", tools) else []
        )
        text, spans = self._marked_answers(renderer, messages, tools, wanted) if renderer.has_marks(tools) else ("", None)
        if spans is None:
            text = text or self._text(messages, tools, False)
            answers = find_answers(messages, wanted, text, lambda part, prompt: self._text(part, tools, prompt), self._turn_end)
            spans = sorted(answers.spans.values())
            notes += [f"an earlier answer is not trained: {reason}" for reason in dict.fromkeys(answers.skipped.values())]
            if answers.skipped and self.loss_scale == "all":
                raise TemplateError(
                    f"message {min(answers.skipped) + 1} cannot be left out of the loss: {answers.skipped[min(answers.skipped)]}"
                )
            if answers.altered:
                notes.append("the chat template changes or drops part of an answer")
        missing = self._turn_end.missing
        if missing and messages[-1]["role"] == "assistant" and self._turn_end.trim(text) == len(text):
            # Without an end-of-turn token the model would learn to answer, and never to stop.
            spans = [(start, stop + len(missing) if stop == len(text) else stop) for start, stop in spans]
            text += missing
        return text, spans, notes

    def _marked_answers(
        self, renderer: Renderer, messages: Sequence[Message], tools: Tools | None, wanted: list[int]
    ) -> tuple[str, list[Span] | None]:
        text, marked = renderer.marked(messages, tools)
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
                spans.append((start, self._turn_end.close(text, bare)))
        return text, spans

    def _plain_answers(self, messages: Sequence[Message], wanted: list[int]) -> tuple[str, list[Span], list[str]]:
        text = ""
        spans: list[Span] = []
        for index, message in enumerate(messages):
            start = len(text)
            text += _content(message, index)
            if index in wanted:
                spans.append((start, len(text)))
        return text, spans, []

    def tokenize(self, marked: Sequence[MarkedText]) -> list[EncodedSample]:
        """Return token ids and labels of marked texts; all texts go through a fast tokenizer in one call."""
        if not marked:
            return []
        fast = bool(self.tokenizer.is_fast)
        batch: Any = self.tokenizer(
            [item.text for item in marked],
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
        eos: Any = self.tokenizer.eos_token_id
        ending: list[int] = [] if eos is None else [eos]
        trained_end = bool(item.spans) and item.spans[-1][1] == len(item.text)
        return (
            [*self._bos, *ids, *ending],
            [*[IGNORED] * len(self._bos), *labels, *(ending if trained_end else [IGNORED] * len(ending))],
        )

    def encode(self, sample: Sample) -> EncodedSample:
        """Return the whole conversation as token ids, with the ids as labels where they are trained and -100 elsewhere.

        Raises:
            TemplateError: when the messages cannot be rendered or masked.
        """
        return self.tokenize([self.mark(sample)])[0]

    # --- inference ---

    def encode_prompt(self, messages: Sequence[Message], tools: Tools | None = None) -> list[int]:
        """Return the token ids after which the model writes the next assistant turn.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        if self._renderer is not None:
            _check_tool_calls(self._renderer, with_tool_turns(messages), tools)
        ids = self._ids(self.render(messages, tools, add_generation_prompt=True))
        return ids if self.use_chat_template else [*self._bos, *ids]

    def _ids(self, text: str) -> list[int]:
        ids: Any = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the bos token that the tokenizer puts before plain text, as a list; empty when it adds none."""
    bos: Any = tokenizer.bos_token_id
    ids: Any = tokenizer("a")["input_ids"]
    return [bos] if bos is not None and ids[:1] == [bos] else []


def _content(message: Message, index: int) -> str:
    content: Any = message["content"]
    if not isinstance(content, str):
        raise TemplateError(f"message {index + 1} has no text to join: {content!r}", fix="give it a content, or use the chat template")
    return content


def _check_tool_calls(renderer: Renderer, messages: Sequence[Message], tools: Tools | None) -> None:
    if any(message.get("tool_calls") for message in messages) and not renderer.mentions("tool_calls", tools):
        raise TemplateError(
            "the row has tool calls and the chat template cannot render them",
            fix="choose a model whose template supports tools, or write the calls into the content",
        )


def build_template(
    tokenizer: PreTrainedTokenizerBase, section: TemplateSection, *, make: Callable[..., ChatTemplate] = ChatTemplate
) -> ChatTemplate:
    """Return the template that the settings describe.

    A named template also becomes the tokenizer's own (without its `{% generation %}` marks), so that a checkpoint saved
    with this tokenizer is prompted as it was trained.

    Args:
        tokenizer: tokenizer of the model.
        section: the settings.
        make: makes the template from the tokenizer and the arguments of `ChatTemplate`.

    Raises:
        TemplateError: when there is no chat template to use, or settings exclude one another.
        RegistryError: when the named template is unknown.
        NotFoundError: when the file with the system message is absent.
    """
    if not section.use_chat_template:
        clash = next((name for name in ("template", "chat_template_kwargs") if getattr(section, name)), None)
        if clash:
            raise TemplateError(
                f"--{clash} has no effect where texts are joined as they are", fix=f"remove --{clash} or --use_chat_template false"
            )
    spec = TEMPLATES.get(section.template) if section.template else None
    jinja = spec.jinja if spec else None
    if jinja is not None and spec is not None and spec.auto_bos and leading_bos(tokenizer):
        jinja = "{{- bos_token }}" + jinja
    template = make(
        tokenizer,
        jinja=jinja,
        stop_words=spec.stop_words if spec else (),
        system=_system_text(section.system),
        variables=section.chat_template_kwargs,
        loss_scale=section.loss_scale,
        use_chat_template=section.use_chat_template,
    )
    if jinja is not None:
        tokenizer.chat_template = without_marks(jinja)
    return template


def _system_text(system: str | None) -> str | None:
    if system is None or not system.endswith(".txt"):
        return system
    file = Path(system).expanduser()
    if not file.is_file():
        raise NotFoundError(f"--system {system}: there is no such file", fix="give the text itself or the path of a .txt file")
    return file.read_text(encoding="utf-8").strip()
