"""The engine behind any endpoint that speaks the OpenAI protocol."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, cast

import httpx
from swift_core.errors import EngineError, RequestError
from swift_core.protocols import (
    AssistantMessage,
    Capabilities,
    ChatChoice,
    InferRequest,
    InferResponse,
    RequestConfig,
    TextDelta,
    TokenLogprob,
    Usage,
)

from swift_infer.config import EngineConfig

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 30.0


class InferClient:
    """Answers requests through an endpoint.

    Args:
        base_url: address up to and with `/v1`.
        model: name of the model there; by default the first that it lists.
        api_key: key that it asks for.
        timeout: most seconds for one request.
        retries: how often a request is sent again when the endpoint is busy or out of reach.
        max_batch_size: requests that are under way at the same time.
        system: system message for conversations without one.

    Raises:
        EngineError: when no model is named and the endpoint cannot be asked.
    """

    name = "client"

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        max_batch_size: int = 16,
        system: str | None = None,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout, self._retries, self._system = timeout, retries, system
        self.max_batch_size = max_batch_size
        self._http = httpx.Client(headers=self._headers, timeout=timeout, limits=httpx.Limits(max_connections=max_batch_size))
        self.context_length: int | None = None
        card = None if model else self._first_model()
        self.model_name = model or str(card["id"] if card else "")
        if card and isinstance(card.get("max_model_len"), int):
            self.context_length = card["max_model_len"]

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Return a client of the endpoint that the settings name.

        Raises:
            EngineError: when none is named.
        """
        settings = dict(config.engine_kwargs)
        url = settings.pop("base_url", None) or config.endpoint.base_url
        if url is None:
            raise EngineError("no endpoint is named", fix="--base_url http://HOST:PORT/v1")
        model = config.loading.model or config.endpoint.endpoint_model
        key = config.endpoint.endpoint_key
        return cls(url, model=model, api_key=key, max_batch_size=config.max_batch_size, system=config.chat.system, **settings)

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do: what the protocol has a field for."""
        return Capabilities(logprobs=True, structured=True, media=True)

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        """Answer all requests, in order.

        Raises:
            RequestError: when the endpoint refuses a request.
            EngineError: when it cannot be reached or fails.
        """
        wanted = config or RequestConfig()
        with ThreadPoolExecutor(max_workers=self.max_batch_size) as pool:
            return list(pool.map(lambda request: self._answer(request, wanted), requests))

    async def ainfer(self, request: InferRequest, config: RequestConfig | None = None) -> InferResponse:
        """Answer one request without blocking the event loop.

        Raises:
            RequestError: when the endpoint refuses it.
            EngineError: when it cannot be reached or fails.
        """
        return await asyncio.to_thread(self._answer, request, config or RequestConfig())

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        """Answer one request piece by piece; closing the iterator hangs up.

        Raises:
            RequestError: when the endpoint refuses it.
            EngineError: when it cannot be reached or fails.
        """
        body = self._body(request, config or RequestConfig(), stream=True)
        try:
            with self._http.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _failure(response)
                reader = _StreamReader()
                for line in response.iter_lines():
                    yield from reader.feed(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncGenerator[TextDelta]:
        """Answer one request piece by piece without blocking the event loop; closing the iterator hangs up.

        Raises:
            RequestError: when the endpoint refuses it.
            EngineError: when it cannot be reached or fails.
        """
        body = self._body(request, config or RequestConfig(), stream=True)
        try:
            async with (
                httpx.AsyncClient(headers=self._headers, timeout=self._timeout) as http,
                http.stream("POST", f"{self._url}/chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise _failure(response)
                reader = _StreamReader()
                async for line in response.aiter_lines():
                    for delta in reader.feed(line):
                        yield delta
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def abort(self, request_id: str | None = None) -> int:
        """Do nothing: an endpoint ends requests whose connection is closed."""
        return 0

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _answer(self, request: InferRequest, config: RequestConfig) -> InferResponse:
        return _response(self._post(self._body(request, config)))

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(self._retries + 1):
            try:
                response = self._http.post(f"{self._url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                if attempt == self._retries:
                    raise self._unreachable(error) from error
                time.sleep(min(0.5 * 2**attempt, _LONGEST_WAIT))
                continue
            if response.status_code == 200:
                return cast("dict[str, Any]", response.json())
            if response.status_code not in _AGAIN or attempt == self._retries:
                raise _failure(response)
            time.sleep(_pause(response, attempt))
        raise AssertionError("the last attempt returns or raises")

    def _first_model(self) -> dict[str, Any]:
        try:
            response = self._http.get(f"{self._url}/models")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise _failure(response)
        found: Any = response.json().get("data")
        if not found:
            raise EngineError(f"{self._url} lists no model", fix="name one with --endpoint_model")
        return found[0]

    def _unreachable(self, error: httpx.HTTPError) -> EngineError:
        return EngineError(f"{self._url} cannot be reached: {error or type(error).__name__}", fix="start the server, or check --base_url")

    def _body(self, request: InferRequest, config: RequestConfig, *, stream: bool = False) -> dict[str, Any]:
        if request.prompt_ids is not None:
            raise RequestError("an endpoint takes messages, not token ids", fix="send messages, or use another engine")
        messages: list[Any] = [_wire(message) for message in request.messages]
        if self._system is not None and (not messages or messages[0]["role"] != "system"):
            messages.insert(0, {"role": "system", "content": self._system})
        body: dict[str, Any] = {"model": request.adapter or self.model_name, "messages": messages, **_settings(config), **_form(config)}
        if request.tools:
            body["tools"] = request.tools
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def _settings(config: RequestConfig) -> dict[str, Any]:
    """Return how to answer, without what stands for nothing: an endpoint may not know it."""
    if config.prompt_logprobs:
        raise RequestError("an endpoint gives no log-probabilities of prompts", fix="use another engine")
    neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": False, "n": 1}
    values = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")}
    values |= {name: None if getattr(config, name) == value else getattr(config, name) for name, value in neutral.items()}
    values["stop"], values["stop_token_ids"] = list(config.stop) or None, list(config.stop_token_ids) or None
    values["logit_bias"] = {str(token): value for token, value in (config.logit_bias or {}).items()} or None
    if config.logprobs is not None:
        values |= {"logprobs": True, "top_logprobs": config.logprobs}
    return {"max_tokens": config.max_tokens, **{name: value for name, value in values.items() if value is not None}}


class _StreamReader:
    """Reads the events of a stream; the last piece is held back until usage has come."""

    def __init__(self) -> None:
        self._last: TextDelta | None = None

    def feed(self, line: str) -> Iterator[TextDelta]:
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            if self._last is not None:
                yield self._last
            self._last = None
            return
        value: Any = json.loads(data)
        if value.get("error"):
            raise EngineError(f"the endpoint failed: {value['error'].get('message')}", fix="its log says why")
        usage = value.get("usage")
        for choice in value.get("choices") or []:
            if self._last is not None:
                yield self._last
            delta = choice.get("delta") or {}
            found = _logprobs(choice.get("logprobs"))
            self._last = TextDelta(delta.get("content") or "", choice.get("index", 0), _reason(choice.get("finish_reason")), logprobs=found)
        if usage and self._last is not None:
            self._last.usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])


def _wire(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"].get("arguments"))}}
        for call in message.get("tool_calls") or []
    ]
    known = {key: value for key, value in message.items() if key in ("role", "content", "name", "tool_call_id") and value is not None}
    return {**known, "tool_calls": calls} if calls else known


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _form(config: RequestConfig) -> dict[str, Any]:
    wanted = config.structured
    if wanted is None:
        return {}
    if wanted.json_schema is not None:
        schema = {"name": "answer", "schema": wanted.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema} if wanted.json_schema else {"type": "json_object"}}
    named = {"regex": wanted.regex} if wanted.regex is not None else {"choice": list(wanted.choice or ())}
    return {"structured_outputs": named}


def _response(value: Mapping[str, Any]) -> InferResponse:
    usage = value.get("usage") or {}
    choices = [
        ChatChoice(
            choice["index"],
            AssistantMessage(choice["message"].get("content"), tool_calls=choice["message"].get("tool_calls")),
            _reason(choice.get("finish_reason")) or "stop",
            logprobs=_logprobs(choice.get("logprobs")),
        )
        for choice in value["choices"]
    ]
    return InferResponse(choices, Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)))


def _reason(given: str | None) -> Any:
    return given if given in (None, "stop", "length", "abort") else "stop"


def _logprobs(found: Mapping[str, Any] | None) -> list[TokenLogprob] | None:
    """Return log-probabilities; the protocol names tokens by text, so that their ids are unknown (-1)."""
    if not found or not found.get("content"):
        return None
    return [
        TokenLogprob(-1, one["logprob"], tuple((-1, top["logprob"]) for top in one.get("top_logprobs") or [])) for one in found["content"]
    ]


def _failure(response: httpx.Response) -> EngineError:
    try:
        error: Any = response.json().get("error") or {}
    except ValueError:
        error = {}
    message = error.get("message") if isinstance(error, dict) else str(error)
    message = message or f"status {response.status_code}"
    if response.status_code in (400, 404, 413, 422):
        return RequestError(f"the endpoint refuses the request: {message}", fix="change the request", code=error.get("code"))
    if response.status_code in (401, 403):
        return EngineError(f"the endpoint refuses the key: {message}", fix="--endpoint_key KEY")
    return EngineError(f"the endpoint failed: {message}", fix="its log says why")


def _pause(response: httpx.Response, attempt: int) -> float:
    asked = response.headers.get("retry-after", "")
    return min(float(asked) if asked.replace(".", "", 1).isdigit() else 0.5 * 2**attempt, _LONGEST_WAIT)


def build_engine(config: EngineConfig) -> InferClient:
    """Return a client of the endpoint that the settings name."""
    return InferClient.from_config(config)
