"""The one file that imports EvalScope: its benchmark list, one benchmark's run, and its report as our record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from evalscope import TaskConfig, run_task
from evalscope.api.benchmark import BenchmarkMeta
from evalscope.api.model import GenerateConfig
from evalscope.api.registry import BENCHMARK_REGISTRY
from evalscope.constants import EvalType, HubType
from evalscope.report import Report
from evalscope.version import __version__
from pydantic import SecretStr
from swift_core.errors import ConfigError, Problem
from swift_core.registry import nearest

from swift_eval.report import BenchmarkResult, Score

EVALSCOPE_VERSION: str = __version__

# Fields of TaskConfig that `_config` sets.
OWN_FIELDS = frozenset(
    {"model", "model_id", "datasets", "dataset_args", "dataset_hub", "generation_config", "eval_type", "eval_backend"}
    | {"limit", "eval_batch_size", "work_dir", "no_timestamp", "seed", "api_url", "api_key"}
)


@dataclass(frozen=True, slots=True)
class BenchmarkTask:
    """What one benchmark run needs.

    Attributes:
        benchmark: EvalScope name.
        model: served name.
        url: base URL of the endpoint.
        api_key: key of the endpoint, or None.
        folder: where predictions, reviews, reports and logs go.
        options: entry in `--eval_dataset_args`.
        generation: entry in `--eval_generation_config`.
        limit: samples of each subset, or None for all.
        concurrency: requests in flight.
        use_hf: fetch data from Hugging Face rather than ModelScope.
        seed: seed of few-shot choice and shuffling.
        extra: further fields of EvalScope's TaskConfig.
    """

    benchmark: str
    model: str
    url: str
    folder: Path
    api_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    concurrency: int = 16
    use_hf: bool = False
    seed: int = 42
    extra: Mapping[str, Any] = field(default_factory=dict)


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks; imports every adapter, which takes some seconds."""
    return BENCHMARK_REGISTRY.list_keys()


def check_task(task: BenchmarkTask) -> list[Problem]:
    """Return what EvalScope would refuse, or take and then ignore, about a task."""
    if BENCHMARK_REGISTRY.get(task.benchmark) is None:
        near = nearest(task.benchmark, benchmark_names())
        advice = f"did you mean {' or '.join(near)}?" if near else "see the benchmark list of EvalScope's documentation"
        return [Problem("--eval_dataset", f"EvalScope {EVALSCOPE_VERSION} has no benchmark {task.benchmark!r}", advice)]
    allowed = {item.name for item in fields(BenchmarkMeta)} | {"local_path"}
    problems = _unknown(f"--eval_dataset_args {task.benchmark}", task.options, allowed)
    problems += _unknown("--eval_generation_config", task.generation, set(GenerateConfig.model_fields))
    problems += _unknown("--extra_eval_args", task.extra, set(TaskConfig.model_fields) - OWN_FIELDS)
    if problems:
        return problems
    try:
        _config(task)
    except ValueError as error:
        problems.append(Problem(f"--eval_dataset {task.benchmark}", f"EvalScope refuses the settings: {_first_lines(error)}"))
    return problems


def _unknown(where: str, given: Mapping[str, Any], allowed: set[str]) -> list[Problem]:
    problems: list[Problem] = []
    for name in given:
        if name in allowed:
            continue
        if name in OWN_FIELDS and where == "--extra_eval_args":
            problems.append(Problem(where, f"{name!r} has a flag of its own", "see `swift eval --help`"))
            continue
        near = nearest(name, allowed, count=2)
        advice = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(sorted(allowed))}"
        problems.append(Problem(where, f"unknown key {name!r}", advice))
    return problems


def evaluate(task: BenchmarkTask) -> BenchmarkResult:
    """Run one benchmark.

    A failure of EvalScope, such as data that cannot be fetched or requests that fail for good, becomes the result's `error`.

    Raises:
        ConfigError: when `check_task` finds problems.
    """
    problems = check_task(task)
    if problems:
        raise ConfigError(problems)
    _quiet_console()
    try:
        reports = cast(dict[str, Any], run_task(_config(task)))
    except Exception as error:  # noqa: BLE001  adapters, hubs and clients raise anything; the other benchmarks shall still run
        return BenchmarkResult(task.benchmark, folder=str(task.folder), error=_explain(task, error))
    report = reports.get(task.benchmark)
    if not isinstance(report, Report):
        return BenchmarkResult(task.benchmark, folder=str(task.folder), error="EvalScope made no report")
    return _result(task, report)


