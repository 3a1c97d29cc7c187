"""Reading the bodies of requests: JSON only, checked against a model, the first problem told."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from swift_infer.server.errors import ApiError

Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request) -> Any:
    """Return the JSON of a request.

    Raises:
        ApiError: when it is none.
    """
    # Browsers send other content types across origins without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the content type must be application/json", param="content-type")
    raw = await request.body()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def as_model(kind: type[Body], value: Any) -> Body:
    """Return a value as a model.

    Raises:
        ApiError: with the first field that does not fit.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(400, f"{where or 'body'}: {first['msg']}", param=where) from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
