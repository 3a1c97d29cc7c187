"""The JSON that OpenAI clients send and expect."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from swift_core.protocols import InferRequest, Message, RequestConfig, StructuredOutput

from swift_infer.server.reading import forced_schema

_STOPS = 16
_STOP_LENGTH = 256
_TOOLS = 128
_BIASES = 1024
_TOP_LOGPROBS = 20
_PROMPTS = 256
TokenNumber = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class WireModel(BaseModel):
    """Base of request bodies: unknown fields are accepted, because clients send fields of newer protocol versions."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


class TextPart(WireModel):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(WireModel):
    """Where a picture is: a data URI or an http(s) address; paths of the server's own files are never read."""

    url: str

    @field_validator("url")
    @classmethod
    def _remote(cls, value: str) -> str:
        if not value.lower().startswith(("data:", "http://", "https://")):
            raise ValueError("is neither a data URI nor an http(s) address")
        return value


class ImagePart(WireModel):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(WireModel):
    """A sound as base64, and its format."""

    data: str
    format: Literal["wav", "mp3"] = "wav"


class AudioPart(WireModel):
    """A sound in a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


_PARTS = ("text", "image_url", "input_audio")


class ChatMessage(WireModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]] | None = None
    tool_calls: list[dict[str, Any]] | None = Field(None, max_length=_TOOLS)
    tool_call_id: str | None = None
    name: str | None = None

    def as_message(self) -> Message:
        """Return the turn as chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        content: Any = [part.model_dump() for part in parts]
        if all(isinstance(part, TextPart) for part in parts):
            content = "".join(part.text for part in parts if isinstance(part, TextPart)) if parts else self.content or ""
        message = Message(role="system" if self.role == "developer" else self.role, content=content)
        if self.tool_calls:
            message["tool_calls"] = [_with_object(call) for call in self.tool_calls]
        if self.role == "tool":
            extra = {"tool_call_id": self.tool_call_id, "name": self.name}
            message = cast(Message, {**message, **{name: value for name, value in extra.items() if value is not None}})
        return message

    @field_validator("content", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        for part in cast(list[Any], value) if isinstance(value, list) else []:
            kind: Any = cast(dict[str, Any], part).get("type") if isinstance(part, dict) else None
            if kind not in _PARTS:
                raise ValueError(f"parts of type {str(kind)[:40]!r} are not supported, send {', '.join(_PARTS)}")
        return value

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are an object, as chat templates take them; clients send them as JSON text."""
    function: Any = call.get("function")
    given: Any = cast("dict[str, Any]", function).get("arguments") if isinstance(function, dict) else None
    if not isinstance(given, str):
        return call
    try:
        value: Any = json.loads(given)
    except ValueError:
        return call
    return {**call, "function": {**cast("dict[str, Any]", function), "arguments": value}} if isinstance(value, dict) else call


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = False


class JsonSchema(WireModel):
    """A named JSON schema."""

    name: str = ""
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(WireModel):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema.schema is missing")
        return self


class StructuredOutputs(WireModel):
    """vLLM's way to ask for a form."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _one_form(self) -> StructuredOutputs:
        if sum(one is not None for one in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("takes one of json, regex and choice")
        if isinstance(self.json_, str):
            value: Any = json.loads(self.json_)
            if not isinstance(value, dict):
                raise ValueError("json is no JSON object")
            self.json_ = cast("dict[str, Any]", value)
        return self


class Function(WireModel):
    """A function on offer."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(WireModel):
    """A tool on offer."""

    type: Literal["function"]
    function: Function


class NamedFunction(WireModel):
    """A function that is to be called."""

    name: str


class NamedTool(WireModel):
    """A tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


StopText = Annotated[str, Field(min_length=1, max_length=_STOP_LENGTH)]


class SamplingRequest(WireModel):
    """How to answer, in all requests for answers."""

    max_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenNumber, Bias] | None = Field(None, max_length=_BIASES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=_STOPS)] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(None, max_length=_BIASES)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=2**31)
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, defaults: RequestConfig) -> RequestConfig:
        """Return the part of the settings that all requests share."""

        def pick(given: Any, default: Any) -> Any:
            return default if given is None else given

        own = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return RequestConfig(
            max_tokens=pick(self.max_tokens, defaults.max_tokens),
            temperature=pick(self.temperature, defaults.temperature),
            top_p=pick(self.top_p, defaults.top_p),
            top_k=max(0, self.top_k) if self.top_k is not None else defaults.top_k,
            min_p=pick(self.min_p, defaults.min_p),
            repetition_penalty=pick(self.repetition_penalty, defaults.repetition_penalty),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias,
            seed=self.seed % 2**63 if self.seed is not None else defaults.seed,
            stop=(*defaults.stop, *own),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            n=pick(self.n, 1),
        )


