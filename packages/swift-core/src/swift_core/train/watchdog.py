"""Ending a job of several processes when one of them hangs, with the stack of what it is doing."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from swift_core.errors import LaunchError

# A pause this many times as long as the longest one before it is no ordinary one.
_UNUSUAL = 3.0
# What may wait for other ranks is given more time, so that the rank that hangs speaks first.
_PATIENCE = 5.0
_STDERR = 2


class Watchdog:
    """Ends this process when it makes no progress; the launcher then ends the others.

    A rank that hangs keeps the others waiting in a collective operation, which ends by itself only after `--ddp_timeout`.
    The first step has no limit, since kernels are compiled and caches filled in it.

    Args:
        limit: seconds without a sign of life; 0 switches it off. It grows to three times the longest pause there has been.
        rank: this process.
        size: number of processes; alone nobody waits for it.
        together: waits until every rank is here.
        end: ends the process.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        limit: float,
        *,
        rank: int,
        size: int,
        together: Callable[[], object],
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._rank, self._size = rank, size
        self._together, self._end, self._clock = together, end, clock
        self._active = limit > 0 and size > 1
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._steps = 0
        self._lenient = 0
        self._longest = 0.0
        # One tuple, so that the thread never sees a new time beside an old deed.
        self._last: tuple[float, str, bool] = (self._clock(), "start", True)

    def __enter__(self) -> Watchdog:
        if self._active:
            self._closed.clear()
            self._steps = 0
            self._last = (self._clock(), "start", True)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            self._thread = None

    def beat(self, doing: str, *, waits: bool = False) -> None:
        """Give a sign of life.

        Args:
            doing: what comes now, for the message.
            waits: it may have to wait for other ranks.
        """
        now = self._clock()
        if not self._lenient:
            self._longest = max(self._longest, now - self._last[0])
        self._last = (now, doing, waits)

    def step_done(self) -> None:
        """Count a step; from the first one on there is a limit."""
        self._steps += 1
        self.beat("reading the next samples", waits=True)
        if self._steps == 1:
            self._arm()

    @contextmanager
    def unlimited(self, doing: str) -> Iterator[None]:
        """Allow any time for the block, such as for writing a checkpoint; all ranks enter it, and leave it together."""
        self.beat(doing)
        self._lenient += 1
        self._arm()
        try:
            yield
            if self._thread is not None:
                # Else a rank that is done would count the time that it waits for those that are not.
                self._together()
        finally:
            self.beat(f"after {doing}")
            self._lenient -= 1
            self._arm()

    def _arm(self) -> None:
        # Where a library never gives the interpreter back, no thread of Python runs any more; this alarm needs none.
        limit = self.limit
        if self._thread is None:
            return
        if limit is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(limit + _PATIENCE / 2, exit=True, file=_STDERR)

    @property
    def limit(self) -> float | None:
        """Return the seconds that may pass now, or None when any number may."""
        return None if self._lenient or not self._steps else max(self._limit, _UNUSUAL * self._longest)

    def overdue(self) -> tuple[float, str] | None:
        """Return for how long there has been no sign of life and what was begun then, or None when all is well."""
        since, doing, waits = self._last
        idle, limit = self._clock() - since, self.limit
        return (idle, doing) if limit is not None and idle > limit + (_PATIENCE if waits else 0.0) else None

    def _watch(self) -> None:
        tick = min(1.0, self._limit / 4)
        try:
            while not self._closed.wait(tick):
                self._arm()
                found = self.overdue()
                if found is not None:
                    self._report(*found)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _report(self, idle: float, doing: str) -> None:
        who = f"rank {self._rank} of {self._size} (process {os.getpid()} on {socket.gethostname()})"
        error = LaunchError(
            f"{who} has made no progress for {idle:.0f} s while {doing}; where it stands is shown above",
            fix="if it may take so long, --hang_timeout SECONDS (0: never); else mend what hangs and go on with --resume_from_checkpoint",
        )
        sys.stderr.flush()
        os.write(_STDERR, f"\n{who} hangs:\n".encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os.write(_STDERR, f"error: {error}\n".encode())
        self._end(error.exit_code)
