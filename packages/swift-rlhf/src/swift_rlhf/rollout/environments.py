"""Worlds in which a model acts with text."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from swift_core.errors import TrainingError

from swift_rlhf.threads import in_thread


class Environment(Protocol):
    """A world of one episode. Methods may be sync or async.

    Those of gymnasium fit too: `reset` that returns an observation alone or with notes, `step` that returns five values.
    """

    def reset(self, columns: Mapping[str, Any]) -> Any:
        """Return the first observation as text, empty where the prompt says everything; `columns` are those of the data row."""
        ...

    def step(self, action: str) -> Any:
        """Return observation, reward, whether the episode is over, and notes."""
        ...

    def close(self) -> Any:
        """Free what `reset` opened."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What an act led to."""

    observation: str
    reward: float
    done: bool
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Running:
    """An environment with a time limit on everything that it does.

    Args:
        environment: the world.
        timeout: seconds of one call.
    """

    def __init__(self, environment: Any, timeout: float) -> None:
        self._environment, self._timeout = environment, timeout

    async def reset(self, columns: Mapping[str, Any]) -> str:
        """Return the first observation.

        Raises:
            TrainingError: when the environment fails or takes too long.
        """
        found = await self._called(self._environment.reset, columns)
        return str((found[0] if isinstance(found, tuple) else found) or "")

    async def step(self, action: str) -> Step:
        """Return what an act led to.

        Raises:
            TrainingError: when the environment fails, takes too long or returns something else.
        """
        found: Any = await self._called(self._environment.step, action)
        if isinstance(found, tuple) and len(found) == 5:
            observation, reward, ended, cut, info = found
            return Step(str(observation or ""), float(reward), bool(ended or cut), info or {})
        if not isinstance(found, tuple) or len(found) not in (3, 4):
            raise TrainingError(f"{self._name}.step returned {found!r}", fix="observation, reward, done and a dict of notes")
        return Step(str(found[0] or ""), float(found[1]), bool(found[2]), found[3] if len(found) == 4 and found[3] else {})

    async def close(self) -> None:
        """Free the environment."""
        if hasattr(self._environment, "close"):
            await self._called(self._environment.close)

    @property
    def _name(self) -> str:
        return type(self._environment).__name__

    async def _called(self, call: Callable[..., Any], *arguments: Any) -> Any:
        running = call(*arguments) if inspect.iscoroutinefunction(call) else in_thread(lambda: call(*arguments))
        try:
            return await asyncio.wait_for(running, self._timeout)
        except TimeoutError as error:
            fix = "raise --tool_timeout, or mend the environment"
            raise TrainingError(f"{self._name}.{call.__name__} took longer than {self._timeout:g} s", fix=fix) from error
        except TrainingError:
            raise
        except Exception as error:  # a user's environment may raise anything
            what = f"{self._name}.{call.__name__} failed: {type(error).__name__}: {error}"
            raise TrainingError(what, fix="mend the environment") from error
