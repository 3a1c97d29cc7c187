"""From requests to token ids and from token ids to answers: the same for every engine that runs a model itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from swift_core.config.sections import MediaSection, TemplateSection
from swift_core.errors import DataError, RequestError
from swift_core.models.loading import max_model_length, tokenizer_of
from swift_core.protocols import EncodedSample, InferRequest, RequestConfig
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import MediaTemplate, build_processor_template
from swift_core.templates.requests import sample_of_request

from swift_infer.config import ChatSection
from swift_infer.engines.answer import Answer


class Prompts:
    """Renders requests with a model's chat template.

    Args:
        processor: processor or tokenizer.
        chat: prompt format and context limit.
        media: sizes and limits of images, videos and sounds.
        config: the model's `PreTrainedConfig`.
        model_name: name of the model in requests.
    """

    def __init__(self, processor: Any, chat: ChatSection, media: MediaSection, config: Any, model_name: str) -> None:
        values = {name: getattr(chat, name) for name in TemplateSection.model_fields if name in type(chat).model_fields}
        self.model_name = model_name
        self.tokenizer = tokenizer_of(processor)
        self.template: ChatTemplate = build_processor_template(processor, TemplateSection(**values), media)
        limits = [limit for limit in (max_model_length(config, self.tokenizer), chat.max_length) if limit]
        self.context_length: int | None = min(limits) if limits else None
        self.vocabulary = int(config.get_text_config().vocab_size)

    @property
    def takes_media(self) -> bool:
        """Say whether the model takes images, videos or sounds."""
        return isinstance(self.template, MediaTemplate)

    def adapter_of(self, request: InferRequest, adapters: Collection[str]) -> str | None:
        """Return the name of the adapter that answers a request; None is the model itself.

        Raises:
            RequestError: when it is none of these.
        """
        name = None if request.adapter == self.model_name else request.adapter
        if name is not None and name not in adapters:
            choices = ", ".join(repr(one) for one in (self.model_name, *adapters))
            raise RequestError(f"no adapter {name!r} is loaded", fix=f"leave it out, or ask for one of {choices}")
        return name

    def encode(self, request: InferRequest) -> EncodedSample:
        """Return a request's prompt, media expanded.

        Raises:
            RequestError: when it leaves no room for an answer, or a medium cannot be read.
            TemplateError: when messages cannot be rendered.
        """
        prompt = self._encoded(request)
        ids = prompt.input_ids
        if not ids:
            raise RequestError("the prompt is empty", fix="give at least one message")
        if self.context_length is not None and len(ids) >= self.context_length:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; prompt and answer together may have {self.context_length}",
                fix=f"shorten the messages to fewer than {self.context_length} tokens",
                code="context_length_exceeded",
            )
        return prompt

    def _encoded(self, request: InferRequest) -> EncodedSample:
        if request.prompt_ids is not None:
            if any(not 0 <= token < self.vocabulary for token in request.prompt_ids):
                fix = "send ids of this model's tokenizer"
                raise RequestError(f"prompt_ids holds numbers that are none of the {self.vocabulary} tokens", fix=fix)
            return EncodedSample(list(request.prompt_ids), [-100] * len(request.prompt_ids))
        sample = sample_of_request(request.messages, request.tools)
        if isinstance(self.template, MediaTemplate):
            try:
                return self.template.encode_media_prompt(sample)
            except DataError as error:
                raise RequestError(error.message, fix=error.fix) from error
        if sample.has_media:
            raise RequestError(f"{self.model_name} takes texts only", fix="leave images, videos and sounds out, or load another model")
        ids = list(self.template.encode_prompt(sample.messages, sample.tools))
        return EncodedSample(ids, [-100] * len(ids))

    def room(self, prompt: EncodedSample, config: RequestConfig) -> int:
        """Return how many tokens an answer may have.

        Raises:
            RequestError: when there is to be no answer.
        """
        room = config.max_tokens if self.context_length is None else min(config.max_tokens, self.context_length - len(prompt))
        if room < 1 or config.n < 1:
            raise RequestError(f"max_tokens is {config.max_tokens} and n is {config.n}", fix="give 1 or more")
        return room

    def ending(self, config: RequestConfig) -> frozenset[int]:
        """Return the tokens that end an answer."""
        return frozenset((*config.stop_token_ids, *(() if config.ignore_eos else self.template.stop_token_ids)))

    def answer(self, config: RequestConfig, room: int, *, marks: bool = False) -> Answer:
        """Return an answer to fill with tokens.

        Args:
            config: how to answer.
            room: most tokens.
            marks: whether special tokens show in the text, as calls of tools may be written with them.
        """
        words = (*config.stop, *(() if config.ignore_eos else self.template.stop_words))
        decode = self.decode_marks if marks else self.decode
        return Answer(decode, stop_ids=self.ending(config), stops=words, limit=room)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without special ones."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_marks(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def opens_thought(self, request: InferRequest) -> bool:
        """Say whether a request's prompt ends inside a thought that the model is to go on with."""
        if "<think>" not in str(getattr(self.tokenizer, "chat_template", None) or ""):
            return False
        return self.decode_marks(self.encode(request).input_ids[-8:]).rstrip().endswith("<think>")

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that the tokenizer itself puts around it."""
        return list(self.tokenizer.encode(text))
