"""One chat or text completion: from the engine's pieces to one JSON body or a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from swift_core.errors import EngineError, MissingDependencyError, RequestError, TemplateError
from swift_core.protocols import Engine, InferRequest, RequestConfig, TextDelta, TokenLogprob, Usage

from swift_infer.server.admission import Admission
from swift_infer.server.metrics import Metrics, Watch
from swift_infer.server.reading import AnswerReader, Piece, wire_call
from swift_infer.server.wire import AnswerMessage, ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, WireUsage, error_body

T = TypeVar("T")

logger = logging.getLogger("swift_infer.server")

# nginx's status for a client that has gone; nobody reads it but the access log.
_CLIENT_GONE = 499


class RequestTimeoutError(Exception):
    """Raised when an answer takes longer than the server allows."""


class EngineDeadError(EngineError):
    """Raised when the engine cannot answer any more."""


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share.

    Attributes:
        engine: answers.
        admission: says when.
        metrics: counts.
        timeout: most seconds for one answer, or None.
    """

    engine: Engine
    admission: Admission
    metrics: Metrics
    timeout: float | None = None

    async def deltas(self, request: InferRequest, config: RequestConfig, watch: Watch) -> AsyncGenerator[TextDelta]:
        """Wait for the engine, then yield its pieces; closing the generator aborts the request."""
        try:
            async with asyncio.timeout(self.timeout), self.admission.turn():
                watch.admitted()
                source = cast(AsyncGenerator[TextDelta], self.engine.astream(request, config))
                async with aclosing(source) as pieces:
                    async for piece in pieces:
                        watch.saw(piece)
                        yield piece
        except TimeoutError as error:
            raise RequestTimeoutError from error
        finally:
            watch.done()


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat request that has passed all checks.

    Attributes:
        service: what all requests share.
        request, config: for the engine.
        model: name that the client asked for.
        reader: makes the reader of one answer.
        token_text: text of a token, for log-probabilities.
    """

    service: Service
    request: InferRequest
    config: RequestConfig
    model: str
    reader: Callable[[], AnswerReader] = AnswerReader
    token_text: Callable[[int], str] = str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def deltas(self) -> AsyncGenerator[TextDelta]:
        """Wait for the engine, then yield its pieces; closing the generator aborts the request."""
        return self.service.deltas(self.request, self.config, self.service.metrics.watch(self.model))

    def chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> ChatCompletionChunk:
        """Return a piece of the stream."""
        choice = ChunkChoice(index=index, delta=delta, finish_reason=finish_reason, logprobs=logprobs)
        return ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=[choice])

    def logprobs(self, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        """Return log-probabilities as clients expect them."""
        return None if found is None else {"content": [_token(one, self.token_text) for one in found], "refusal": None}


async def answer_whole(completion: Completion, request: Request) -> Response:
    """Return the complete response, or give up as soon as the client is gone."""
    found = await unless_gone(_collect(completion), request)
    if found is None:
        return Response(status_code=_CLIENT_GONE)
    return JSONResponse(found.model_dump(exclude={"choices": {"__all__": {"message": _absent(found)}}}))


async def open_stream(
    deltas: AsyncGenerator[TextDelta],
    request: Request,
    events: Callable[[TextDelta, AsyncIterator[TextDelta]], AsyncIterator[str]],
) -> Response:
    """Return the event stream once the first piece is there, so that a refusal still gets its own status."""
    try:
        first = await unless_gone(anext(deltas, None), request)
    except BaseException:
        await deltas.aclose()
        raise
    if first is None:
        await deltas.aclose()
        return Response(status_code=_CLIENT_GONE)
    return EventStream(told(events(first, deltas)), deltas)


class EventStream(StreamingResponse):
    """A stream of server-sent events that closes its source, also when sending stops before it began."""

    def __init__(self, events: AsyncIterator[str], source: AsyncGenerator[Any]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


async def told(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield events; what goes wrong is told inside the stream, since the status is sent already."""
    try:
        async for event in events:
            yield event
    except Exception as error:  # noqa: BLE001  the client learns of it inside the stream
        yield f"data: {json.dumps(describe(error)[1])}\n\n"
        return
    yield "data: [DONE]\n\n"


