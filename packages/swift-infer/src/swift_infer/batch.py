"""`swift infer --val_dataset`: every row answered, written down, and counted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift_core.config.sections import DataSection
from swift_core.config.training import short_name
from swift_core.data.report import write_rejected
from swift_core.data.sources import load_datasets
from swift_core.errors import CheckpointError, DataError
from swift_core.protocols import Engine, InferRequest, InferResponse, Message, Sample
from swift_core.templates.requests import request_messages

from swift_infer.adapter_names import split_name
from swift_infer.checkpoint import Checkpoint
from swift_infer.config import InferConfig
from swift_infer.results import ResultFile
from swift_infer.text_metrics import measure

_WRITE_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A row without its last answer.

    Attributes:
        messages: the prompt.
        labels: the reference answer, where the row has one.
        sample: the row.
    """

    messages: list[Message]
    labels: str | None
    sample: Sample

    def request(self, adapters: Sequence[str] = ()) -> InferRequest:
        """Return the row as engines take it.

        Args:
            adapters: names that the column `adapter` may hold, or the model's for no adapter; the first answers rows without the column.
                With none of them the column means nothing here.
        """
        chosen = self.sample.extra.get("adapter", adapters[0]) if adapters else None
        return InferRequest(request_messages(self.sample, self.messages), self.sample.tools, adapter=chosen if chosen in adapters else None)

    def result(self, response: InferResponse, model: str) -> dict[str, Any]:
        """Return the line of the result file."""
        choice = response.choices[0]
        return {
            "response": choice.message.content,
            "messages": [*self.messages, choice.message.as_message()],
            "labels": self.labels,
            "finish_reason": choice.finish_reason,
            "usage": {
                "prompt_tokens": response.usage.prompt_tokens,
                "completion_tokens": response.usage.completion_tokens,
                "total_tokens": response.usage.total_tokens,
            },
            "model": model,
            "origin": self.sample.origin,
            **({"extra": self.sample.extra} if self.sample.extra else {}),
        }


def as_question(sample: Sample) -> Question:
    """Take the last answer off a row and keep it as its reference."""
    messages = [_bare(message) for message in sample.messages]
    if messages and messages[-1]["role"] == "assistant":
        return Question(messages[:-1], messages[-1]["content"], sample)
    return Question(messages, None, sample)


def _bare(message: Message) -> Message:
    bare = Message(role=message["role"], content=message["content"])
    if "tool_calls" in message:
        bare["tool_calls"] = message["tool_calls"]
    return bare


def answer_dataset(config: InferConfig, checkpoint: Checkpoint | None, build_engine: Callable[[], Engine]) -> int:
    """Answer all rows and return the exit code.

    Rows and result file are checked before the model is loaded.

    Raises:
        DataError: for bad rows, or a result file of other rows.
        NotFoundError: when a data set is absent.
        SwiftError: when the model cannot be loaded or a row cannot be answered.
    """
    path = result_path(config, checkpoint)
    questions = load_questions(config, checkpoint, path)
    model = " ".join(config.loading.adapters) or str(config.loading.model)
    results = ResultFile(path, prompts=[question.messages for question in questions], model=model)
    try:
        if results.done:
            sys.stderr.write(f"{path}: {results.done} of {len(questions)} rows are answered already\n")
        if results.done < len(questions):
            _answer_rest(config, questions, results, model, build_engine)
    finally:
        results.close()
    sys.stderr.write(f"answers: {path}\n")
    if config.inference.metric:
        _tell_metrics(config, path)
    return 0


def _tell_metrics(config: InferConfig, path: Path) -> None:
    found, count = measure(path, config.inference.metric)
    if not count:
        raise DataError("no row has an answer of its own to compare with", fix="remove --metric, or give rows with answers")
    told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    sys.stderr.write(f"{told} over {count} rows with a reference\n")
    summary = path.with_name(path.stem + ".metrics.json")
    summary.write_text(json.dumps({**found, "rows": count}, indent=1) + "\n", encoding="utf-8")


def _answer_rest(
    config: InferConfig, questions: Sequence[Question], results: ResultFile, model: str, build_engine: Callable[[], Engine]
) -> None:
    engine = build_engine()
    request = config.generation.as_request()
    size = config.inference.write_batch_size or _WRITE_FACTOR * config.inference.max_batch_size
    adapters = _adapter_names(config)
    progress = Progress(total=len(questions), done=results.done)
    try:
        for start in range(results.done, len(questions), size):
            part = questions[start : start + size]
            responses = engine.infer([question.request(adapters) for question in part], request)
            results.append([question.result(response, model) for question, response in zip(part, responses, strict=True)])
            progress.add(responses)
    finally:
        engine.close()
    progress.finish()


