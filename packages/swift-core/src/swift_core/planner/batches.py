"""The fullest micro-batch of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift_core.batching.plan import PlanShape, split_step, step_samples

# Steps that are looked at; those after them are of the same kind.
_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Fullest:
    """The micro-batch with most tokens.

    Attributes:
        lengths: tokens of its samples, padding included.
        micros: most micro-batches of a step.
        tokens_per_step: tokens of a step on all processes, on average.
    """

    lengths: tuple[int, ...]
    micros: int
    tokens_per_step: float


def fullest(shape: PlanShape, lengths: Sequence[int], *, packed: bool, packs: Sequence[Sequence[int]] | None = None) -> Fullest:
    """Return the fullest micro-batch of the first steps.

    Args:
        shape: numbers of the plan.
        lengths: tokens of every sample.
        packed: samples lie side by side without padding.
        packs: as in `step_samples`.
    """
    best: tuple[int, ...] = ()
    micros, tokens = 1, 0
    steps = min(shape.steps_per_epoch, _STEPS)
    for taken in step_samples(shape, lengths, start=0, stop=steps, packs=packs):
        own = [lengths[index] for index in taken]
        tokens += sum(own)
        dealt = split_step(range(len(own)), shape, own)
        micros = max(micros, len(dealt))
        for of_rank in (ranks for micro in dealt for ranks in micro if ranks):
            rows = [own[index] for index in of_rank]
            if not packed:
                rows = [max(rows)] * len(rows)
            # Of micro-batches with the same tokens the one with longer samples holds more.
            if (sum(rows), max(rows)) > (sum(best), max(best, default=0)):
                best = tuple(sorted(rows, reverse=True))
    return Fullest(best, micros, tokens / max(steps, 1))
