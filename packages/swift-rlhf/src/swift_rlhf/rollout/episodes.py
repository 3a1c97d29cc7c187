"""What happened between a prompt and its reward, token by token: nothing is tokenised again afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from swift_core.errors import TrainingError
from swift_core.protocols import Message

FinishReason = Literal["stop", "length", "abort"]


@dataclass(slots=True)
class Generation:
    """One answer of an engine.

    Attributes:
        token_ids: as sampled, with the token that ended it.
        text: the answer without stop texts and the template's own marks.
        finish_reason: `stop`, `length` when it was cut off, `abort` when the engine gave up.
        logprobs: of each token under the engine, in nats, where it gives them.
        version: of the weights that wrote it, the oldest where they moved meanwhile.
        versions: of the weights behind each token, where they moved.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason = "stop"
    logprobs: list[float] | None = None
    version: int = 0
    versions: list[int] | None = None


@dataclass(slots=True)
class TokenRow:
    """A prompt and what followed it, as one training row; all lists but the prompt are of the same length.

    Attributes:
        prompt_ids: given to the model before its first turn.
        completion_ids: sampled tokens and observations in the order in which the model saw them.
        mask: 1 where the model wrote the token, 0 where it was shown to it.
        logprobs: under the engine; NaN for observations and where the engine gives none.
        versions: of the weights behind each token; -1 for observations.
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list[int])
    mask: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])

    @property
    def ids(self) -> list[int]:
        """Return all tokens, the prompt of the next turn."""
        return self.prompt_ids + self.completion_ids

    def add_answer(self, answer: Generation) -> None:
        """Append what the model wrote.

        Raises:
            TrainingError: when log-probabilities and tokens differ in number.
        """
        count = len(answer.token_ids)
        if answer.logprobs is not None and len(answer.logprobs) != count:
            raise TrainingError(
                f"{len(answer.logprobs)} log-probabilities for {count} tokens", fix="an engine that gives one for each token"
            )
        self.completion_ids += answer.token_ids
        self.mask += [1] * count
        self.logprobs += answer.logprobs if answer.logprobs is not None else [float("nan")] * count
        self.versions += answer.versions if answer.versions is not None else [answer.version] * count

    def add_observation(self, ids: Sequence[int]) -> None:
        """Append what was shown to the model."""
        self.completion_ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [float("nan")] * len(ids)
        self.versions += [-1] * len(ids)


@dataclass(slots=True)
class Episode:
    """A conversation that is being played.

    Attributes:
        messages: so far; the answers of the model and what came back are appended.
        tools: function schemas offered to the model.
        columns: columns of the data row, for schedulers and rewards.
        origin: `file:line` of the row.
        rows: training rows; one when history is appended to, one for each turn when it is written anew.
        turns: answers of the model so far.
        finish_reason: of the last answer; `max_turns` when turns ran out.
        info: what a scheduler keeps, such as counts for the log or a reward of its own.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    origin: str = ""
    rows: list[TokenRow] = field(default_factory=list[TokenRow])
    turns: int = 0
    finish_reason: FinishReason | Literal["max_turns"] | None = None
    info: dict[str, Any] = field(default_factory=dict[str, Any])
