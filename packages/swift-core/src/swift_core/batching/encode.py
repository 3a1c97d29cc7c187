"""Samples to token ids within a length limit, and a report of what happened to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

from swift_core.config.sections import TemplateSection
from swift_core.errors import DataError, TemplateError
from swift_core.protocols import EncodedSample, Sample
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.marked import MarkedText

CHUNK = 512
"""Texts that go through the tokenizer in one call."""


@dataclass(slots=True)
class EncodeReport:
    """What became of the samples of a data set.

    Attributes:
        rows: samples given.
        kept: encoded samples that can be trained, pieces counted each.
        too_long: samples dropped because they exceed the limit.
        truncated: samples cut to the limit.
        split: samples cut into several pieces.
        pieces: pieces these became.
        all_masked: samples dropped because none of their tokens is trained.
        bad: samples dropped because they could not be rendered or masked.
        tokens: tokens of the kept samples.
        trained_tokens: tokens of the kept samples that carry loss.
        longest: length in tokens before any cut, and origin, of the longest sample.
        lengths: length in tokens of every sample before any cut.
        max_length: the limit, or None.
        notes: remarks on masks, each with the number of samples concerned.
        first_bad: message on the first sample counted in `bad`.
    """

    rows: int = 0
    kept: int = 0
    too_long: int = 0
    truncated: int = 0
    split: int = 0
    pieces: int = 0
    all_masked: int = 0
    bad: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: tuple[int, str] = (0, "")
    lengths: list[int] = field(default_factory=list[int])
    max_length: int | None = None
    notes: Counter[str] = field(default_factory=Counter[str])
    first_bad: str = ""

    def add(self, other: EncodeReport) -> None:
        """Add what became of further samples, which come after those counted here."""
        for name in ("rows", "kept", "too_long", "truncated", "split", "pieces", "all_masked", "bad", "tokens", "trained_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest, key=lambda pair: pair[0])
        self.lengths += other.lengths
        self.notes.update(other.notes)
        self.first_bad = self.first_bad or other.first_bad

    def as_json(self) -> dict[str, Any]:
        """Return the counts without the lengths of single samples, to be saved."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "lengths"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EncodeReport:
        """Return what `as_json` gave."""
        return cls(**{**values, "longest": tuple(values["longest"]), "notes": Counter(values["notes"])})

    def summary(self) -> str:
        """Return the counts as text, one line for each thing that happened."""
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        lines = [f"{self.kept:,} of {self.rows:,} samples kept: {self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.1%})"]
        if self.split:
            lines[0] = (
                f"{self.kept:,} pieces of {self.rows:,} samples kept: {self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.1%})"
            )
        if self.longest[0]:
            lines.append(f"longest sample: {self.longest[0]:,} tokens" + (f" ({self.longest[1]})" if self.longest[1] else ""))
        limit = f"{self.max_length:,} tokens (--max_length)" if self.max_length else ""
        counts = (
            (self.too_long, f"dropped: longer than {limit}"),
            (self.truncated, f"cut to {limit}"),
            (self.split, f"split into {self.pieces:,} pieces of at most {limit}"),
            (self.all_masked, "dropped: no token of them is trained"),
            (self.bad, f"dropped: cannot be rendered; the first one: {self.first_bad}"),
        )
        lines += [f"{_samples(count)} {what}" for count, what in counts if count]
        lines += [f"{_samples(count)}: {note}" for note, count in self.notes.most_common()]
        return "\n".join(lines)


def _samples(count: int) -> str:
    return f"{count:,} sample{'' if count == 1 else 's'}"


def encode_samples(
    samples: Sequence[Sample],
    template: ChatTemplate,
    section: TemplateSection,
    *,
    max_length: int | None,
    on_bad_row: Literal["fail", "skip"] = "fail",
) -> tuple[list[EncodedSample], EncodeReport]:
    """Encode samples and bring them within the length limit.

    Args:
        samples: rows as read.
        template: what renders and masks them.
        section: gives the truncation strategy: `delete` drops long samples, `left` and `right` cut at that side, `split`
            makes several samples of a long text.
        max_length: limit in tokens, or None.
        on_bad_row: `skip` drops and counts samples that cannot be rendered instead of raising.

    Returns:
        The samples that carry loss, in order, and the report.

    Raises:
        TemplateError: when a sample cannot be rendered or masked and `on_bad_row` is `fail`.
        DataError: when nothing that can be trained is left.
    """
    encoder = Encoder(template, section, max_length=max_length, on_bad_row=on_bad_row)
    report = EncodeReport(max_length=max_length)
    kept: list[EncodedSample] = []
    for start in range(0, len(samples), CHUNK):
        part, found = encoder.encode(samples[start : start + CHUNK])
        kept += part
        report.add(found)
    if samples and not kept:
        raise nothing_left(samples, report)
    return kept, report


@runtime_checkable
class CutsMedia(Protocol):
    """A template that cuts samples with media itself."""

    def cut(self, sample: EncodedSample, start: int, stop: int) -> EncodedSample | None:
        """Return tokens [start, stop) of a sample, or None when media and their places in the text would part."""
        ...


