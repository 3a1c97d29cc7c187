"""`--dry_run`: everything but the training, shown."""

from __future__ import annotations

import math
import sys
from itertools import islice

from swift_core.batching.preview import legend, preview_samples
from swift_core.batching.stream import EncodedStream
from swift_core.config.training import SftConfig
from swift_core.planner.command import estimated
from swift_core.planner.estimate import plan_run
from swift_core.protocols import EncodedSample
from swift_core.tasks.sft import Prepared, prepare

_LOOKED_AT = 64


def show(config: SftConfig) -> None:
    """Print three samples with their loss mask, what became of the data, the plan and a memory estimate.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    color = sys.stdout.isatty()
    write = sys.stdout.write
    samples = _seen(prepared)
    write(legend(color=color) + "\n\n" + preview_samples(samples[:3], prepared.tokenizer, color=color) + "\n")
    write(prepared.rows.summary() + "\n" + (prepared.reports[0].summary() + "\n" if prepared.reports[0] else "") + "\n")
    write(_plan(config, prepared) + "\n\n")
    plan = plan_run(config, prepared.folder, [len(sample) for sample in samples])
    write("".join(f"{line}\n" for line in estimated(plan)[1].lines()))
    write("\nnothing was trained: remove --dry_run to start\n")


def _seen(prepared: Prepared) -> list[EncodedSample]:
    # Of a stream, and of data that is encoded while training, the first samples stand for all.
    if isinstance(prepared.train, EncodedStream):
        return list(islice(prepared.train, _LOOKED_AT))
    whole = prepared.reports[0] is not None
    return list(prepared.train if whole else islice(prepared.train, _LOOKED_AT))


def _plan(config: SftConfig, prepared: Prepared) -> str:
    per_step = _samples_per_step(config)
    if isinstance(prepared.train, EncodedStream):
        return f"plan: {config.training.max_steps} steps of {per_step} samples on each process, from a stream"
    an_epoch = math.ceil(len(prepared.train) / per_step)
    total = config.training.max_steps if config.training.max_steps > 0 else math.ceil(config.training.num_train_epochs * an_epoch)
    return f"plan: {total} steps of {per_step} samples on each process, {an_epoch} steps an epoch"


def _samples_per_step(config: SftConfig) -> int:
    return config.training.per_device_train_batch_size * (config.training.gradient_accumulation_steps or 1)