class ChatCompletionRequest(SamplingRequest):
    """Body of POST /v1/chat/completions."""

    model: str = Field(max_length=1024)
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] | None = Field(None, max_length=_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _known_tool(self) -> ChatCompletionRequest:
        names = [tool.function.name for tool in self.tools or []]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, and there are no tools")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.forced_tools and self.form() is not None:
            raise ValueError("an answer cannot be a forced call and have a form of its own")
        return self

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """Return the tools that the model is told of."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @property
    def forced_tools(self) -> bool:
        """Say whether the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def forced_name(self) -> str | None:
        """Return the tool that has to be called, where it is named."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    def form(self) -> StructuredOutput | None:
        """Return the form that the answer is asked to have."""
        if self.response_format is not None and self.response_format.type != "text":
            schema = self.response_format.json_schema
            return StructuredOutput(json_schema=(schema.schema_ if schema else None) or {})
        return _form(self.structured_outputs)

    def infer_request(self, adapter: str | None = None) -> InferRequest:
        """Return the conversation as engines take it, for one of their adapters or the model itself."""
        return InferRequest([message.as_message() for message in self.messages], self.offered, adapter)

    def request_config(self, defaults: RequestConfig) -> RequestConfig:
        """Return how to answer: what the request says, and the server's defaults for the rest."""
        config = self.sampling(defaults)
        if self.max_completion_tokens is not None:
            config.max_tokens = self.max_completion_tokens
        config.logprobs = (self.top_logprobs or 0) if self.logprobs else None
        config.structured = self.form()
        if self.forced_tools:
            parallel = self.parallel_tool_calls is not False
            config.structured = StructuredOutput(json_schema=forced_schema(self.offered or [], self.forced_name, parallel=parallel))
        return config


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompt = Annotated[str, Field(min_length=1)]


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions."""

    model: str = Field(max_length=1024)
    prompt: (
        Prompt
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Prompt], Field(min_length=1, max_length=_PROMPTS)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=_TOP_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def unsupported(self) -> str | None:
        """Return the first field that asks for something this server does not do, or None."""
        asks = {"echo": bool(self.echo), "suffix": bool(self.suffix), "best_of": self.best_of not in (None, 1, self.n)}
        return next((name for name, asked in asks.items() if asked), None)

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts one by one."""
        value: Any = self.prompt
        return list(value) if isinstance(value, list) and not isinstance(value[0], int) else [value]

    def request_config(self, defaults: RequestConfig) -> RequestConfig:
        """Return how to answer: what the request says, and the server's defaults for the rest."""
        config = self.sampling(defaults)
        if self.max_tokens is None:
            config.max_tokens = min(16, defaults.max_tokens)  # as OpenAI says
        config.logprobs, config.structured = self.logprobs, _form(self.structured_outputs)
        return config


def _form(given: StructuredOutputs | None) -> StructuredOutput | None:
    if given is None:
        return None
    schema = cast("dict[str, Any] | None", given.json_)
    return StructuredOutput(json_schema=schema, regex=given.regex, choice=tuple(given.choice) if given.choice else None)


class WireUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """A complete answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(BaseModel):
    """One answer of a complete response."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    """A complete response."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: WireUsage


class ChunkChoice(BaseModel):
    """A piece of one answer; `delta` holds only the fields that are new."""

    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(BaseModel):
    """A piece of a streamed response."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: WireUsage | None = None


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error as clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
