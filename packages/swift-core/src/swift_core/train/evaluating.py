"""Running a model over the evaluation samples, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from swift_core.batching.loader import eval_batches
from swift_core.protocols import EncodedSample
from swift_core.train.sharding.engine import Engine
from swift_core.train.task import Task


class EvaluationStopped(Exception):
    """Raised on all ranks when one of them was told to stop in the middle of an evaluation."""


def eval_share(samples: Sequence[EncodedSample], task: Task, batch_size: int, engine: Engine, pad_token_id: int) -> Iterator[Any]:
    """Yield the evaluation batches of this rank."""
    return eval_batches(
        samples,
        batch_size=batch_size,
        rank=engine.world.data_rank,
        world_size=engine.world.data_size,
        pad_token_id=pad_token_id,
        make_batch=task.collate,
        measure=task.length,
        in_step=engine.in_step,
    )


def measure_all(engine: Engine, module: nn.Module, batches: Iterable[Any], *, stopping: Callable[[], bool]) -> list[Any]:
    """Return what the task's metrics need of the batches of all ranks.

    Args:
        engine: measures a batch.
        module: the wrapped model.
        batches: those of this rank.
        stopping: asked before each batch whether to leave.

    Raises:
        EvaluationStopped: when a rank was told to leave.
    """
    world, parts = engine.world, list[Any]()
    stopped = False
    for batch in batches:
        stopped = stopping()
        if engine.in_step:  # where ranks work on a batch together, they leave together
            stopped = world.sum(float(stopped))[0] > 0
        if stopped:
            break
        found = engine.measure(module, batch.to(world.device))
        if not engine.in_step or batch.origins:  # a batch without samples keeps this rank in step with the others
            parts.append(found)
    of_ranks = world.gather((stopped, parts))
    if any(left for left, _ in of_ranks):
        raise EvaluationStopped
    # Ranks that share their samples count once.
    return [part for _, of_rank in of_ranks[:: world.size // world.data_size] for part in of_rank]
