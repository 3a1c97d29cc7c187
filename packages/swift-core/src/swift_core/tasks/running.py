"""What every training command does: a model's folder opened, the run driven to its end and reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.config.training import TrainingConfig
from swift_core.data.report import RowReport, write_rejected
from swift_core.models.loading import resolve_model_folder
from swift_core.models.processing import section_processor, tokenizer_of
from swift_core.protocols import Tuner
from swift_core.tasks.console import indented, plan_lines, result_lines, say
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World
from swift_core.train.task import Task
from swift_core.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Opened:
    """A model's folder, its weights not loaded yet.

    Attributes:
        folder: local folder of the base model.
        processor: processor of a multimodal model, else the tokenizer.
        tokenizer: its tokenizer.
    """

    folder: Path
    processor: Any
    tokenizer: PreTrainedTokenizerBase


def open_model(loading: ModelSection) -> Opened:
    """Fetch a model's folder and read its processor; no weights are loaded.

    Raises:
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
        ModelError: when its processor cannot be read.
    """
    folder = resolve_model_folder(loading)
    processor = section_processor(loading, folder)
    return Opened(folder, processor, tokenizer_of(processor))


@dataclass(slots=True, kw_only=True)
class Prepared:
    """Everything a run needs but the model.

    Attributes:
        opened: folder and processor of the base model.
        train, val: encoded samples.
        rows: what reading found.
        reports: what encoding found, for training and evaluation samples; None where there is nothing to report.
    """

    opened: Opened
    train: Any
    val: Any
    rows: RowReport
    reports: tuple[Any, Any]

    @property
    def folder(self) -> Path:
        """Return the folder of the base model."""
        return self.opened.folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""
        return self.opened.tokenizer

    def lines(self) -> list[str]:
        """Return what became of the data, for the person who started the run."""
        lines = ["data:", *indented(self.rows.summary())]
        if self.reports[0] is not None:
            lines += indented(self.reports[0].summary())
        if self.reports[1] is not None:
            lines += ["evaluation data:", *indented(self.reports[1].summary())]
        return lines


def fit(config: TrainingConfig, prepared: Prepared, model: nn.Module, tuner: Tuner, task: Task, world: World) -> TrainOutput:
    """Train a model on prepared data and tell the person about it.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    trainer = Trainer(
        model,
        config,
        prepared.train,
        prepared.val,
        tokenizer=prepared.tokenizer,
        processor=prepared.opened.processor,
        tuner=tuner,
        world=world,
        task=task,
    )
    return drive(trainer, prepared.rows)


def drive(trainer: Trainer, rows: RowReport, *, plan: Sequence[str] = ()) -> TrainOutput:
    """Run a trainer to its end: rejected rows written, the plan told before and the result after.

    Args:
        trainer: ready to start.
        rows: what reading found.
        plan: lines that are told before those of every run.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = trainer.world
    run_dir = trainer.locate()
    if world.is_main and trainer.args.data.on_bad_row == "quarantine" and rows.bad:
        count = write_rejected(rows, run_dir / "rejected.jsonl")
        say(world, [f"{count} bad rows are in {run_dir / 'rejected.jsonl'}"])
    say(world, [*plan, *plan_lines(trainer, trainer.model, world)])
    output = trainer.train()
    say(world, result_lines(output))
    return output


def show_lines(samples: Sequence[str], about: Sequence[str]) -> None:
    """Print what `--dry_run` shows: samples, and what is known of the run."""
    lines = [*samples, "", *about, "", "nothing was trained: remove --dry_run to start"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
