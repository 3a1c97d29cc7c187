"""The routes of answers: chat completions and completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from swift_core.protocols import Engine, InferRequest, RequestConfig, TextDelta, TextEngine, TokenLogprob, Usage
from swift_core.templates.agents.base import AgentFormat, load_agent

from swift_infer.config import ServerSection
from swift_infer.server.bodies import as_model, read_json
from swift_infer.server.completions import Completion, Service, answer_whole, chat_events, open_stream, unless_gone, wire_usage
from swift_infer.server.errors import ApiError
from swift_infer.server.reading import AnswerReader, Forced, Thoughts
from swift_infer.server.sse import event
from swift_infer.server.wire import ChatCompletionRequest, CompletionRequest, SamplingRequest

# What shows in a chat template which format its calls have; the first that is found counts.
_SIGNS = (
    ("<function=", "qwen3_5"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3"),
    ("<arg_key>", "glm4_5"),
    ("<|channel|>", "gpt_oss"),
    ("<seed:tool_call>", "seed_oss"),
    ("<minimax:tool_call>", "minimax_m2"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are checked against.

    Attributes:
        settings: of the server.
        context_length: most tokens of prompt and answer together.
        names: returns the names that requests can ask for.
        main: the model's own name.
        defaults: how to answer where a request does not say.
    """

    settings: ServerSection
    context_length: int | None
    names: Callable[[], list[str]]
    main: str
    defaults: RequestConfig

    def check_model(self, given: str) -> None:
        """Refuse the name of a model that is not here.

        Raises:
            ApiError: with the names that are.
        """
        names = self.names()
        if given not in names:
            has = ", ".join(map(repr, names))
            raise ApiError(404, f"there is no model {given!r} here; this server has {has}", code="model_not_found", param="model")

    def check(self, body: SamplingRequest) -> None:
        """Refuse numbers over the limits.

        Raises:
            ApiError: with the limit.
        """
        if (body.n or 1) > self.settings.max_n:
            raise ApiError(400, f"n is {body.n}, at most {self.settings.max_n} is allowed", param="n")
        for name in ("max_completion_tokens", "max_tokens"):
            wanted = getattr(body, name, None)
            if wanted is not None and self.context_length is not None and wanted > self.context_length:
                raise ApiError(400, f"{name} is {wanted}, but the model's context has {self.context_length} tokens", param=name)

    def adapter(self, model: str) -> str | None:
        """Return the adapter that a model's name stands for."""
        return None if model == self.main else model


def add_answer_routes(app: FastAPI, engine: Engine | TextEngine, service: Service, limits: Limits) -> None:
    """Add the routes to an application."""
    agent = agent_of(engine)
    text_of = _token_text(engine)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await _read_chat(request, limits)
        _refuse_texts(engine)
        limits.check_model(body.model)
        limits.check(body)
        wanted = body.infer_request(limits.adapter(body.model))
        config = body.request_config(limits.defaults)
        _check_form(engine, config)
        if body.offered and not _shows_tools(engine):
            what = "the model's chat template has no place for tools; start the server with --agent_template hermes, say"
            raise ApiError(400, what, code="unsupported_parameter", param="tools")
        opened = limits.settings.reasoning and _opens_thought(engine, wanted)
        reader = _reader_of(body, agent, opened if limits.settings.reasoning else None)
        completion = Completion(service, wanted, config, body.model, reader, text_of)
        if not body.stream:
            return await answer_whole(completion, request)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await open_stream(
            completion.deltas(), request, lambda first, rest: chat_events(completion, first, rest, include_usage=usage)
        )

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = as_model(CompletionRequest, await read_json(request))
        _refuse_texts(engine)
        limits.check_model(body.model)
        limits.check(body)
        if (name := body.unsupported()) is not None:
            raise ApiError(400, f"{name} is not supported by this server", code="unsupported_parameter", param=name)
        config = body.request_config(limits.defaults)
        _check_form(engine, config)
        adapter = limits.adapter(body.model)
        requests = [InferRequest(adapter=adapter, prompt_ids=_ids(engine, prompt)) for prompt in body.prompts()]
        work = TextCompletion(service, requests, config, body.model, text_of)
        if not body.stream:
            found = await unless_gone(work.whole(), request)
            return Response(status_code=499) if found is None else JSONResponse(found)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await open_stream(work.deltas(), request, lambda first, rest: work.events(first, rest, include_usage=usage))


