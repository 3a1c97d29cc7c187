"""`--auto_batch`: the token budget of a micro-batch, found by trying before the first step."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swift_core.batching.feed import Stream
from swift_core.batching.loader import sample_lengths
from swift_core.batching.plan import PlanShape
from swift_core.config.load import ARGS_FILE
from swift_core.config.training import TrainingConfig
from swift_core.errors import ConfigError, Problem
from swift_core.planner.capacity import capacity_of
from swift_core.planner.record import COMFORT, size
from swift_core.planner.tracing import MemoryTrace
from swift_core.protocols import EncodedSample
from swift_core.registry import OPTIMIZERS
from swift_core.train.exhausted import is_out_of_memory
from swift_core.train.parallel import World
from swift_core.train.task import Task

logger = logging.getLogger(__name__)

SMALLEST = 1024
# A larger budget costs memory; it has to be worth that much more speed.
_FASTER = 1.03


@dataclass(frozen=True, slots=True)
class Tried:
    """One micro-batch that was tried.

    Attributes:
        tokens: it had so many.
        bytes: it held so much at its fullest moment, gradients included.
        seconds: forward and backward pass.
    """

    tokens: int
    bytes: int
    seconds: float


def with_auto_budget(
    shape: PlanShape, args: TrainingConfig, checkpoint: Path | None, find: Callable[[], int], *, told: bool = True
) -> PlanShape:
    """Return the plan with a budget where the settings leave it to be found, and note it in the settings.

    Args:
        shape: numbers of the plan.
        args: settings of the run.
        checkpoint: what the run goes on from; its budget is kept.
        find: tries budgets.
        told: whether this process tells people.
    """
    if not args.training.auto_batch:
        return shape
    kept = _budget_of(checkpoint) if checkpoint is not None else None
    budget = kept if kept is not None else find()
    if told:
        sys.stderr.write(f"--auto_batch: {budget} tokens in a micro-batch" + (f", as in {checkpoint}\n" if kept is not None else "\n"))
    # Later runs with these settings take the number as it is.
    args.derive("per_device_token_budget", budget, "derived: found by --auto_batch")
    args.derive("auto_batch", False, "derived: done, see per_device_token_budget")
    return replace(shape, token_budget=budget)


def _budget_of(checkpoint: Path) -> int | None:
    file = checkpoint / ARGS_FILE
    return json.loads(file.read_text(encoding="utf-8")).get("per_device_token_budget") if file.is_file() else None


def find_budget(
    module: nn.Module,
    task: Task,
    samples: Sequence[EncodedSample] | Stream,
    shape: PlanShape,
    args: TrainingConfig,
    world: World,
    *,
    pad_token_id: int,
) -> int:
    """Return the budget that fits on every rank and is fast: the smallest one tried that no larger one beats by much.

    Args:
        module: batch in, loss out, not wrapped.
        task: what is trained; its batches can hold samples side by side.
        samples: the data set.
        shape: numbers of the plan.
        args: settings of the run.
        world: the processes of the run.
        pad_token_id: fills shorter rows.

    Raises:
        ConfigError: for a stream, and for batches that are padded.
    """
    if not isinstance(samples, Sequence):
        raise ConfigError([Problem("--auto_batch", "a stream has no longest samples to try", "--per_device_token_budget 4096")])
    if not task.packs:
        raise ConfigError([Problem("--auto_batch", "this run pads its batches", "set --per_device_train_batch_size")])
    lengths = sample_lengths(samples, task.length)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))

    def attempt(budget: int) -> Tried | None:
        taken: list[int] = []
        while order[len(taken) :] and sum(lengths[index] for index in taken) < budget:
            taken.append(order[len(taken)])
        batch = task.collate([samples[index] for index in taken], pad_token_id=pad_token_id)
        return _attempt(module, batch, sum(lengths[index] for index in taken), world)

    largest = sum(lengths[index] for index in order[: shape.samples_per_step]) // shape.world_size
    room = COMFORT * capacity_of(world.device.type, processes_here=world.size).free - _optimizer_bytes(module, args)
    module.train()
    found = search(attempt, smallest=max(SMALLEST, lengths[order[0]]), largest=largest, room=room)
    return min(world.gather(found))


def search(attempt: Callable[[int], Tried | None], *, smallest: int, largest: int, room: float) -> int:
    """Return the budget to use.

    Args:
        attempt: tries a budget; None where memory runs out.
        smallest: first budget.
        largest: more than this is in no step.
        room: bytes that a micro-batch may hold.
    """
    budget = best = min(smallest, max(largest, 1))
    attempt(budget)  # the first pass of a run compares ways to compute and loads kernels
    fastest = 0.0
    while True:
        tried = attempt(budget)
        if tried is None or tried.bytes > room:
            # What does not fit is halved until it does; the next runs of a step have no more than that.
            return best if budget != best else max(1, budget // 2)
        rate = tried.tokens / max(tried.seconds, 1e-9)
        if rate < fastest * _FASTER:
            return best
        best, fastest = budget, rate
        per_token = tried.bytes / tried.tokens
        budget = min(2 * budget, largest)
        if budget <= best or per_token * budget > room:
            return best


def _attempt(module: nn.Module, batch: Any, tokens: int, world: World) -> Tried | None:
    device, started = world.device, time.perf_counter()
    watch = MemoryTrace(module.parameters(), numbers=True)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with world.accelerator.autocast():
            # A GPU counts by itself, and runs its backward pass in another thread.
            if on_gpu:
                module(batch.to(device)).backward()
            else:
                with watch:
                    module(batch).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        for parameter in module.parameters():
            parameter.grad = None
    if on_gpu:
        torch.cuda.synchronize(device)
        return Tried(tokens, torch.cuda.max_memory_allocated(device) - before, time.perf_counter() - started)
    held = max(moment.total for moment in watch.moments((), halved="").values())
    return Tried(tokens, held, time.perf_counter() - started)


def _optimizer_bytes(module: nn.Module, args: TrainingConfig) -> float:
    """Return what the optimizer will hold from the first step on, and what it needs in its step."""
    trained = [parameter.numel() * parameter.element_size() for parameter in module.parameters() if parameter.requires_grad]
    needed = sum(trained) * OPTIMIZERS.get(args.optimization.optim).states + 2 * max(trained, default=0)
    logger.info("the optimizer will take %s", size(int(needed)))
    return needed