def load_questions(config: InferConfig, checkpoint: Checkpoint | None, path: Path) -> list[Question]:
    """Return the rows to answer; bad ones are treated as the settings say.

    Raises:
        DataError: for bad rows, and rows without a question.
        NotFoundError: when a data set is absent.
    """
    data = data_section(config, checkpoint)
    loaded = load_datasets(data, config.loading, need_answer=False)
    sys.stderr.write(loaded.report.summary() + "\n")
    if loaded.report.bad and data.on_bad_row == "quarantine":
        rejected = path.with_name("rejected.jsonl")
        sys.stderr.write(f"{write_rejected(loaded.report, rejected)} bad rows are in {rejected}\n")
    questions = [as_question(sample) for sample in loaded.val[: config.inference.val_dataset_sample]]
    names = _adapter_names(config)
    for question in questions:
        if not question.messages:
            raise DataError("the row holds an answer but no question", location=question.sample.origin, fix="give rows with a user message")
        chosen = question.sample.extra.get("adapter")
        base = short_name(str(config.loading.model))
        if names and chosen is not None and chosen not in (*names, base):
            fix = f"one of {', '.join(names)}, or {base} for none"
            raise DataError(
                f"the column adapter holds {chosen!r}, which --adapters does not name", location=question.sample.origin, fix=fix
            )
    return questions


def _adapter_names(config: InferConfig) -> list[str]:
    return [name for given in config.loading.adapters if (name := split_name(given)[0]) is not None]


def data_section(config: InferConfig, checkpoint: Checkpoint | None) -> DataSection:
    """Return which rows are answered: those of the settings, or the evaluation data of the run that made the checkpoint.

    Raises:
        CheckpointError: when that run had none.
    """
    if not config.inference.load_data_args:
        return DataSection(**{name: getattr(config.data, name) for name in type(config.data).model_fields})
    args = checkpoint.args if checkpoint else {}
    values = {name: args[name] for name in DataSection.model_fields if args.get(name) is not None}
    data = DataSection(**values)
    if not data.val_dataset and not data.split_dataset_ratio:
        where = str(checkpoint.folder) if checkpoint else str(config.loading.model)
        raise CheckpointError(f"the run of {where!r} had no evaluation data", fix="give --val_dataset FILE instead of --load_data_args")
    return data


def result_path(config: InferConfig, checkpoint: Checkpoint | None) -> Path:
    """Return where the results go."""
    if config.inference.result_path:
        return Path(config.inference.result_path).expanduser()
    name = time.strftime("%Y%m%d-%H%M%S") + ".jsonl"
    if checkpoint is not None and checkpoint.args:
        return checkpoint.folder / "infer_result" / name
    return Path("infer_result") / short_name(str(config.loading.model)) / name


@dataclass(slots=True)
class Progress:
    """One line on stderr: rows, tokens a second, time left."""

    total: int
    done: int
    tokens: int = 0
    cut: int = 0
    fresh: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, responses: Sequence[InferResponse]) -> None:
        """Count a batch and show where things stand."""
        self.done += len(responses)
        self.fresh += len(responses)
        self.tokens += sum(response.usage.completion_tokens for response in responses)
        self.cut += sum(response.choices[0].finish_reason == "length" for response in responses)
        seconds = max(time.monotonic() - self.started, 1e-6)
        left = seconds / self.fresh * (self.total - self.done)
        end = "\r" if sys.stderr.isatty() else "\n"
        sys.stderr.write(f"{self.done}/{self.total} rows, {self.tokens / seconds:.1f} tokens/s, {_clock(left)} left {end}")
        sys.stderr.flush()

    def finish(self) -> None:
        """Write the summary."""
        seconds = max(time.monotonic() - self.started, 1e-6)
        cut = f", {self.cut} cut off at --max_new_tokens or the end of the context" if self.cut else ""
        rate = self.tokens / seconds
        sys.stderr.write(f"answered {self.fresh} rows with {self.tokens} tokens in {_clock(seconds)} ({rate:.1f} tokens/s){cut}\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
