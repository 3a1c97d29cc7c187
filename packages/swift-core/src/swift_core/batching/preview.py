"""Encoded samples and their lengths as text for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift_core.batching.encode import EncodeReport
from swift_core.protocols import EncodedSample
from swift_core.templates.mask import IGNORED

_TRAINED, _MASKED, _RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BINS = 10
_COLUMN = 200  # characters of a column that are shown
_MANY = 8  # times that a token stands in a row before it is written once


@dataclass(slots=True)
class Shown:
    """A row to be shown.

    Attributes:
        parts: what it is made of, each with a name, which is empty where there is one part only.
        remark: what else is to be said, such as its label.
        label: its label, for the JSON form.
        columns: columns that go along with it and are not part of the text.
    """

    parts: list[tuple[str, EncodedSample]]
    remark: str = ""
    label: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


def legend(*, color: bool) -> str:
    """Return one line that says how the trained part is shown."""
    if color:
        return f"{_TRAINED}trained{_RESET} and {_MASKED}not trained{_RESET}"
    return f"{_OPEN}trained{_CLOSE} and not trained"


def preview_samples(encoded: Sequence[EncodedSample], tokenizer: PreTrainedTokenizerBase, *, color: bool) -> str:
    """Return samples as the model sees them, with the trained part in a colour of its own or between brackets."""
    return preview_rows([Shown([("", sample)]) for sample in encoded], tokenizer, color=color)


def preview_rows(rows: Sequence[Shown], tokenizer: PreTrainedTokenizerBase, *, color: bool) -> str:
    """Return rows part by part as the model sees them, with the trained part in a colour of its own or between brackets."""
    blocks: list[str] = []
    for number, row in enumerate(rows, start=1):
        origin = row.parts[0][1].origin if row.parts else ""
        alone = len(row.parts) == 1 and not row.parts[0][0]
        counts = _counts(row.parts[0][1]) if alone else ""
        said = ", ".join(text for text in (row.remark, counts) if text)
        lines = [f"--- sample {number}{f' ({origin})' if origin else ''}{f': {said}' if said else ''} ---"]
        for name, sample in row.parts:
            lines += [] if alone else [f"[{name}: {_counts(sample)}]"]
            lines.append("".join(_painted(text, trained, color) for text, trained in runs(sample, tokenizer)).rstrip())
        lines += [_printable(f"[column {name}: {_short(value)}]") for name, value in row.columns.items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _counts(sample: EncodedSample) -> str:
    return f"{len(sample):,} tokens" + (f", {sample.trained_tokens:,} trained" if sample.labels else "")


def _short(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)).split())
    return text if len(text) <= _COLUMN else f"{text[:_COLUMN]} ... ({len(text):,} characters)"


def runs(sample: EncodedSample, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """Yield the stretches of a sample as (text, trained); a token that stands many times in a row is written once, with its number."""
    # Decoded from the start each time: a piece decoded alone can lose its leading space.
    position, before = 0, ""
    for trained, group in groupby(label != IGNORED for label in sample.labels or [IGNORED] * len(sample)):
        position += len(list(group))
        text = decoded(sample.input_ids[:position], tokenizer)
        yield _repeats(sample.input_ids[:position], tokenizer).sub(_counted, text[len(before) :]), trained
        before = text


def _repeats(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return what matches the special tokens that stand many times in a row: the places of a picture or a sound."""
    special = {token for token, group in groupby(ids) if len(list(group)) >= _MANY and token in tokenizer.added_tokens_decoder}
    words = [re.escape(decoded([token], tokenizer)) for token in special]
    return re.compile(f"({'|'.join(words)})(?:\\1)+") if words else re.compile(r"(?!)")


def _counted(match: re.Match[str]) -> str:
    count = len(match[0]) // len(match[1])
    return f"{match[1]} x {count:,} " if count >= _MANY else match[0]


def decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of token ids, special tokens included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _painted(text: str, trained: bool, color: bool) -> str:
    # Rows come from strangers: their control characters must not reach the terminal.
    text = _printable(text)
    if not color:
        return f"{_OPEN}{text}{_CLOSE}" if trained else text
    paint = _TRAINED if trained else _MASKED
    return "\n".join(f"{paint}{line}{_RESET}" if line else "" for line in text.split("\n"))


def _printable(text: str) -> str:
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def length_histogram(lengths: Sequence[int], *, limit: int | None = None, width: int = 40) -> str:
    """Return the distribution of sample lengths as terminal bars.

    Args:
        lengths: tokens of each sample before any cut.
        limit: longest sample allowed; bins beyond it are marked.
        width: characters of the longest bar.
    """
    if not lengths:
        return "no samples"
    ordered = sorted(lengths)
    # A few very long samples must not squeeze all others into one bar.
    usual = ordered[round(0.99 * (len(ordered) - 1))]
    step = _round_step((usual - ordered[0]) / _BINS)
    start = ordered[0] // step * step
    counts = [0] * ((usual - start) // step + 1)
    rest = 0
    for length in ordered:
        number = (length - start) // step
        if number < len(counts):
            counts[number] += 1
        else:
            rest += 1
    bins = [(start + number * step, start + (number + 1) * step - 1, count) for number, count in enumerate(counts)]
    if rest:
        bins.append((bins[-1][1] + 1, ordered[-1], rest))
    digits, most = len(f"{ordered[-1]:,}"), max(counts)
    lines = [f"length in tokens: {_quantiles(ordered)}"]
    for low, high, count in bins:
        bar = "█" * (-(-count * width // most))
        beyond = "" if limit is None or high <= limit or not count else f"  over {limit:,}" if low > limit else f"  partly over {limit:,}"
        lines.append(f"  {low:>{digits},} - {high:>{digits},} | {bar:<{width}} {count:,}{beyond}")
    return "\n".join(lines)


def _round_step(raw: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `raw`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= raw:
                return factor * power
        power *= 10


def _quantiles(ordered: Sequence[int]) -> str:
    last = len(ordered) - 1
    marks = [("shortest", 0.0), ("median", 0.5), ("90%", 0.9), ("99%", 0.99), ("longest", 1.0)]
    return ", ".join(f"{name} {ordered[round(share * last)]:,}" for name, share in marks)


def preview_report(report: EncodeReport) -> str:
    """Return the histogram and the counts of a whole data set."""
    return f"{length_histogram(report.lengths, limit=report.max_length)}\n{report.summary()}"
