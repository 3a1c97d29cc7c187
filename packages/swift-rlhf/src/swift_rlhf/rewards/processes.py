"""A handful of worker processes, replaced when they hang or die."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from swift_core.errors import TrainingError

from swift_rlhf.rewards.functions import Reward
from swift_rlhf.rewards.worker import HEADER, pack

START_SECONDS = 120.0


class Workers:
    """Processes that score one sample at a time; made and used on one event loop.

    Args:
        count: processes.
        plugin_files: user files that register rewards, loaded in every process.
    """

    def __init__(self, count: int, plugin_files: Sequence[str] = ()) -> None:
        self._plugin_files = list(plugin_files)
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._workers = [_Worker() for _ in range(count)]
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def score(self, reward: Reward, completion: str, columns: dict[str, list[Any]]) -> float | None:
        """Return the reward of one sample.

        Raises:
            TimeoutError: when it takes longer than the reward may; the process is killed.
            TrainingError: when the function raises or the process dies.
        """
        worker = await self._idle.get()
        try:
            if reward.name not in worker.loaded:
                load = ("load", reward.name, reward.reference, dict(reward.options), self._plugin_files)
                await asyncio.wait_for(worker.ask(load), START_SECONDS)
                worker.loaded.add(reward.name)
            return await asyncio.wait_for(worker.ask(("score", reward.name, completion, columns)), reward.timeout)
        except (TimeoutError, asyncio.CancelledError):
            worker.kill()
            raise
        finally:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """Kill all processes and wait for their end; none may be at work."""
        for worker in self._workers:
            worker.kill()
            await worker.buried()


class _Worker:
    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._killed: list[asyncio.subprocess.Process] = []

    async def ask(self, message: Any) -> Any:
        if self._process is None:
            command = [sys.executable, "-m", "swift_rlhf.rewards.worker"]
            self._process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(pack(message))
            await process.stdin.drain()
            size = HEADER.unpack(await process.stdout.readexactly(HEADER.size))[0]
            kind, value = json.loads(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await process.wait()
            self.kill()
            raise TrainingError(f"its process ended with code {code}", fix="look for a crash or too little memory") from error
        if kind == "error":
            raise TrainingError(value)
        return value

    def kill(self) -> None:
        process, self._process = self._process, None
        self.loaded.clear()
        if process is None:
            return
        self._killed.append(process)
        if process.returncode is None:
            process.kill()

    async def buried(self) -> None:
        """Wait until nothing is left of the processes that were killed: pipes that outlive the event loop complain."""
        while self._killed:
            process = self._killed.pop()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            await process.stdout.read()
            await process.wait()
            await asyncio.sleep(0)
