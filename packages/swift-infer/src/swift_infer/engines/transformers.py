"""The engine over transformers' generate: dynamic batches, streams, adapters."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from swift_core.batching.media import merge_model_inputs
from swift_core.config.sections import MediaSection, ModelSection, TemplateSection
from swift_core.config.training import short_name
from swift_core.errors import ConfigError, DataError, EngineError, RequestError
from swift_core.models.dtype import resolve_dtype
from swift_core.models.loading import load_model, load_processor, load_tokenizer, max_model_length, resolve_model_folder, tokenizer_of
from swift_core.protocols import AssistantMessage, ChatChoice, EncodedSample, InferRequest, InferResponse, RequestConfig, TextDelta, Usage
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import MediaTemplate, build_processor_template, is_multimodal
from swift_core.templates.requests import sample_of_request
from swift_core.train.tuning import load_tuner
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin, StoppingCriteria, StoppingCriteriaList
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_infer.adapter_names import adapter_folders, adapter_problems, named_adapters, split_name
from swift_infer.checkpoint import read_checkpoint
from swift_infer.config import ChatSection, EngineConfig
from swift_infer.engines.adapters import NamedAdapters
from swift_infer.engines.answer import Answer
from swift_infer.engines.sampling import Sampling, processors, resolve_sampling, row_seed
from swift_infer.engines.streams import iterate, iterate_async

Emit = Callable[[TextDelta], None]


class TransformersEngine:
    """Answers requests with a transformers model in this process.

    One batch runs at a time; calls from other threads wait.

    Args:
        model_path: anything `--model` takes: a folder, `pypi::NAME`, `hf::ORG/NAME`, `ms::ORG/NAME` or a known name.
        adapters: one adapter folder that is put on the model for good, or a dict from name to folder: `InferRequest.adapter`
            chooses one of them, and requests without one get the base model.
        template, system: prompt format and default system message.
        torch_dtype: `float32`, `bfloat16` or `float16`; by default as saved.
        max_batch_size: most rows in one forward pass.
        max_length: most tokens of prompt and answer together; by default what the model allows.
        media: sizes and limits of images, videos and sounds.
        use_cpu: stay on the CPU even where there is an accelerator.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        NotFoundError: when the model or adapter is absent.
        ModelError: when it cannot be loaded.
    """

    name = "transformers"

    def __init__(
        self,
        model_path: str | Path,
        *,
        adapters: Sequence[str | Path] | Mapping[str, str | Path] = (),
        template: str | None = None,
        system: str | None = None,
        torch_dtype: Any = None,
        max_batch_size: int = 8,
        max_length: int | None = None,
        media: MediaSection | None = None,
        use_cpu: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        loading = ModelSection(
            model=str(model_path),
            adapters=[f"{name}={folder}" for name, folder in adapters.items()]
            if isinstance(adapters, Mapping)
            else [str(folder) for folder in adapters],
            torch_dtype=torch_dtype,
            trust_remote_code=trust_remote_code,
        )
        chat = ChatSection(template=template, system=system, max_length=max_length)
        self._load(EngineConfig(loading=loading, chat=chat, media=media or MediaSection(), max_batch_size=max_batch_size, use_cpu=use_cpu))

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Load the model that the settings name.

        Raises:
            NotFoundError: when the model or adapter is absent.
            ModelError: when it cannot be loaded.
        """
        engine = cls.__new__(cls)
        engine._load(config)
        return engine

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        *,
        chat: ChatSection | None = None,
        media: MediaSection | None = None,
        max_batch_size: int = 8,
        model_name: str = "model",
    ) -> Self:
        """Answer with a model that is loaded already; it is used where it is and as it is, with its tokenizer or processor."""
        engine = cls.__new__(cls)
        engine._assemble(model, tokenizer, chat or ChatSection(), media or MediaSection(), max_batch_size, model_name)
        return engine

    def _load(self, config: EngineConfig) -> None:
        loading = config.loading
        if problems := adapter_problems(loading.adapters):
            raise ConfigError(problems)
        named = named_adapters(loading)
        device = _device(config.use_cpu)
        folder = resolve_model_folder(loading)
        processor = _load_processor(folder, loading)
        dtype = resolve_dtype(loading, folder, device=str(device))
        model: Any = load_model(loading, folder, dtype=dtype, quantization=config.quantization, device=str(device))
        for folder in [] if named else adapter_folders(loading):
            model = load_tuner(read_checkpoint(folder).tuner).load(model, folder, trainable=False)
        if not getattr(model, "is_quantized", False):  # packed weights are on their device already
            model = model.to(device)
        model.eval()
        self._assemble(model, processor, config.chat, config.media, config.max_batch_size, _display_name(loading))
        for name, folder in named.items():
            self.add_adapter(name, folder)

    def _assemble(self, model: Any, processor: Any, chat: ChatSection, media: MediaSection, max_batch_size: int, model_name: str) -> None:
        if max_batch_size < 1:
            raise EngineError(f"max_batch_size is {max_batch_size}", fix="give 1 or more")
        values = {name: getattr(chat, name) for name in TemplateSection.model_fields if name in type(chat).model_fields}
        self.model_name = model_name
        self.model = model
        self.tokenizer = tokenizer_of(processor)
        self.template: ChatTemplate = build_processor_template(processor, TemplateSection(**values), media)
        limits = [limit for limit in (max_model_length(model.config, self.tokenizer), chat.max_length) if limit]
        self.context_length: int | None = min(limits) if limits else None
        # Code from a model's folder need not know of padding on the left.
        self.max_batch_size = 1 if hasattr(model, "media_adapter") else max_batch_size
        self._named = NamedAdapters()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return self._named.names()

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter beside those there are, after the batch that is running; requests may ask for it from then on.

        Raises:
            EngineError: when the name is taken, or the adapter cannot stand beside others.
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
        if name == self.model_name:
            raise EngineError(f"{name!r} is the name of the model itself", fix="choose another name for the adapter")
        with self._lock:
            self._check_open()
            self.model = self._named.add(self.model, name, Path(folder).expanduser())

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away, after the batch that is running.

        Raises:
            EngineError: when there is none of that name.
        """
        with self._lock:
            self._check_open()
            self.model = self._named.remove(self.model, name)

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        """Answer all requests, in order.

        Requests of like length share a forward pass; an answer does not depend on its neighbours.

        Raises:
            RequestError: when a request is longer than the context.
            TemplateError: when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        wanted = config or RequestConfig()
        rows = [row for request in requests for row in self._rows(request, wanted)]
        self._run(rows, wanted, emit=None, aborted=threading.Event())
        return [_response(rows[start : start + wanted.n]) for start in range(0, len(rows), wanted.n)]

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        """Answer one request piece by piece; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        return iterate(self._producer(request, config or RequestConfig()))

    def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncIterator[TextDelta]:
        """Answer one request piece by piece without blocking the event loop; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        return iterate_async(self._producer(request, config or RequestConfig()))

    def close(self) -> None:
        """Free the model, after the batch that is running."""
        with self._lock:
            self._closed = True
            self.model = cast(Any, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def prompt_ids(self, request: InferRequest) -> list[int]:
        """Return the token ids of a request's prompt, media expanded.

        Raises:
            RequestError: when they leave no room for an answer, a medium cannot be read, or an adapter is asked for that is not
                loaded.
            TemplateError: when messages cannot be rendered.
        """
        return self._prompt(request).input_ids

    def _prompt(self, request: InferRequest) -> EncodedSample:
        self._check_adapter(self._adapter_of(request))
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

    def _adapter_of(self, request: InferRequest) -> str | None:
        return None if request.adapter == self.model_name else request.adapter

    def _check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self._named:
            choices = ", ".join(repr(one) for one in (self.model_name, *self.adapters))
            raise RequestError(f"no adapter {name!r} is loaded", fix=f"leave it out, or ask for one of {choices}")

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", fix="make a new one")

    def _encoded(self, request: InferRequest) -> EncodedSample:
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

    def _producer(self, request: InferRequest, config: RequestConfig) -> Callable[[Emit, threading.Event], None]:
        def produce(emit: Emit, aborted: threading.Event) -> None:
            self._run(self._rows(request, config), config, emit=emit, aborted=aborted)

        return produce

    def _rows(self, request: InferRequest, config: RequestConfig) -> list[_Row]:
        prompt = self._prompt(request)
        room = config.max_tokens if self.context_length is None else min(config.max_tokens, self.context_length - len(prompt))
        if room < 1 or config.n < 1:
            raise RequestError(f"max_tokens is {config.max_tokens} and n is {config.n}", fix="give 1 or more")
        stops = (*self.template.stop_words, *config.stop)
        return [
            _Row(
                index,
                prompt,
                self._adapter_of(request),
                row_seed(config.seed, index),
                Answer(self._decode, stop_ids=self.template.stop_token_ids, stops=stops, limit=room),
                room,
            )
            for index in range(config.n)
        ]

    def _decode(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _run(self, rows: list[_Row], config: RequestConfig, *, emit: Emit | None, aborted: threading.Event) -> None:
        with self._lock:
            self._check_open()
            for row in rows:
                self._check_adapter(row.adapter)  # it may have been taken away since the request came
            sampling = resolve_sampling(config, self.model.generation_config)
            for batch in self._batches(rows):
                progress = _Progress(batch, rows, emit, aborted)
                if not aborted.is_set():
                    self._generate(batch, sampling, progress)
                progress.abort_rest()

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Yield rows of like length together; rows of different adapters too, where the adapters allow it."""
        groups = [rows]
        if not self._named.mixes(self.model):
            groups = [[row for row in rows if row.adapter == name] for name in dict.fromkeys(row.adapter for row in rows)]
        for group in groups:
            order = sorted(group, key=lambda row: len(row.prompt))
            yield from (order[start : start + self.max_batch_size] for start in range(0, len(order), self.max_batch_size))

    @torch.inference_mode()
    def _generate(self, batch: list[_Row], sampling: Sampling, progress: _Progress) -> None:
        device = self.model.device
        pad = self.tokenizer.pad_token_id
        width = max(len(row.prompt) for row in batch)
        # Left padding: every row's last prompt token stands in the last column, where generation goes on.
        ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in batch], device=device)
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch], device=device)
        media = merge_model_inputs([row.encoded for row in batch], pad_left=True, dtype=self.model.dtype)
        steps = processors(sampling, [row.prompt for row in batch], [row.seed for row in batch], device)
        try:
            with self._named.using(self.model, [row.adapter for row in batch]):
                self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    **{name: value.to(device) for name, value in media.items()},
                    generation_config=self._generation_config(max(row.room for row in batch)),
                    logits_processor=steps,
                    stopping_criteria=StoppingCriteriaList([progress]),
                )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory with {len(batch)} rows of {width} tokens", fix="lower --max_batch_size or --max_length"
            ) from error

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        # Sampling, penalties and stops are ours; all else, such as suppressed tokens, stays as the model's own file says.
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            use_cache=True,
            return_dict_in_generate=False,
            eos_token_id=sorted(self.template.stop_token_ids) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )


class _Row:
    """One line of a batch: answer number `index` to a request."""

    __slots__ = ("adapter", "answer", "encoded", "index", "prompt", "room", "seed")

    def __init__(self, index: int, encoded: EncodedSample, adapter: str | None, seed: int, answer: Answer, room: int) -> None:
        self.index = index
        self.adapter = adapter
        self.encoded = encoded
        self.prompt = encoded.input_ids
        self.seed = seed
        self.answer = answer
        self.room = room


class _Progress(StoppingCriteria):
    """Sees every step of a batch: collects tokens, passes text on, ends rows and aborted batches."""

    def __init__(self, batch: list[_Row], rows: list[_Row], emit: Emit | None, aborted: threading.Event) -> None:
        self._batch = batch
        self._rows = rows
        self._emit = emit
        self._aborted = aborted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are complete, [rows]."""
        for row, token in zip(self._batch, input_ids[:, -1].tolist(), strict=True):
            if row.answer.finish_reason is None:
                self._tell(row, row.answer.push(token))
        stop = self._aborted.is_set()
        done = [stop or row.answer.finish_reason is not None for row in self._batch]
        return torch.tensor(done, device=input_ids.device, dtype=torch.bool)

    def abort_rest(self) -> None:
        """End the rows that are not complete."""
        for row in self._batch:
            if row.answer.finish_reason is None:
                self._tell(row, row.answer.abort())

    def _tell(self, row: _Row, text: str) -> None:
        reason = row.answer.finish_reason
        if self._emit is None or not (text or reason):
            return
        complete = reason is not None and all(other.answer.finish_reason for other in self._rows)
        self._emit(TextDelta(text, row.index, reason, _usage(self._rows) if complete else None))


def _response(rows: Sequence[_Row]) -> InferResponse:
    choices = [
        ChatChoice(row.index, AssistantMessage(row.answer.text), row.answer.finish_reason or "abort", row.answer.token_ids) for row in rows
    ]
    return InferResponse(choices, _usage(rows))


def _usage(rows: Sequence[_Row]) -> Usage:
    return Usage(len(rows[0].prompt), sum(len(row.answer.token_ids) for row in rows))


def _device(use_cpu: bool) -> torch.device:
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _load_processor(folder: Path, loading: ModelSection) -> Any:
    """Return the processor or tokenizer of the model, with the tokenizer of the adapter in it where that has one."""
    source = _tokenizer_folder(folder, adapter_folders(loading))
    remote, tokens = loading.trust_remote_code, loading.special_tokens
    processor: Any = load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens, model_type=loading.model_type)
    if source == folder:
        return processor
    tokenizer: Any = load_tokenizer(source, trust_remote_code=remote, new_special_tokens=tokens)
    if not is_multimodal(processor):
        return tokenizer
    processor.tokenizer = tokenizer
    processor.chat_template = tokenizer.chat_template or processor.chat_template
    return processor


def _tokenizer_folder(model: Path, adapters: Sequence[Path]) -> Path:
    """Return the first adapter's folder that holds a tokenizer of its own, with the chat template it was trained with."""
    for folder in adapters:
        if (folder / "tokenizer_config.json").is_file():
            return folder
    return model


def _display_name(loading: ModelSection) -> str:
    if loading.adapters and split_name(loading.adapters[0])[0] is None:
        folder = Path(loading.adapters[-1]).expanduser().resolve()
        return folder.parent.name + "-" + folder.name if folder.name.startswith("checkpoint-") else folder.name
    return short_name(loading.model or "model")


def build_engine(config: EngineConfig) -> TransformersEngine:
    """Return an engine with the model that the settings name."""
    return TransformersEngine.from_config(config)
