"""All rewards of a batch at once, while generation goes on."""

from __future__ import annotations

import asyncio
import inspect
import math
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from swift_core.errors import ConfigError, Problem, TrainingError
from torch import Tensor

from swift_rlhf.rewards.functions import Reward, RewardSample, columns_for
from swift_rlhf.rewards.processes import Workers
from swift_rlhf.threads import in_thread

OnError = Literal["fail", "nan"]


@dataclass(frozen=True, slots=True)
class RewardStats:
    """What one reward did in one batch.

    Attributes:
        mean, std: over the samples that got one; NaN for none, and for the deviation of fewer than two.
        applied: samples that got a reward.
        not_applicable: samples of other data sets, and those for which it returned None.
        failed: samples it raised for, where errors are passed over.
        timed_out: samples it took too long for, where errors are passed over.
        seconds: how long it took.
    """

    mean: float
    std: float
    applied: int
    not_applicable: int
    failed: int
    timed_out: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Rewards of a batch.

    Attributes:
        values: `[samples, functions]`, float32; NaN where a reward does not apply.
        names: of the functions, in the order of the columns.
        stats: by name.
    """

    values: Tensor
    names: tuple[str, ...]
    stats: dict[str, RewardStats]


@dataclass(slots=True)
class _Column:
    values: list[float | None]
    failed: int = 0
    timed_out: int = 0
    seconds: float = 0.0


class RewardPool:
    """Asks several rewards about a batch at the same time; the result does not depend on which is done first.

    Sync functions run in threads, async ones on one event loop, heavy ones in processes.

    Args:
        rewards: from `make_rewards`, or made by hand around any callable.
        on_error: `fail` raises for the first function and row that went wrong; `nan` leaves them without a reward and counts them.
        processes: worker processes for those rewards that want them.
        plugin_files: user files that register rewards, for the processes.

    Raises:
        ConfigError: for no rewards, two of a name, or settings that cannot be.
    """

    def __init__(
        self, rewards: Sequence[Reward], *, on_error: OnError = "fail", processes: int = 2, plugin_files: Sequence[str] = ()
    ) -> None:
        names = [reward.name for reward in rewards]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                [Problem("--reward_funcs", f"{names or 'no rewards'} cannot be told apart", "one or more, each with its name")]
            )
        lost = [reward.name for reward in rewards if reward.process and not reward.reference]
        if lost:
            raise ConfigError([Problem("--reward_funcs", f"{lost[0]!r} cannot be found by a process", "give its reference")])
        if on_error not in ("fail", "nan") or processes < 1:
            raise ConfigError([Problem("--reward_on_error", f"{on_error!r} with {processes} processes", "fail or nan; 1 or more")])
        self.rewards = tuple(rewards)
        self.weights = torch.tensor([reward.weight for reward in rewards])
        self._on_error: OnError = on_error
        self._calling: dict[str, asyncio.Lock] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        self._workers = Workers(processes, plugin_files) if any(reward.process for reward in rewards) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, samples: Sequence[RewardSample]) -> RewardTable:
        """Return the rewards of samples.

        Raises:
            TrainingError: when a reward raises, takes too long or returns something else than a number or None for each sample.
            ConfigError: when a reward asks for a column that no row has.
        """
        return self.submit(samples).result()

    def submit(self, samples: Sequence[RewardSample]) -> Future[RewardTable]:
        """Start scoring samples and return at once; the result of the future is that of `score`."""
        return asyncio.run_coroutine_threadsafe(self._score(list(samples)), self._loop)

    def close(self) -> None:
        """End the processes and the event loop; batches that are not done are cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._workers is not None:
            await self._workers.close()

    async def _score(self, samples: list[RewardSample]) -> RewardTable:
        columns = await asyncio.gather(*(self._column(reward, samples) for reward in self.rewards), return_exceptions=True)
        for column in columns:
            if isinstance(column, BaseException):
                raise column
        done = [column for column in columns if isinstance(column, _Column)]
        values = torch.tensor([[math.nan if value is None else value for value in column.values] for column in done], dtype=torch.float32)
        stats = {reward.name: _stats(column) for reward, column in zip(self.rewards, done, strict=True)}
        return RewardTable(values.reshape(len(done), len(samples)).T.contiguous(), tuple(stats), stats)

    async def _column(self, reward: Reward, samples: list[RewardSample]) -> _Column:
        column = _Column([None] * len(samples))
        rows = [index for index, sample in enumerate(samples) if reward.applies(sample)]
        if not rows:
            return column
        start = time.perf_counter()
        if reward.process:
            await self._in_processes(reward, samples, rows, column)
        else:
            await self._at_once(reward, samples, rows, column)
        column.seconds = time.perf_counter() - start
        return column

    async def _in_processes(self, reward: Reward, samples: list[RewardSample], rows: list[int], column: _Column) -> None:
        workers = self._workers
        assert workers is not None
        table = columns_for(reward.function, reward.name, [samples[row] for row in rows])
        found = await asyncio.gather(
            *(
                workers.score(reward, samples[row].completion, {name: [values[place]] for name, values in table.items()})
                for place, row in enumerate(rows)
            ),
            return_exceptions=True,
        )
        for row, value in zip(rows, found, strict=True):
            if isinstance(value, BaseException):
                self._pass_over(reward, samples, [row], value, column)
            else:
                column.values[row] = self._checked(reward, samples, row, value, column)

    async def _at_once(self, reward: Reward, samples: list[RewardSample], rows: list[int], column: _Column) -> None:
        try:
            found = await self._called(reward, [samples[row] for row in rows])
        except TimeoutError as error:
            return self._pass_over(reward, samples, rows, error, column)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  a user's function may raise anything; it is named or counted below
            culprits = await self._culprits(reward, samples, rows) or rows
            self._pass_over(reward, samples, culprits, error, column)
            rest = [row for row in rows if row not in culprits]
            return await self._at_once(reward, samples, rest, column) if rest else None
        for row, value in zip(rows, found, strict=True):
            column.values[row] = self._checked(reward, samples, row, value, column)

    async def _culprits(self, reward: Reward, samples: list[RewardSample], rows: list[int]) -> list[int]:
        """Return the rows that a function raises for when it gets them alone."""
        culprits: list[int] = []
        for row in rows if len(rows) > 1 else ():
            try:
                await self._called(reward, [samples[row]])
            except Exception:  # noqa: BLE001  that it raises is the finding
                culprits.append(row)
                if self._on_error == "fail":
                    break
        return culprits

    async def _called(self, reward: Reward, samples: list[RewardSample]) -> list[Any]:
        function = reward.function
        columns = columns_for(function, reward.name, samples)
        texts = [sample.completion for sample in samples]
        call = getattr(function, "__call__", function)  # noqa: B004  an object's own __call__ may be the async one
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
            values: Any = await asyncio.wait_for(function(texts, **columns), reward.timeout)  # pyright: ignore[reportArgumentType]
        else:
            # One call at a time: groups come as they are answered, and a user's function need not stand several threads.
            async with self._calling.setdefault(reward.name, asyncio.Lock()):
                values = await asyncio.wait_for(in_thread(lambda: function(texts, **columns)), reward.timeout)
        values = list(values)
        if len(values) != len(samples):
            raise TrainingError(f"it returned {len(values)} rewards for {len(samples)} samples", fix="return one for each, or None")
        return values

    def _checked(self, reward: Reward, samples: list[RewardSample], row: int, value: Any, column: _Column) -> float | None:
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if math.isinf(number):
            error = TrainingError(f"it returned {value!r}", fix="a finite number, or None where it does not apply")
            self._pass_over(reward, samples, [row], error, column)
            return None
        return None if math.isnan(number) else number

    def _pass_over(self, reward: Reward, samples: list[RewardSample], rows: list[int], error: BaseException, column: _Column) -> None:
        if isinstance(error, asyncio.CancelledError):
            raise error
        late = isinstance(error, TimeoutError)
        if self._on_error == "nan":
            column.timed_out += len(rows) if late else 0
            column.failed += 0 if late else len(rows)
            return
        where = ", ".join(samples[row].origin or f"sample {row + 1}" for row in rows[:3]) + (
            f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        )
        if late:
            what, fix = f"took longer than {reward.timeout:g} s", "raise --reward_timeout, or set --reward_on_error nan"
        else:
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            what, fix = f"failed: {message}", getattr(error, "fix", None) or "mend the reward, or set --reward_on_error nan"
        raise TrainingError(f"reward {reward.name!r} at {where}: {what}", fix=fix) from error


def _stats(column: _Column) -> RewardStats:
    present = [value for value in column.values if value is not None]
    return RewardStats(
        mean=statistics.fmean(present) if present else math.nan,
        std=statistics.stdev(present) if len(present) > 1 else math.nan,
        applied=len(present),
        not_applicable=len(column.values) - len(present) - column.failed - column.timed_out,
        failed=column.failed,
        timed_out=column.timed_out,
        seconds=column.seconds,
    )
