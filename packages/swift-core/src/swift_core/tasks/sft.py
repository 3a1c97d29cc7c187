"""Supervised fine-tuning and continued pre-training: from settings to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from swift_core.batching.cache import DataPlan
from swift_core.batching.encode import EncodeReport
from swift_core.batching.media import packed_position_ids
from swift_core.batching.stream import EncodedStream
from swift_core.config.training import SftConfig
from swift_core.data.report import RowReport, write_rejected
from swift_core.models.config import load_config
from swift_core.models.loading import load_model, load_processor, max_model_length, resolve_model_folder, tokenizer_of
from swift_core.models.modules import freeze_parts, unwrap
from swift_core.protocols import EncodedSample, Tuner
from swift_core.tasks.console import indented, plan_lines, result_lines, say
from swift_core.templates.adapted import AdapterTemplate
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import ProcessorTemplate, build_processor_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, make_world, training_device
from swift_core.train.task import CausalLm
from swift_core.train.trainer import Trainer
from swift_core.train.tuning import load_tuner, weights_dtype


@dataclass(slots=True)
class Prepared:
    """Everything a run needs but the model.

    Attributes:
        folder: local folder of the base model.
        tokenizer: its tokenizer.
        template: renders and masks.
        max_length: limit of a sample in tokens, or None.
        train, val: encoded samples.
        rows: what reading found.
        encoded: what encoding found, for training and evaluation samples; None where they are encoded while training.
        processor: processor of a multimodal model, else the tokenizer.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    max_length: int | None
    train: Sequence[EncodedSample] | EncodedStream
    val: Sequence[EncodedSample]
    rows: RowReport
    encoded: tuple[EncodeReport | None, EncodeReport | None]
    processor: Any


def prepare(config: SftConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; the model's weights are not loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    # Data first: a typing error in a row is found before gigabytes are fetched.
    data = DataPlan(config.data, config.loading, config.encoding, config.launch.external_plugins)
    folder = resolve_model_folder(config.loading)
    remote, tokens = config.loading.trust_remote_code, config.loading.special_tokens
    processor = load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens, model_type=config.loading.model_type)
    tokenizer = tokenizer_of(processor)
    template = build_processor_template(processor, config.chat, config.media)
    max_length = config.chat.max_length or max_model_length(load_config(config.loading, folder), tokenizer)
    found = data.encode(template, config.chat, max_length=max_length)
    reports = (found.train_report, found.val_report)
    return Prepared(folder, tokenizer, template, max_length, found.train, found.val, found.rows, reports, processor)


def build_model(config: SftConfig, folder: Path) -> tuple[nn.Module, Tuner]:
    """Load the model and put the trainable parts on.

    Raises:
        ModelError: when the model cannot be loaded or the tuner does not fit it.
    """
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = weights_dtype(config, folder, device=device)
    # The starting values of new weights must not depend on what ran before.
    set_seed(config.training.seed)
    model: nn.Module = load_model(
        config.loading, folder, dtype=dtype, task_type="causal_lm", quantization=config.quantization, device=device
    )
    freeze_parts(model, config.tuner)
    model.config.use_cache = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    tuner = load_tuner(config.tuner.tuner_type)
    if config.loading.adapters:
        for adapter in config.loading.adapters:
            model = tuner.load(model, Path(adapter), trainable=True)
        return model, tuner
    options: Any = config.tuner if config.tuner.tuner_type == "full" else config.tuner.options
    return tuner.prepare(model, options), tuner


def train(config: SftConfig) -> TrainOutput:
    """Run `swift sft` or `swift pt` from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    say(world, _data_lines(prepared))
    model, tuner = build_model(config, prepared.folder)
    task = _task(config, prepared, model, world)
    trainer = Trainer(
        model,
        config,
        prepared.train,
        prepared.val,
        tokenizer=prepared.tokenizer,
        processor=prepared.processor,
        tuner=tuner,
        world=world,
        task=task,
    )
    run_dir = trainer.locate()
    if world.is_main and config.data.on_bad_row == "quarantine" and prepared.rows.bad:
        count = write_rejected(prepared.rows, run_dir / "rejected.jsonl")
        say(world, [f"{count} bad rows are in {run_dir / 'rejected.jsonl'}"])
    say(world, plan_lines(trainer, model, world))
    output = trainer.train()
    say(world, result_lines(output))
    return output


def _task(config: SftConfig, prepared: Prepared, model: nn.Module, world: World) -> CausalLm:
    packs = config.training.padding_free is not False
    if isinstance(prepared.template, AdapterTemplate):
        return CausalLm(packs=False, dummy=prepared.template.dummy() if world.size > 1 else None)
    if not isinstance(prepared.template, ProcessorTemplate):
        return CausalLm(packs=packs)
    dummy = prepared.template.dummy() if world.size > 1 else None
    return CausalLm(packs=packs, positions=partial(packed_position_ids, unwrap(model)), dummy=dummy)


def _data_lines(prepared: Prepared) -> list[str]:
    lines = ["data:", *indented(prepared.rows.summary())]
    if prepared.encoded[0] is not None:
        lines += indented(prepared.encoded[0].summary())
    if prepared.encoded[1] is not None:
        lines += ["evaluation data:", *indented(prepared.encoded[1].summary())]
    return lines
