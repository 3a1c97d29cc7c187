"""Counting what a run has done: losses since the last log line, tokens, time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """Counters that a checkpoint keeps, so that a resumed run logs what an uninterrupted one would.

    Attributes:
        loss_sum: loss in nats over all trained tokens since the last log line.
        loss_tokens: trained tokens since the last log line.
        trained_tokens, tokens, samples: totals of the run.
        run_loss_sum: loss over all trained tokens of the run.
        seconds: training time before this process.
    """

    loss_sum: float = 0.0
    loss_tokens: int = 0
    trained_tokens: int = 0
    tokens: int = 0
    samples: int = 0
    run_loss_sum: float = 0.0
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _window_started: float = field(default_factory=time.monotonic)
    _window_tokens: int = 0
    _window_samples: int = 0
    _window_slots: int = 0
    _window_filled: int = 0
    _window_waited: float = 0.0
    _steps_here: int = 0

    def add(self, *, loss_sum: float, trained_tokens: int, tokens: int, samples: int) -> None:
        """Count an optimizer step over all ranks."""
        self.loss_sum += loss_sum
        self.run_loss_sum += loss_sum
        self.loss_tokens += trained_tokens
        self.trained_tokens += trained_tokens
        self.tokens += tokens
        self.samples += samples
        self._window_tokens += tokens
        self._window_samples += samples
        self._steps_here += 1

    def slots(self, filled: int, places: int) -> None:
        """Count the tokens of this process's batches and the places they take up, padding included."""
        self._window_filled += filled
        self._window_slots += places

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count the time that each one took to come."""
        source = iter(items)
        while True:
            started = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            self._window_waited += time.monotonic() - started
            yield item

    def window(self) -> dict[str, float]:
        """Return mean loss, speed, and shares of padding and of waiting for data since the last call, and start a new window."""
        now = time.monotonic()
        elapsed = max(now - self._window_started, 1e-9)
        values = {
            "loss": self.loss_sum / max(self.loss_tokens, 1),
            "tokens_per_second": self._window_tokens / elapsed,
            "samples_per_second": self._window_samples / elapsed,
            "data_wait": round(self._window_waited / elapsed, 4),
        }
        if self._window_slots:
            values["padding"] = round(1 - self._window_filled / self._window_slots, 4)
        self.loss_sum, self.loss_tokens = 0.0, 0
        self._window_started, self._window_tokens, self._window_samples = now, 0, 0
        self._window_filled, self._window_slots, self._window_waited = 0, 0, 0.0
        return values

    def pause(self, seconds: float) -> None:
        """Leave time spent on evaluation or saving out of the speed."""
        self._window_started += seconds

    @property
    def elapsed(self) -> float:
        """Return the training time of the whole run in seconds, over all processes that worked on it."""
        return self.seconds + time.monotonic() - self._started

    def totals(self) -> dict[str, float]:
        """Return mean loss, time and speed of the whole run."""
        seconds = self.elapsed
        return {
            "train_loss": self.run_loss_sum / max(self.trained_tokens, 1),
            "train_runtime": round(seconds, 2),
            "tokens_per_second": round(self.tokens / max(seconds, 1e-9), 2),
            "samples_per_second": round(self.samples / max(seconds, 1e-9), 3),
        }

    def eta(self, steps_left: int) -> float | None:
        """Return the seconds left at the pace of this process, or None before the first step."""
        return steps_left * (time.monotonic() - self._started) / self._steps_here if self._steps_here else None

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        values = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        return {**values, "seconds": self.elapsed}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Progress:
        """Return the counters a checkpoint kept, with the clock started now."""
        return cls(**values)