class Encoder:
    """Encodes samples chunk by chunk; can be sent to another process.

    Args:
        template: what renders and masks them.
        section: gives the truncation strategy.
        max_length: limit in tokens, or None.
        on_bad_row: `skip` drops and counts samples that cannot be rendered instead of raising.

    Raises:
        TemplateError: when the truncation strategy does not fit the template.
    """

    def __init__(
        self, template: ChatTemplate, section: TemplateSection, *, max_length: int | None, on_bad_row: Literal["fail", "skip"] = "fail"
    ) -> None:
        if section.truncation_strategy == "split" and template.use_chat_template:
            raise TemplateError(
                "--truncation_strategy split works on plain text only", fix="use it with `swift pt`, or choose delete, left or right"
            )
        self.template = template
        self.strategy = section.truncation_strategy
        self.max_length = max_length
        self.on_bad_row: Literal["fail", "skip"] = on_bad_row

    def encode(self, samples: Sequence[Sample]) -> tuple[list[EncodedSample], EncodeReport]:
        """Return the samples that carry loss, in order, and what became of all of them.

        Raises:
            TemplateError: when a sample cannot be rendered or masked and `on_bad_row` is `fail`.
        """
        report = EncodeReport(rows=len(samples), max_length=self.max_length)
        kept: list[EncodedSample] = []
        for encoded in self._encoded(samples, report):
            kept += self._fitted(encoded, report)
        report.kept = len(kept)
        report.tokens = sum(map(len, kept))
        report.trained_tokens = sum(sample.trained_tokens for sample in kept)
        return kept, report

    def _fitted(self, encoded: EncodedSample, report: EncodeReport) -> list[EncodedSample]:
        length = len(encoded)
        report.lengths.append(length)
        report.longest = max(report.longest, (length, encoded.origin), key=lambda pair: pair[0])
        masked_before = encoded.trained_tokens == 0
        pieces = [encoded] if masked_before else self._within(encoded, report)
        trained = [piece for piece in pieces if piece.trained_tokens]
        report.all_masked += bool(pieces) and not trained
        if pieces and not trained and not masked_before:
            report.notes["no trained token is left after the cut to --max_length"] += 1
        return trained

    def _within(self, sample: EncodedSample, report: EncodeReport) -> list[EncodedSample]:
        """Return the pieces of a sample that fit the limit."""
        limit, length = self.max_length, len(sample)
        if limit is None or length <= limit:
            return [sample]
        cut = self.template.cut if isinstance(self.template, CutsMedia) and sample.model_inputs else _cut
        if self.strategy == "split":
            pieces = [cut(sample, start, min(start + limit, length)) for start in range(0, length, limit)]
            whole = [piece for piece in pieces if piece is not None]
            report.split += bool(whole)
            report.too_long += not whole
            report.pieces += len(whole)
            return whole
        start = {"left": length - limit, "right": 0}.get(self.strategy)
        piece = None if start is None else cut(sample, start, start + limit)
        if piece is None:  # to be deleted, or media and their places in the text would part
            report.too_long += 1
            return []
        report.truncated += 1
        return [piece]

    def _encoded(self, samples: Sequence[Sample], report: EncodeReport) -> Iterator[EncodedSample]:
        chunk: list[MarkedText] = []
        used: list[Sample] = []
        for sample in samples:
            try:
                marked = self.template.mark(sample)
            except TemplateError as error:
                if self.on_bad_row == "fail":
                    fix = f"{error.fix or 'mend the row'}; or leave such rows out with --on_bad_row skip"
                    raise TemplateError(error.message, fix=fix) from error
                report.first_bad = report.first_bad or error.message
                report.bad += 1
                continue
            report.notes.update(set(marked.notes))
            chunk.append(marked)
            used.append(sample)
        for sample, encoded in zip(used, self.template.tokenize(chunk), strict=True):
            encoded.channel, encoded.label = sample.channel, sample.label
            yield encoded


def _cut(sample: EncodedSample, start: int, stop: int) -> EncodedSample:
    scale = None if sample.loss_scale is None else sample.loss_scale[start:stop]
    return replace(sample, input_ids=sample.input_ids[start:stop], labels=sample.labels[start:stop], loss_scale=scale)


def nothing_left(samples: Sequence[Sample], report: EncodeReport) -> DataError:
    """Return the error that says why no sample can be trained, and what to do."""
    location = samples[0].origin or None
    if report.too_long and report.too_long >= report.all_masked:
        shortest = min(report.lengths)
        return DataError(
            f"no sample is left: {report.too_long} of {report.rows} are longer than --max_length {report.max_length} "
            f"(the shortest has {shortest} tokens)",
            fix=f"--max_length {shortest} or more, or --truncation_strategy right",
        )
    if report.bad and not report.all_masked:
        return DataError(f"no sample is left: all {report.bad} cannot be rendered; the first one: {report.first_bad}", location=location)
    what = f"no token of the data set is trained: all {report.all_masked} samples are masked"
    if any(note.startswith("no trained token") for note in report.notes):
        fix = f"the answers lie beyond --max_length {report.max_length}: raise it, or --truncation_strategy delete or left"
    elif not any(message["role"] == "assistant" for sample in samples for message in sample.messages):
        fix = "no row has an assistant message: name the answer's column with --columns, or train every token with --loss_scale all"
    elif any(message.get("loss") is False for sample in samples for message in sample.messages):
        fix = "remove loss: false from the assistant messages that should be trained"
    elif report.notes:
        fix = f"most samples: {report.notes.most_common(1)[0][0]}; choose another --template"
    else:
        fix = "look at the rows with `swift data preview`; the answers may be empty"
    return DataError(what, location=location, fix=fix)
