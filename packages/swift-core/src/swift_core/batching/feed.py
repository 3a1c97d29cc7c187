"""Feeding a run from a stream: no plan beforehand, and a position that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

from swift_core.batching.loader import Dealer, StepBatches
from swift_core.batching.packing import best_fit
from swift_core.batching.plan import PlanShape
from swift_core.protocols import EncodedSample


class Stream(Protocol):
    """Encoded samples without end, from a position that can be saved."""

    def __next__(self) -> EncodedSample:
        """Return the next sample."""
        ...

    def state_dict(self) -> Any:
        """Return the position, as plain values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go to a position."""
        ...


class StreamFeed:
    """Draws the samples of each optimizer step from a stream.

    Every rank draws the same samples and keeps its share, so that no rank has to send data to another.

    Args:
        stream: where samples come from.
        shape: numbers of the plan; `num_samples` is not used.
        capacity: tokens of a pack when samples are packed, else None.
    """

    def __init__(self, stream: Stream, shape: PlanShape, *, capacity: int | None = None) -> None:
        self._stream = stream
        self._shape = shape
        self._capacity = capacity
        self._held: list[EncodedSample] = []

    def steps(self, dealer: Dealer, *, start: int, stop: int) -> Iterator[StepBatches]:
        """Yield the micro-batches of one rank for the steps `start` to `stop - 1`; the stream stands at `start` already."""
        for _ in range(start, stop):
            yield dealer.deal(self._draw(dealer.measure))

    def _draw(self, measure: Callable[[EncodedSample], int]) -> list[EncodedSample]:
        wanted = self._shape.samples_per_step
        if self._capacity is None:
            return [next(self._stream) for _ in range(wanted)]
        tokens = sum(measure(sample) for sample in self._held)
        while tokens < wanted * self._capacity:
            self._held.append(next(self._stream))
            tokens += measure(self._held[-1])
        packs = best_fit([measure(sample) for sample in self._held], self._capacity)
        # So many tokens never fit into fewer packs than wanted; the emptiest packs wait for more samples.
        fullest = sorted(packs, key=lambda pack: (-sum(measure(self._held[index]) for index in pack), pack[0]))[:wanted]
        chosen = sorted(index for pack in fullest for index in pack)
        taken = [self._held[index] for index in chosen]
        left = set(range(len(self._held))).difference(chosen)
        self._held = [self._held[index] for index in sorted(left)]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the samples that wait for a pack, as plain values."""
        return {"stream": self._stream.state_dict(), "held": [asdict(sample) for sample in self._held]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        self._stream.load_state_dict(state["stream"])
        self._held = [EncodedSample(**values) for values in state["held"]]
