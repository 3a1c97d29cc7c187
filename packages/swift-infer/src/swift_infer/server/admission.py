"""Who may use the engine: so many requests at a time, a bounded queue behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """Raised when no further request may wait."""


class Admission:
    """Places at the engine, with a bounded number of waiting requests.

    Args:
        max_waiting: requests that may wait for a place.
        places: requests that run at the same time.

    Attributes:
        running: requests being answered.
        waiting: requests in the queue.
    """

    def __init__(self, max_waiting: int, places: int = 1) -> None:
        self._max_waiting = max_waiting
        self._places = asyncio.Semaphore(places)
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place and hold it.

        Raises:
            QueueFullError: when the queue is full.
        """
        if self._places.locked() and self.waiting >= self._max_waiting:
            raise QueueFullError
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
