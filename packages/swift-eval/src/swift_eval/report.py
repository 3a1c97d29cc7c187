"""What an evaluation found, as a table, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swift_core.config.command import MASK

SECRET_WORDS = ("key", "token", "secret", "password", "authorization")


@dataclass(frozen=True, slots=True)
class Score:
    """One number.

    Attributes:
        metric: name with its dimensions, such as `rouge:mean[statistic="f1",variant="l"]`.
        label: the same for people.
        subset: part of the benchmark, or empty for the whole.
        value: as EvalScope gives it, usually between 0 and 1.
        count: samples it was computed on.
    """

    metric: str
    label: str
    subset: str
    value: float
    count: int


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One benchmark.

    Attributes:
        benchmark: EvalScope name.
        metric: name of the main metric, or empty when none could be computed.
        score: value of the main metric.
        count: samples that were scored.
        failed: samples that gave no prediction.
        scores: every metric, over all and by subset.
        notes: what a reader must know to trust the numbers.
        folder: predictions, reviews and logs.
        error: why there is no score, where there is none.
    """

    benchmark: str
    metric: str = ""
    score: float | None = None
    count: int = 0
    failed: int = 0
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    folder: str = ""
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Say whether every sample has a score."""
        return self.error is None and self.failed == 0 and self.score is not None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All benchmarks of one call.

    Attributes:
        model: served name.
        endpoint: base URL.
        backend: library and version.
        started: local time, ISO format.
        seconds: wall time.
        settings: flat settings; secrets are masked when written.
    """

    model: str
    endpoint: str
    backend: str
    started: str
    seconds: float
    settings: Mapping[str, Any]
    results: Sequence[BenchmarkResult] = field(default_factory=tuple)

    @property
    def complete(self) -> bool:
        """Say whether every benchmark is complete."""
        return bool(self.results) and all(result.complete for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values without secrets."""
        return {**masked(asdict(self)), "complete": self.complete}


def masked(value: Any) -> Any:
    """Return a copy in which the values of secret-sounding keys are masked, at any depth."""
    if isinstance(value, Mapping):
        return {key: MASK if _is_secret(str(key)) and item else masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return any(plain == word or plain.endswith("_" + word) for word in SECRET_WORDS)


def table(evaluation: Evaluation) -> str:
    """Return the main scores as plain text for a terminal."""
    return "\n".join([_grid(_rows(evaluation)), *_notes(evaluation)])


def markdown(evaluation: Evaluation) -> str:
    """Return the whole report as Markdown."""
    head, *rows = _rows(evaluation)
    lines = [
        f"# Evaluation of {evaluation.model}",
        "",
        f"Endpoint {evaluation.endpoint}, {evaluation.backend}, started {evaluation.started}, {evaluation.seconds:.0f} s.",
        "",
        *_markdown_table([head, *rows]),
        "",
        *[f"- {note}" for note in _notes(evaluation)],
    ]
    for result in evaluation.results:
        if result.scores:
            cells = [("metric", "subset", "samples", "score")]
            cells += [(score.label, score.subset or "(all)", str(score.count), f"{score.value:.4f}") for score in result.scores]
            lines += ["", f"## {result.benchmark}", "", *_markdown_table(cells)]
    lines += ["", "## Settings", "", "```json", json.dumps(masked(evaluation.settings), indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def write(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.md` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "report.json", folder / "report.md"
    data.write_text(json.dumps(evaluation.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text.write_text(markdown(evaluation), encoding="utf-8")
    return data, text


def _rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("benchmark", "metric", "samples", "failed", "score")]
    for result in evaluation.results:
        score = "-" if result.score is None else f"{result.score:.4f}"
        rows.append((result.benchmark, result.metric or "-", str(result.count), str(result.failed), score))
    return rows


def _notes(evaluation: Evaluation) -> list[str]:
    notes: list[str] = []
    for result in evaluation.results:
        notes += [f"{result.benchmark}: {note}" for note in result.notes]
        if result.error:
            notes.append(f"{result.benchmark} failed: {result.error}")
        elif result.failed:
            notes.append(f"{result.benchmark}: {result.failed} samples gave no prediction; the score leaves them out")
    return notes


def _grid(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: list[str] = []
    for row in rows:
        words = row[:2]
        numbers = row[2:]
        cells = [word.ljust(width) for word, width in zip(words, widths, strict=False)]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _markdown_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return lines