class _Answer:
    """One answer of a chat while it comes in."""

    def __init__(self, reader: AnswerReader) -> None:
        self.reader = reader
        self.texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason = "stop"

    def take(self, delta: TextDelta) -> list[dict[str, Any]]:
        """Take a piece and return what it adds, as the deltas of a stream."""
        pieces = self.reader.feed(delta.text)
        if delta.finish_reason is not None:
            pieces += self.reader.finish()
            self.reason = "tool_calls" if self.reader.called and delta.finish_reason == "stop" else delta.finish_reason
        self.logprobs += delta.logprobs or []
        return [self._added(piece) for piece in pieces]

    def _added(self, piece: Piece) -> dict[str, Any]:
        if piece.call is not None:
            self.calls.append(wire_call(piece.call))
            return {"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1]}]}
        self.texts[piece.kind].append(piece.text)
        return {"content" if piece.kind == "content" else "reasoning_content": piece.text}

    def message(self) -> AnswerMessage:
        """Return the complete answer."""
        content, reasoning = ("".join(self.texts[kind]) for kind in ("content", "reasoning"))
        return AnswerMessage(
            content=content if content or not self.calls else None, reasoning_content=reasoning or None, tool_calls=self.calls or None
        )


async def _collect(completion: Completion) -> ChatCompletion:
    answers = [_Answer(completion.reader()) for _ in range(completion.config.n)]
    usage = Usage(0, 0)
    async with aclosing(completion.deltas()) as deltas:
        async for delta in deltas:
            answers[delta.index].take(delta)
            usage = delta.usage or usage
    wanted = completion.config.logprobs is not None
    choices = [
        Choice(
            index=index,
            message=answer.message(),
            finish_reason=answer.reason,
            logprobs=completion.logprobs(answer.logprobs) if wanted else None,
        )
        for index, answer in enumerate(answers)
    ]
    return ChatCompletion(id=completion.id, created=completion.created, model=completion.model, choices=choices, usage=wire_usage(usage))


async def chat_events(
    completion: Completion, first: TextDelta, deltas: AsyncIterator[TextDelta], *, include_usage: bool
) -> AsyncIterator[str]:
    """Yield the events of a chat's stream."""
    usage: Usage | None = None
    answers: dict[int, _Answer] = {}
    delta: TextDelta | None = first
    while delta is not None:
        index = delta.index
        if index not in answers:
            answers[index] = _Answer(completion.reader())
            yield _event(completion.chunk(index, {"role": "assistant", "content": ""}), include_usage)
        added = answers[index].take(delta)
        logprobs = completion.logprobs(delta.logprobs) if delta.logprobs else None
        if logprobs is not None and not added:
            added = [{"content": ""}]
        for one in added:
            yield _event(completion.chunk(index, one, logprobs=logprobs), include_usage)
            logprobs = None
        if delta.finish_reason is not None:
            yield _event(completion.chunk(index, {}, answers[index].reason), include_usage)
        usage = delta.usage or usage
        delta = await anext(deltas, None)
    if include_usage and usage is not None:
        chunk = ChatCompletionChunk(
            id=completion.id, created=completion.created, model=completion.model, choices=[], usage=wire_usage(usage)
        )
        yield _event(chunk, include_usage)


def _event(chunk: ChatCompletionChunk, include_usage: bool) -> str:
    left_out = None if include_usage else {"usage"}
    return f"data: {json.dumps(chunk.model_dump(exclude=left_out), ensure_ascii=False)}\n\n"


def _absent(found: ChatCompletion) -> set[str]:
    """Return the fields of messages that no answer has: clients take null for present."""
    names = ("reasoning_content", "tool_calls")
    return {name for name in names if all(getattr(choice.message, name) is None for choice in found.choices)}


def _token(found: TokenLogprob, text: Callable[[int], str]) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        shown = text(token)
        return {"token": shown, "logprob": max(logprob, -9999.0), "bytes": list(shown.encode())}

    return {**one(found.token_id, found.logprob), "top_logprobs": [one(token, logprob) for token, logprob in found.top]}


def wire_usage(usage: Usage) -> WireUsage:
    """Return token counts as clients expect them."""
    return WireUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, total_tokens=usage.total_tokens)


async def unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T | None:
    """Return the result of `work`, or None after cancelling it when the client hangs up first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return status and body for an error; what is the server's fault also goes to its log."""
    if isinstance(error, RequestError | TemplateError):
        return 400, error_body(str(error), kind="invalid_request_error", code=getattr(error, "code", None), param="messages")
    if isinstance(error, MissingDependencyError):
        return 400, error_body(f"this server cannot do that: {error.message}", kind="invalid_request_error", code="unsupported_parameter")
    if isinstance(error, RequestTimeoutError):
        return 504, error_body("the answer took longer than this server allows", kind="timeout_error", code="timeout")
    logger.error("a request failed", exc_info=error)
    if isinstance(error, EngineDeadError):
        return 503, error_body(error.message, kind="server_error", code="engine_dead")
    message = error.message if isinstance(error, EngineError) else "the model failed to answer; the server's log says why"
    return 500, error_body(message, kind="server_error")
