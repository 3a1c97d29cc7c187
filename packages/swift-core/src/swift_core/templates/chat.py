"""A model's chat template plus a loss mask: messages to token ids and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import TemplateSection
from swift_core.errors import NotFoundError, TemplateError
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.registry import TEMPLATES
from swift_core.templates.agents.base import AgentFormat, load_agent
from swift_core.templates.agents.turns import with_agent_turns
from swift_core.templates.fallback import template_name
from swift_core.templates.loss_scale import LossScale, Weighted, choose_messages, multiply
from swift_core.templates.marked import Located, MarkedText
from swift_core.templates.mask import (
    IGNORED,
    Span,
    TurnEnd,
    complement,
    find_answers,
    probe_turn_end,
    subtract,
)
from swift_core.templates.rendering import Renderer, without_marks
from swift_core.templates.thinking import ThinkingFacts, ThinkingPolicy, probe_thinking
from swift_core.templates.tokens import Places, TextTokens
from swift_core.templates.tools import CallForm, probe_calls, with_tool_turns

Tools = list[dict[str, Any]]

_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>\s*")


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
        loss_scale: `base[+strategy]*`: base `default` trains every answer, `last_round` the answers after the last user message,
            `all` every token; a message's own `loss` beats it. Strategies weight parts of the answers.
        thinking: what becomes of thoughts.
        agent: how tools, calls and results are written; None leaves that to the chat template.
        default_system: system message that the chat template itself puts before conversations without one.
        raw_results: the chat template writes the text of `tool` messages as it is, so results can bring their own frame.
        use_chat_template: False joins the texts of the messages as they are, with nothing between them, with the bos token that
            the tokenizer adds in front and the eos token at the end.
        make_renderer: makes the renderer from tokenizer, `jinja` and `variables`.

    Attributes:
        stop_words: texts at which a generation ends.
        stop_token_ids: those that are one token; generation ends at any of them.

    Raises:
        TemplateError: when there is no chat template to use, or it cannot do what the settings say.
    """

    takes_media: ClassVar[bool] = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        jinja: str | None = None,
        stop_words: Iterable[str] = (),
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        loss_scale: str = "default",
        use_chat_template: bool = True,
        thinking: ThinkingPolicy | None = None,
        agent: AgentFormat | None = None,
        default_system: str | None = None,
        raw_results: bool = False,
        make_renderer: Callable[..., Renderer] = Renderer,
    ) -> None:
        self.tokenizer = tokenizer
        self._tokens = TextTokens(tokenizer)
        self.system = system
        self.loss_scale = LossScale(loss_scale)
        self.thinking = thinking or ThinkingPolicy()
        self.agent = agent
        self._default_system = default_system
        self._raw_results = raw_results
        self._renderer = make_renderer(tokenizer, jinja=jinja, variables=variables) if use_chat_template else None
        self._bos = leading_bos(tokenizer)
        eos: Any = tokenizer.eos_token
        self._facts = self._probe_thinking()
        self._turn_end = self._probe(tuple(stop_words), eos) if use_chat_template else TurnEnd((eos,) if eos else ())
        self._call_form = self._probe_calls()
        self._for_row({})
        calls_end = [agent.ending] if agent is not None and raw_results and agent.ending else []
        words = [*self._turn_end.words, *stop_words, *calls_end, *self._call_words(), *([eos] if eos else [])]
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

    def _probe_calls(self) -> CallForm:
        renderer = self._renderer
        if renderer is None or self.agent is not None or not renderer.mentions("tool_calls", None):
            return CallForm()
        return probe_calls(lambda messages: renderer.text(messages, None, generation_prompt=False))

    def _call_words(self) -> list[str]:
        """Return the special token that ends a turn with calls, in a list; empty when there is none."""
        ends = [token.content for token in self.tokenizer.added_tokens_decoder.values() if self._call_form.end.endswith(token.content)]
        return [max(ends, key=len)] if ends else []

    def _probe_thinking(self) -> ThinkingFacts:
        renderer = self._renderer
        if renderer is None:
            return ThinkingFacts()
        return probe_thinking(
            lambda messages, prompt, variables: renderer.text(messages, None, generation_prompt=prompt, variables=variables),
            reads=renderer.reads,
            source=renderer.source,
        )

    def _for_row(self, values: Mapping[str, Any]) -> tuple[ThinkingPolicy, dict[str, Any]]:
        """Return the thinking policy and the template variables of one row or request.

        Raises:
            TemplateError: when the template cannot obey.
        """
        policy, rest = self.thinking.with_row(values)
        if self._renderer is None:
            if rest or policy != ThinkingPolicy(response_prefix=policy.response_prefix):
                raise TemplateError(
                    "thinking and other switches of chat templates have no effect where texts are joined as they are",
                    fix="remove them, or --use_chat_template false",
                )
            return policy, {}
        self._renderer.check(rest, "chat_template_kwargs of the row")
        return policy, {**self._facts.variables(policy), **rest}

    # --- rendering ---

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation; `variables` are switches of thinking and of the chat template for it alone.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        policy, values = self._for_row(variables or {})
        ready, offered = self._completed(messages, tools, policy)
        text = self._text(ready, offered, add_generation_prompt, values)
        return text + (policy.response_prefix or "") if add_generation_prompt else text

    def _completed(
        self, messages: Sequence[Message], tools: Tools | None, policy: ThinkingPolicy
    ) -> tuple[Sequence[Message], Tools | None]:
        """Return messages and tools as the template takes them: default system message, tool turns and thoughts in its form."""
        if self.use_chat_template:
            messages = with_tool_turns(messages)
        if self.system is not None and not (messages and messages[0]["role"] == "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        if self._renderer is None:
            return messages, tools
        if self.agent is not None:
            raw = self._raw_results
            messages, tools = with_agent_turns(self.agent, messages, tools, default_system=self._default_system, raw_results=raw), None
        else:
            _check_tool_calls(self._renderer, messages, tools, raw_results=self._raw_results)
            messages = self._call_form.shaped(messages)
        return self._facts.prepared(messages, policy), tools

    def _text(
        self, messages: Sequence[Message], tools: Tools | None, generation_prompt: bool, variables: Mapping[str, Any] | None = None
    ) -> str:
        if self._renderer is None:
            return "".join(_content(message, index) for index, message in enumerate(messages))
        return self._renderer.text(messages, tools, generation_prompt=generation_prompt, variables=variables)

    # --- training ---

    def mark(self, sample: Sample) -> MarkedText:
        """Render a sample and find the characters that are trained.

        Raises:
            TemplateError: when the messages cannot be rendered or masked; the message starts with the sample's origin.
        """
        try:
            return self._mark(sample)
        except TemplateError as error:
            if not sample.origin:
                raise
            raise TemplateError(f"{sample.origin}: {error.message}", fix=error.fix) from error

    def _mark(self, sample: Sample) -> MarkedText:
        if sample.has_media and not self.takes_media:
            raise TemplateError(
                "the row has images, videos or sounds, and this model takes text only",
                fix="choose a multimodal model, or remove the media columns",
            )
        base = self.loss_scale.base
        policy, variables = self._for_row(sample.chat_template_kwargs)
        messages, tools = self._completed(sample.messages, sample.tools, policy)
        trained, untrained = choose_messages(messages, base)
        wanted = trained if base != "all" else sorted({*untrained, *(trained if self._weighs(messages, policy) else ())})
        if self._renderer is None:
            located = self._plain_answers(messages, wanted)
        else:
            located = self._answers(self._renderer, messages, tools, wanted, variables)
        if base == "all":
            spans = complement(sorted(located.spans[index] for index in untrained), len(located.text))
        else:
            spans = sorted(located.spans.values())
        weights = [
            part
            for index in trained
            if index in located.spans
            for part in self._weighed(messages, index, located.text, located.spans[index], policy)
        ]
        spans = subtract(spans, [(start, stop) for start, stop, weight in weights if weight == 0])
        return MarkedText(
            located.text, tuple(spans), tuple(located.notes), sample.origin, tuple(part for part in weights if part[2] not in (0, 1))
        )

    def _ignores_empty(self, policy: ThinkingPolicy) -> bool:
        return self._facts.hybrid if policy.ignore_empty is None else policy.ignore_empty

    def _weighs(self, messages: Sequence[Message], policy: ThinkingPolicy) -> bool:
        choice = self.loss_scale.choice
        own = any(message.get("loss_scale") is not None for message in messages)
        return own or bool(choice.strategies or choice.files) or self._ignores_empty(policy)

    def _weighed(self, messages: Sequence[Message], index: int, text: str, span: Span, policy: ThinkingPolicy) -> list[Weighted]:
        start, stop = span
        answer = text[start:stop]
        question = next((message["content"] for message in reversed(messages[:index]) if message["role"] == "user"), "")
        parts = self.loss_scale.weigh(answer, question if isinstance(question, str) else "", messages[index])
        empty = self._empty_think(answer) if self._ignores_empty(policy) else 0
        if empty:
            parts = multiply(parts, [(0, empty, 0.0)])
        return [(start + low, start + high, weight) for low, high, weight in parts]

    def _empty_think(self, answer: str) -> int:
        """Return how many characters of an answer are an empty thinking block at its start."""
        if self._facts.empty.strip() and answer.startswith(self._facts.empty):
            return len(self._facts.empty)
        match = _EMPTY_THINK.match(answer)
        return match.end() if match else 0

    def _answers(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        tools: Tools | None,
        wanted: list[int],
        variables: Mapping[str, Any],
    ) -> Located:
        notes = (
            ["its tools are left out: the chat template has no place for them (see --agent_template)"]
            if tools and not renderer.mentions("tools", tools)
            else []
        )
        found = self._marked_answers(renderer, messages, tools, wanted, variables) if renderer.has_marks(tools) else None
        if found is None:
            text = self._text(messages, tools, False, variables)
            answers = find_answers(messages, wanted, text, lambda part, prompt: self._text(part, tools, prompt, variables), self._turn_end)
            spans, skipped = answers.spans, answers.skipped
            if answers.altered:
                notes.append("the chat template changes or drops part of an answer")
        else:
            text, spans, skipped = found
        notes += [f"an earlier answer is not trained: {reason}" for reason in dict.fromkeys(skipped.values())]
        if skipped and self.loss_scale.base == "all":
            raise TemplateError(f"message {min(skipped) + 1} cannot be left out of the loss: {skipped[min(skipped)]}")
        missing = self._turn_end.missing
        if missing and messages[-1]["role"] == "assistant" and self._turn_end.trim(text) == len(text):
            # Without an end-of-turn token the model would learn to answer, and never to stop.
            spans = {index: (start, stop + len(missing) if stop == len(text) else stop) for index, (start, stop) in spans.items()}
            text += missing
        return Located(text, spans, notes)

    def _marked_answers(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        tools: Tools | None,
        wanted: list[int],
        variables: Mapping[str, Any],
    ) -> tuple[str, dict[int, Span], dict[int, str]] | None:
        text, marked = renderer.marked(messages, tools, variables)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marked) != len(answers):
            return None
        spans: dict[int, Span] = {}
        skipped: dict[int, str] = {}
        for index, (start, stop) in zip(answers, marked, strict=True):
            content: Any = messages[index]["content"]
            if isinstance(content, str) and content.split("</think>")[-1].strip() not in text[start:stop]:
                return None
            if index not in wanted:
                continue
            thoughts = _THOUGHTS.match(content) if isinstance(content, str) else None
            if thoughts and thoughts.group(1).strip() and thoughts.group(1).strip() not in text[start:stop] and index != len(messages) - 1:
                skipped[index] = "the chat template removes its thoughts once later messages follow (see --preserve_thinking)"
                continue
            bare = start + self._turn_end.trim(text[start:stop])
            spans[index] = (start, self._turn_end.close(text, bare))
        return text, spans, skipped

    def _plain_answers(self, messages: Sequence[Message], wanted: list[int]) -> Located:
        text = ""
        spans: dict[int, Span] = {}
        for index, message in enumerate(messages):
            start = len(text)
            text += _content(message, index)
            if index in wanted:
                spans[index] = (start, len(text))
        return Located(text, spans, [])

    def tokenize(self, marked: Sequence[MarkedText]) -> list[EncodedSample]:
        """Return token ids and labels of marked texts; all texts go through a fast tokenizer in one call."""
        if not marked:
            return []
        encoded: list[EncodedSample] = []
        for item, (ids, places) in zip(marked, self._tokens.encode([item.text for item in marked]), strict=True):
            labels = self._tokens.labels(ids, places, item.text, item.spans)
            scale = self._scale(ids, places, item, labels) if item.weights else None
            if not self.use_chat_template:
                ids, labels, scale = self._framed(ids, labels, scale, item)
            encoded.append(EncodedSample(ids, labels, item.origin, loss_scale=scale))
        return encoded

    def _scale(self, ids: list[int], places: Places, item: MarkedText, labels: list[int]) -> list[float]:
        scale = [float(label != IGNORED) for label in labels]
        for start, stop, weight in item.weights:
            part = self._tokens.labels(ids, places, item.text, [(start, stop)])
            scale = [weight if own != IGNORED and label != IGNORED else old for own, label, old in zip(part, labels, scale, strict=True)]
        return scale

    def _framed(
        self, ids: list[int], labels: list[int], scale: list[float] | None, item: MarkedText
    ) -> tuple[list[int], list[int], list[float] | None]:
        eos: Any = self.tokenizer.eos_token_id
        ending: list[int] = [] if eos is None else [eos]
        trained_end = bool(item.spans) and item.spans[-1][1] == len(item.text)
        ignored = [IGNORED] * len(self._bos)
        return (
            [*self._bos, *ids, *ending],
            [*ignored, *labels, *(ending if trained_end else [IGNORED] * len(ending))],
            None if scale is None else [*[0.0] * len(self._bos), *scale, *[float(trained_end)] * len(ending)],
        )

    def encode(self, sample: Sample) -> EncodedSample:
        """Return the whole conversation as token ids, with the ids as labels where they are trained and -100 elsewhere.

        Raises:
            TemplateError: when the messages cannot be rendered or masked.
        """
        return self.tokenize([self.mark(sample)])[0]

    # --- inference ---

    def encode_prompt(
        self, messages: Sequence[Message], tools: Tools | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Return the token ids after which the model writes the next assistant turn.

        Args:
            messages: the conversation so far.
            tools: function schemas offered to the model.
            variables: switches of thinking and of the chat template for this prompt alone, as in a row's `chat_template_kwargs`.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        ids = self._ids(self.render(messages, tools, add_generation_prompt=True, variables=variables))
        return ids if self.use_chat_template else [*self._bos, *ids]

    def _ids(self, text: str) -> list[int]:
        return self._tokens.ids(text)


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


def _check_tool_calls(renderer: Renderer, messages: Sequence[Message], tools: Tools | None, *, raw_results: bool) -> None:
    calls = any(message.get("tool_calls") for message in messages)
    results = raw_results and any(message["role"] == "tool" for message in messages)
    if results or (calls and not renderer.mentions("tool_calls", tools)):
        raise TemplateError(
            "the row has tool calls and the chat template cannot render them",
            fix="--agent_template hermes (see `swift list agent_templates`), or a model whose template supports tools",
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
        clash = next((name for name in ("template", "chat_template_kwargs", "agent_template") if getattr(section, name)), None)
        if clash:
            raise TemplateError(
                f"--{clash} has no effect where texts are joined as they are", fix=f"remove --{clash} or --use_chat_template false"
            )
    named = template_name(tokenizer, section)
    spec = TEMPLATES.get(named) if named else None
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
        thinking=ThinkingPolicy.from_section(section),
        agent=load_agent(agent) if (agent := section.agent_template or (spec.agent if spec else None)) else None,
        default_system=spec.default_system if spec else None,
        raw_results=jinja is not None and re.search(r"\btools\b", jinja) is None,
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