def _config(task: BenchmarkTask) -> TaskConfig:
    return TaskConfig(
        model=task.model,
        api_url=task.url,
        api_key=SecretStr(task.api_key or "EMPTY"),
        eval_type=EvalType.OPENAI_API,
        datasets=[task.benchmark],
        dataset_args={task.benchmark: dict(task.options)},
        dataset_hub=HubType.HUGGINGFACE if task.use_hf else HubType.MODELSCOPE,
        generation_config={"temperature": 0.0, **task.generation},
        limit=task.limit,
        eval_batch_size=task.concurrency,
        work_dir=str(task.folder),
        no_timestamp=True,
        seed=task.seed,
        **task.extra,
    )


class _Console(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # Metrics that fail are counted from the reviews and become one note.
        return record.levelno >= logging.WARNING and not str(record.msg).startswith("Error calculating metric")


def _quiet_console() -> None:
    # EvalScope logs its whole configuration and every request; all of it stays in logs/eval_log.log, the console gets warnings.
    for handler in logging.getLogger("evalscope").handlers:
        if not isinstance(handler, logging.FileHandler) and not any(isinstance(item, _Console) for item in handler.filters):
            handler.addFilter(_Console())
    for name in ("httpx", "httpx2", "jieba"):
        logger = logging.getLogger(name)
        if not any(isinstance(item, _Console) for item in logger.filters):
            logger.addFilter(_Console())


def _result(task: BenchmarkTask, report: Report) -> BenchmarkResult:
    broken = _metric_errors(task.folder)
    scores = tuple(score for score in _scores(report) if not any(score.metric.startswith(name.lower()) for name in broken))
    notes = [f"{name} could not be computed on {count} samples and is left out: {reason}" for name, (count, reason) in broken.items()]
    main = next((score for score in scores if _is_main(score, report)), None)
    if main is None:
        notes.append(report.primary_metric_unavailable_reason or "the main metric is missing")
    summary = report.execution_summary
    return BenchmarkResult(
        benchmark=task.benchmark,
        metric=main.label if main else "",
        score=main.value if main else None,
        count=report.num,
        failed=summary.errored if summary else 0,
        scores=scores,
        notes=tuple(notes),
        folder=str(task.folder),
    )


def _is_main(score: Score, report: Report) -> bool:
    return report.primary_metric is not None and score.metric == report.primary_metric.name and not score.subset


def _scores(report: Report) -> Iterator[Score]:
    for metric in report.metrics:
        label = _label(metric.semantics.metric_name or metric.identity.name, metric.identity.dimensions)
        yield Score(metric.name, label, "", metric.score, metric.num)
        subsets = [subset for category in metric.categories for subset in category.subsets]
        if len(subsets) > 1:
            yield from (Score(metric.name, label, subset.name, subset.score, subset.num) for subset in subsets)


def _label(name: str, dimensions: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(dimensions.items()))])


def _metric_errors(folder: Path) -> dict[str, tuple[int, str]]:
    """Return metric -> (samples, reason) where scoring failed; EvalScope counts such samples as zero."""
    found: dict[str, tuple[int, str]] = {}
    for file in sorted((folder / "reviews").rglob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            if '"metric_errors"' not in line:
                continue
            score = json.loads(line).get("sample_score", {}).get("score", {})
            for name, reason in ((score.get("metadata") or {}).get("metric_errors") or {}).items():
                found[name] = (found.get(name, (0, ""))[0] + 1, _advice(str(reason)))
    return found


def _advice(reason: str) -> str:
    if "punkt_tab" in reason:
        return "NLTK's punkt_tab is not on this machine (`python -m nltk.downloader punkt_tab` fetches it)"
    return _first_lines(reason)


def _explain(task: BenchmarkTask, error: Exception) -> str:
    reason = f"{type(error).__name__}: {_first_lines(error)}"
    kinds = [kind.__module__.partition(".")[0] for kind in type(error).__mro__]
    if not any(name in ("modelscope_hub", "modelscope", "huggingface_hub", "datasets", "requests") for name in kinds):
        return f"{reason} (log: {task.folder / 'logs' / 'eval_log.log'})"
    meta = BENCHMARK_REGISTRY[task.benchmark]
    identity, hub = meta.dataset_id, f"modelscope download --dataset {meta.dataset_id} --local_dir DIR"
    if task.use_hf and meta.hf_dataset_id:
        identity, hub = meta.hf_dataset_id, f"hf download --repo-type dataset {meta.hf_dataset_id} --local-dir DIR"
    place = json.dumps({task.benchmark: {"local_path": "DIR"}})
    remedy = f"where there is a connection run `{hub}`, then --eval_dataset_args '{place}'"
    return f"its data {identity} could not be fetched ({reason}); {remedy}"


def _first_lines(error: object, *, count: int = 3) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).split("\n") if line.strip(" *")]
    return " ".join(lines[:count])
