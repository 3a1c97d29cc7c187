"""From settings to the numbers of a plan: packs, batch sizes, token budgets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from swift_core.batching.feed import Stream, StreamFeed
from swift_core.batching.loader import sample_lengths
from swift_core.batching.packing import best_fit
from swift_core.batching.plan import PlanShape
from swift_core.config.parallel import processes_for_a_sample
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import ConfigError, Problem
from swift_core.protocols import EncodedSample
from swift_core.train.parallel import World
from swift_core.train.task import CountsAnswers, Task

# On two CPU cores a forward pass of this many tokens keeps the matrix products busy and the activations of 30 layers in 1 GB.
CPU_TOKENS = 1024


def make_packs(args: TrainingConfig, task: Task, samples: Sequence[EncodedSample]) -> list[list[int]] | None:
    """Return the packs that `--packing` asks for, or None.

    Raises:
        ConfigError: when the task takes no packs, or a pack has no length.
    """
    training = args.training
    if not training.packing:
        if training.packing_length is not None:
            raise ConfigError([Problem("--packing_length", "does nothing without packing", "add --packing")])
        return None
    if not task.packs:
        why = "--padding_free false" if training.padding_free is False else "this task"
        raise ConfigError([Problem("--packing", f"{why} lays samples out one by one", "remove one of them")])
    return best_fit(sample_lengths(samples, task.length), require_pack_length(args))


def count_units(args: TrainingConfig, samples: Sequence[EncodedSample] | Stream, packs: Sequence[Sequence[int]] | None) -> int:
    """Return the samples or packs of the data set; a stream counts as one epoch of `--max_steps`, or says it itself.

    Raises:
        ConfigError: when a stream has no last step.
    """
    if packs is not None:
        return len(packs)
    if isinstance(samples, Sequence):
        return len(samples)
    known = getattr(samples, "samples_per_epoch", None)
    if known is not None:
        return int(known)
    if args.training.max_steps <= 0:
        raise ConfigError([Problem("--streaming", "a stream has no end", "add --max_steps 1000")])
    per_device = args.training.per_device_train_batch_size * (args.training.gradient_accumulation_steps or 1)
    return args.training.max_steps * per_device * int(os.environ.get("WORLD_SIZE", "1")) // processes_for_a_sample(args.parallel)


def make_feed(args: TrainingConfig, task: Task, stream: Stream, shape: PlanShape) -> StreamFeed:
    """Return what draws the samples of each step from a stream.

    Raises:
        ConfigError: when a setting needs the whole data set.
    """
    problems: list[Problem] = []
    if args.training.group_by_length:
        problems.append(Problem("--group_by_length", "a stream cannot be sorted", "remove it"))
    if args.training.dataloader_num_workers:
        problems.append(Problem("--dataloader_num_workers", "a stream is read by the training process", "remove it"))
    if args.training.packing and not task.packs:
        problems.append(Problem("--packing", "this run lays samples out one by one", "remove it"))
    if problems:
        raise ConfigError(problems)
    return StreamFeed(stream, shape, capacity=require_pack_length(args) if args.training.packing else None)


def require_pack_length(args: TrainingConfig) -> int:
    """Return the tokens of a pack.

    Raises:
        ConfigError: when neither `--packing_length` nor `--max_length` says it.
    """
    capacity = _pack_length(args)
    if capacity is None:
        raise ConfigError([Problem("--packing", "the packs have no length", "add --packing_length 4096, or --max_length")])
    return capacity


def _pack_length(args: TrainingConfig) -> int | None:
    return args.training.packing_length or (args.chat.max_length if isinstance(args, SftConfig) else None)


def make_shape(args: TrainingConfig, task: Task, world: World, units: int) -> PlanShape:
    """Return the numbers of the plan.

    Args:
        args: settings of the run.
        task: what is trained.
        world: the processes of the run.
        units: samples or packs of the data set.

    Raises:
        ConfigError: when a token budget is given for a task that scores samples one by one.
    """
    answers = task.answers if isinstance(task, CountsAnswers) else 1
    return plan_shape(args, units, packs=task.packs, device=world.device.type, data_size=world.data_size, answers=answers)


def plan_shape(args: TrainingConfig, units: int, *, packs: bool, device: str, data_size: int, answers: int = 1) -> PlanShape:
    """Return the numbers of the plan, for a run that need not have started.

    Args:
        args: settings of the run.
        units: samples or packs of the data set.
        packs: whether batches hold samples side by side without padding.
        device: kind of device.
        data_size: processes that the samples are dealt to.
        answers: what a sample counts as in the batch size.

    Raises:
        ConfigError: as `make_shape`.
    """
    training = args.training
    budget = training.per_device_token_budget
    if budget is not None and not packs:
        raise ConfigError([Problem("--per_device_token_budget", "this run pads its batches", "remove it, or --padding_free false")])
    if budget is None and packs and device == "cpu":
        budget = CPU_TOKENS
    if budget is None and training.packing:
        # A micro-batch is so many packs, and a pack about so many tokens.
        budget = training.per_device_train_batch_size * (_pack_length(args) or CPU_TOKENS)
    return PlanShape(
        num_samples=units,
        batch_size=training.per_device_train_batch_size // answers,
        accumulation=training.gradient_accumulation_steps or 1,
        world_size=data_size,
        seed=training.seed,
        shuffle=training.train_dataloader_shuffle,
        group_by_length=training.group_by_length,
        token_budget=budget,
    )
