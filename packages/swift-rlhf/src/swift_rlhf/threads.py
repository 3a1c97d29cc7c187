"""Functions of users in threads that do not keep the program alive when they hang."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any


def in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run a function in a thread of its own and return a future of the running loop with its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = call()
        except StopIteration as stopped:  # a future cannot carry it
            error = RuntimeError(f"StopIteration: {stopped}")
        except Exception as raised:  # noqa: BLE001  handed to whoever waits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="call", daemon=True).start()
    return future
