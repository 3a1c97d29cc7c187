"""The engine over transformers' models: continuous batches, streams, adapters, weights that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, cast

import torch
from swift_core.config.sections import MediaSection, ModelSection, TemplateSection
from swift_core.config.training import short_name
from swift_core.errors import ConfigError, DataError, EngineError, RequestError
from swift_core.models.dtype import resolve_dtype
from swift_core.models.loading import load_model, load_processor, load_tokenizer, max_model_length, resolve_model_folder, tokenizer_of
from swift_core.protocols import Capabilities, EncodedSample, InferRequest, InferResponse, RequestConfig, Running, TextDelta
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import MediaTemplate, build_processor_template, is_multimodal
from swift_core.templates.requests import sample_of_request
from swift_core.train.tuning import load_tuner
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_infer.adapter_names import adapter_folders, adapter_problems, named_adapters, split_name
from swift_infer.checkpoint import read_checkpoint
from swift_infer.config import ChatSection, EngineConfig
from swift_infer.engines.adapters import NamedAdapters
from swift_infer.engines.answer import Answer
from swift_infer.engines.lines import Emit, Job, Line, LogprobsMode
from swift_infer.engines.paged import Loaded
from swift_infer.engines.runners import ChosenRunner
from swift_infer.engines.sampling import resolve_drawing, row_seed
from swift_infer.engines.scheduler import Scheduler
from swift_infer.engines.streams import follow, follow_async
from swift_infer.engines.weights import adapter_folder, drop_weights, missing_weights, replace_weights, token_budget


class TransformersEngine:
    """Answers requests with a transformers model in this process.

    Requests of all callers run together: each step writes one token of every answer, new requests join between two steps.

    Args:
        model_path: anything `--model` takes: a folder, `pypi::NAME`, `hf::ORG/NAME`, `ms::ORG/NAME` or a known name.
        adapters: one adapter folder that is put on the model for good, or a dict from name to folder: `InferRequest.adapter`
            chooses one of them, and requests without one get the base model.
        template, system: prompt format and default system message.
        torch_dtype: `float32`, `bfloat16` or `float16`; by default as saved.
        max_batch_size: most answers that are written at the same time.
        max_length: most tokens of prompt and answer together; by default what the model allows.
        media: sizes and limits of images, videos and sounds.
        use_cpu: stay on the CPU even where there is an accelerator.
        trust_remote_code: run Python code that comes with the model.
        logprobs_mode: log-probabilities are those of the model's own distribution (`raw`) or of the one that a token was drawn from.

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
        max_batch_size: int = 32,
        max_length: int | None = None,
        media: MediaSection | None = None,
        use_cpu: bool = False,
        trust_remote_code: bool = False,
        logprobs_mode: LogprobsMode = "raw",
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
        self._load(
            EngineConfig(
                loading=loading,
                chat=chat,
                media=media or MediaSection(),
                max_batch_size=max_batch_size,
                use_cpu=use_cpu,
                logprobs_mode=logprobs_mode,
            )
        )

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
        max_batch_size: int = 32,
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
        self._assemble(model, processor, config.chat, config.media, config.max_batch_size, _display_name(loading), config.logprobs_mode)
        for name, folder in named.items():
            self.add_adapter(name, folder)

    def _assemble(
        self,
        model: Any,
        processor: Any,
        chat: ChatSection,
        media: MediaSection,
        max_batch_size: int,
        model_name: str,
        logprobs_mode: LogprobsMode = "raw",
    ) -> None:
        if max_batch_size < 1:
            raise EngineError(f"max_batch_size is {max_batch_size}", fix="give 1 or more")
        values = {name: getattr(chat, name) for name in TemplateSection.model_fields if name in type(chat).model_fields}
        self.model_name = model_name
        self._loaded = Loaded(model, NamedAdapters(), logprobs=logprobs_mode)
        self.tokenizer = tokenizer_of(processor)
        self.template: ChatTemplate = build_processor_template(processor, TemplateSection(**values), media)
        limits = [limit for limit in (max_model_length(model.config, self.tokenizer), chat.max_length) if limit]
        self.context_length: int | None = min(limits) if limits else None
        # Code from a model's folder need not know of padding on the left.
        self.max_batch_size = 1 if hasattr(model, "media_adapter") else max_batch_size
        self._runner = ChosenRunner(self._loaded, pad_id=self.tokenizer.pad_token_id, max_rows=self.max_batch_size)
        self.scheduler = Scheduler(self._runner, max_rows=self.max_batch_size, max_tokens=token_budget(model))

    @property
    def model(self) -> Any:
        """Return the model, with its adapters."""
        return self._loaded.model

    @property
    def version(self) -> int:
        """Return the version of the weights, as the last update said."""
        return self._loaded.version

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do."""
        return Capabilities(
            token_ids=True,
            logprobs=True,
            prompt_logprobs=True,
            adapters=True,
            media=isinstance(self.template, MediaTemplate),
            abort=True,
            weights=True,
            sleep=True,
        )

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return self._loaded.named.names()

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter beside those there are, between two steps; requests may ask for it from then on.

        Raises:
            EngineError: when the name is taken, or the adapter cannot stand beside others.
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
        if name == self.model_name:
            raise EngineError(f"{name!r} is the name of the model itself", fix="choose another name for the adapter")
        self._change(lambda: self._loaded.named.add(self.model, name, Path(folder).expanduser()))

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away, after the answers that are running.

        Raises:
            EngineError: when there is none of that name.
        """
        self._change(lambda: self._loaded.named.remove(self.model, name), "wait")

    def _change(self, change: Callable[[], Any], running: Running = "keep") -> None:
        def act() -> None:
            self._loaded.model = change()
            self._runner.renew()

        self.scheduler.call(act, running)

    # ---- answers ---------------------------------------------------------------------------------------------------

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        """Answer all requests, in order; they run together with those of other callers.

        Raises:
            RequestError: when a request is longer than the context.
            TemplateError: when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        jobs = [self._job(request, config or RequestConfig()) for request in requests]
        self.scheduler.submit(jobs)
        try:
            return [job.result.result() for job in jobs]
        except BaseException:
            self._abort(jobs)
            raise

    async def ainfer(self, request: InferRequest, config: RequestConfig | None = None) -> InferResponse:
        """Answer one request without blocking the event loop; cancelling it aborts the request.

        Raises:
            RequestError: when the request is longer than the context.
            TemplateError: when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        job = await asyncio.to_thread(self._job, request, config or RequestConfig())
        self.scheduler.submit([job])
        try:
            return await asyncio.shield(asyncio.wrap_future(job.result))
        except BaseException:
            self._abort([job])
            raise

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        """Answer one request piece by piece; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        return follow(lambda emit: self._begin(request, config or RequestConfig(), emit))

    def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncIterator[TextDelta]:
        """Answer one request piece by piece without blocking the event loop; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or runs out of memory.
        """
        return follow_async(lambda emit: self._begin(request, config or RequestConfig(), emit))

    def abort(self, request_id: str | None = None) -> int:
        """End requests of that name, or all of them, with what they have; return how many answers were ended."""
        return self.scheduler.abort(request_id)

    def close(self) -> None:
        """End what runs and free the model."""
        self.scheduler.close()
        self._loaded.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _begin(self, request: InferRequest, config: RequestConfig, emit: Emit) -> tuple[Future[InferResponse], Callable[[], None]]:
        job = self._job(request, config, emit)
        self.scheduler.submit([job])
        return job.result, lambda: self._abort([job])

    def _abort(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.result.done():
                job.abort()
        self.scheduler.wake()

    # ---- weights ---------------------------------------------------------------------------------------------------

    def update_weights(self, weights: Mapping[str, Tensor], *, version: int | None = None, running: Running = "wait") -> None:
        """Replace weights by the names of the model's files; the version moves where one is given.

        Raises:
            RequestError: when a name or shape is not the model's; nothing is changed then.
        """

        def act() -> None:
            replace_weights(self.model, weights)
            self._loaded.version = self.version if version is None else version

        self.scheduler.call(act, running)

    def update_adapter(
        self,
        name: str,
        settings: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        version: int | None = None,
        running: Running = "wait",
    ) -> None:
        """Put a PEFT adapter in the place of the one of that name, or beside the others.

        Raises:
            EngineError: when it is no adapter that can stand beside others.
            CheckpointError: when it does not fit the model.
        """
        named = self._loaded.named

        def act() -> None:
            with adapter_folder(settings, weights) as folder:
                self._loaded.model = named.replace(self.model, name, folder)
            self._runner.renew()
            self._loaded.version = self.version if version is None else version

        self.scheduler.call(act, running)

    def pause(self, running: Running = "wait") -> None:
        """Begin nothing new from now on; return once what runs has ended, was aborted or stands still."""
        self.scheduler.pause(running)

    def resume(self) -> None:
        """Go on.

        Raises:
            RequestError: when weights are missing.
        """
        if missing := self.scheduler.call(lambda: missing_weights(self.model)):
            raise RequestError(
                f"{len(missing)} weights are missing since the engine slept, such as {missing[0]}", fix="send them", code="weights_missing"
            )
        self.scheduler.resume()

    def sleep(self, level: int = 1) -> None:
        """Let running answers end, begin nothing new and give memory back: 1 that of keys and values, 2 that of the weights too."""
        self.scheduler.pause("wait")
        if level > 1:
            self.scheduler.call(lambda: drop_weights(self.model))

    def wake(self) -> None:
        """Go on.

        Raises:
            RequestError: when weights are missing.
        """
        self.resume()

    # ---- requests --------------------------------------------------------------------------------------------------

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
        if name is not None and name not in self._loaded.named:
            choices = ", ".join(repr(one) for one in (self.model_name, *self.adapters))
            raise RequestError(f"no adapter {name!r} is loaded", fix=f"leave it out, or ask for one of {choices}")

    def _job(self, request: InferRequest, config: RequestConfig, emit: Emit | None = None) -> Job:
        prompt = self._prompt(request)
        room = config.max_tokens if self.context_length is None else min(config.max_tokens, self.context_length - len(prompt))
        if room < 1 or config.n < 1:
            raise RequestError(f"max_tokens is {config.max_tokens} and n is {config.n}", fix="give 1 or more")
        drawing = resolve_drawing(config, getattr(self.model, "generation_config", None))
        ending = frozenset((*config.stop_token_ids, *(() if config.ignore_eos else self.template.stop_token_ids)))
        words = (*config.stop, *(() if config.ignore_eos else self.template.stop_words))

        def line(index: int) -> Line:
            answer = Answer(self._decode, stop_ids=ending, stops=words, limit=room)
            return Line(index, answer, drawing, row_seed(config.seed, index), quiet_until=config.min_tokens, stop_ids=ending)

        lines = [line(index) for index in range(config.n)]
        return Job(prompt, self._adapter_of(request), config, lines, emit=emit, request_id=request.request_id)

    def _encoded(self, request: InferRequest) -> EncodedSample:
        if request.prompt_ids is not None:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            if any(not 0 <= token < vocabulary for token in request.prompt_ids):
                raise RequestError(f"prompt_ids holds numbers that are no token of {vocabulary}", fix="send ids of this model's tokenizer")
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

    def _decode(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


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
