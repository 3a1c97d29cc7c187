"""Feeding a run: the micro-batches of one rank, step by step, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from swift_core.batching.collate import collate
from swift_core.batching.plan import PlanShape, steps_from
from swift_core.protocols import EncodedSample


class SampleList(Dataset[EncodedSample]):
    """Encoded samples in memory."""

    def __init__(self, samples: Sequence[EncodedSample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> EncodedSample:
        return self._samples[index]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """What one rank does in an optimizer step, and what all ranks do together.

    Attributes:
        micros: this rank's micro-batches.
        trained_tokens: predictions that carry loss, over all ranks; for other tasks than next-token prediction the sum of
            the samples' weights.
        tokens: tokens without padding, over all ranks.
        samples: samples, over all ranks.
    """

    micros: list[Any]
    trained_tokens: int
    tokens: int
    samples: int


def train_steps(
    samples: Sequence[EncodedSample],
    shape: PlanShape,
    *,
    rank: int,
    start: int,
    stop: int,
    pad_token_id: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    make_batch: Callable[..., Any] = collate,
    weigh: Callable[[EncodedSample], int] = lambda sample: sample.trained_tokens,
    measure: Callable[[EncodedSample], int] = len,
    packs: Sequence[Sequence[int]] | None = None,
) -> Iterator[StepBatches]:
    """Yield the micro-batches of one rank for each optimizer step from `start` to `stop - 1`.

    All ranks get the same number of micro-batches in a step. Where none of a step's samples are left for a rank, it gets a
    batch without trained tokens.

    Args:
        samples: the whole data set.
        shape: numbers of the plan.
        rank: this process.
        start: first step.
        stop: step after the last one.
        pad_token_id: fills shorter rows.
        num_workers: processes that prepare batches.
        pin_memory: put batches where an accelerator reads them faster.
        make_batch: `(samples, pad_token_id=...)` to a batch with `to`, `masked` and `origins`.
        weigh: what a sample adds to the normaliser of its step.
        measure: tokens of a sample.
        packs: sample indices that count as one sample of the batch size.
    """
    lengths = [measure(sample) for sample in samples]
    trained = [weigh(sample) for sample in samples]
    plan = list(steps_from(shape, lengths, start=start, stop=stop, packs=packs))
    indices: list[list[int]] = []
    blank: list[bool] = []
    for step in plan:
        for micro in step:
            blank.append(not micro[rank])
            indices.append(micro[rank] or micro[0][:1])
    loader = DataLoader(
        SampleList(samples),
        batch_sampler=indices,
        collate_fn=partial(make_batch, pad_token_id=pad_token_id),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own: worker seeds must not be drawn from the stream that dropout uses, or resuming would shift it.
        generator=torch.Generator().manual_seed(shape.seed),
    )
    batches = iter(loader)
    position = 0
    for step in plan:
        micros: list[Any] = []
        for _ in step:
            batch = next(batches)
            micros.append(batch.masked() if blank[position] else batch)
            position += 1
        taken = [index for micro in step for indices_of_rank in micro for index in indices_of_rank]
        yield StepBatches(micros, sum(trained[index] for index in taken), sum(lengths[index] for index in taken), len(taken))


def eval_batches(
    samples: Sequence[EncodedSample],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
    make_batch: Callable[..., Any] = collate,
    measure: Callable[[EncodedSample], int] = len,
) -> Iterator[Any]:
    """Yield the evaluation batches of one rank, longest samples first; ranks may get different numbers of batches."""
    order = sorted(range(len(samples)), key=lambda index: (-measure(samples[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for indices in batches[rank::world_size]:
        yield make_batch([samples[index] for index in indices], pad_token_id=pad_token_id)
