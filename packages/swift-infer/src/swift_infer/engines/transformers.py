"""The engine over transformers' models: continuous batches, streams, adapters, weights that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import torch
from swift_core.config.sections import MediaSection, ModelSection
from swift_core.errors import ConfigError, EngineError, RequestError
from swift_core.models.dtype import resolve_dtype
from swift_core.models.loading import load_model, resolve_model_folder
from swift_core.protocols import Capabilities, InferRequest, InferResponse, RequestConfig, Running, TextDelta
from swift_core.train.tuning import load_tuner
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_infer.adapter_names import adapter_folders, adapter_problems, named_adapters
from swift_infer.checkpoint import read_checkpoint
from swift_infer.config import ChatSection, EngineConfig, LogprobsMode
from swift_infer.engines.adapters import NamedAdapters
from swift_infer.engines.lines import Emit, Job, Line
from swift_infer.engines.paged import Loaded
from swift_infer.engines.prepacked import prepack
from swift_infer.engines.processors import display_name, processor_for
from swift_infer.engines.prompts import Prompts
from swift_infer.engines.runners import ChosenRunner
from swift_infer.engines.sampling import resolve_drawing, row_seed
from swift_infer.engines.scheduler import Scheduler
from swift_infer.engines.streams import follow, follow_async
from swift_infer.engines.structured import Grammars, available
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
        processor = processor_for(folder, loading)
        dtype = resolve_dtype(loading, folder, device=str(device))
        model: Any = load_model(loading, folder, dtype=dtype, quantization=config.quantization, device=str(device))
        for folder in [] if named else adapter_folders(loading):
            model = load_tuner(read_checkpoint(folder).tuner).load(model, folder, trainable=False)
        if not getattr(model, "is_quantized", False):  # packed weights are on their device already
            model = model.to(device)
        model.eval()
        prepack(model)
        self._assemble(model, processor, config.chat, config.media, config.max_batch_size, display_name(loading), config.logprobs_mode)
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
        self.model_name = model_name
        self.prompts = Prompts(processor, chat, media, model.config, model_name)
        self.tokenizer, self.template, self.context_length = self.prompts.tokenizer, self.prompts.template, self.prompts.context_length
        self._loaded = Loaded(model, NamedAdapters(), logprobs=logprobs_mode)
        # Code from a model's folder need not know of padding on the left.
        self.max_batch_size = 1 if hasattr(model, "media_adapter") else max_batch_size
        self._grammars = Grammars(self.tokenizer, self.prompts.vocabulary, sorted(self.template.stop_token_ids))
        pad: Any = self.tokenizer.pad_token_id
        self._runner = ChosenRunner(self._loaded, pad_id=pad, max_rows=self.max_batch_size)
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
            structured=available(),
            adapters=True,
            media=self.prompts.takes_media,
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

    @property
    def error(self) -> BaseException | None:
        """Return why the engine's thread has died, or None."""
        return self.scheduler.error

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
        self.prompts.adapter_of(request, self.adapters)
        return self.prompts.encode(request).input_ids

    def _job(self, request: InferRequest, config: RequestConfig, emit: Emit | None = None) -> Job:
        prompts = self.prompts
        adapter, prompt = prompts.adapter_of(request, self.adapters), prompts.encode(request)
        room, ending = prompts.room(prompt, config), prompts.ending(config)
        drawing = resolve_drawing(config, getattr(self.model, "generation_config", None))

        def line(index: int) -> Line:
            answer = prompts.answer(config, room, marks=bool(request.tools))
            form = self._grammars.constraint(config.structured) if config.structured else None
            seed = row_seed(config.seed, index)
            return Line(index, answer, drawing, seed, quiet_until=config.min_tokens, stop_ids=ending, constraint=form)

        lines = [line(index) for index in range(config.n)]
        return Job(prompt, adapter, config, lines, emit=emit, request_id=request.request_id)


def _device(use_cpu: bool) -> torch.device:
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def build_engine(config: EngineConfig) -> TransformersEngine:
    """Return an engine with the model that the settings name."""
    return TransformersEngine.from_config(config)
