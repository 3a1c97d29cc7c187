"""transformers' trainer callbacks, by name, by `module:Class`, or as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from swift_core.errors import ConfigError, Problem
from swift_core.registry import CALLBACKS, import_target


def load_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """Return one object for each name.

    Raises:
        ConfigError: when a name is no trainer callback.
    """
    found: list[TrainerCallback] = []
    for name in names:
        kind: Any = import_target(name, needed_for=f"--callbacks {name}") if ":" in name else CALLBACKS.load(name)
        if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
            raise ConfigError(
                [Problem("--callbacks", f"{name!r} is not a transformers.TrainerCallback class", "derive it from TrainerCallback")]
            )
        found.append(kind())
    return found


class Callbacks:
    """Calls the callbacks of a run in order.

    Args:
        callbacks: objects whose `on_...` methods are called with `(args, state, control, **context)`.
        args: settings of the run; callbacks read them by flat name.
        state: counters of the run.
        context: what every call gets by keyword: model, processing_class, optimizer, lr_scheduler.

    Attributes:
        control: what the callbacks ask the loop to do.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], args: Any, state: TrainerState, **context: Any) -> None:
        self._callbacks = list(callbacks)
        self._args = args
        self._state = state
        self._context = context
        self.control = TrainerControl()

    def call(self, event: str, **more: Any) -> TrainerControl:
        """Call one event, such as `on_step_end`, and return what was asked for."""
        for callback in self._callbacks:
            result = getattr(callback, event)(self._args, self._state, self.control, **self._context, **more)
            if result is not None:
                self.control = result
        return self.control
