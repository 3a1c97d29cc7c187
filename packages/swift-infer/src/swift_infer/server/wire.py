"""The JSON that OpenAI clients send and expect."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from swift_core.protocols import InferRequest, Message, RequestConfig

_STOPS = 16
_STOP_LENGTH = 256


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
    tool_calls: list[dict[str, Any]] | None = None

    def as_message(self) -> Message:
        """Return the turn as chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        content: Any = [part.model_dump() for part in parts]
        if all(isinstance(part, TextPart) for part in parts):
            content = "".join(part.text for part in parts if isinstance(part, TextPart)) if parts else self.content or ""
        message = Message(role="system" if self.role == "developer" else self.role, content=content)
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
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


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = False


class ResponseFormat(WireModel):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"


StopText = Annotated[str, Field(min_length=1, max_length=_STOP_LENGTH)]


class ChatCompletionRequest(WireModel):
    """Body of POST /v1/chat/completions."""

    model: str = Field(max_length=1024)
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=_STOPS)] | None = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    logprobs: bool | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def unsupported(self) -> str | None:
        """Return the first field that asks for something this server cannot do, or None."""
        asks = {
            "response_format": self.response_format is not None and self.response_format.type != "text",
            "tools": bool(self.tools),
            "logprobs": bool(self.logprobs),
            "logit_bias": bool(self.logit_bias),
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
        }
        return next((name for name, asked in asks.items() if asked), None)

    def infer_request(self, adapter: str | None = None) -> InferRequest:
        """Return the conversation as engines take it, for one of their adapters or the model itself."""
        return InferRequest([message.as_message() for message in self.messages], adapter=adapter)

    def request_config(self, defaults: RequestConfig) -> RequestConfig:
        """Return how to answer: what the request says, and the server's defaults for the rest."""

        def pick(given: Any, default: Any) -> Any:
            return default if given is None else given

        own = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return RequestConfig(
            max_tokens=pick(self.max_completion_tokens, pick(self.max_tokens, defaults.max_tokens)),
            temperature=pick(self.temperature, defaults.temperature),
            top_p=pick(self.top_p, defaults.top_p),
            top_k=max(0, self.top_k) if self.top_k is not None else defaults.top_k,
            repetition_penalty=pick(self.repetition_penalty, defaults.repetition_penalty),
            seed=self.seed % 2**63 if self.seed is not None else defaults.seed,
            stop=(*defaults.stop, *own),
            n=pick(self.n, 1),
        )


class WireUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """A complete answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None


class Choice(BaseModel):
    """One answer of a complete response."""

    index: int
    message: AnswerMessage
    logprobs: None = None
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
    delta: dict[str, str]
    logprobs: None = None
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
