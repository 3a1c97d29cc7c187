"""The application: gate, limits, routes."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field
from swift_core.config.training import short_name
from swift_core.protocols import AdapterEngine, Engine, RequestConfig, TextEngine

from swift_infer.config import LOOPBACK, RolloutSection, ServerSection
from swift_infer.server.admission import Admission
from swift_infer.server.answers import Limits, add_answer_routes
from swift_infer.server.bodies import as_model, read_json
from swift_infer.server.completions import Service
from swift_infer.server.errors import INVALID, ApiError, add_error_handlers
from swift_infer.server.gate import Gate, Gateway
from swift_infer.server.metrics import Metrics
from swift_infer.server.runtime_adapters import add_adapter_routes
from swift_infer.server.texts import add_text_routes
from swift_infer.server.wire import ChatMessage, Tool, WireModel, error_body


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
    admission = Admission(settings.max_queue, getattr(engine, "max_batch_size", 1) if not isinstance(engine, TextEngine) else 1)
    metrics = Metrics(
        {
            ("requests_running", "requests that are being answered"): lambda: admission.running,
            ("requests_waiting", "requests in the queue"): lambda: admission.waiting,
        }
    )
    gateway = Gateway(error=lambda: getattr(engine, "error", None))
    app.state.admission, app.state.metrics, app.state.gateway = admission, metrics, gateway
    app.state.model_name = name
    limits = Limits(settings, context_length, lambda: _names(engine, name), name, defaults)
    _add_health(app, gateway, metrics)
    _add_models(app, limits)
    add_answer_routes(app, engine, Service(engine, admission, metrics, settings.request_timeout), limits)  # pyright: ignore[reportArgumentType]

    async def read_texts(request: Request, kind: type[Any]) -> Any:
        body = as_model(kind, await read_json(request))
        if body.model != name:
            limits.check_model(body.model if body.model not in limits.names() else "")
        return body

    add_text_routes(app, engine, name=name, admission=admission, read=read_texts)
    if getattr(engine, "prompts", None) is not None:
        _add_tokenize(app, engine, limits)
    if settings.adapter_root is not None and isinstance(engine, AdapterEngine):
        add_adapter_routes(app, engine, settings.adapter_root)
    larger: dict[str, int] = {}
    if rollout is not None:
        larger = {"/rollout/weights": rollout.max_weight_bytes, "/rollout/generate": rollout.max_prompt_bytes}
        _add_rollout(app, engine, rollout, context_length)
    add_error_handlers(app, metrics)
    local_only = settings.api_key is None and settings.host in LOOPBACK
    app.add_middleware(
        Gate, gateway=gateway, api_key=settings.api_key, max_bytes=settings.max_request_bytes, local_only=local_only, larger=larger
    )
    return app


def _names(engine: Engine | TextEngine, model: str) -> list[str]:
    """Return the names that requests can ask for: the model's and those of its adapters."""
    return [model, *(engine.adapters if isinstance(engine, AdapterEngine) else [])]


def _add_health(app: FastAPI, gateway: Gateway, metrics: Metrics) -> None:
    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        dead = gateway.dead
        return JSONResponse({"status": "the engine has died" if dead else "ok"}, 503 if dead else 200)

    @app.get("/ready")
    async def ready() -> Response:
        why = gateway.unready
        return JSONResponse({"status": why or "ok"}, 503 if why else 200)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/version")
    async def version() -> dict[str, str]:
        from importlib.metadata import version as version_of

        return {"version": version_of("swift-infer")}


def _add_models(app: FastAPI, limits: Limits) -> None:
    created, settings = int(time.time()), limits.settings

    def card(model: str) -> dict[str, Any]:
        found = {"id": model, "object": "model", "created": created, "owned_by": settings.owned_by, "max_model_len": limits.context_length}
        return found if model == limits.main else {**found, "parent": limits.main}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(one) for one in limits.names()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        limits.check_model(model)
        return card(model)


class TokenizeRequest(WireModel):
    """Body of POST /tokenize."""

    model: str | None = Field(None, max_length=1024)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=128)


class DetokenizeRequest(WireModel):
    """Body of POST /detokenize."""

    model: str | None = Field(None, max_length=1024)
    tokens: list[int]


def _add_tokenize(app: FastAPI, engine: Any, limits: Limits) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = as_model(TokenizeRequest, await read_json(request))
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if body.prompt is not None:
            ids = engine.prompts.tokenize(body.prompt)
        else:
            from swift_core.protocols import InferRequest

            tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] or None
            ids = engine.prompts.encode(InferRequest([message.as_message() for message in body.messages or []], tools)).input_ids
        return {"tokens": ids, "count": len(ids), "max_model_len": limits.context_length}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        body = as_model(DetokenizeRequest, await read_json(request))
        if any(not 0 <= token < engine.prompts.vocabulary for token in body.tokens):
            raise ApiError(400, "tokens holds numbers that are no tokens of this model", param="tokens")
        return {"prompt": engine.prompts.decode_marks(body.tokens)}


def _add_rollout(app: FastAPI, engine: Any, settings: RolloutSection, context_length: int | None) -> None:
    from swift_infer.server.rollout import OutOfOrderError, add_rollout_routes

    async def read(request: Request, kind: type[Any]) -> Any:
        return as_model(kind, await read_json(request))

    add_rollout_routes(app, engine, settings, context_length=context_length, read=read)

    @app.exception_handler(OutOfOrderError)
    async def out_of_order(_: Request, error: OutOfOrderError) -> Response:
        return JSONResponse(error_body(str(error), kind=INVALID, code="out_of_order", param="part"), 409)
