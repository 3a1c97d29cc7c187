"""SIGTERM and SIGINT: finish the step, save, leave. A second signal leaves at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

_KINDS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Remembers the first stop signal while it is active.

    Attributes:
        received: number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = 0
        for number in _KINDS:
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread, as in a notebook server: its owner handles signals
                return self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def votes(self) -> list[float]:
        """Return what this rank adds to a sum over all ranks, so that they leave together."""
        return [float(self.received == number) for number in _KINDS]

    @staticmethod
    def agreed(*votes: float) -> int:
        """Return the signal that the summed votes mean, or 0."""
        return next((int(number) for number, count in zip(_KINDS, votes, strict=True) if count), 0)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        sys.stderr.write(f"\n{signal.Signals(number).name} received: saving after this step (once more to leave at once)\n")
        for each, handler in self._previous.items():
            signal.signal(each, handler)
