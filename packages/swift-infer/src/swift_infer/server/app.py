"""The routes: chat completions, models, health."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from swift_core.config.training import short_name
from swift_core.errors import SwiftError
from swift_core.protocols import AdapterEngine, Engine, RequestConfig, TextEngine

from swift_infer.config import LOOPBACK, RolloutSection, ServerSection
from swift_infer.server.admission import Admission, QueueFullError
from swift_infer.server.completions import Completion, answer_whole, describe, open_stream
from swift_infer.server.gate import BodyTooLargeError, Gate, too_large
from swift_infer.server.texts import add_text_routes
from swift_infer.server.wire import ChatCompletionRequest, error_body

Body = TypeVar("Body", bound=BaseModel)

_INVALID = "invalid_request_error"


class ApiError(Exception):
    """A refusal in the OpenAI shape."""

    def __init__(self, status: int, message: str, *, kind: str = _INVALID, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind=kind, code=code, param=param)


def create_app(
    engine: Engine | TextEngine,
    settings: ServerSection,
    defaults: RequestConfig,
    *,
    context_length: int | None = None,
    rollout: RolloutSection | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        engine: answers the requests, as many at a time as its `max_batch_size` says.
        settings: limits, key and names.
        defaults: how to answer where a request does not say.
        context_length: most tokens of prompt and answer together, for /v1/models and to refuse larger `max_tokens` at once.
        rollout: adds the control routes of reinforcement learning, with these limits.
    """
    app = FastAPI(title="swift", docs_url=None, redoc_url=None, openapi_url=None)
    name = settings.served_model_name or short_name(engine.model_name)
    admission = Admission(settings.max_queue, getattr(engine, "max_batch_size", 1) if isinstance(engine, Engine) else 1)
    created = int(time.time())
    app.state.admission = admission
    app.state.model_name = name

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(one) for one in _names(engine, name)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _check_model(model, _names(engine, name))
        return _card(model)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await _read_body(request, settings)
        if isinstance(engine, TextEngine):
            raise ApiError(400, f"this server has a model for {engine.task}, which does not chat", code="unsupported_model", param="model")
        _check(body, _names(engine, name), settings, context_length)
        wanted = body.infer_request(adapter=None if body.model == name else body.model)
        completion = Completion(engine, admission, wanted, body.request_config(defaults), body.model)
        if not body.stream:
            return await answer_whole(completion, request)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await open_stream(completion, request, include_usage=usage)

    def _card(model: str) -> dict[str, Any]:
        card = {"id": model, "object": "model", "created": created, "owned_by": settings.owned_by, "max_model_len": context_length}
        return card if model == name else {**card, "parent": name}

    async def read_texts(request: Request, kind: type[Any]) -> Any:
        body = _as(kind, await _read_json(request))
        _check_model(body.model, [name])
        return body

    add_text_routes(app, engine, name=name, admission=admission, read=read_texts)
    larger: dict[str, int] = {}
    if rollout is not None:
        larger = {"/rollout/weights": rollout.max_weight_bytes, "/rollout/generate": rollout.max_prompt_bytes}
        _add_rollout(app, engine, rollout, context_length)
    _add_error_handlers(app)
    local_only = settings.api_key is None and settings.host in LOOPBACK
    app.add_middleware(Gate, api_key=settings.api_key, max_bytes=settings.max_request_bytes, local_only=local_only, larger=larger)
    return app


def _add_rollout(app: FastAPI, engine: Any, settings: RolloutSection, context_length: int | None) -> None:
    from swift_infer.server.rollout import OutOfOrderError, add_rollout_routes

    async def read(request: Request, kind: type[Any]) -> Any:
        return _as(kind, await _read_json(request))

    add_rollout_routes(app, engine, settings, context_length=context_length, read=read)

    @app.exception_handler(OutOfOrderError)
    async def out_of_order(_: Request, error: OutOfOrderError) -> Response:
        return JSONResponse(error_body(str(error), kind=_INVALID, code="out_of_order", param="part"), 409)


async def _read_body(request: Request, settings: ServerSection) -> ChatCompletionRequest:
    value = await _read_json(request)
    messages: Any = value.get("messages") if isinstance(value, dict) else None
    if isinstance(messages, list) and len(messages) > settings.max_messages:
        raise ApiError(400, f"{len(messages)} messages are given, at most {settings.max_messages} are allowed", param="messages")
    return _as(ChatCompletionRequest, value)


async def _read_json(request: Request) -> Any:
    # Browsers send other content types across origins without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the content type must be application/json", param="content-type")
    raw = await request.body()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def _as(kind: type[Body], value: Any) -> Body:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(400, f"{where or 'body'}: {first['msg']}", param=where) from error


def _names(engine: Engine | TextEngine, model: str) -> list[str]:
    """Return the names that requests can ask for: the model's and those of its adapters."""
    return [model, *(engine.adapters if isinstance(engine, AdapterEngine) else [])]


def _check_model(given: str, names: Sequence[str]) -> None:
    if given not in names:
        has = ", ".join(map(repr, names))
        raise ApiError(404, f"there is no model {given!r} here; this server has {has}", code="model_not_found", param="model")


def _check(body: ChatCompletionRequest, names: Sequence[str], settings: ServerSection, context_length: int | None) -> None:
    _check_model(body.model, names)
    field = body.unsupported()
    if field is not None:
        raise ApiError(400, f"{field} is not supported by this server", code="unsupported_parameter", param=field)
    if (body.n or 1) > settings.max_n:
        raise ApiError(400, f"n is {body.n}, at most {settings.max_n} is allowed", param="n")
    for field in ("max_completion_tokens", "max_tokens"):
        wanted = getattr(body, field)
        if wanted is not None and context_length is not None and wanted > context_length:
            raise ApiError(400, f"{field} is {wanted}, but the model's context has {context_length} tokens", param=field)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> Response:
        body = error_body("too many requests are waiting; try again shortly", kind="rate_limit_error", code="queue_full")
        return JSONResponse(body, 429, {"Retry-After": "1"})

    @app.exception_handler(BodyTooLargeError)
    async def large(_: Request, error: BodyTooLargeError) -> Response:
        return JSONResponse(too_large(error.limit), 413)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(error_body(f"{where}: {first['msg']}", kind=_INVALID, param=where), 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail), kind=_INVALID), error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        status, body = describe(error)
        return JSONResponse(body, status)

    # Starlette raises what the handler of Exception has answered once more, so that of SwiftError is registered by itself.
    app.add_exception_handler(SwiftError, failed)
    app.add_exception_handler(Exception, failed)
