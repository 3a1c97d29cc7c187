"""Feeding a run: the micro-batches of one rank, step by step, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from swift_core.batching.collate import collate
from swift_core.batching.plan import PlanShape, split_step, step_samples
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


@dataclass(frozen=True, slots=True)
class Dealer:
    """Turns the samples of an optimizer step into one rank's micro-batches.

    Attributes:
        shape: numbers of the plan.
        rank: this process.
        pad_token_id: fills shorter rows.
        make_batch: `(samples, pad_token_id=...)` to a batch with `to`, `masked` and `origins`.
        weigh: what a sample adds to the normaliser of its step.
        measure: tokens of a sample.
    """

    shape: PlanShape
    rank: int = 0
    pad_token_id: int = 0
    make_batch: Callable[..., Any] = collate
    weigh: Callable[[EncodedSample], int] = lambda sample: sample.trained_tokens
    measure: Callable[[EncodedSample], int] = len

    def deal(self, samples: Sequence[EncodedSample]) -> StepBatches:
        """Return the micro-batches of a step.

        All ranks get the same number of them. Where no sample is left for a rank, it gets a batch in which nothing is trained.
        """
        lengths = [self.measure(sample) for sample in samples]
        micros: list[Any] = []
        for micro in split_step(range(len(samples)), self.shape, lengths):
            mine = micro[self.rank] or micro[0][:1]
            batch = self.make_batch([samples[index] for index in mine], pad_token_id=self.pad_token_id)
            micros.append(batch if micro[self.rank] else batch.masked())
        return StepBatches(micros, sum(self.weigh(sample) for sample in samples), sum(lengths), len(samples))


def train_steps(
    samples: Sequence[EncodedSample],
    dealer: Dealer,
    *,
    start: int,
    stop: int,
    packs: Sequence[Sequence[int]] | None = None,
    num_workers: int = 0,
) -> Iterator[StepBatches]:
    """Yield the micro-batches of one rank for each optimizer step from `start` to `stop - 1`.

    Args:
        samples: the whole data set; a sample is looked at when its step comes.
        dealer: deals the samples of a step.
        start: first step.
        stop: step after the last one.
        packs: sample indices that count as one sample of the batch size.
        num_workers: processes that fetch samples ahead, for data sets that encode on access.
    """
    known = packs is not None or dealer.shape.group_by_length
    lengths = sample_lengths(samples, dealer.measure) if known else [1] * len(samples)
    steps = step_samples(dealer.shape, lengths, start=start, stop=stop, packs=packs)
    if not num_workers:
        for indices in steps:
            yield dealer.deal([samples[index] for index in indices])
        return
    fetched = DataLoader(
        SampleList(samples),
        batch_sampler=list(steps),
        collate_fn=list,
        num_workers=num_workers,
        # A generator of its own: worker seeds must not be drawn from the stream that dropout uses, or resuming would shift it.
        generator=torch.Generator().manual_seed(dealer.shape.seed),
    )
    for taken in fetched:
        yield dealer.deal(taken)


def sample_lengths(samples: Sequence[EncodedSample], measure: Callable[[EncodedSample], int]) -> list[int]:
    """Return the tokens of every sample; a data set that keeps them is not read for it."""
    kept = getattr(samples, "lengths", None)
    if kept is not None and measure is len:
        return [int(length) for length in kept]
    return [measure(sample) for sample in samples]


def eval_batches(
    samples: Sequence[EncodedSample],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
    make_batch: Callable[..., Any] = collate,
    measure: Callable[[EncodedSample], int] = len,
    in_step: bool = False,
) -> Iterator[Any]:
    """Yield the evaluation batches of one rank, longest samples first.

    Ranks may get different numbers of batches, except `in_step`: then those with fewer get one more, which has no `origins`.
    """
    order = sorted(range(len(samples)), key=lambda index: (-measure(samples[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for indices in batches[rank::world_size]:
        yield make_batch([samples[index] for index in indices], pad_token_id=pad_token_id)
    if in_step and 0 < len(batches) % world_size <= rank:
        spare = make_batch([samples[index] for index in batches[0]], pad_token_id=pad_token_id).masked()
        yield replace(spare, origins=[])
