"""A producer in a thread, seen as an iterator; closing the iterator aborts the producer."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
Produce = Callable[[Callable[[T], None], threading.Event], None]


class _End:
    """What a producer leaves behind: nothing, or the error it met."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _start(produce: Produce[T], put: Callable[[T | _End], None], aborted: threading.Event) -> threading.Thread:
    def work() -> None:
        error: BaseException | None = None
        try:
            produce(put, aborted)
        except BaseException as caught:  # noqa: BLE001  handed to the consumer, which raises it
            error = caught
        put(_End(error))

    thread = threading.Thread(target=work, name="swift-generate")
    thread.start()
    return thread


def iterate(produce: Produce[T]) -> Iterator[T]:
    """Yield what a producer puts out; errors of the producer are raised here.

    Args:
        produce: called in a thread with a function that puts an item out and an event that asks it to stop.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    aborted = threading.Event()
    thread = _start(produce, items.put, aborted)
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        aborted.set()
        thread.join()


async def iterate_async(produce: Produce[T]) -> AsyncIterator[T]:
    """Yield what a producer puts out without blocking the event loop; errors of the producer are raised here.

    After closing, the producer ends within one of its steps; it is not waited for.

    Args:
        produce: called in a thread with a function that puts an item out and an event that asks it to stop.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[T | _End] = asyncio.Queue()
    aborted = threading.Event()

    def put(item: T | _End) -> None:
        # A loop that is closed has no one left to read.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    _start(produce, put, aborted)
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        aborted.set()
