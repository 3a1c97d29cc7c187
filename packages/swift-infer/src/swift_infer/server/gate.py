"""What a request must pass before any route sees it: the key, the host name, the size."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swift_infer.config import LOOPBACK
from swift_infer.server.wire import error_body

# Routes that answer without a key. All others need it, those added later too.
PUBLIC_PATHS = frozenset({"/health", "/ping", "/ready"})


class Gateway:
    """Whether requests are let in.

    Args:
        error: returns why the engine has died, or None.
    """

    def __init__(self, error: Callable[[], BaseException | None]) -> None:
        self._error = error
        self.draining = False

    @property
    def dead(self) -> bool:
        """Say whether the engine has died."""
        return self._error() is not None

    @property
    def unready(self) -> str | None:
        """Return why no request is taken, or None."""
        return "the engine has died" if self.dead else "the server is shutting down" if self.draining else None


class KeyCheck:
    """Compares keys in constant time, whatever their length and bytes."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def accepts(self, header: bytes | None) -> bool:
        """Say whether an Authorization header carries the key."""
        scheme, _, given = (header or b"").partition(b" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._digest)
        return same and scheme.lower() == b"bearer"


class Gate:
    """ASGI middleware that refuses a request before its body is read.

    Args:
        app: what comes after.
        gateway: whether requests are let in.
        api_key: key that all but the public paths need, or None.
        max_bytes: largest body.
        larger: largest body of single paths.
        local_only: refuse host names other than this machine's, so that no web page can reach a server without a key by
            a name that it has pointed here.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        gateway: Gateway,
        api_key: str | None,
        max_bytes: int,
        local_only: bool,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        self._app, self._gateway = app, gateway
        self._larger = dict(larger or {})
        self._key = KeyCheck(api_key) if api_key is not None else None
        self._max_bytes = max_bytes
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._app(scope, _Limited(receive, self._limit(scope)), send)

    def _limit(self, scope: Scope) -> int:
        return self._larger.get(scope["path"], self._max_bytes)

    def _refusal(self, scope: Scope) -> tuple[int, dict[str, Any]] | None:
        raw: dict[bytes, bytes] = dict(scope["headers"])
        if self._key is not None and scope["path"] not in PUBLIC_PATHS and not self._key.accepts(raw.get(b"authorization")):
            return 401, error_body("the API key is missing or wrong", kind="invalid_request_error", code="invalid_api_key")
        headers = Headers(scope=scope)
        if self._local_only and _host_name(headers.get("host", "")) not in LOOPBACK:
            return 403, error_body("this server answers requests to this machine only", kind="permission_error", code="host_not_allowed")
        if scope["path"] not in PUBLIC_PATHS and scope["path"] != "/metrics" and (why := self._gateway.unready) is not None:
            return 503, error_body(why, kind="server_error", code="unavailable")
        length = headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= self._limit(scope):
            return None
        return 413, too_large(self._limit(scope))


class BodyTooLargeError(Exception):
    """Raised by `receive` when a body without an honest length grows over the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class _Limited:
    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._limit = self._left = max_bytes

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise BodyTooLargeError(self._limit)
        return message


def too_large(limit: int) -> dict[str, Any]:
    """Return the error for a body over the limit."""
    return error_body(f"the request body is larger than {limit} bytes", kind="invalid_request_error", code="request_too_large")


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers += [(b"retry-after", b"5"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
