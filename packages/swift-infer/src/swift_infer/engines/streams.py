"""A request that is being answered elsewhere, seen as an iterator; closing the iterator aborts the request."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
Emit = Callable[[T], None]
# Takes where pieces go, and returns the future of the whole answer and what aborts it.
Begin = Callable[[Emit[T]], tuple[Future[Any], Callable[[], None]]]


class _End:
    """What stands behind the last piece."""


def follow(begin: Begin[T]) -> Iterator[T]:
    """Yield the pieces of an answer; what went wrong is raised here.

    Args:
        begin: starts the request.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    result, abort = begin(items.put)
    result.add_done_callback(lambda _: items.put(_End()))
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        result.result()
    finally:
        abort()
        with suppress(Exception):
            result.result()  # the engine has let go of it


async def follow_async(begin: Begin[T]) -> AsyncGenerator[T]:
    """Yield the pieces of an answer without blocking the event loop; what went wrong is raised here.

    Args:
        begin: starts the request.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[T | _End] = asyncio.Queue()

    def put(item: T | _End) -> None:
        # A loop that is closed has no one left to read.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    result, abort = begin(put)
    result.add_done_callback(lambda _: put(_End()))
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        result.result()
    finally:
        abort()
