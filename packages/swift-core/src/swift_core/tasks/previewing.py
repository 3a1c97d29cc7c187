"""What `swift data preview` shows: rows of every kind as their task sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift_core.batching.encode import Encoder, EncodeReport, encode_samples, nothing_left
from swift_core.batching.preview import Shown, length_histogram, preview_report
from swift_core.config.preview import PreviewConfig
from swift_core.config.training import SftConfig
from swift_core.data.sources import LoadedData, load_datasets
from swift_core.data.task_detection import find_task
from swift_core.data.task_rows import Task
from swift_core.errors import DataError, SwiftError
from swift_core.models.config import load_config
from swift_core.models.loading import max_model_length
from swift_core.protocols import EncodedSample, Sample
from swift_core.tasks.running import open_model
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import MediaTemplate, build_processor_template

_RLHF: dict[str, Task] = {
    **dict.fromkeys(("dpo", "orpo", "simpo", "cpo", "rm"), "preference"),
    **dict.fromkeys(("grpo", "ppo"), "prompt"),
    "kto": "kto",
    "gkd": "causal_lm",
}
_KINDS: dict[str, str] = {
    "causal_lm": "conversations, as `swift sft` trains them",
    "preference": "pairs of a preferred and a rejected answer (--rlhf_type dpo, rm, ...)",
    "kto": "judged answers (--rlhf_type kto)",
    "prompt": "prompts to be answered (--rlhf_type grpo, ...)",
    "seq_cls": "texts with a label (--task_type seq_cls)",
    "embedding": "texts to compare (--task_type embedding; --task_type reranker shows them as queries and documents)",
    "reranker": "queries and documents (--task_type reranker)",
    "generative_reranker": "queries and documents (--task_type generative_reranker)",
}


@dataclass(slots=True)
class Preview:
    """What is shown of a data set.

    Attributes:
        kind: what the rows are taken for, and why.
        samples: rows, each with its parts encoded.
        statistics: counts and lengths of the whole data set.
        tokenizer: turns ids into text.
        masks: whether any part has a loss mask.
    """

    kind: str
    samples: list[Shown]
    statistics: str
    tokenizer: PreTrainedTokenizerBase
    masks: bool


@dataclass(slots=True)
class _Setting:
    """What encoding needs."""

    template: ChatTemplate
    config: PreviewConfig
    limit: int | None
    policy: Any = field(init=False)

    def __post_init__(self) -> None:
        self.policy = "fail" if self.config.data.on_bad_row == "fail" else "skip"


def prepare_preview(config: PreviewConfig) -> Preview:
    """Read and encode a data set as the task would that it is for.

    Raises:
        SwiftError: when the data cannot be read or encoded, or do not suit the task that the settings name.
    """
    kind, why = _kind(config)
    if kind in ("seq_cls", "embedding", "reranker", "generative_reranker"):
        return _headed(config, kind, why)
    task: Any = kind
    data = load_datasets(config.data, config.loading, task=task, need_answer=task != "prompt")
    opened = open_model(config.loading)
    template = build_processor_template(opened.processor, config.chat, config.media)
    limit = config.chat.max_length or max_model_length(load_config(config.loading, opened.folder), opened.tokenizer)
    setting = _Setting(template, config, limit)
    samples, statistics = _parts(data, _READERS[task], setting)
    head = f"taken for {_KINDS[kind]}{why}"
    return Preview(head, samples, f"\nrows: {data.report.summary()}\n{statistics}", opened.tokenizer, masks=kind != "prompt")


def _kind(config: PreviewConfig) -> tuple[str, str]:
    if config.preview.rlhf_type:
        return _RLHF[config.preview.rlhf_type], f", by --rlhf_type {config.preview.rlhf_type}"
    if config.preview.task_type:
        return config.preview.task_type, ", by --task_type"
    task, why = find_task(config.data, config.loading)
    return task, f": {why}" if why else ""


Reader = Callable[[Sequence[Sample], _Setting], tuple[list[Shown], str]]


def _parts(data: LoadedData, reader: Reader, setting: _Setting) -> tuple[list[Shown], str]:
    shown: list[Shown] = []
    statistics = ""
    for name, part in (("training data", data.train), ("evaluation data", data.val)):
        if part:
            found, text = reader(part, setting)
            shown = shown or found
            statistics += f"\n{name}: {text}\n"
    return shown, statistics


def _conversations(samples: Sequence[Sample], setting: _Setting) -> tuple[list[Shown], str]:
    chat = setting.config.chat
    encoded, report = encode_samples(samples, setting.template, chat, max_length=setting.limit, on_bad_row=setting.policy)
    return [Shown([("", sample)]) for sample in encoded], preview_report(report)


def _judged(samples: Sequence[Sample], setting: _Setting) -> tuple[list[Shown], str]:
    shown, text = _conversations(samples, setting)
    for item in shown:
        item.label = item.parts[0][1].label
        item.remark = "desirable" if item.label else "undesirable"
    wanted = sum(bool(sample.label) for sample in samples)
    return shown, f"{text}\n{wanted:,} desirable and {len(samples) - wanted:,} undesirable answers"


def _pairs(samples: Sequence[Sample], setting: _Setting) -> tuple[list[Shown], str]:
    encoder = Encoder(setting.template, setting.config.chat, max_length=setting.limit, on_bad_row=setting.policy)
    report = EncodeReport(max_length=setting.limit)
    shown: list[Shown] = []
    for sample in samples:
        assert sample.rejected is not None
        both, found = encoder.encode([sample, sample.rejected])
        report.add(found)
        if len(both) == 2:
            remark = "" if sample.margin is None else f"margin {sample.margin:g}"
            shown.append(Shown([("chosen", both[0]), ("rejected", both[1])], remark=remark))
    if not shown:
        raise nothing_left(samples, report)
    left = f"{len(shown):,} of {len(samples):,} pairs kept: a pair goes with either of its answers"
    return shown, f"{preview_report(report)}\n{left}"


def _prompts(samples: Sequence[Sample], setting: _Setting) -> tuple[list[Shown], str]:
    shown: list[Shown] = []
    lengths: list[int] = []
    left_out: list[str] = []
    for sample in samples:
        answer = sample.messages[-1]["content"] if sample.messages[-1]["role"] == "assistant" else None
        asked = sample if answer is None else replace(sample, messages=sample.messages[:-1])
        try:
            encoded = _prompt(asked, setting.template)
        except SwiftError as error:
            if setting.policy == "fail":
                raise type(error)(f"{sample.origin}: {error.message}", fix=error.fix) from error
            left_out.append(error.message)
            continue
        lengths.append(len(encoded))
        if setting.limit is not None and len(encoded) > setting.limit:
            left_out.append(f"longer than {setting.limit:,} tokens (--max_length)")
            continue
        columns = {**({"(last answer, not part of the prompt)": answer} if answer is not None else {}), **sample.extra}
        shown.append(Shown([("", encoded)], columns=columns, remark="prompt"))
    if not shown:
        raise DataError(f"no prompt is left: {left_out[0]}", location=samples[0].origin, fix="raise --max_length, or look at the rows")
    lines = [length_histogram(lengths, limit=setting.limit), f"{len(shown):,} of {len(samples):,} prompts kept"]
    lines += [f"{left_out.count(reason):,} dropped: {reason}" for reason in dict.fromkeys(left_out)]
    return shown, "\n".join(lines)


def _prompt(sample: Sample, template: ChatTemplate) -> EncodedSample:
    if isinstance(template, MediaTemplate):
        encoded = template.encode_media_prompt(sample)
        return replace(encoded, origin=sample.origin)
    if sample.has_media:
        template.mark(sample)  # says why it cannot
    ids = template.encode_prompt(sample.messages, sample.tools, sample.chat_template_kwargs)
    return EncodedSample(ids, [-100] * len(ids), sample.origin)


_READERS: dict[Task, Reader] = {"causal_lm": _conversations, "kto": _judged, "preference": _pairs, "prompt": _prompts}


def _headed(config: PreviewConfig, kind: str, why: str) -> Preview:
    from swift_core.tasks.headed import prepare, shown_parts

    known = SftConfig.settings()
    # The template's settings go along only where they were given: a task with a head reads plain texts otherwise.
    values = {name: value for name, value in config.flat(mask=False).items() if name in known and config.given(name)}
    prepared = prepare(SftConfig(**{**values, "task_type": kind, "tuner_type": "full"}))
    samples = [Shown(shown_parts(sample), label=sample.label) for sample in prepared.train or prepared.val]
    for item in samples:
        item.remark = "" if item.label is None else f"label {item.label}"
    statistics = f"\nrows: {prepared.rows.summary()}\n"
    for name, report in zip(("training data", "evaluation data"), prepared.reports, strict=True):
        if report is not None and report.rows:
            statistics += f"\n{name}: {length_histogram(report.lengths, limit=report.max_length)}\n{report.summary()}\n"
    if prepared.labels is not None:
        statistics += f"{prepared.labels.problem.replace('_', ' ')}, {prepared.labels.count} labels\n"
    return Preview(f"taken for {_KINDS[kind]}{why}", samples, statistics, prepared.tokenizer, masks=False)
