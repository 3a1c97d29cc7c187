"""From a config to its plan: data, memory, time, and steps that are run to see."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback

from swift_core.batching.loader import sample_lengths
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, Problem
from swift_core.models.loading import resolve_model_folder
from swift_core.planner.advice import changed, suggestions
from swift_core.planner.estimate import Plan, examine, pass_of, plan_run
from swift_core.planner.record import RunEstimate, TimeEstimate
from swift_core.planner.simulate import Traced
from swift_core.planner.timing import calibrate
from swift_core.tasks.sft import build_model, prepare
from swift_core.train.trainer import Trainer
from swift_core.train.tuning import weights_dtype


def planned(config: SftConfig, *, suggest: bool | None = None, timed: bool = False) -> tuple[Plan, RunEstimate]:
    """Return the plan of a config and what it needs.

    Args:
        config: settings of a training command.
        suggest: look for settings that need less; default: where the run does not fit comfortably.
        timed: measure the device for a moment and say how long the run takes.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        ModelError: when the architecture is not known, or the tuner does not fit it.
    """
    folder = resolve_model_folder(config.loading)
    return estimated(plan_run(config, folder, _lengths(config)), suggest=suggest, timed=timed)


def estimated(plan: Plan, *, suggest: bool | None = None, timed: bool = False) -> tuple[Plan, RunEstimate]:
    """Return a plan and what it needs; the arguments are those of `planned`."""
    found, traced = examine(plan)
    if timed:
        found = replace(found, time=_time(plan, traced))
    if suggest or (suggest is None and found.verdict != "fits"):
        found = replace(found, suggestions=suggestions(plan, found))
    return plan, found


def _lengths(config: SftConfig) -> Sequence[int] | None:
    # The rows of other commands have shapes of their own: their samples count as being as long as --max_length.
    if type(config).command not in ("sft", "pt") or config.data.streaming or not (config.data.dataset or config.encoding.cached_dataset):
        return None
    return sample_lengths(prepare(config).train, len)


def _time(plan: Plan, traced: Traced) -> TimeEstimate | None:
    if not traced.costs:
        return None
    dtype = torch.bfloat16 if plan.config.training.bf16 else weights_dtype(plan.config, plan.folder, device=plan.device)
    speed = calibrate(plan.device, dtype)
    per_token = speed.seconds(traced.costs) / sum(pass_of(plan).lengths)
    step = per_token * plan.fullest.tokens_per_step * plan.extra.samples / plan.size
    what = f"{speed.operations / 1e9:,.0f} GFLOP/s and {speed.bytes / 1e9:,.1f} GB/s measured on this device"
    return _over_the_run(plan, step, f"every operation at {what}")


def _over_the_run(plan: Plan, step: float, method: str) -> TimeEstimate:
    training = plan.config.training
    known = _lengths_known(plan.config)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * plan.steps_per_epoch)
    rate = plan.fullest.tokens_per_step * plan.extra.samples / max(step, 1e-9)
    return TimeEstimate(step, plan.steps_per_epoch if known else 0, steps if known else 0, rate, method)


def _lengths_known(config: SftConfig) -> bool:
    return bool(config.data.dataset or config.encoding.cached_dataset) and not config.data.streaming


def measured(plan: Plan, steps: int) -> TimeEstimate:
    """Train a few steps, throw them away, and return how long one takes.

    Raises:
        ConfigError: when there is no data to train on, or the run has several processes.
    """
    config = plan.config
    if not _lengths_known(config) or type(config).command not in ("sft", "pt"):
        raise ConfigError([Problem("--measure", "trains on the data of `swift sft` or `swift pt`", "add --dataset, or leave it out")])
    if plan.size > 1:
        raise ConfigError([Problem("--measure", "runs in one process", "leave it out")])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        changes = {"output_dir": folder, "max_steps": steps + 1, "save_strategy": "no", "report_to": ["none"], "eval_strategy": "no"}
        short = changed(config, {**changes, "resume_from_checkpoint": None})
        prepared = prepare(short)
        model, tuner = build_model(short, prepared.folder)
        Trainer(model, short, prepared.train, tokenizer=prepared.tokenizer, tuner=tuner, callbacks=[clock]).train()
    return _over_the_run(plan, clock.step_seconds(), f"{steps} steps measured after a first one")


class Clock(TrainerCallback):
    """Notes when optimizer steps end."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_step_end(self, *args: Any, **context: Any) -> None:
        """Note the time."""
        self._ends.append(time.perf_counter())

    def step_seconds(self) -> float:
        """Return the mean time of a step, the first one left out."""
        return (self._ends[-1] - self._ends[0]) / max(len(self._ends) - 1, 1)
