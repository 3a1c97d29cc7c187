"""Which samples each optimizer step, micro-batch and rank takes. Pure and repeatable: a resumed run asks for the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swift_core.batching.packing import balanced_bins


@dataclass(frozen=True, slots=True)
class PlanShape:
    """The numbers a plan depends on.

    Attributes:
        num_samples: size of the data set; with packing the number of packs, which take the place of samples.
        batch_size: samples of one micro-batch on one rank.
        accumulation: micro-batches of one optimizer step.
        world_size: number of ranks.
        seed: seed of the order.
        shuffle: draw a new order in every epoch.
        group_by_length: put samples of like length into the same step.
        token_budget: tokens of a micro-batch on one rank; None deals by `batch_size` instead. The samples of a step are the
            same either way.
    """

    num_samples: int
    batch_size: int
    accumulation: int
    world_size: int = 1
    seed: int = 42
    shuffle: bool = True
    group_by_length: bool = False
    token_budget: int | None = None

    @property
    def samples_per_step(self) -> int:
        """Return how many samples a full optimizer step takes on all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of one epoch; the last one takes what is left."""
        return -(-self.num_samples // self.samples_per_step)


def epoch_order(shape: PlanShape, epoch: int, lengths: Sequence[int]) -> list[int]:
    """Return the order in which an epoch takes the samples: each exactly once."""
    order = list(range(shape.num_samples))
    # A text seed is hashed with SHA-512 by random.Random: the same on every machine, and no two epochs are related.
    generator = random.Random(f"{shape.seed}/{epoch}")
    if shape.shuffle:
        generator.shuffle(order)
    if shape.group_by_length:
        window = 50 * shape.samples_per_step
        steps: list[list[int]] = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda index: (-lengths[index], index))
            steps += [part[at : at + shape.samples_per_step] for at in range(0, len(part), shape.samples_per_step)]
        if shape.shuffle:
            full = [step for step in steps if len(step) == shape.samples_per_step]
            rest = [step for step in steps if len(step) != shape.samples_per_step]
            generator.shuffle(full)
            steps = full + rest
        order = [index for step in steps for index in step]
    return order


def split_step(samples: Sequence[int], shape: PlanShape, lengths: Sequence[int]) -> list[list[list[int]]]:
    """Deal the samples of one optimizer step to micro-batches and ranks.

    The gradient of a step does not depend on how its samples are dealt, because the loss is normalised over the whole
    step. So samples of like length go together, which leaves least padding, and ranks get like amounts.

    Returns:
        `[micro][rank][sample]`; every rank has the same number of micro-batches, some may be empty at the end of an epoch.
    """
    if shape.token_budget is not None:
        tokens = sum(lengths[index] for index in samples)
        micros = min(-(-len(samples) // shape.world_size), -(-tokens // (shape.token_budget * shape.world_size)))
        bins = balanced_bins(samples, lengths, bins=max(1, micros) * shape.world_size)
        return [bins[start : start + shape.world_size] for start in range(0, len(bins), shape.world_size)]
    ordered = sorted(samples, key=lambda index: (-lengths[index], index))
    per_micro = shape.batch_size * shape.world_size
    parts = [ordered[start : start + per_micro] for start in range(0, len(ordered), per_micro)]
    return [[part[rank :: shape.world_size] for rank in range(shape.world_size)] for part in parts]


def step_samples(
    shape: PlanShape, lengths: Sequence[int], *, start: int, stop: int, packs: Sequence[Sequence[int]] | None = None
) -> Iterator[list[int]]:
    """Yield the sample indices of the optimizer steps `start` to `stop - 1`, over as many epochs as that takes.

    Args:
        shape: numbers of the plan.
        lengths: tokens of every sample; only looked at with packs or `group_by_length`.
        start: first step.
        stop: step after the last one.
        packs: sample indices that go together and count as one sample of the batch size.
    """
    epoch, order = -1, []
    units = lengths if packs is None else [sum(lengths[index] for index in pack) for pack in packs]
    for step in range(start, stop):
        at = divmod(step, shape.steps_per_epoch)
        if at[0] != epoch:
            epoch, order = at[0], epoch_order(shape, at[0], units)
        begin = at[1] * shape.samples_per_step
        taken = order[begin : begin + shape.samples_per_step]
        yield taken if packs is None else [index for unit in taken for index in packs[unit]]
