"""The trainer as Python users know it: any rows, any arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback, TrainingArguments

from swift_core.batching.encode import encode_samples
from swift_core.config.sections import TemplateSection
from swift_core.config.training import TrainingConfig
from swift_core.data.formats import to_sample
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.models.processing import tokenizer_of
from swift_core.protocols import EncodedSample, Sample, Tuner
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.templates.media import build_processor_template, is_multimodal
from swift_core.train.trainer import Trainer


class Seq2SeqTrainer(Trainer):
    """Trains a model on rows that Python code brings.

    Args:
        model: from `get_model_tokenizer`, or prepared by `Swift.prepare_model`.
        args: `Seq2SeqTrainingArguments(...)`, a command's config, or `transformers.TrainingArguments`.
        train_dataset: rows in any format of `--dataset` (dictionaries, a `datasets.Dataset`), samples with `input_ids` and
            `labels`, or `EncodedSample` objects.
        eval_dataset: rows to evaluate on.
        tokenizer: renders rows and is saved with every checkpoint; of a multimodal model its processor, so that rows may have
            media. `processing_class` is the same thing.
        template: renders rows; default: the tokenizer's own chat template.
        tuner: knows how to save and restore the trained part; found from the model when not given.
        callbacks: `transformers.TrainerCallback` objects.

    Raises:
        DataError: when a row is bad or nothing is left to train on.
        ConfigError: when `args` ask for something that is not available here.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingConfig | TrainingArguments | None = None,
        train_dataset: Iterable[Any] | None = None,
        eval_dataset: Iterable[Any] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        template: ChatTemplate | None = None,
        tuner: Tuner | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        given = tokenizer or processing_class
        processor = given or getattr(template, "processor", None)
        if template is None and is_multimodal(given):
            template = build_processor_template(given, TemplateSection())
        tokenizer = tokenizer_of(given) if given is not None else template.tokenizer if template is not None else None
        settings = from_transformers(args) if isinstance(args, TrainingArguments) else args or TrainingConfig()
        super().__init__(
            model,
            settings,
            as_encoded(train_dataset, tokenizer, template, "train_dataset"),
            as_encoded(eval_dataset, tokenizer, template, "eval_dataset"),
            tokenizer=tokenizer,
            processor=processor,
            tuner=tuner,
            callbacks=callbacks,
        )


def as_encoded(
    rows: Iterable[Any] | None, tokenizer: PreTrainedTokenizerBase | None, template: ChatTemplate | None, name: str
) -> list[EncodedSample]:
    """Return rows as encoded samples.

    Raises:
        DataError: when rows are texts and there is no tokenizer, or a row is bad.
    """
    items = list(rows) if rows is not None else []
    encoded = [sample for place, item in enumerate(items) if (sample := _as_is(item, f"{name}[{place}]")) is not None]
    if len(encoded) == len(items):
        return encoded
    if encoded:
        raise DataError(f"{name} mixes encoded samples and rows of text", fix="encode all of them, or none")
    if template is None and tokenizer is None:
        raise DataError(f"{name} holds rows of text, and there is no tokenizer", fix="Seq2SeqTrainer(..., tokenizer=tokenizer)")
    section = TemplateSection()
    template = template or build_template(tokenizer, section)  # pyright: ignore[reportArgumentType]
    samples = [item if isinstance(item, Sample) else to_sample(item, f"{name}[{place}]") for place, item in enumerate(items)]
    return encode_samples(samples, template, section, max_length=None)[0]


def _as_is(item: Any, origin: str) -> EncodedSample | None:
    if isinstance(item, EncodedSample):
        return item
    if not isinstance(item, Mapping) or "input_ids" not in item:
        return None
    input_ids = [int(token) for token in item["input_ids"]]
    labels = [int(token) for token in item["labels"]] if item.get("labels") is not None else list(input_ids)
    if len(labels) != len(input_ids):
        raise DataError(f"{len(input_ids)} input_ids and {len(labels)} labels", location=origin, fix="give one label for each token")
    return EncodedSample(input_ids, labels, origin)


def from_transformers(args: TrainingArguments) -> TrainingConfig:
    """Return transformers' training arguments as settings of this trainer.

    Raises:
        ConfigError: for every argument that differs from its default and has no counterpart here.
    """
    known = TrainingConfig.settings()
    # The same device, because some defaults follow from it.
    default = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    values: dict[str, Any] = {"add_version": False}
    problems: list[Problem] = []
    for field in dataclasses.fields(args):
        value, usual = getattr(args, field.name), getattr(default, field.name)
        plain = value.value if isinstance(value, Enum) else value
        if field.name in known:
            values[field.name] = plain
        elif plain != (usual.value if isinstance(usual, Enum) else usual):
            problems.append(Problem(field.name, f"{plain!r} has no counterpart in this trainer", "remove it"))
    if problems:
        raise ConfigError(problems)
    for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
        values[name] = int(values[name]) if values.get(name) else None
    if not values["report_to"] or values["report_to"] == ["none"]:
        values["report_to"] = ["none"]
    return TrainingConfig(**{name: value for name, value in values.items() if value is not None})
