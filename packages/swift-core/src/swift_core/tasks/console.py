"""What a training command tells the person in front of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import nn

from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World
from swift_core.train.report import duration
from swift_core.train.trainer import Trainer


def say(world: World, lines: Sequence[str]) -> None:
    """Print lines once, not once for each process."""
    if world.is_main:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def indented(text: str) -> list[str]:
    """Return the lines of a text, moved to the right."""
    return [f"  {line}" for line in text.splitlines()]


def plan_lines(trainer: Trainer, model: nn.Module, world: World) -> list[str]:
    """Return how large the model is, what is trained of it, how many steps that takes, and where it goes."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    devices = f"{world.device} x {world.size}" if world.size > 1 else str(world.device)
    shape = trainer.shape
    parts = f"{shape.batch_size} a device x {shape.accumulation} accumulated x {shape.world_size} devices"
    return [
        f"model: {total:,} parameters, {trainable:,} trained ({trainable / total:.2%}), {dtype} on {devices}",
        f"plan: {trainer.total_steps} steps of {shape.samples_per_step} samples ({parts}), {shape.steps_per_epoch} steps an epoch",
        f"run folder: {trainer.run_dir}",
    ]


def result_lines(output: TrainOutput) -> list[str]:
    """Return what came out of a run and where it is."""
    metrics = output.metrics
    lines = [
        f"done: {output.global_step} steps in {duration(metrics['train_runtime'])}, mean loss {metrics['train_loss']:.4f}, "
        f"{metrics['tokens_per_second']:.0f} tokens/s, peak memory {metrics['memory_gib']:.2f} GiB"
    ]
    if output.last_checkpoint is not None:
        lines.append(f"last checkpoint: {output.last_checkpoint}")
        if output.best_checkpoint is not None:
            lines.append(f"best checkpoint: {output.best_checkpoint}")
        lines.append(f"loss plot: {output.run_dir / 'images' / 'loss.png'}")
    return lines
