"""Looking at an endpoint before anything is sent to it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any, cast

from swift_core.errors import EngineError
from swift_core.registry import nearest


def check_endpoint(url: str, model: str, *, api_key: str | None = None, timeout: float = 5.0) -> list[str]:
    """Ask an endpoint for its models and return their names; an endpoint without `/models` gives an empty list.

    Args:
        url: base URL that ends before `/chat/completions`, usually in `/v1`.
        model: name that must be among the served ones.
        api_key: sent as bearer token.
        timeout: seconds to wait for the answer.

    Raises:
        EngineError: when nothing answers, the key is refused, or the model is not served there.
    """
    address = base_url(url) + "/models"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            names = _names(reply.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            given = "the key given with --api_key" if api_key else "a request without a key"
            raise EngineError(f"{address} refuses {given} (HTTP {error.code})", fix="give the endpoint's key with --api_key") from error
        if error.code in (404, 405, 501):
            return []
        raise EngineError(f"{address} answers HTTP {error.code}", fix="look at the log of the server") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EngineError(
            f"no endpoint answers at {address} within {timeout:g} s: {reason}",
            fix="start it (`swift deploy --model ...`) or correct --eval_url",
        ) from error
    if names and model not in names:
        near = nearest(model, names, count=1)
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise EngineError(f"{address} does not list the model {model!r}; it lists {shown}", fix=f"--model {(near or names)[0]}")
    return names


def base_url(url: str) -> str:
    """Return the address without a trailing slash and without `/chat/completions`."""
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _names(body: bytes) -> list[str]:
    parsed: Any = json.loads(body)
    data: Any = cast("dict[str, Any]", parsed).get("data") if isinstance(parsed, dict) else None
    if not isinstance(data, list):
        raise ValueError("the answer is not an OpenAI model list")
    return [str(item["id"]) for item in cast("list[Any]", data) if isinstance(item, dict) and "id" in item]
