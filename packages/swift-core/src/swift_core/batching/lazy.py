"""Rows that are encoded when training asks for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import overload

from swift_core.batching.encode import Encoder, EncodeReport, nothing_left
from swift_core.errors import TemplateError
from swift_core.protocols import EncodedSample, Sample

HELD = 256
"""Encoded samples that are kept, least recently used ones go first."""


class LazyDataset(Sequence[EncodedSample]):
    """Samples that are encoded on access.

    A row that gives nothing to train (too long, not renderable, masked) is counted, and the next one that does stands in
    its place, so that the length is known without encoding anything.

    Args:
        samples: rows as read.
        encoder: encodes them; under `fail` a row that cannot be rendered raises on access.

    Attributes:
        report: what became of the rows asked for so far, each counted once.
    """

    def __init__(self, samples: Sequence[Sample], encoder: Encoder) -> None:
        self._samples = samples
        self._encoder = encoder
        self._held: OrderedDict[int, EncodedSample] = OrderedDict()
        self._seen: set[int] = set()
        self._empty: set[int] = set()
        self.report = EncodeReport(max_length=encoder.max_length)

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> EncodedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedSample]: ...

    def __getitem__(self, index: int | slice) -> EncodedSample | list[EncodedSample]:
        """Return an encoded sample.

        Raises:
            TemplateError: for a row that cannot be rendered, as the encoder's policy says.
            DataError: when no row gives anything to train.
        """
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for step in range(len(self)):
            found = self._encode((index + step) % len(self))
            if found is not None:
                return found
        raise nothing_left(self._samples, self.report)

    def _encode(self, index: int) -> EncodedSample | None:
        if index in self._empty:
            return None
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        try:
            encoded, report = self._encoder.encode(self._samples[index : index + 1])
        except TemplateError as error:
            if self._samples[index].origin and self._samples[index].origin not in error.message:
                raise TemplateError(f"{self._samples[index].origin}: {error.message}", fix=error.fix) from error
            raise
        if index not in self._seen:
            self._seen.add(index)
            self.report.add(report)
        if not encoded:
            self._empty.add(index)
            return None
        self._held[index] = encoded[0]
        if len(self._held) > HELD:
            self._held.popitem(last=False)
        return encoded[0]
