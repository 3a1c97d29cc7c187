"""`swift infer` with models that look at whole texts: vectors, scores or classes of every row, written down."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from swift_core.data.sources import load_datasets
from swift_core.errors import ConfigError, Problem
from swift_core.protocols import Sample, TextEngine, Usage

from swift_infer.batch import data_section, result_path
from swift_infer.checkpoint import Checkpoint
from swift_infer.config import InferConfig
from swift_infer.results import ResultFile


def read_dataset(config: InferConfig, checkpoint: Checkpoint | None, build_engine: Callable[[], TextEngine]) -> int:
    """Put every row through the model and return the exit code.

    Raises:
        ConfigError: when there are no rows.
        DataError: for bad rows, or a result file of other rows.
        SwiftError: when the model cannot be loaded or a row cannot be read.
    """
    task = str(config.task.task_type)
    if not config.is_batch:
        what = f"is missing: a model for {task} reads rows, it does not chat"
        raise ConfigError([Problem("--val_dataset", what, "--val_dataset FILE, or `swift deploy`")])
    path = result_path(config, checkpoint)
    # Vectors and classes need a text and nothing more; to rank there must be documents.
    loaded = load_datasets(
        data_section(config, checkpoint), config.loading, need_answer=False, task="reranker" if task.endswith("reranker") else "prompt"
    )
    sys.stderr.write(loaded.report.summary() + "\n")
    samples = loaded.val[: config.inference.val_dataset_sample]
    model = " ".join(config.loading.adapters) or str(config.loading.model)
    results = ResultFile(path, prompts=[sample.messages for sample in samples], model=model)
    try:
        if results.done:
            sys.stderr.write(f"{path}: {results.done} of {len(samples)} rows are done already\n")
        if results.done < len(samples):
            _read_rest(config, samples, results, model, build_engine())
    finally:
        results.close()
    sys.stderr.write(f"results: {path}\n")
    return 0


def _read_rest(config: InferConfig, samples: Sequence[Sample], results: ResultFile, model: str, engine: TextEngine) -> None:
    size = config.inference.write_batch_size or 4 * config.inference.max_batch_size
    started, done = time.monotonic(), results.done
    try:
        for start in range(done, len(samples), size):
            part = samples[start : start + size]
            found, usage = _found(engine, part)
            common = [{"messages": sample.messages, "model": model, "origin": sample.origin, **_extra(sample)} for sample in part]
            results.append([{**values, **rest} for values, rest in zip(found, common, strict=True)])
            rate = usage.prompt_tokens / max(time.monotonic() - started, 1e-6)
            started = time.monotonic()
            sys.stderr.write(f"{start + len(part)}/{len(samples)} rows, {rate:.1f} tokens/s\n")
    finally:
        engine.close()


def _extra(sample: Sample) -> dict[str, Any]:
    return {"extra": sample.extra} if sample.extra else {}


def _found(engine: TextEngine, samples: Sequence[Sample]) -> tuple[list[dict[str, Any]], Usage]:
    if engine.task == "embedding":
        vectors = engine.embed(samples)
        return [{"embedding": vector} for vector in vectors.vectors], vectors.usage
    if engine.task == "seq_cls":
        classes = engine.classify(samples)
        regression = getattr(engine, "problem", None) == "regression"
        several = getattr(engine, "problem", None) == "multi_label_classification"
        rows = [_class(numbers, regression, several) for numbers in classes.scores]
        return [{**row, "labels": sample.label} for row, sample in zip(rows, samples, strict=True)], classes.usage
    pairs = [(sample, document) for sample in samples for document in (*sample.positives, *sample.negatives)]
    scored = engine.score(pairs)
    left = iter(scored.scores)
    lines: list[dict[str, Any]] = []
    for sample in samples:
        documents = [*sample.positives, *sample.negatives]
        labels = [1] * len(sample.positives) + [0] * len(sample.negatives)
        lines.append(
            {
                "scores": [next(left) for _ in documents],
                "documents": ["".join(str(message["content"]) for message in document.messages) for document in documents],
                "labels": labels,
            }
        )
    return lines, scored.usage


def _class(numbers: list[float], regression: bool, several: bool) -> dict[str, Any]:
    """Return what a model says of a text: a number or numbers, or the class or classes with all probabilities."""
    if regression or len(numbers) == 1:
        return {"response": numbers[0] if len(numbers) == 1 else numbers}
    if several:
        return {"response": [index for index, chance in enumerate(numbers) if chance > 0.5], "probabilities": numbers}
    return {"response": max(range(len(numbers)), key=numbers.__getitem__), "probabilities": numbers}
