"""`swift rlhf --rlhf_type rm`: from settings to a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from swift_core.data.sources import load_datasets
from swift_core.models.config import load_config
from swift_core.models.loading import max_model_length
from swift_core.protocols import EncodedSample, Sample
from swift_core.tasks import running
from swift_core.tasks.classification import Labels
from swift_core.tasks.console import say
from swift_core.tasks.encoding import TextEncoder, TextReport, encode_rows
from swift_core.tasks.headed import build_headed, text_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import make_world

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.preference.scoring import silence_dropout
from swift_rlhf.reward_model.task import RewardModel


def prepare(config: RlhfConfig) -> running.Prepared:
    """Fetch the model folder, read the data and encode it; no weights are loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    data = load_datasets(config.data, config.loading, task="preference")
    opened = running.open_model(config.loading)
    template = text_template(config.chat, config.media, opened.folder, opened.processor, asked=True)
    max_length = config.chat.max_length or max_model_length(load_config(config.loading, opened.folder), opened.tokenizer)
    policy: Any = "fail" if config.data.on_bad_row == "fail" else "skip"

    def encode(samples: Sequence[Sample]) -> tuple[list[EncodedSample], TextReport]:
        report = TextReport(max_length=max_length)
        strategy: Any = config.chat.truncation_strategy
        encoder = TextEncoder(opened.tokenizer, template, max_length=max_length, truncation=strategy, report=report)
        return encode_rows(samples, lambda sample: encode_pair(encoder, sample), report, on_bad_row=policy), report

    train_rows, train_report = encode(data.train)
    val_rows, val_report = encode(data.val) if data.val else ([], None)
    return running.Prepared(opened=opened, train=train_rows, val=val_rows, rows=data.report, reports=(train_report, val_report))


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
    say(world, [*prepared.lines(), _task_line(config)])
    # Numbers of no fixed range: `problem_type` in config.json, so that they are read as they are.
    head = Labels("regression", config.scoring.num_labels or 1)
    model, tuner = build_headed(config, prepared.folder, prepared.tokenizer, task_type="seq_cls", labels=head)
    if config.judged.disable_dropout:
        silence_dropout(model)
    task = cast(Any, RewardModel(config.scoring.center_rewards_coefficient))
    return running.fit(config, prepared, model, tuner, task, world)


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
    running.show_lines(lines, [*prepared.lines(), _task_line(config)])


def _task_line(config: RlhfConfig) -> str:
    outputs = config.scoring.num_labels or 1
    return "task: rm, one score" + (f", the mean of {outputs} outputs" if outputs > 1 else "")
