"""From exceptions to answers in the OpenAI shape."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from swift_core.errors import SwiftError

from swift_infer.server.admission import QueueFullError
from swift_infer.server.completions import RequestTimeoutError, describe
from swift_infer.server.gate import BodyTooLargeError, too_large
from swift_infer.server.metrics import Metrics
from swift_infer.server.wire import error_body

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A refusal in the OpenAI shape."""

    def __init__(self, status: int, message: str, *, kind: str = INVALID, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind=kind, code=code, param=param)


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Let an application answer every exception in the OpenAI shape."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> Response:
        metrics.refused += 1
        body = error_body("too many requests are waiting; try again shortly", kind="rate_limit_error", code="queue_full")
        return JSONResponse(body, 429, {"Retry-After": "1"})

    @app.exception_handler(BodyTooLargeError)
    async def large(_: Request, error: BodyTooLargeError) -> Response:
        return JSONResponse(too_large(error.limit), 413)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(error_body(f"{where}: {first['msg']}", kind=INVALID, param=where), 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail), kind=INVALID), error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        status, body = describe(error)
        return JSONResponse(body, status)

    # Starlette raises what the handler of Exception has answered once more, so that those raised on purpose are registered by themselves.
    for kind in (SwiftError, RequestTimeoutError, Exception):
        app.add_exception_handler(kind, failed)
