"""Control routes of `swift rollout`: token ids in and out with log-probabilities, and weights that change meanwhile.

Bodies are typed JSON, weights are safetensors files; nothing that a peer sends is ever unpickled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from swift_core.errors import RequestError
from swift_core.protocols import Engine, InferRequest, InferResponse, RequestConfig, WeightEngine

from swift_infer.config import RolloutSection
from swift_infer.server.completions import unless_gone
from swift_infer.server.wire import ChatMessage, StopText

Read = Callable[[Request, type[Any]], Awaitable[Any]]
Running = Literal["wait", "abort", "keep"]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class ControlModel(BaseModel):
    """Base of control bodies: an unknown field is an error, because a setting that is ignored spoils a training run."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class RolloutSampling(ControlModel):
    """How all requests of a call are answered; the model's own generation_config is not looked at."""

    max_tokens: int = Field(512, ge=1, le=2**31)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    n: int = Field(1, ge=1)
    stop: list[StopText] = Field(default_factory=list[StopText], max_length=16)
    stop_token_ids: list[TokenId] = Field(default_factory=list[TokenId], max_length=256)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=2**31)


class RolloutPrompt(ControlModel):
    """One prompt, as token ids or as messages."""

    prompt_ids: list[TokenId] | None = Field(None, min_length=1)
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[dict[str, Any]] | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    adapter: str | None = Field(None, max_length=1024)

    @model_validator(mode="after")
    def _one_prompt(self) -> RolloutPrompt:
        if (self.prompt_ids is None) == (self.messages is None):
            raise ValueError("give either prompt_ids or messages")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages")
        return self

    def request(self) -> InferRequest:
        """Return the prompt as engines take it."""
        messages = [message.as_message() for message in self.messages or []]
        return InferRequest(messages, self.tools, self.adapter, self.prompt_ids)


class RolloutRequest(ControlModel):
    """Body of POST /rollout/generate."""

    requests: list[RolloutPrompt] = Field(min_length=1)
    sampling: RolloutSampling = Field(default_factory=lambda: RolloutSampling.model_validate({}))
    logprobs: bool = True

    def config(self, prompt: RolloutPrompt) -> RequestConfig:
        """Return how a prompt is answered."""
        values = self.sampling.model_dump()
        values["top_k"] = max(0, self.sampling.top_k)
        values["max_tokens"] = prompt.max_tokens or self.sampling.max_tokens
        seed = None if prompt.seed is None else prompt.seed % 2**63
        return RequestConfig(**values, seed=seed, logprobs=0 if self.logprobs else None)


class PauseRequest(ControlModel):
    """Body of POST /rollout/pause."""

    running: Running = "wait"


class SleepRequest(ControlModel):
    """Body of POST /rollout/sleep."""

    level: Literal[1, 2] = 1


class Nothing(ControlModel):
    """An empty body."""


class WeightQuery(ControlModel):
    """The query of POST /rollout/weights."""

    version: int = Field(ge=0, lt=2**63)
    kind: Literal["full", "adapter"] = "full"
    name: str | None = Field(None, min_length=1, max_length=256)
    part: int = Field(0, ge=0)
    parts: int = Field(1, ge=1, le=65536)
    running: Running = "wait"

    @model_validator(mode="after")
    def _fits(self) -> WeightQuery:
        if self.part >= self.parts:
            raise ValueError("part is to be less than parts")
        if self.kind == "adapter" and (self.name is None or self.parts != 1):
            raise ValueError("an adapter has a name and comes in one part")
        return self


class OutOfOrderError(Exception):
    """Raised for a part of weights that is not the next one."""


class Control:
    """The state behind the control routes.

    Args:
        engine: has the model.
        settings: limits.
    """

    def __init__(self, engine: Any, settings: RolloutSection) -> None:
        self.engine, self._settings = engine, settings
        self.state: Literal["running", "paused", "asleep"] = "running"
        self.adapters: dict[str, int] = {}
        self._parts: tuple[int, int, int] | None = None  # version, parts, and the one that comes next
        self._lock = asyncio.Lock()  # one change at a time

    def told(self) -> dict[str, Any]:
        """Return versions and state."""
        return {"version": self.engine.version, "adapters": self.adapters, "state": self.state}

    async def generate(self, body: RolloutRequest) -> dict[str, Any]:
        """Answer all prompts together.

        Raises:
            RequestError: when there are too many of them or one cannot be answered.
        """
        rows = len(body.requests) * body.sampling.n
        if rows > self._settings.max_rollouts:
            raise RequestError(f"{rows} answers are asked for at once, at most {self._settings.max_rollouts} are allowed", fix="send fewer")
        tasks = [asyncio.ensure_future(self.engine.ainfer(one.request(), body.config(one))) for one in body.requests]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one that fails ends all
                task.cancel()
        results = [_result(response, one) for response, one in zip(found, body.requests, strict=True)]
        return {"version": self.engine.version, "results": results}

    async def take_weights(self, query: WeightQuery, body: AsyncIterator[bytes]) -> dict[str, Any]:
        """Replace weights by those of a safetensors file.

        Raises:
            RequestError: when the file does not fit the model.
            OutOfOrderError: when another part is due.
        """
        started = asyncio.get_running_loop().time()
        async with self._lock, _on_disk(body) as file:
            expected = self._parts or (query.version, query.parts, 0)
            if query.kind == "full" and (query.version, query.parts, query.part) != expected and query.part != 0:
                raise OutOfOrderError(f"part {query.part} of version {query.version} came; part {expected[2]} of {expected[0]} is due")
            count = await asyncio.to_thread(self._apply, query, file)
            size = file.stat().st_size
            more = query.kind == "full" and query.part + 1 < query.parts
            self._parts = (query.version, query.parts, query.part + 1) if more else None
        seconds = asyncio.get_running_loop().time() - started
        return {"version": self.engine.version, "tensors": count, "bytes": size, "seconds": round(seconds, 4)}

    def _apply(self, query: WeightQuery, file: Path) -> int:
        try:
            weights = load_file(file)
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise RequestError(f"the body is no safetensors file: {error}", fix="send what safetensors.torch.save returns") from error
        version = query.version if query.part + 1 == query.parts else None
        if query.kind == "full":
            self.engine.update_weights(weights, version=version, running=query.running)
            return len(weights)
        name = str(query.name)
        self.engine.update_adapter(name, _settings_of(metadata), weights, version=version, running=query.running)
        self.adapters[name] = query.version
        return len(weights)

    async def change(self, state: Literal["running", "paused", "asleep"], act: Callable[[], None]) -> dict[str, str]:
        """Pause, resume, sleep or wake."""
        async with self._lock:
            await asyncio.to_thread(act)
            self.state = state
        return {"state": self.state}


