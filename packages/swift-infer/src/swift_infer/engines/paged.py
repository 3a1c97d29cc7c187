"""Running requests with swift's own decoding: prompts packed side by side, one step for all answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from swift_core.decoding.decoder import Decoder, decoding_model
from swift_core.errors import EngineError

from swift_infer.config import LogprobsMode
from swift_infer.engines.adapters import NamedAdapters
from swift_infer.engines.lines import Job, choose, told
from swift_infer.engines.scheduler import Work


@dataclass(slots=True)
class Loaded:
    """What an engine holds, for those that run it.

    Attributes:
        model: the model, with its adapters.
        named: its adapters by name.
        version: of the weights.
        logprobs: distribution that log-probabilities are told of.
    """

    model: Any
    named: NamedAdapters
    version: int = 0
    logprobs: LogprobsMode = "raw"


class PagedRunner:
    """Writes answers with a `Decoder`.

    Args:
        loaded: model and adapters, which may change between steps.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._decoder = Decoder(loaded.model)
        self._written: list[int] = []  # newest token of each row

    def session(self) -> AbstractContextManager[None]:
        """Return what surrounds the time in which answers are written."""
        self.renew()
        return decoding_model(self._decoder.model)

    def renew(self) -> None:
        """Look at the model anew, which adapters may have wrapped."""
        self._decoder.use(self._loaded.model)

    def begin(self, jobs: Sequence[Job]) -> Work:
        """Compute prompts and write the first token of every answer."""
        work: Work = []
        before = len(self._written)
        try:
            with told_of_memory(jobs):
                for group in _groups(jobs):
                    work += self._begin(group)
        except BaseException:
            # Rows that nobody will go on with.
            self._decoder.keep(range(before))
            self._written = self._written[:before]
            raise
        return work

    def step(self, work: Work) -> None:
        """Write one token of each answer."""
        device = self._loaded.model.device
        with told_of_memory([job for job, _ in work]), self._using([job.adapter for job, _ in work]):
            logits = self._decoder.step(torch.tensor(self._written, device=device))
        self._written = self._push(work, logits)

    def leave(self, work: Work, kept: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._decoder.keep(kept)
        self._written = [self._written[row] for row in kept]

    def _begin(self, jobs: Sequence[Job]) -> Work:
        """Begin requests of one adapter; those with the same prompt share its computation and its keys."""
        work: Work = [(job, line) for job in jobs for line in job.lines]
        prompts: dict[tuple[int, ...], int] = {}
        for job in jobs:
            prompt = tuple(job.prompt.input_ids)
            prompts[prompt] = prompts.get(prompt, 0) + len(job.lines)
        every = any(job.config.prompt_logprobs for job in jobs)
        with self._using([jobs[0].adapter]):
            logits, of_prompts = self._decoder.add(list(prompts), list(prompts.values()), every=every)
        if of_prompts is not None:
            _tell_prompts(jobs, list(prompts), of_prompts)
        self._written += self._push(work, logits)
        return work

    def _push(self, work: Work, logits: torch.Tensor) -> list[int]:
        tokens = choose(work, logits, self._loaded.logprobs)
        for (job, line), token in zip(work, tokens, strict=True):
            if line.answer.finish_reason is None:
                job.push(line, token, self._loaded.version)
        return tokens

    def _using(self, adapters: Sequence[str | None]) -> AbstractContextManager[None]:
        return self._loaded.named.using(self._loaded.model, adapters)


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield requests that one pass over prompts can hold: of one adapter, the same prompts one behind the other, scored ones alone."""

    def kind(job: Job) -> tuple[str, bool, list[int]]:
        return job.adapter or "", job.config.prompt_logprobs, job.prompt.input_ids

    # In the order of prompts, so that rows stand in the order in which `Decoder.add` makes them.
    for (_, scored), group in groupby(sorted(jobs, key=kind), key=lambda job: kind(job)[:2]):
        found = list(group)
        yield from ([job] for job in found) if scored else [found]


def _tell_prompts(jobs: Sequence[Job], prompts: Sequence[tuple[int, ...]], logits: torch.Tensor) -> None:
    start = 0
    for prompt in prompts:
        part = logits[start : start + len(prompt) - 1].float()
        found = told(part, torch.tensor(prompt[1:], device=part.device), 0) if len(prompt) > 1 else []
        for job in jobs:
            if tuple(job.prompt.input_ids) == prompt and job.config.prompt_logprobs:
                job.prompt_logprobs = found
        start += len(prompt)


@contextmanager
def told_of_memory(jobs: Sequence[Job]) -> Iterator[None]:
    """Turn running out of memory inside into an error with numbers."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        tokens = sum(len(job.prompt) for job in jobs)
        raise EngineError(
            f"out of memory with {len(jobs)} requests of {tokens} tokens", fix="lower --max_batch_size or --max_length"
        ) from error
