"""Requests that are being answered, and the choice of their next tokens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

import torch
from swift_core.decoding.drawing import Drawing, Edits, draw
from swift_core.protocols import (
    AssistantMessage,
    ChatChoice,
    EncodedSample,
    InferResponse,
    RequestConfig,
    TextDelta,
    TokenLogprob,
    Usage,
)
from torch import Tensor

from swift_infer.config import LogprobsMode
from swift_infer.engines.answer import Answer

Emit = Callable[[TextDelta], None]


class Constraint(Protocol):
    """A form that an answer is kept to."""

    def mask(self, logits: Tensor) -> None:
        """Set the logits `[vocab]` of tokens that cannot come next to -inf."""
        ...

    def push(self, token: int) -> None:
        """Take a token that was written."""
        ...


class Line:
    """Answer number `index` to a request.

    Args:
        index: 0 to n - 1.
        answer: turns tokens into text.
        drawing: how tokens are drawn.
        seed: decides what is drawn.
        quiet_until: tokens before which none of `stop_ids` is drawn.
        stop_ids: tokens that end the answer.
        constraint: form of the answer, or None.
    """

    def __init__(
        self,
        index: int,
        answer: Answer,
        drawing: Drawing,
        seed: int,
        *,
        quiet_until: int = 0,
        stop_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.index, self.answer, self.drawing, self.seed = index, answer, drawing, seed
        self.constraint = constraint
        self.logprobs: list[TokenLogprob] = []
        self.versions: list[tuple[int, int]] = []
        self.shown = 0  # tokens that pieces have told of
        self._random = random.Random(seed)
        self._quiet_until, self._stop_ids = quiet_until, sorted(stop_ids)
        self._edits: Edits | None = None

    @property
    def edits(self) -> bool:
        """Say whether logits are changed before the next draw."""
        return self.drawing.edits or self.constraint is not None or len(self.answer.token_ids) < self._quiet_until

    def uniform(self) -> float:
        """Return the number that decides the next draw; one that does not is not drawn."""
        return self._random.random() if self.drawing.temperature else 0.0

    def edit(self, logits: Tensor, prompt: Sequence[int]) -> None:
        """Change the logits `[vocab]` of the next token in place."""
        if self.drawing.edits:
            if self._edits is None:
                self._edits = Edits(self.drawing, prompt, logits.shape[-1], logits.device)
            self._edits.apply(logits)
        if self.constraint is not None:
            self.constraint.mask(logits)
        if len(self.answer.token_ids) < self._quiet_until:
            logits[self._stop_ids] = -torch.inf

    def push(self, token: int, version: int) -> str:
        """Take the token that was drawn and return the text that it releases."""
        if self._edits is not None:
            self._edits.push(token)
        text = self.answer.push(token)
        if self.constraint is not None and not self.answer.finish_reason:
            self.constraint.push(token)
        if self.versions and self.versions[-1][0] == version:
            self.versions[-1] = (version, self.versions[-1][1] + 1)
        else:
            self.versions.append((version, 1))
        return text


class Job:
    """A request with its answers.

    Args:
        prompt: token ids and media.
        adapter: name of the adapter that answers, or None.
        config: how to answer.
        lines: the answers.
        emit: gets every piece of text as it comes, in the engine's thread.
        request_id: name for `abort`.
    """

    def __init__(
        self,
        prompt: EncodedSample,
        adapter: str | None,
        config: RequestConfig,
        lines: list[Line],
        *,
        emit: Emit | None = None,
        request_id: str = "",
    ) -> None:
        self.prompt, self.adapter, self.config, self.lines = prompt, adapter, config, lines
        self.request_id = request_id
        self.result: Future[InferResponse] = Future()
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self._emit = emit
        self._aborted = threading.Event()

    @property
    def room(self) -> int:
        """Return the most tokens that prompt and answers can have together."""
        return len(self.prompt) + sum(line.answer.limit for line in self.lines)

    @property
    def open(self) -> list[Line]:
        """Return the answers that are not complete."""
        return [line for line in self.lines if line.answer.finish_reason is None]

    @property
    def aborted(self) -> bool:
        """Say whether somebody has asked to end it."""
        return self._aborted.is_set()

    def abort(self) -> None:
        """Ask to end it; it ends at the next step."""
        self._aborted.set()

    def push(self, line: Line, token: int, version: int) -> None:
        """Give a token to one of the answers."""
        self._tell(line, line.push(token, version))

    def close(self) -> None:
        """End the answers that are not complete, with what they have."""
        for line in self.open:
            self._tell(line, line.answer.abort())

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        if not self.result.done():
            self.result.set_exception(error)

    def _tell(self, line: Line, text: str) -> None:
        reason = line.answer.finish_reason
        complete = reason is not None and not self.open
        if self._emit is not None and (text or reason):
            ids = line.answer.token_ids[line.shown :]
            found = line.logprobs[line.shown :] if self.config.logprobs is not None else None
            line.shown += len(ids)
            self._emit(TextDelta(text, line.index, reason, self.usage() if complete else None, ids, found))
        if complete and not self.result.done():
            self.result.set_result(self.response())

    def usage(self) -> Usage:
        """Return the token counts so far."""
        return Usage(len(self.prompt), sum(len(line.answer.token_ids) for line in self.lines))

    def response(self) -> InferResponse:
        """Return all answers."""
        choices = [
            ChatChoice(
                line.index,
                AssistantMessage(line.answer.text),
                line.answer.finish_reason or "abort",
                line.answer.token_ids,
                line.logprobs if self.config.logprobs is not None else None,
                line.versions,
            )
            for line in self.lines
        ]
        return InferResponse(choices, self.usage(), self.prompt.input_ids, self.prompt_logprobs)


def choose(work: Sequence[tuple[Job, Line]], logits: Tensor, mode: LogprobsMode) -> list[int]:
    """Return the next token of each row, with log-probabilities written down where they are asked for.

    Args:
        work: the answers, row by row.
        logits: `[rows, vocab]`.
        mode: `raw` for the model's own distribution, `processed` for the one that the token was drawn from.
    """
    drawings = [line.drawing for _, line in work]
    wanted = [row for row, (job, _) in enumerate(work) if job.config.logprobs is not None]
    edited = [row for row, (_, line) in enumerate(work) if line.edits]
    if not wanted and not edited and not any(drawing.temperature for drawing in drawings):
        return logits.argmax(-1).tolist()
    own = logits.float()
    logits = own.clone() if edited and wanted and mode == "raw" else own
    for row in edited:
        job, line = work[row]
        line.edit(logits[row], job.prompt.input_ids)
    uniform = torch.tensor([line.uniform() for _, line in work], device=logits.device)
    tokens, drawn = draw(logits, uniform, drawings)
    if wanted:
        source = (own if mode == "raw" else drawn)[wanted]
        most = max(work[row][0].config.logprobs or 0 for row in wanted)
        for row, found in zip(wanted, told(source, tokens[wanted], most), strict=True):
            job, line = work[row]
            count = job.config.logprobs or 0
            line.logprobs.append(TokenLogprob(found.token_id, found.logprob, found.top[:count]))
    return tokens.tolist()


def told(logits: Tensor, tokens: Tensor, most: int) -> list[TokenLogprob]:
    """Return how likely each row's token was, with the likeliest `most` tokens.

    Args:
        logits: `[rows, vocab]`, float32.
        tokens: `[rows]`.
        most: number of tokens beside it.
    """
    total = logits.logsumexp(-1)
    own = (logits.gather(1, tokens[:, None])[:, 0] - total).tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(own)
    if most:
        best = logits.topk(min(most, logits.shape[-1]), -1)
        values = (best.values - total[:, None]).tolist()
        tops = [tuple(zip(ids, row, strict=True)) for ids, row in zip(best.indices.tolist(), values, strict=True)]
    return [TokenLogprob(token, value, top) for token, value, top in zip(tokens.tolist(), own, tops, strict=True)]
