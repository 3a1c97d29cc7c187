"""`swift sft` with `--task_type` seq_cls, embedding, reranker and generative_reranker: from settings to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from swift_core.config.sections import MediaSection, ModelSection, TemplateSection
from swift_core.config.training import SftConfig
from swift_core.data.sources import load_datasets
from swift_core.errors import DataError, TemplateError
from swift_core.models.config import load_config
from swift_core.models.loading import (
    load_model,
    load_processor,
    load_tokenizer,
    max_model_length,
    resolve_model_folder,
    tokenizer_of,
)
from swift_core.models.modules import freeze_parts
from swift_core.protocols import EncodedSample, Sample, Tuner
from swift_core.tasks import running
from swift_core.tasks.classification import Labels, SequenceClassification, find_labels
from swift_core.tasks.console import say
from swift_core.tasks.embedding import Embedding
from swift_core.tasks.encoding import TextEncoder, TextReport, encode_pairs, encode_rows, encode_texts
from swift_core.tasks.pooling import find_pooling, is_sentence_transformer, max_text_length
from swift_core.tasks.reranker import GenerativeReranker, Reranker
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import build_processor_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, layers_over_devices, make_world, training_device
from swift_core.train.task import Task
from swift_core.train.tuning import adapt, weights_dtype


@dataclass(slots=True, kw_only=True)
class Prepared(running.Prepared):
    """What a run of a model with a head needs but the model.

    Attributes:
        labels: what is predicted, for seq_cls.
        max_length: limit of a text in tokens, or None.
    """

    labels: Labels | None
    max_length: int | None


def prepare(config: SftConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; the model's weights are not loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    kind = config.task.task_type
    data = load_datasets(config.data, config.loading, task="reranker" if kind == "generative_reranker" else kind)
    folder = resolve_model_folder(config.loading)
    processor = _processor(config.loading, folder)
    tokenizer = tokenizer_of(processor)
    model_config = load_config(config.loading, folder)
    template = _text_template(config, folder, processor)
    max_length = config.chat.max_length or max_text_length(folder) or max_model_length(model_config, tokenizer)
    train, train_report = _encode(data.train, config, tokenizer, template, max_length, training=True)
    val, val_report = _encode(data.val, config, tokenizer, template, max_length, training=False) if data.val else ([], None)
    labels = None
    if kind == "seq_cls":
        labels = find_labels([*train, *val], problem=config.task.problem_type, count=config.task.num_labels)
        # Written to args.json, so that a later command builds the same head.
        for name, value in (("problem_type", labels.problem), ("num_labels", labels.count)):
            if getattr(config.task, name) is None:
                config.derive(name, value, "derived: from the labels")
    _check_negatives(config, train)
    return Prepared(
        opened=running.Opened(folder, processor, tokenizer),
        train=train,
        val=val,
        rows=data.report,
        reports=(train_report, val_report),
        labels=labels,
        max_length=max_length,
    )


def _processor(loading: ModelSection, folder: Path) -> Any:
    remote, tokens = loading.trust_remote_code, loading.special_tokens
    if is_sentence_transformer(folder):  # reads plain texts, whatever else lies there
        return load_tokenizer(folder, trust_remote_code=remote, new_special_tokens=tokens)
    return load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens)


def _text_template(config: SftConfig, folder: Path, processor: Any) -> ChatTemplate | None:
    asked = config.given("use_chat_template") and config.chat.use_chat_template
    template = text_template(config.chat, config.media, folder, processor, asked=asked)
    if template is not None:
        return template
    unused = next((name for name in ("system", "chat_template_kwargs") if getattr(config.chat, name)), None)
    if unused:
        raise TemplateError(f"--{unused} has no effect: this model reads plain texts", fix="remove it, or name a --template")
    # Written to args.json: the checkpoint has files of sentence-transformers either way, and must read what it was trained on.
    config.derive("use_chat_template", False, "derived: this model reads plain texts")
    return None


def text_template(chat: TemplateSection, media: MediaSection, folder: Path, processor: Any, *, asked: bool) -> ChatTemplate | None:
    """Return what renders the texts of a model with a head, or None where it reads plain texts.

    Args:
        chat: prompt format and switches.
        media: sizes and limits of images, videos and sounds.
        folder: of the model.
        processor: of the model, or its tokenizer.
        asked: whether the chat template is to be used although sentence-transformers would read plain texts.

    Raises:
        TemplateError: when a setting needs a chat template and there is none.
    """
    own = tokenizer_of(processor).chat_template or getattr(processor, "chat_template", None)
    has_own = bool(own) and not is_sentence_transformer(folder)
    if chat.use_chat_template and (has_own or asked or chat.template):
        return build_processor_template(processor, chat, media)
    return None


def _encode(
    samples: Sequence[Sample],
    config: SftConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    max_length: int | None,
    *,
    training: bool,
) -> tuple[list[EncodedSample], TextReport]:
    report = TextReport(max_length=max_length)
    strategy: Any = config.chat.truncation_strategy
    encoder = TextEncoder(tokenizer, template, max_length=max_length, truncation=strategy, report=report)
    section, seed = config.task, config.data.data_seed

    def labelled(sample: Sample) -> EncodedSample:
        encoded = encoder.conversation(sample)
        encoded.label, encoded.channel = sample.label, sample.channel
        return encoded

    one: Callable[[Sample], Any] = labelled
    if section.task_type == "embedding":
        one = lambda sample: encode_texts(encoder, sample, section, seed=seed, training=training)  # noqa: E731
    elif section.task_type != "seq_cls":
        one = lambda sample: encode_pairs(encoder, sample, section, seed=seed, training=training)  # noqa: E731
    policy = "fail" if config.data.on_bad_row == "fail" else "skip"
    return encode_rows(samples, one, report, on_bad_row=policy), report


def _check_negatives(config: SftConfig, train: Sequence[EncodedSample]) -> None:
    """Refuse data that infonce or listwise_reranker cannot learn from."""
    if config.task.loss == "listwise_reranker" and not any(sample.negatives for sample in train):
        raise DataError("no row has an irrelevant document, so every list is right already", fix="add negative_messages")
    if config.task.loss != "infonce" or any(sample.negatives for sample in train):
        return
    if not config.task.infonce_use_batch:
        raise DataError("no row has a negative text, and --infonce_use_batch is false", fix="add negative_messages, or use the batch")


def build_headed(
    config: SftConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, *, task_type: str, labels: Labels | None
) -> tuple[nn.Module, Tuner]:
    """Load a model that looks at whole texts and put the trainable parts on.

    Args:
        config: settings of the run.
        folder: of the base model.
        tokenizer: its tokenizer.
        task_type: what the model is for.
        labels: kind and size of its head, for seq_cls.

    Raises:
        ModelError: when the model cannot be loaded or the tuner does not fit it.
    """
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = weights_dtype(config, folder, device=device)
    # The starting values of new weights must not depend on what ran before.
    set_seed(config.training.seed)
    loaded = load_model(
        config.loading,
        folder,
        dtype=dtype,
        task_type=task_type,
        num_labels=labels.count if labels else None,
        problem_type=labels.problem if labels else None,
        trainable=True,
        quantization=config.quantization,
        device_map=layers_over_devices(config.parallel),
        device=device,
    )
    settings: Any = loaded.config
    settings.use_cache = False
    tell_padding(settings, task_type, tokenizer)
    model: nn.Module = loaded
    freeze_parts(model, config.tuner)
    return adapt(model, config)


def tell_padding(settings: Any, task_type: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the padding token into a model's config: the head of a decoder reads the last token that does not pad."""
    if task_type in ("seq_cls", "reranker"):
        settings.pad_token_id = settings.get_text_config().pad_token_id = tokenizer.pad_token_id