def add_rollout_routes(app: FastAPI, engine: Engine, settings: RolloutSection, *, context_length: int | None, read: Read) -> None:
    """Add the routes to an application.

    Args:
        app: gets them.
        engine: in use.
        settings: limits.
        context_length: most tokens of prompt and answer together.
        read: returns the body of a request as a model.

    Raises:
        TypeError: when the engine's weights cannot be replaced.
    """
    if not isinstance(engine, WeightEngine):
        raise TypeError(f"the engine {engine.name} cannot replace its weights")
    control = app.state.control = Control(engine, settings)

    @app.get("/rollout/info")
    async def info() -> dict[str, Any]:
        return {
            "model": app.state.model_name,
            "engine": engine.name,
            "context_length": context_length,
            "logprobs": "processed",
            "stop_token_ids": sorted(getattr(getattr(engine, "template", None), "stop_token_ids", ())),
            "capabilities": dataclasses.asdict(engine.capabilities),
            **control.told(),
        }

    @app.get("/rollout/version")
    async def version() -> dict[str, Any]:
        return control.told()

    @app.post("/rollout/generate")
    async def generate(request: Request) -> dict[str, Any]:
        found = await unless_gone(control.generate(await read(request, RolloutRequest)), request)
        return {} if found is None else found  # nobody reads it

    @app.post("/rollout/weights")
    async def weights(query: Annotated[WeightQuery, Query()], request: Request) -> dict[str, Any]:
        return await control.take_weights(query, request.stream())

    @app.post("/rollout/pause")
    async def pause(request: Request) -> dict[str, str]:
        body: PauseRequest = await read(request, PauseRequest)
        return await control.change("paused", lambda: engine.pause(body.running))

    @app.post("/rollout/resume")
    async def resume() -> dict[str, str]:
        return await control.change("running", engine.resume)

    @app.post("/rollout/sleep")
    async def sleep(request: Request) -> dict[str, str]:
        body: SleepRequest = await read(request, SleepRequest)
        return await control.change("asleep", lambda: engine.sleep(body.level))

    @app.post("/rollout/wake")
    async def wake() -> dict[str, str]:
        return await control.change("running", engine.wake)

    @app.post("/rollout/abort")
    async def abort() -> dict[str, int]:
        return {"aborted": await asyncio.to_thread(engine.abort)}


def _result(response: InferResponse, prompt: RolloutPrompt) -> dict[str, Any]:
    completions = [
        {
            "index": choice.index,
            "token_ids": choice.token_ids,
            "logprobs": None if choice.logprobs is None else [one.logprob for one in choice.logprobs],
            "text": choice.message.content or "",
            "finish_reason": choice.finish_reason,
            "versions": choice.versions,
        }
        for choice in response.choices
    ]
    shown = {} if prompt.prompt_ids is not None else {"prompt_ids": response.prompt_ids}
    return {**shown, "prompt_tokens": response.usage.prompt_tokens, "completions": completions}


def _settings_of(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        value: Any = json.loads(metadata.get("adapter_config", ""))
    except ValueError as error:
        raise RequestError(
            "the file's metadata has no adapter_config in JSON", fix="metadata={'adapter_config': json.dumps(...)}"
        ) from error
    if not isinstance(value, dict):
        raise RequestError("the file's adapter_config is no JSON object", fix="send PEFT's adapter_config.json")
    return value


@asynccontextmanager
async def _on_disk(body: AsyncIterator[bytes]) -> AsyncIterator[Path]:
    """Write a body to a file that is gone after the block: weights are mapped, not held twice in memory."""
    with tempfile.TemporaryDirectory(prefix="swift-weights-") as folder:
        path = Path(folder) / "weights.safetensors"
        with path.open("wb") as file:
            async for chunk in body:
                await asyncio.to_thread(file.write, chunk)
        yield path
