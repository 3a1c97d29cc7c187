"""Samples read while training asks for them, from a position that can be saved and restored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, TypedDict

from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.dataset_id import DatasetId, parse_dataset_id
from swift_core.data.locate import Source, find_rows
from swift_core.data.report import BadRow, RowReport
from swift_core.data.rows import Row
from swift_core.data.sources import check_settings, mixing_weights, new_report, samples_of
from swift_core.data.task_rows import Task
from swift_core.errors import CheckpointError, ConfigError, DataError, Problem
from swift_core.protocols import Sample


class SourceState(TypedDict):
    """Where one data set stands: rows read and samples given in this pass, and passes ended."""

    rows: int
    samples: int
    passes: int


class StreamState(TypedDict):
    """Where a stream stands, as plain JSON values.

    `current` is the data set being read where they follow one another, `used_up` those at their end where they are drawn by
    chance, `buffer` the data set and the row of each waiting sample.
    """

    datasets: list[str]
    epoch: int
    current: int
    used_up: list[int]
    ended: bool
    sources: list[SourceState]
    buffer: list[list[int]]
    random: list[Any]


@dataclass(slots=True)
class _Held:
    """A sample and the place it was read at: data set, row."""

    sample: Sample
    source: int
    row: int


class _SourceStream:
    """One data set, read again and again."""

    def __init__(
        self, number: int, wanted: DatasetId, data: DataSection, loading: ModelSection, report: RowReport, need_answer: bool, task: Task
    ) -> None:
        self.number = number
        self.wanted = wanted
        self.data = data
        self.loading = loading
        self.report = report
        self.need_answer = need_answer
        self.task: Task = task
        self.state = SourceState(rows=0, samples=0, passes=0)
        self._rows: Iterator[Row | BadRow] | None = None
        self._columns: Mapping[str, str] = {}

    def _open(self) -> Iterator[Row | BadRow]:
        source: Source = find_rows(self.wanted, data=self.data, loading=self.loading, report=self.report)
        self._columns = {**source.columns, **self.data.columns}
        return source.rows

    def next(self) -> _Held | None:
        """Return the next sample of this pass, or None at its end.

        Raises:
            DataError: for a bad row, as the policy says, or when a whole pass gave nothing.
        """
        if self._rows is None:
            self._rows = self._open()
        if self.wanted.count is None or self.state["samples"] < self.wanted.count:
            for row in self._rows:
                at = self.state["rows"]
                self.state["rows"] += 1
                sample = self._convert(row, self._counts())
                if sample is not None:
                    self.state["samples"] += 1
                    return _Held(sample, self.number, at)
        if not self.state["samples"]:
            raise DataError(f"nothing can be used of {str(self.wanted)!r}\n{self.report.reasons()}", fix="give a data set with usable rows")
        return None

    def again(self) -> None:
        """Go back to the first row."""
        self._rows = None
        self.state = SourceState(rows=0, samples=0, passes=self.state["passes"] + 1)

    def _counts(self) -> RowReport:
        # A bad row is reported in the first pass; in later ones it is only left out again.
        return self.report if not self.state["passes"] else RowReport(policy="skip")

    def _convert(self, row: Row | BadRow, report: RowReport) -> Sample | None:
        aliases = not self.data.disable_auto_column_mapping
        found = samples_of(iter((row,)), self._columns, report, need_answer=self.need_answer, aliases=aliases, task=self.task)
        return next(found, None)

    def restore(self, state: SourceState, wanted: Collection[int]) -> dict[int, Sample]:
        """Go to a saved place and return the samples of the wanted rows, all in one reading where they lie before it."""
        self.state = SourceState(rows=state["rows"], samples=state["samples"], passes=state["passes"])
        self._rows = self._open()
        last = max(wanted, default=-1)
        found = self._pass_over(self._rows, max(state["rows"], last + 1), wanted)
        if last >= state["rows"]:  # held since an earlier pass
            self._rows = self._open()
            self._pass_over(self._rows, state["rows"], ())
        return found

    def _pass_over(self, rows: Iterator[Row | BadRow], count: int, wanted: Collection[int]) -> dict[int, Sample]:
        found: dict[int, Sample] = {}
        silent = RowReport(policy="skip")
        for index in range(count):
            row = next(rows, None)
            if row is None:
                raise CheckpointError(
                    f"data set {str(self.wanted)!r} has {index} rows, and the checkpoint stands at row {count}",
                    fix="restore the data as it was, or start without --resume_from_checkpoint",
                )
            if index in wanted:
                sample = self._convert(row, silent)
                if sample is None:
                    raise CheckpointError(
                        f"row {index + 1} of {str(self.wanted)!r} could be used when the checkpoint was written and cannot be now",
                        fix="restore the data as it was",
                    )
                found[index] = sample
        return found


class SampleStream(Iterator[Sample]):
    """Samples of `--dataset` without end, of which only the shuffle buffer is held.

    An epoch gives every row once (or, drawn by chance, ends as `--stopping_strategy` says); the next one goes through the
    buffer in another order. `state_dict` is plain JSON and small: which rows wait in the buffer, not what they hold.

    Args:
        data: what to read and how.
        loading: hub, offline mode and token.
        need_answer: whether every row must hold something to train.
        task: what the samples are for; a row of no use for it is a bad row.

    Attributes:
        report: what was read in the first pass.
        epoch: passes over the whole mixture that ended.

    Raises:
        ConfigError: for settings that cannot act on a stream.
    """

    def __init__(self, data: DataSection, loading: ModelSection, *, need_answer: bool = True, task: Task = "causal_lm") -> None:
        check_settings(data)
        if not data.dataset:
            raise ConfigError([Problem("--dataset", "is missing", "--dataset FILE, a folder, a hub id, or self-cognition")])
        if data.split_dataset_ratio > 0:
            what = "needs to know all rows, which streaming does not"
            raise ConfigError([Problem("--split_dataset_ratio", what, "give a --val_dataset, or remove --streaming")])
        self.data = data
        self.report = new_report(data)
        self.epoch = 0
        self._weights = mixing_weights(data)
        self._sources = [
            _SourceStream(number, parse_dataset_id(text), data, loading, self.report, need_answer, task)
            for number, text in enumerate(data.dataset)
        ]
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._random = Random(f"{self.data.data_seed}/stream/{self.epoch}")
        self._buffer: list[_Held] = []
        self._current = 0
        self._used_up: set[int] = set()
        self._ended = False

    def __next__(self) -> Sample:
        while True:
            held = self._draw()
            if held is not None:
                self.report.used += 1
                return held.sample
            self.epoch += 1
            for source in self._sources:
                source.again()
            self._start_epoch()

    def _draw(self) -> _Held | None:
        """Return the next sample of the epoch, or None at its end."""
        if not self.data.dataset_shuffle:
            return self._read()
        while not self._ended and len(self._buffer) < self.data.shuffle_buffer_size:
            held = self._read()
            if held is not None:
                self._buffer.append(held)
        if not self._buffer:
            return None
        place = self._random.randrange(len(self._buffer))
        self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
        return self._buffer.pop()

    def _read(self) -> _Held | None:
        """Return the next sample of the mixture before shuffling, or None at the end of the epoch."""
        while not self._ended:
            number = self._current if self._weights is None else self._random.choices(range(len(self._sources)), self._weights)[0]
            held = self._sources[number].next()
            if held is not None:
                return held
            if self._weights is None:
                self._current += 1
                self._ended = self._current == len(self._sources)
                continue
            self._used_up.add(number)
            self._ended = self.data.stopping_strategy == "first_exhausted" or len(self._used_up) == len(self._sources)
            if not self._ended:
                self._sources[number].again()
        return None

    def state_dict(self) -> StreamState:
        """Return where the stream stands, to be saved as JSON."""
        version, words, gauss = self._random.getstate()
        return StreamState(
            datasets=list(self.data.dataset),
            epoch=self.epoch,
            current=self._current,
            used_up=sorted(self._used_up),
            ended=self._ended,
            sources=[SourceState(**source.state) for source in self._sources],
            buffer=[[held.source, held.row] for held in self._buffer],
            random=[version, list(words), gauss],
        )

    def load_state_dict(self, state: StreamState) -> None:
        """Go on exactly where another stream over the same data stood.

        Rows before that place are parsed again, and only those in the buffer are made into samples.

        Raises:
            CheckpointError: when the state is of other data sets, or their rows are not there any more.
        """
        if list(state["datasets"]) != list(self.data.dataset):
            raise CheckpointError(
                f"the checkpoint was reading {' '.join(state['datasets'])}, not {' '.join(self.data.dataset)}",
                fix="resume with the same --dataset, in the same order",
            )
        self.epoch = state["epoch"]
        self._start_epoch()
        self._current, self._used_up, self._ended = state["current"], set(state["used_up"]), state["ended"]
        version, words, gauss = state["random"]
        self._random.setstate((version, tuple(words), gauss))
        samples: list[dict[int, Sample]] = []
        for source, place in zip(self._sources, state["sources"], strict=True):
            samples.append(source.restore(place, {row for number, row in state["buffer"] if number == source.number}))
        self._buffer = [_Held(samples[number][row], number, row) for number, row in state["buffer"]]