class TextCompletion:
    """A request of plain texts.

    Args:
        service: what all requests share.
        requests: one for each prompt.
        config: how to answer.
        model: name that the client asked for.
        token_text: text of a token.
    """

    def __init__(
        self, service: Service, requests: Sequence[InferRequest], config: RequestConfig, model: str, token_text: Callable[[int], str]
    ) -> None:
        self._service, self._requests, self._config, self._token_text = service, requests, config, token_text
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}
        self._usage = Usage(0, 0)

    async def deltas(self) -> AsyncGenerator[TextDelta]:
        """Yield pieces; the answers to the first prompt come first, and so do their numbers."""
        for place, request in enumerate(self._requests):
            watch = self._service.metrics.watch(self._head["model"])
            async with aclosing(self._service.deltas(request, self._config, watch)) as deltas:
                async for delta in deltas:
                    if delta.usage is not None:
                        self._usage = Usage(
                            self._usage.prompt_tokens + delta.usage.prompt_tokens,
                            self._usage.completion_tokens + delta.usage.completion_tokens,
                        )
                    delta.index += place * self._config.n
                    yield delta

    async def whole(self) -> dict[str, Any]:
        """Return the complete response."""
        count = len(self._requests) * self._config.n
        texts: list[list[str]] = [[] for _ in range(count)]
        found: list[list[TokenLogprob]] = [[] for _ in range(count)]
        reasons = [""] * count
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                texts[delta.index].append(delta.text)
                found[delta.index] += delta.logprobs or []
                reasons[delta.index] = delta.finish_reason or ""
        choices = [
            self._choice(index, "".join(pieces), reason, logprobs)
            for index, (pieces, reason, logprobs) in enumerate(zip(texts, reasons, found, strict=True))
        ]
        return {**self._head, "choices": choices, "usage": wire_usage(self._usage).model_dump()}

    async def events(self, first: TextDelta, deltas: AsyncIterator[TextDelta], *, include_usage: bool) -> AsyncIterator[str]:
        """Yield the events of the stream."""
        blank = {"usage": None} if include_usage else {}
        delta: TextDelta | None = first
        while delta is not None:
            choice = self._choice(delta.index, delta.text, delta.finish_reason, delta.logprobs or [])
            yield event({**self._head, "choices": [choice], **blank})
            delta = await anext(deltas, None)
        if include_usage:
            yield event({**self._head, "choices": [], "usage": wire_usage(self._usage).model_dump()})

    def _choice(self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        shown: dict[str, Any] | None = None
        if self._config.logprobs is not None:
            tokens = [self._token_text(one.token_id) for one in logprobs]
            shown = {
                "tokens": tokens,
                "token_logprobs": [one.logprob for one in logprobs],
                "top_logprobs": [{self._token_text(token): value for token, value in one.top} for one in logprobs],
                "text_offset": [sum(map(len, tokens[:place])) for place in range(len(tokens))],
            }
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}


def agent_of(engine: Any) -> AgentFormat | None:
    """Return the format in which the engine's model writes calls: the one of its settings, or what its chat template looks like."""
    template: Any = getattr(engine, "template", None)
    if template is None or getattr(template, "agent", None) is not None:
        return getattr(template, "agent", None)
    source = str(getattr(getattr(engine, "tokenizer", None), "chat_template", "") or "")
    return load_agent(next((name for sign, name in _SIGNS if sign in source), "hermes"))


def _shows_tools(engine: Any) -> bool:
    """Say whether the model is told of tools: by an agent format, or by its own chat template."""
    template: Any = getattr(engine, "template", None)
    source = str(getattr(getattr(engine, "tokenizer", None), "chat_template", "") or "")
    return template is None or getattr(template, "agent", None) is not None or "tool" in source


async def _read_chat(request: Request, limits: Limits) -> ChatCompletionRequest:
    value = await read_json(request)
    messages: Any = value.get("messages") if isinstance(value, dict) else None
    most = limits.settings.max_messages
    if isinstance(messages, list) and len(messages) > most:
        raise ApiError(400, f"{len(messages)} messages are given, at most {most} are allowed", param="messages")
    return as_model(ChatCompletionRequest, value)


def _reader_of(body: ChatCompletionRequest, agent: AgentFormat | None, opened: bool | None) -> Callable[[], AnswerReader]:
    forced: Forced | None = None
    if body.forced_tools:
        forced = "one" if body.forced_name is not None else "several"
    offered = body.offered

    def make() -> AnswerReader:
        return AnswerReader(
            calls=agent.parser(offered) if agent is not None and offered and forced is None else None,
            thoughts=Thoughts(opened=opened) if opened is not None and forced is None else None,
            forced=forced,
            name=body.forced_name or "",
            parallel=body.parallel_tool_calls is not False,
        )

    return make


def _opens_thought(engine: Any, request: InferRequest) -> bool:
    """Say whether the prompt ends inside a thought that the model is to go on with."""
    prompts = getattr(engine, "prompts", None)
    return prompts is not None and prompts.opens_thought(request)


def _refuse_texts(engine: Engine | TextEngine) -> None:
    if isinstance(engine, TextEngine):
        raise ApiError(400, f"this server has a model for {engine.task}, which does not chat", code="unsupported_model", param="model")


def _check_form(engine: Any, config: RequestConfig) -> None:
    abilities = getattr(engine, "capabilities", None)
    if config.structured is not None and not getattr(abilities, "structured", False):
        what = "this server cannot keep answers to a form (install swift-infer[structured] there)"
        raise ApiError(400, what, code="unsupported_parameter", param="response_format")
    if config.logprobs is not None and not getattr(abilities, "logprobs", False):
        raise ApiError(400, "this server's engine gives no log-probabilities", code="unsupported_parameter", param="logprobs")


def _token_text(engine: Any) -> Callable[[int], str]:
    prompts = getattr(engine, "prompts", None)
    return str if prompts is None else lambda token: prompts.decode_marks([token])


def _ids(engine: Any, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    prompts = getattr(engine, "prompts", None)
    if prompts is None:
        raise ApiError(400, "this server's engine takes chats only", code="unsupported_parameter", param="prompt")
    return prompts.tokenize(prompt)
