"""One rollout server, spoken to over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from swift_core.errors import EngineError

from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Unavailable(Exception):
    """Raised where another try, or another server, may help.

    Attributes:
        pause: seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class RolloutClient:
    """Talks with one server.

    Args:
        url: such as `http://127.0.0.1:8000`.
        api_key: sent with every request, or None.

    Attributes:
        synced: version of the weights that the server was sent last; -1 before.
        sent: times that it was sent weights.
        down_until: time before which it is not worth asking again.
        running: answers that it is writing for us.
        heard: time of its newest answers.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = api_key
        self.synced = -1
        self.sent = 0
        self.down_until = 0.0
        self.running = 0
        self.heard = 0.0

    def generate(
        self, requests: Sequence[tuple[TurnRequest, int]], sampling: Sampling, stops: Sequence[int], *, adapter: str | None, timeout: float
    ) -> dict[str, Any]:
        """Return the server's answers to requests, each with a seed.

        Raises:
            Unavailable: when it is dead, busy, failing or slow.
            EngineError: when it refuses the requests.
        """
        body = {
            "requests": [
                {
                    "prompt_ids": request.prompt_ids,
                    "max_tokens": request.max_tokens,
                    "seed": seed,
                    **({"adapter": adapter} if adapter else {}),
                }
                for request, seed in requests
            ],
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": max(sampling.top_k, 0),
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "stop": list(sampling.stop),
                "stop_token_ids": list(stops),
            },
            "logprobs": True,
        }
        reply = self._call("POST", "/rollout/generate", json.dumps(body).encode(), timeout=timeout)
        results = reply.get("results")
        if not isinstance(results, list) or len(results) != len(requests):
            raise EngineError(f"{self.url} answered {len(requests)} requests with {str(reply)[:200]}", fix="a server of the same release")
        return reply

    def send(self, parts: Sequence[bytes], query: Mapping[str, Any], *, timeout: float) -> int:
        """Send weights and return the version that the server has then.

        Raises:
            Unavailable: when it is dead, busy, failing or slow.
            EngineError: when it refuses the weights.
        """
        version = -1
        for number, part in enumerate(parts):
            words = urlencode({**query, "part": number, "parts": len(parts)})
            reply = self._call("POST", f"/rollout/weights?{words}", part, timeout=timeout, kind="application/octet-stream")
            version = int(reply.get("version", -1))
        return version

    def info(self, *, timeout: float) -> dict[str, Any]:
        """Return what the server says of itself.

        Raises:
            Unavailable: when it does not answer.
            EngineError: when it is no rollout server, or refuses the key.
        """
        return self._call("GET", "/rollout/info", None, timeout=timeout)

    def _call(self, method: str, path: str, body: bytes | None, *, timeout: float, kind: str = "application/json") -> dict[str, Any]:
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                reply = json.load(response)
        except urllib.error.HTTPError as error:
            said = _message(error.read(4000))
            if error.code in RETRIED:
                raise Unavailable(f"status {error.code}: {said}", _seconds(error.headers.get("Retry-After"))) from error
            fix = "--rollout_api_key, or the one of the server" if error.code == 401 else "see the server's log"
            raise EngineError(f"rollout server {self.url}: {path.partition('?')[0]}: status {error.code}: {said}", fix=fix) from error
        except (OSError, ValueError) as error:
            late = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            raise Unavailable(f"no answer within {timeout:.3g} s" if late else f"{type(error).__name__}: {error}") from error
        if not isinstance(reply, dict):
            raise Unavailable(f"no JSON object: {str(reply)[:200]}")
        return reply

    def rest(self, tries: int, pause: float | None) -> float:
        """Note that the server does not answer, and return after how many seconds to ask it again."""
        seconds = pause if pause is not None else min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE)
        self.down_until = time.monotonic() + seconds
        return seconds


def _message(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text[:300]


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.replace(".", "", 1).isdigit() else None
