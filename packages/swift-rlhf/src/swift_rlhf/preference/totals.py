"""Sums over an optimizer step and all ranks, for the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: Tensor) -> Tensor:
    """Return the sums of a tensor's elements over all ranks."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


class Totals:
    """Means over what was added since they were read last.

    Values of a step are added on every rank on its own; `close_step` joins them, so that the totals are the same everywhere.

    Args:
        weight: name of the sum that all others are divided by.
    """

    def __init__(self, weight: str) -> None:
        self._weight = weight
        self._step: dict[str, Tensor] = {}
        self._window: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], *, live: bool = True) -> None:
        """Add sums of a micro-batch, scalars, or 0 where it is not `live`; every rank and micro-batch adds the same names."""
        for name, value in values.items():
            value = value.detach().double() * live
            self._step[name] = self._step[name] + value if name in self._step else value

    def close_step(self) -> dict[str, float]:
        """Join the ranks, add their sums to the window, and return the sums of the step."""
        names = sorted(self._step)
        if not names:
            return {}
        sums = dict(zip(names, summed(torch.stack([self._step[name] for name in names])).tolist(), strict=True))
        self._step = {}
        for name, value in sums.items():
            self._window[name] = self._window.get(name, 0.0) + value
        return sums

    def means(self) -> dict[str, float]:
        """Return the means of the window, and begin a new one; a name with its own `NAME/count` is divided by that."""
        window, self._window = self._window, {}
        plain = [name for name in window if name != self._weight and not name.endswith("/count")]
        counts = {name: window.get(f"{name}/count", window.get(self._weight, 0.0)) for name in plain}
        return {name: window[name] / counts[name] for name in plain if counts[name]}

    def saved(self) -> dict[str, float]:
        """Return the window, for a checkpoint."""
        return dict(self._window)

    def restore(self, values: Mapping[str, float]) -> None:
        """Take a window back."""
        self._window = dict(values)
