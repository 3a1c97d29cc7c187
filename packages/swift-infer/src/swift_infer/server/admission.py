"""Who may use the engine: one request at a time, a bounded queue behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """Raised when no further request may wait."""


class Admission:
    """A lock with a bounded number of waiting requests.

    Attributes:
        running: requests being answered, 0 or 1.
        waiting: requests in the queue.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = asyncio.Lock()
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the engine and hold it.

        Raises:
            QueueFullError: when the queue is full.
        """
        if self._lock.locked() and self.waiting >= self._max_waiting:
            raise QueueFullError
        self.waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._lock.release()
