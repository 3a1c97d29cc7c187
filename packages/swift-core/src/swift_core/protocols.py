"""What packages promise one another. Types only: nothing here imports torch at run time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor, nn


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it.

    `loss` overrides whether an assistant turn is trained, `loss_scale` the weight of its tokens in the loss.
    """

    role: str
    content: Any
    loss: NotRequired[bool | None]
    loss_scale: NotRequired[float]
    tool_calls: NotRequired[list[dict[str, Any]]]


@dataclass(slots=True)
class Sample:
    """A row in the one form that training knows.

    Attributes:
        messages: the conversation; a plain text is one assistant turn. Media stand in the texts as `<image>`, `<video>` and
            `<audio>` tags, in the order of the lists below.
        tools: function schemas offered to the model.
        images, videos, audios: one source for each tag: path, URL, data URI, bytes, or `{"bytes": ..., "path": ...}`; a video
            may be a list of frames.
        objects: grounding data, `{"ref": [...], "bbox": [...], "bbox_type": "real" | "norm1", "image_id": [...]}`.
        label: class, list of classes, number or list of numbers; true or false for KTO; a similarity for embeddings.
        rejected: the answer that is not preferred, as a whole sample.
        positives, negatives: texts that belong or do not belong to this one, for embedding and reranker.
        margin: how much better the preferred answer is.
        channel: name under which the loss is reported.
        chat_template_kwargs: variables of the chat template for this row alone.
        extra: columns that no format claimed, kept for rewards and metrics.
        origin: `file:line` or `dataset:row`, for error messages.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    images: list[Any] = field(default_factory=list[Any])
    videos: list[Any] = field(default_factory=list[Any])
    audios: list[Any] = field(default_factory=list[Any])
    objects: dict[str, Any] | None = None
    label: Any = None
    rejected: Sample | None = None
    positives: list[Sample] = field(default_factory=list["Sample"])
    negatives: list[Sample] = field(default_factory=list["Sample"])
    margin: float | None = None
    channel: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    origin: str = ""

    @property
    def has_media(self) -> bool:
        """Say whether the sample has an image, a video or a sound."""
        return bool(self.images or self.videos or self.audios)


@dataclass(slots=True)
class EncodedSample:
    """A sample as token ids.

    Attributes:
        input_ids: token ids, length n.
        labels: the same ids where the token is trained, -100 elsewhere, length n.
        origin: as in `Sample`.
        loss_scale: weight of each token's loss, length n; None means 1 wherever a label is.
        model_inputs: further tensors of the processor, such as `pixel_values` and `image_grid_thw`, without a batch axis
            where the processor gives one entry for each image rather than for each sample.
        channel: as in `Sample`.
        label: as in `Sample`, for tasks with a head of their own.
        rejected, positives, negatives: encoded companions, as in `Sample`.
    """

    input_ids: list[int]
    labels: list[int]
    origin: str = ""
    loss_scale: list[float] | None = None
    model_inputs: dict[str, Any] | None = None
    channel: str | None = None
    label: Any = None
    rejected: EncodedSample | None = None
    positives: list[EncodedSample] = field(default_factory=list["EncodedSample"])
    negatives: list[EncodedSample] = field(default_factory=list["EncodedSample"])

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Return how many tokens carry loss once shifted: the first token of a sample is never predicted."""
        return len(self.labels) - self.labels.count(-100) - (self.labels[:1] not in ([], [-100]))


@runtime_checkable
class Hub(Protocol):
    """A place that models and data sets are fetched from."""

    name: str

    def fetch(self, repo_id: str, *, kind: Literal["model", "dataset"], revision: str | None, offline: bool, token: str | None) -> Path:
        """Return the local folder of a repository, downloading what is missing."""
        ...


