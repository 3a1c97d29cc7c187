"""Encoded samples and their lengths as text for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from swift_core.batching.encode import EncodeReport
from swift_core.protocols import EncodedSample
from swift_core.templates.mask import IGNORED

_TRAINED, _MASKED, _RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BINS = 10


def legend(*, color: bool) -> str:
    """Return one line that says how the trained part is shown."""
    if color:
        return f"{_TRAINED}trained{_RESET} and {_MASKED}not trained{_RESET}"
    return f"{_OPEN}trained{_CLOSE} and not trained"


def preview_samples(encoded: Sequence[EncodedSample], tokenizer: PreTrainedTokenizerBase, *, color: bool) -> str:
    """Return samples as the model sees them, with the trained part in a colour of its own or between brackets."""
    blocks: list[str] = []
    for number, sample in enumerate(encoded, start=1):
        where = f" ({sample.origin})" if sample.origin else ""
        head = f"--- sample {number}{where}: {len(sample):,} tokens, {sample.trained_tokens:,} trained ---"
        body = "".join(_painted(text, trained, color) for text, trained in runs(sample, tokenizer))
        blocks.append(f"{head}\n{body.rstrip()}\n")
    return "\n".join(blocks)


def runs(sample: EncodedSample, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """Yield the stretches of a sample as (text, trained)."""
    # Decoded from the start each time: a piece decoded alone can lose its leading space.
    position, before = 0, ""
    for trained, group in groupby(label != IGNORED for label in sample.labels):
        position += len(list(group))
        text = decoded(sample.input_ids[:position], tokenizer)
        yield text[len(before) :], trained
        before = text


def decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of token ids, special tokens included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _painted(text: str, trained: bool, color: bool) -> str:
    # Rows come from strangers: their control characters must not reach the terminal.
    text = _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)
    if not color:
        return f"{_OPEN}{text}{_CLOSE}" if trained else text
    paint = _TRAINED if trained else _MASKED
    return "\n".join(f"{paint}{line}{_RESET}" if line else "" for line in text.split("\n"))


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
