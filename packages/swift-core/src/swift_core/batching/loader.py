"""Feeding a run: the micro-batches of one rank, step by step, from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from swift_core.batching.collate import Batch, collate
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
        trained_tokens: predictions that carry loss, over all ranks.
        tokens: tokens without padding, over all ranks.
        samples: samples, over all ranks.
    """

    micros: list[Batch]
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
) -> Iterator[StepBatches]:
    """Yield the micro-batches of one rank for each optimizer step from `start` to `stop - 1`.

    All ranks get the same number of micro-batches in a step. Where none of a step's samples are left for a rank, it gets a
    batch without trained tokens.
    """
    lengths = [len(sample) for sample in samples]
    trained = [sample.trained_tokens for sample in samples]
    plan = list(steps_from(shape, lengths, start=start, stop=stop))
    indices: list[list[int]] = []
    blank: list[bool] = []
    for step in plan:
        for micro in step:
            blank.append(not micro[rank])
            indices.append(micro[rank] or micro[0][:1])
    loader = DataLoader(
        SampleList(samples),
        batch_sampler=indices,
        collate_fn=partial(collate, pad_token_id=pad_token_id),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own: worker seeds must not be drawn from the stream that dropout uses, or resuming would shift it.
        generator=torch.Generator().manual_seed(shape.seed),
    )
    batches = iter(loader)
    position = 0
    for step in plan:
        micros: list[Batch] = []
        for _ in step:
            batch = next(batches)
            micros.append(batch.masked() if blank[position] else batch)
            position += 1
        taken = [index for micro in step for indices_of_rank in micro for index in indices_of_rank]
        yield StepBatches(micros, sum(trained[index] for index in taken), sum(lengths[index] for index in taken), len(taken))


def eval_batches(samples: Sequence[EncodedSample], *, batch_size: int, rank: int, world_size: int, pad_token_id: int) -> Iterator[Batch]:
    """Yield the evaluation batches of one rank, longest samples first; ranks may get different numbers of batches."""
    order = sorted(range(len(samples)), key=lambda index: (-len(samples[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for indices in batches[rank::world_size]:
        yield collate([samples[index] for index in indices], pad_token_id=pad_token_id)
