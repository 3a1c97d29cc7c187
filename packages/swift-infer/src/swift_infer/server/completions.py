"""One chat completion: from the engine's pieces to one JSON body or a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from swift_core.errors import EngineError, RequestError, TemplateError
from swift_core.protocols import Engine, InferRequest, RequestConfig, TextDelta, Usage

from swift_infer.server.admission import Admission
from swift_infer.server.wire import AnswerMessage, ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, WireUsage, error_body

T = TypeVar("T")

logger = logging.getLogger("swift_infer.server")

# nginx's status for a client that has gone; nobody reads it but the access log.
_CLIENT_GONE = 499


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that has passed all checks."""

    engine: Engine
    admission: Admission
    request: InferRequest
    config: RequestConfig
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def deltas(self) -> AsyncGenerator[TextDelta]:
        """Wait for the engine, then yield its pieces; closing the generator aborts the request and frees the engine."""
        async with self.admission.turn():
            source = cast(AsyncGenerator[TextDelta], self.engine.astream(self.request, self.config))
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    yield piece

    def chunk(self, index: int, delta: dict[str, str], finish_reason: str | None = None) -> ChatCompletionChunk:
        """Return a piece of the stream."""
        choice = ChunkChoice(index=index, delta=delta, finish_reason=finish_reason)
        return ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=[choice])


async def answer_whole(completion: Completion, request: Request) -> Response:
    """Return the complete response, or give up as soon as the client is gone."""
    found = await unless_gone(_collect(completion), request)
    if found is None:
        return Response(status_code=_CLIENT_GONE)
    return JSONResponse(found.model_dump())


async def open_stream(completion: Completion, request: Request, *, include_usage: bool) -> Response:
    """Return the event stream once the first piece is there, so that a refusal still gets its own status."""
    deltas = completion.deltas()
    try:
        first = await unless_gone(anext(deltas, None), request)
    except BaseException:
        await deltas.aclose()
        raise
    if first is None:
        await deltas.aclose()
        return Response(status_code=_CLIENT_GONE)
    return EventStream(_events(completion, first, deltas, include_usage), deltas)


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


async def _collect(completion: Completion) -> ChatCompletion:
    texts: dict[int, list[str]] = {index: [] for index in range(completion.config.n)}
    reasons: dict[int, str] = {}
    usage = Usage(0, 0)
    async with aclosing(completion.deltas()) as deltas:
        async for delta in deltas:
            texts[delta.index].append(delta.text)
            if delta.finish_reason is not None:
                reasons[delta.index] = delta.finish_reason
            usage = delta.usage or usage
    choices = [
        Choice(index=index, message=AnswerMessage(content="".join(pieces)), finish_reason=reasons[index]) for index, pieces in texts.items()
    ]
    return ChatCompletion(id=completion.id, created=completion.created, model=completion.model, choices=choices, usage=_usage(usage))


async def _events(completion: Completion, first: TextDelta, deltas: AsyncIterator[TextDelta], include_usage: bool) -> AsyncIterator[str]:
    usage: Usage | None = None
    started: set[int] = set()
    delta: TextDelta | None = first
    try:
        while delta is not None:
            if delta.index not in started:
                started.add(delta.index)
                yield _event(completion.chunk(delta.index, {"role": "assistant", "content": ""}), include_usage)
            if delta.text:
                yield _event(completion.chunk(delta.index, {"content": delta.text}), include_usage)
            if delta.finish_reason is not None:
                yield _event(completion.chunk(delta.index, {}, delta.finish_reason), include_usage)
            usage = delta.usage or usage
            delta = await anext(deltas, None)
    except Exception as error:  # noqa: BLE001  the status is sent already; the client learns of it inside the stream
        yield f"data: {json.dumps(describe(error)[1])}\n\n"
        return
    if include_usage and usage is not None:
        last = ChatCompletionChunk(id=completion.id, created=completion.created, model=completion.model, choices=[], usage=_usage(usage))
        yield _event(last, include_usage)
    yield "data: [DONE]\n\n"


def _event(chunk: ChatCompletionChunk, include_usage: bool) -> str:
    # Escaped to ASCII: clients split lines at U+2028 and the like.
    return f"data: {json.dumps(chunk.model_dump(exclude=None if include_usage else {'usage'}))}\n\n"


def _usage(usage: Usage) -> WireUsage:
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
    logger.error("a request failed", exc_info=error)
    told = error.message if isinstance(error, EngineError) else "the model failed to answer; the server's log says why"
    return 500, error_body(told, kind="server_error")
