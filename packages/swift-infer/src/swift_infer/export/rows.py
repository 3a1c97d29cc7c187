"""Rows of `--dataset` as token ids: some to calibrate with, others to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift_core.data.sources import load_datasets
from swift_core.errors import DataError
from swift_core.protocols import EncodedSample, Sample
from swift_core.tasks.export_context import ExportContext
from swift_core.templates.chat import ChatTemplate

# Longer rows teach calibration nothing more and need memory with the square of their length.
LONGEST = 2048
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows.

    Attributes:
        calibration: token ids of each row.
        held_out: rows that calibration does not see.
    """

    calibration: list[list[int]]
    held_out: list[EncodedSample]


def read_rows(context: ExportContext, template: ChatTemplate, *, calibration: int, held_out: int, longest: int) -> Rows:
    """Read and encode the rows, rendered as the model is prompted.

    Args:
        context: data sets and their settings.
        template: the model's own chat template.
        calibration: most rows to calibrate with.
        held_out: most rows to measure on.
        longest: rows are cut after so many tokens.

    Raises:
        DataError: when there are too few rows, or they have media.
    """
    config = context.config
    data = load_datasets(config.data, config.loading)
    apart = data.val[:held_out]
    train = data.train
    if not apart:
        # Small data sets keep a tenth apart, so that calibration has most of them.
        count = min(held_out, max(1, len(train) - calibration, len(train) // 10))
        if len(train) < 2:
            raise DataError("one row cannot both calibrate and measure", fix="give a --dataset with more rows, or a --val_dataset")
        train, apart = train[:-count], train[-count:]
    rows = Rows(
        [sample.input_ids[:longest] for sample in _encoded(train[:calibration], template)] if calibration else [],
        [_cut(sample, longest) for sample in _encoded(apart, template)],
    )
    if not any(sample.trained_tokens for sample in rows.held_out):
        raise DataError("the rows to measure on hold no answer", fix="raise --max_length, or give a --val_dataset with answers")
    return rows


def _encoded(samples: Sequence[Sample], template: ChatTemplate) -> list[EncodedSample]:
    media = next((sample.origin for sample in samples if sample.has_media), None)
    if media is not None:
        raise DataError("the row has media; rows of text are needed here", location=media, fix="give a --dataset of texts")
    return template.tokenize([template.mark(sample) for sample in samples])


def _cut(sample: EncodedSample, longest: int) -> EncodedSample:
    return EncodedSample(sample.input_ids[:longest], sample.labels[:longest], sample.origin)


def count_answers(rows: Sequence[EncodedSample]) -> int:
    """Return how many answer tokens are measured."""
    return sum(label != _IGNORED for row in rows for label in row.labels[1:])
