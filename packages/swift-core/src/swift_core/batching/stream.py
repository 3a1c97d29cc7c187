"""Encoded samples without end, for `--streaming`, from a position that can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from swift_core.batching.encode import Encoder, EncodeReport, nothing_left
from swift_core.data.streaming import SampleStream, StreamState
from swift_core.protocols import EncodedSample, Sample

AHEAD = 64
"""Rows that are encoded together."""


class EncodedState(TypedDict):
    """Where an encoded stream stands: the rows before the current chunk, and how many of its samples were given."""

    rows: StreamState
    given: int


class EncodedStream(Iterator[EncodedSample]):
    """Encodes the samples of a stream, a few ahead of what training asks for.

    Attributes:
        report: what became of the rows so far.
    """

    def __init__(self, samples: SampleStream, encoder: Encoder) -> None:
        self._samples = samples
        self._encoder = encoder
        self._chunk: list[EncodedSample] = []
        self._before: StreamState = samples.state_dict()
        self._given = 0
        self.report = EncodeReport(max_length=encoder.max_length)

    @property
    def rows(self) -> SampleStream:
        """Return the stream of rows behind this one."""
        return self._samples

    def __next__(self) -> EncodedSample:
        if self._given == len(self._chunk):
            self._fill()
        self._given += 1
        return self._chunk[self._given - 1]

    def _fill(self) -> None:
        seen: list[Sample] = []
        epoch = self._samples.epoch
        while True:
            self._before = self._samples.state_dict()
            rows = [next(self._samples) for _ in range(AHEAD)]
            self._chunk, report = self._encoder.encode(rows)
            report.lengths.clear()  # a stream has no end: what grows with it is not kept
            self.report.add(report)
            self._given = 0
            if self._chunk:
                return
            seen = [*seen, *rows][-AHEAD:]
            if self._samples.epoch > epoch + 1:  # a whole pass gave nothing
                self.report.lengths = [self.report.longest[0]]
                raise nothing_left(seen, self.report)

    def state_dict(self) -> EncodedState:
        """Return where the stream stands, to be saved as JSON."""
        return EncodedState(rows=self._before, given=self._given)

    def load_state_dict(self, state: EncodedState) -> None:
        """Go on exactly where another stream over the same data and template stood.

        Raises:
            CheckpointError: when the data is not what it was.
        """
        self._samples.load_state_dict(state["rows"])
        self._chunk, self._given = [], 0
        if state["given"]:
            self._fill()
            self._given = state["given"]
        self._before = state["rows"]