@runtime_checkable
class Tuner(Protocol):
    """A way to adapt a model."""

    name: str

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with trainable parts added and everything else frozen."""
        ...

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with weights saved by `save` put on."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained part into a folder that exists."""
        ...

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put weights written by `save` back into a model that is prepared already, in place."""
        ...


@dataclass(slots=True)
class InferRequest:
    """One conversation to answer.

    Attributes:
        messages: the conversation; empty where `prompt_ids` are given.
        tools: function schemas offered to the model.
        adapter: name of the adapter that answers; None is the model itself.
        prompt_ids: the prompt as token ids, taken as they are instead of messages.
        request_id: name under which `abort` finds the request; requests may share one.
    """

    messages: list[Message] = field(default_factory=list[Message])
    tools: list[dict[str, Any]] | None = None
    adapter: str | None = None
    prompt_ids: list[int] | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """A form that the answer must have: exactly one of the fields is set.

    Attributes:
        json_schema: the answer is JSON that fits this schema; `{}` takes any JSON object.
        regex: the whole answer matches this pattern.
        choice: the answer is one of these texts.
    """

    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None


@dataclass(slots=True)
class RequestConfig:
    """How to answer.

    Attributes:
        max_tokens: upper bound of new tokens.
        temperature: 0 is greedy; None takes the model's own value.
        top_p, top_k, repetition_penalty: None takes the model's own value.
        seed: makes sampling repeatable.
        stop: texts that end the answer and are not part of it.
        n: answers for each request.
        min_p: least share of the likeliest token's probability; None takes the model's own value.
        presence_penalty, frequency_penalty: lower the logits of tokens that the answer has already, once or for each time.
        logit_bias: token id -> number added to its logit.
        stop_token_ids: further tokens that end the answer.
        ignore_eos: go on behind the model's own stop tokens and words.
        min_tokens: the answer does not end by itself before it has so many tokens.
        logprobs: None for no log-probabilities, 0 for those of the answer's tokens, k for the k likeliest tokens of each place too.
        prompt_logprobs: also give the log-probability of every token of the prompt but the first.
        structured: a form that the answer must have.
    """

    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    structured: StructuredOutput | None = None


@dataclass(slots=True)
class AssistantMessage:
    """What the model said."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[dict[str, Any]] | None = None

    def as_message(self) -> Message:
        """Return the turn as chat templates take it, to go on with the conversation."""
        message = Message(role=self.role, content=self.content or "")
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability; under the model's own distribution, or under the one it was drawn from,
            as the engine was set up.
        top: the likeliest tokens of the place with theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class ChatChoice:
    """One answer.

    Attributes:
        index: 0 to n - 1.
        message: the answer without stop texts and special tokens.
        finish_reason: `stop` at a stop token or stop text, `length` at `max_tokens` or a full context.
        token_ids: ids as sampled, with the token that ended the answer.
        logprobs: one for each of them, where they were asked for.
        versions: runs of `(version of the weights, tokens)`; more than one where weights moved while it was written.
    """

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "abort"]
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    versions: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Return prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class InferResponse:
    """All answers to one request.

    Attributes:
        choices: the answers.
        usage: token counts.
        prompt_ids: the prompt as the model got it.
        prompt_logprobs: one for each token of the prompt but the first, where they were asked for.
    """

    choices: list[ChatChoice]
    usage: Usage
    prompt_ids: list[int] = field(default_factory=list[int])
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class TextDelta:
    """A piece of a streamed answer.

    Attributes:
        text: new text; never a part of a character.
        index: answer it belongs to, 0 to n - 1.
        finish_reason: set on the last piece of each answer.
        usage: set on the last piece of the stream, for all answers together.
        token_ids: tokens behind the piece, some of which may not show as text yet.
        logprobs: of these tokens, where they were asked for.
    """

    text: str
    index: int = 0
    finish_reason: Literal["stop", "length", "abort"] | None = None
    usage: Usage | None = None
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond answering conversations with text.

    Attributes:
        token_ids: takes prompts as token ids and gives the ids of answers.
        logprobs, prompt_logprobs: gives log-probabilities.
        structured: keeps answers to a JSON schema, a pattern or a choice.
        adapters: answers each request with the adapter it names; is an `AdapterEngine`.
        media: takes images, videos or sounds, as far as its model does.
        abort: `abort` reaches requests of other callers.
        weights: is a `WeightEngine`.
        sleep: sleeping gives memory back.
        texts: embeds, scores or classifies; is a `TextEngine`.
    """

    token_ids: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    structured: bool = False
    adapters: bool = False
    media: bool = False
    abort: bool = False
    weights: bool = False
    sleep: bool = False
    texts: bool = False


@runtime_checkable
class Engine(Protocol):
    """Something that answers requests with a model."""

    name: str
    model_name: str

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do."""
        ...

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        """Answer all requests, in order."""
        ...

    def ainfer(self, request: InferRequest, config: RequestConfig | None = None) -> Awaitable[InferResponse]:
        """Answer one request without blocking the event loop; cancelling it aborts the request."""
        ...

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        """Answer one request piece by piece."""
        ...

    def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncIterator[TextDelta]:
        """Answer one request piece by piece without blocking the event loop; closing the iterator aborts the request."""
        ...

    def abort(self, request_id: str | None = None) -> int:
        """End requests of that name, or all of them, with what they have; return how many answers were ended."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


Running = Literal["wait", "abort", "keep"]
"""What becomes of answers that are being written when weights change: let them end, end them, or go on between two steps."""


@runtime_checkable
class WeightEngine(Protocol):
    """An engine whose weights can be replaced while it runs, as online reinforcement learning does.

    Attributes:
        version: of the weights, as the last update said; 0 before.
    """

    version: int

    def update_weights(self, weights: Mapping[str, Tensor], *, version: int | None = None, running: Running = "wait") -> None:
        """Replace weights by the names of the model's files; parts of an update have no version, its last one has."""
        ...

    def update_adapter(
        self,
        name: str,
        settings: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        version: int | None = None,
        running: Running = "wait",
    ) -> None:
        """Put a PEFT adapter in the place of the one of that name, or beside the others."""
        ...

    def pause(self, running: Running = "wait") -> None:
        """Begin nothing new from now on; return once what runs has ended, was aborted or stands still."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def sleep(self, level: int = 1) -> None:
        """Pause and give memory back: 1 that of keys and values, 2 that of the weights too."""
        ...

    def wake(self) -> None:
        """Take the memory again and go on; after level 2 with weights that were updated meanwhile."""
        ...


@runtime_checkable
class AdapterEngine(Protocol):
    """An engine that keeps named adapters beside its model; `InferRequest.adapter` chooses one."""

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        ...

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter; requests may ask for it from then on."""
        ...

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away, after the batch that is running."""
        ...


@dataclass(slots=True)
class TextVectors:
    """Vectors of texts, L2-normalised, `[texts][dim]`."""

    vectors: list[list[float]]
    usage: Usage


@dataclass(slots=True)
class TextScores:
    """What a model with a head found for each text or pair.

    Attributes:
        scores: relevance of each pair between 0 and 1, `[pairs]`; or for classification probabilities, for a regression numbers,
            `[texts][numbers]`.
        usage: token counts.
    """

    scores: list[Any]
    usage: Usage


@runtime_checkable
class TextEngine(Protocol):
    """Something that embeds texts, ranks documents or classifies texts.

    Attributes:
        task: `embedding`, `reranker`, `generative_reranker` or `seq_cls`.
    """

    name: str
    model_name: str
    task: str

    def embed(self, texts: Sequence[Sample]) -> TextVectors:
        """Return the vectors of texts, in order."""
        ...

    def score(self, pairs: Sequence[tuple[Sample, Sample]]) -> TextScores:
        """Return how relevant each document is to its query: by the model's head or answer, or by the cosine of the vectors."""
        ...

    def classify(self, texts: Sequence[Sample]) -> TextScores:
        """Return the probabilities or numbers of texts, in order."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
