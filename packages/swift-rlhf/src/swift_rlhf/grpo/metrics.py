"""Numbers between two log lines, over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from swift_core.train.parallel import World

from swift_rlhf.losses import Sum, named_diagnostics

_ROLLOUT = "_rollout/"


class Meter:
    """Adds up sums and weights, and returns their quotients.

    Args:
        world: the processes of the run.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, list[float]] = {}

    def add(self, sums: Mapping[str, Sum], *, prefix: str = "") -> None:
        """Add sums of a micro-batch of this rank."""
        for name, (total, weight) in sums.items():
            self.add_value(prefix + name, float(total), float(weight))

    def add_rollout(self, sums: Mapping[str, Sum]) -> None:
        """Add what `rollout_diagnostics` returned."""
        self.add(sums, prefix=_ROLLOUT)

    def add_value(self, name: str, total: float, weight: float = 1.0) -> None:
        """Add a value that is a mean of `weight` things, summed up; one that is not finite is left out."""
        if math.isfinite(total) and weight:
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += weight

    def values(self) -> dict[str, float]:
        """Return the means over all ranks since the last call, and start anew."""
        merged: dict[str, list[float]] = {}
        for sums in self._world.gather(self._sums):
            for name, (total, weight) in sums.items():
                entry = merged.setdefault(name, [0.0, 0.0])
                entry[0] += total
                entry[1] += weight
        self._sums = {}
        means = {name: total / weight for name, (total, weight) in merged.items()}
        rollout = {name.removeprefix(_ROLLOUT): mean for name, mean in means.items() if name.startswith(_ROLLOUT)}
        plain = {name: mean for name, mean in sorted(means.items()) if not name.startswith(_ROLLOUT)}
        return {**plain, **(named_diagnostics(rollout) if rollout else {})}
