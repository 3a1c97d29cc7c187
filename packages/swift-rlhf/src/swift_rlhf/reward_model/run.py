"""`swift rlhf --rlhf_type rm`: from settings to a reward model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from swift_core.data.report import RowReport, write_rejected
from swift_core.data.sources import load_datasets
from swift_core.models.config import load_config
from swift_core.models.loading import load_processor, max_model_length, resolve_model_folder, tokenizer_of
from swift_core.protocols import EncodedSample, Sample
from swift_core.tasks.classification import Labels
from swift_core.tasks.console import indented, plan_lines, result_lines, say
from swift_core.tasks.encoding import TextEncoder, TextReport, encode_rows
from swift_core.tasks.headed import build_headed, text_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import make_world
from swift_core.train.trainer import Trainer
from transformers import PreTrainedTokenizerBase

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.preference.scoring import silence_dropout
from swift_rlhf.reward_model.task import RewardModel

HEAD = Labels("regression", 1)
"""One number of no fixed range: `problem_type` in config.json, so that it is read as it is."""


@dataclass(slots=True)
class Prepared:
    """Everything a run needs but the model.

    Attributes:
        folder: local folder of the base model.
        tokenizer: its tokenizer.
        processor: processor of a multimodal model, else the tokenizer.
        train, val: pairs.
        rows: what reading found.
        reports: what encoding found, for training and evaluation rows.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    train: list[EncodedSample]
    val: list[EncodedSample]
    rows: RowReport
    reports: tuple[TextReport, TextReport | None]


def prepare(config: RlhfConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; no weights are loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    data = load_datasets(config.data, config.loading, task="preference")
    folder = resolve_model_folder(config.loading)
    remote, tokens = config.loading.trust_remote_code, config.loading.special_tokens
    processor = load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens, model_type=config.loading.model_type)
    tokenizer = tokenizer_of(processor)
    template = text_template(config.chat, config.media, folder, processor, asked=True)
    max_length = config.chat.max_length or max_model_length(load_config(config.loading, folder), tokenizer)
    policy: Any = "fail" if config.data.on_bad_row == "fail" else "skip"

    def encode(samples: Sequence[Sample]) -> tuple[list[EncodedSample], TextReport]:
        report = TextReport(max_length=max_length)
        strategy: Any = config.chat.truncation_strategy
        encoder = TextEncoder(tokenizer, template, max_length=max_length, truncation=strategy, report=report)
        return encode_rows(samples, lambda sample: encode_pair(encoder, sample), report, on_bad_row=policy), report

    train_rows, train_report = encode(data.train)
    val_rows, val_report = encode(data.val) if data.val else ([], None)
    return Prepared(folder, tokenizer, processor, train_rows, val_rows, data.report, (train_report, val_report))


def encode_pair(encoder: TextEncoder, sample: Sample) -> EncodedSample | str:
    """Return both conversations of a row and its margin, or the reason why it is left out."""
    assert sample.rejected is not None
    chosen, rejected = encoder.conversation(sample), encoder.conversation(replace(sample.rejected, origin=sample.origin))
    if chosen.input_ids == rejected.input_ids and not chosen.model_inputs:
        return "both answers are the same up to --max_length"
    margin = float(sample.margin or 0.0)
    return EncodedSample([], [], sample.origin, channel=sample.channel, label=margin, positives=[chosen], negatives=[rejected])


def train(config: RlhfConfig) -> TrainOutput:
    """Run the training from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    say(world, _data_lines(prepared))
    model, tuner = build_headed(config, prepared.folder, prepared.tokenizer, task_type="seq_cls", labels=HEAD)
    if config.judged.disable_dropout:
        silence_dropout(model)
    trainer = Trainer(
        model,
        config,
        prepared.train,
        prepared.val,
        tokenizer=prepared.tokenizer,
        processor=prepared.processor,
        tuner=tuner,
        world=world,
        task=cast(Any, RewardModel(config.reward_model.center_rewards_coefficient)),
    )
    run_dir = trainer.locate()
    if world.is_main and config.data.on_bad_row == "quarantine" and prepared.rows.bad:
        count = write_rejected(prepared.rows, run_dir / "rejected.jsonl")
        say(world, [f"{count} bad rows are in {run_dir / 'rejected.jsonl'}"])
    say(world, plan_lines(trainer, model, world))
    output = trainer.train()
    say(world, result_lines(output))
    return output


def show(config: RlhfConfig) -> None:
    """Print the first pairs as the model reads them and what became of the data; nothing is trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    lines: list[str] = []
    for row in prepared.train[:3]:
        lines.append(f"--- {row.origin or 'row'}" + (f", margin {row.label:g}" if row.label else ""))
        lines += [f"better: {prepared.tokenizer.decode(row.positives[0].input_ids)}"]
        lines += [f"worse: {prepared.tokenizer.decode(row.negatives[0].input_ids)}"]
    lines += ["", *_data_lines(prepared), "", "nothing was trained: remove --dry_run to start"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _data_lines(prepared: Prepared) -> list[str]:
    lines = ["data:", *indented(prepared.rows.summary()), *indented(prepared.reports[0].summary())]
    if prepared.reports[1] is not None:
        lines += ["evaluation data:", *indented(prepared.reports[1].summary())]
    return [*lines, "task: rm, one score"]
