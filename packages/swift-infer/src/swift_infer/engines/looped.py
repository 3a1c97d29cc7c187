"""What engines over third-party libraries share: an event loop in a thread, our prompts, texts and stops around their tokens."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from swift_core.config.sections import ModelSection
from swift_core.errors import EngineError, RequestError
from swift_core.models.config import load_config
from swift_core.models.loading import resolve_model_folder
from swift_core.protocols import InferRequest, InferResponse, RequestConfig, TextDelta, TokenLogprob
from transformers import GenerationConfig

from swift_infer.checkpoint import read_checkpoint
from swift_infer.config import EngineConfig
from swift_infer.engines.lines import Emit, Job, Line
from swift_infer.engines.processors import display_name, processor_for
from swift_infer.engines.prompts import Prompts
from swift_infer.engines.sampling import resolve_drawing, row_seed
from swift_infer.engines.streams import follow, follow_async

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens that a library has written.

    Attributes:
        token_ids: in order.
        logprobs: one for each, where they were asked for.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] | None = None


class LoopThread:
    """An event loop in a thread of its own, in which a library lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swift-engine-loop", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Awaitable[T]) -> T:
        """Do something in the loop and return its result."""

        async def wrapped() -> T:
            return await work

        return self.start(wrapped()).result()

    def call(self, act: Callable[[], T]) -> T:
        """Call something in the loop's thread and return its result."""

        async def wrapped() -> T:
            return act()

        return self.run(wrapped())

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class LoopEngine:
    """Answers requests with a library that writes tokens on an event loop.

    A subclass starts the library in `_begin_library`, writes in `_tokens`, and ends it in `close`. Each answer is a request of the
    library, so that seeds, texts, stops and reasons are those of this toolbox in every engine.
    """

    name = ""

    def __init__(self, config: EngineConfig) -> None:
        loading = config.loading
        folder = resolve_model_folder(loading)
        self.model_name = display_name(loading)
        model_config = load_config(loading, folder)
        self.prompts = Prompts(processor_for(folder, loading), config.chat, config.media, model_config, self.model_name)
        self.tokenizer, self.template, self.context_length = self.prompts.tokenizer, self.prompts.template, self.prompts.context_length
        self.max_batch_size = config.max_batch_size
        self.version = 0
        self._own = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
        self._running: dict[str, dict[str, Job]] = {}  # request id of the caller -> names that the library knows them by
        self._closed = False
        self._loop = LoopThread()
        try:
            self._begin_library(config, folder)
        except Exception as error:
            self._loop.close()
            raise EngineError(f"{self.name} does not start: {error}", fix="its log above says why") from error

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Load the model that the settings name.

        Raises:
            NotFoundError: when the model or adapter is absent.
            EngineError: when the library does not start.
        """
        return cls(config)  # pyright: ignore[reportCallIssue]

    def _begin_library(self, config: EngineConfig, folder: Path) -> None:
        raise NotImplementedError

    def _tokens(self, job: Job, line: Line, name: str) -> AsyncGenerator[Written]:
        raise NotImplementedError

    async def _end(self, names: Sequence[str]) -> None:
        """Let the library end requests of these names."""
        raise NotImplementedError

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return []

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        """Answer all requests, in order; they run together with those of other callers.

        Raises:
            RequestError: when a request is longer than the context.
            TemplateError: when messages cannot be rendered.
            EngineError: when the engine is closed or dead.
        """
        jobs = [self._job(request, config or RequestConfig()) for request in requests]
        tasks = [self._submit(job) for job in jobs]
        try:
            return [job.result.result() for job in jobs]
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def ainfer(self, request: InferRequest, config: RequestConfig | None = None) -> InferResponse:
        """Answer one request without blocking the event loop; cancelling it aborts the request.

        Raises:
            RequestError: when the request is longer than the context.
            TemplateError: when messages cannot be rendered.
            EngineError: when the engine is closed or dead.
        """
        job = await asyncio.to_thread(self._job, request, config or RequestConfig())
        task = self._submit(job)
        try:
            return await asyncio.shield(asyncio.wrap_future(job.result))
        except BaseException:
            task.cancel()
            raise

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        """Answer one request piece by piece; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or dead.
        """
        return follow(lambda emit: self._begin(request, config or RequestConfig(), emit))

    def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncIterator[TextDelta]:
        """Answer one request piece by piece without blocking the event loop; closing the iterator aborts it.

        Raises:
            RequestError: at the first piece, when the request is longer than the context.
            TemplateError: at the first piece, when messages cannot be rendered.
            EngineError: when the engine is closed or dead.
        """
        return follow_async(lambda emit: self._begin(request, config or RequestConfig(), emit))

    def abort(self, request_id: str | None = None) -> int:
        """End requests of that name, or all of them, with what they have; return how many answers were ended."""
        chosen = [group for key, group in list(self._running.items()) if request_id in (None, key)]
        found = {name: job for group in chosen for name, job in list(group.items())}
        for job in found.values():
            job.abort()
        self._loop.run(self._end(list(found)))
        return len(found)

    def prompt_ids(self, request: InferRequest) -> list[int]:
        """Return the token ids of a request's prompt.

        Raises:
            RequestError: when they leave no room for an answer.
            TemplateError: when messages cannot be rendered.
        """
        return self.prompts.encode(request).input_ids

    def close(self) -> None:
        """End the library."""
        self._closed = True
        self._loop.close()

    def _begin(self, request: InferRequest, config: RequestConfig, emit: Emit) -> tuple[Future[InferResponse], Callable[[], None]]:
        job = self._job(request, config, emit)
        task = self._submit(job)

        def stop() -> None:
            if not job.result.done():
                task.cancel()

        return job.result, stop

    def _job(self, request: InferRequest, config: RequestConfig, emit: Emit | None = None) -> Job:
        if self._closed:
            raise EngineError("the engine is closed", fix="make a new one")
        prompts = self.prompts
        adapter, prompt = prompts.adapter_of(request, self.adapters), prompts.encode(request)
        if prompt.model_inputs:
            raise RequestError(f"the engine {self.name} takes texts only here", fix="serve the model with --infer_backend transformers")
        room, drawing = prompts.room(prompt, config), resolve_drawing(config, self._own)
        answers = [prompts.answer(config, room, marks=bool(request.tools)) for _ in range(config.n)]
        lines = [Line(index, answer, drawing, row_seed(config.seed, index)) for index, answer in enumerate(answers)]
        return Job(prompt, adapter, config, lines, emit=emit, request_id=request.request_id)

    def _submit(self, job: Job) -> Future[None]:
        return self._loop.start(self._answer(job))

    async def _answer(self, job: Job) -> None:
        names = [uuid.uuid4().hex for _ in job.lines]
        group = self._running.setdefault(job.request_id, {})
        group.update(dict.fromkeys(names, job))
        try:
            await asyncio.gather(*(self._line(job, line, name) for line, name in zip(job.lines, names, strict=True)))
        except asyncio.CancelledError:
            job.close()
            raise
        except Exception as error:  # noqa: BLE001  handed to the caller, who raises it
            job.fail(self._translated(error))
        else:
            job.close()
        finally:
            for name in names:
                group.pop(name, None)
            if not group:
                self._running.pop(job.request_id, None)

    async def _line(self, job: Job, line: Line, name: str) -> None:
        source = self._tokens(job, line, name)
        try:
            async for written in source:
                for place, token in enumerate(written.token_ids):
                    if line.answer.finish_reason is None and not job.aborted:
                        if written.logprobs is not None:
                            line.logprobs.append(written.logprobs[place])
                        job.push(line, token, self.version)
                if line.answer.finish_reason is not None or job.aborted:
                    return  # a stop text: leaving the generator ends the rest
        finally:
            await source.aclose()

    def _translated(self, error: Exception) -> Exception:
        return RequestError(str(error), fix="change the request") if isinstance(error, ValueError) else error


def lora_folder(folder: Path, library: str) -> Path:
    """Return a folder that holds a LoRA adapter.

    Raises:
        EngineError: when it holds something else.
        NotFoundError: when it is absent.
    """
    checkpoint = read_checkpoint(folder)
    if checkpoint.tuner != "lora" or not checkpoint.is_adapter:
        raise EngineError(f"{str(folder)!r} holds no LoRA adapter, and {library} takes no other kind", fix="merge it into the model first")
    return checkpoint.folder


def loading_of(model_path: str | Path, adapters: Any, torch_dtype: Any, trust_remote_code: bool) -> ModelSection:
    """Return the settings of a model with adapters: a dict from name to folder, or one folder that answers all requests."""
    pairs = adapters.items() if hasattr(adapters, "items") else ((None, folder) for folder in adapters)
    return ModelSection(
        model=str(model_path),
        adapters=[str(folder) if name is None else f"{name}={folder}" for name, folder in pairs],
        torch_dtype=torch_dtype,
        trust_remote_code=trust_remote_code,
    )