def _build_task(config: SftConfig, prepared: Prepared) -> Task:
    if prepared.labels is not None:
        return SequenceClassification(prepared.labels)
    if config.task.task_type == "embedding":
        model_config = load_config(config.loading, prepared.folder)
        pooling = config.task.pooling or find_pooling(prepared.folder, model_config)
        dim = int(model_config.get_text_config().hidden_size)
        return Embedding(config.task, pooling=pooling, dim=dim, max_length=prepared.max_length)
    return GenerativeReranker(config.task, prepared.tokenizer) if config.task.task_type == "generative_reranker" else Reranker(config.task)


def train(config: SftConfig) -> TrainOutput:
    """Run `swift sft --task_type ...` from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    _check_batch(config, prepared, world)
    task = _build_task(config, prepared)
    say(world, [*prepared.lines(), _task_line(config, task)])
    kind = config.task.task_type
    model, tuner = build_headed(config, prepared.folder, prepared.tokenizer, task_type=kind, labels=prepared.labels)
    return running.fit(config, prepared, model, tuner, task, world)


def show(config: SftConfig) -> None:
    """Print the first samples as the model reads them and what became of the data; nothing is trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    task = _build_task(config, prepared)
    decode = prepared.tokenizer.decode
    lines: list[str] = []
    for sample in prepared.train[:3]:
        lines.append(f"--- {sample.origin or 'sample'}" + (f", label {sample.label}" if sample.label is not None else ""))
        lines += [f"{name or 'text'}: {decode(part.input_ids)}" for name, part in shown_parts(sample)]
    running.show_lines(lines, [*prepared.lines(), _task_line(config, task)])


def shown_parts(sample: EncodedSample) -> list[tuple[str, EncodedSample]]:
    """Return the texts that a sample is made of, each with what it is; a lone text needs no name."""
    if not sample.positives and not sample.negatives:
        return [("", sample)]
    parts = [("text", sample), *(("positive", text) for text in sample.positives), *(("negative", text) for text in sample.negatives)]
    return [(name, part) for name, part in parts if part.input_ids]


def _check_batch(config: SftConfig, prepared: Prepared, world: World) -> None:
    alone = config.training.per_device_train_batch_size * world.size == 1
    if config.task.loss == "infonce" and alone and not any(sample.negatives for sample in prepared.train):
        raise DataError(
            "infonce takes its negatives from the batch, and a batch of one text has none",
            fix="--per_device_train_batch_size 16 (or more), or add negative_messages to the rows",
        )


def _task_line(config: SftConfig, task: Task) -> str:
    if isinstance(task, SequenceClassification):
        return f"task: seq_cls, {task.labels.problem.replace('_', ' ')}, {task.labels.count} labels"
    if isinstance(task, Embedding):
        sizes = f", Matryoshka sizes {', '.join(map(str, config.task.mrl_dims))}" if config.task.mrl_dims else ""
        return f"task: embedding, {config.task.loss}, {task.pooling} pooling, {task.dim} numbers a vector{sizes}"
    return f"task: {config.task.task_type}, {config.task.loss}"


__all__ = ["Prepared", "build_headed", "prepare", "show", "train"]
