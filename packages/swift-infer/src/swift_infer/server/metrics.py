"""Counts and times of a server in the text format of Prometheus.

Labels are few and fixed: no text, no key and no name that a client made up ever gets into them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from swift_core.protocols import TextDelta

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How often a time was in which range.

    Args:
        bounds: upper ends of the ranges in seconds.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count a time."""
        place = next((place for place, bound in enumerate(self._bounds) if seconds <= bound), len(self._bounds))
        self._counts[place] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        """Return the lines of the text format."""
        found: list[str] = []
        total = 0
        for bound, count in zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What a server counts.

    Args:
        gauges: name and help text -> what returns its present value.
    """

    def __init__(self, gauges: dict[tuple[str, str], Callable[[], float]]) -> None:
        self._gauges = gauges
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.refused = 0
        self.aborted = 0
        self._finished = {"stop": 0, "length": 0, "abort": 0}
        self._times = {
            "time_to_first_token_seconds": ("from the request to its first token", Histogram(_SECONDS)),
            "inter_token_seconds": ("between two pieces of an answer", Histogram(_GAPS)),
            "queue_time_seconds": ("from the request to its turn", Histogram(_SECONDS)),
            "e2e_request_latency_seconds": ("from the request to its end", Histogram(_SECONDS)),
        }

    def watch(self, model: str) -> Watch:
        """Return what follows one request; the model's name is no label."""
        return Watch(self)

    def time(self, name: str, seconds: float) -> None:
        """Count a time."""
        self._times[name][1].add(seconds)

    def finished(self, reason: str) -> None:
        """Count the end of an answer."""
        self._finished[reason] = self._finished.get(reason, 0) + 1

    def text(self) -> str:
        """Return all of it in the text format."""
        lines: list[str] = []

        def put(name: str, kind: str, about: str, values: Sequence[str]) -> None:
            lines.extend((f"# HELP swift_{name} {about}", f"# TYPE swift_{name} {kind}", *values))

        for (name, about), value in self._gauges.items():
            put(name, "gauge", about, [f"swift_{name} {value():g}"])
        counters = {
            "prompt_tokens_total": ("tokens of prompts", self.prompt_tokens),
            "generation_tokens_total": ("tokens that were written", self.generation_tokens),
            "requests_refused_total": ("requests that found the queue full", self.refused),
            "requests_aborted_total": ("requests that ended before their answer was complete", self.aborted),
        }
        for name, (about, count) in counters.items():
            put(name, "counter", about, [f"swift_{name} {count}"])
        reasons = [f'swift_request_success_total{{finished_reason="{reason}"}} {count}' for reason, count in self._finished.items()]
        put("request_success_total", "counter", "answers by the reason of their end", reasons)
        for name, (about, histogram) in self._times.items():
            put(name, "histogram", about, histogram.lines(f"swift_{name}"))
        return "\n".join(lines) + "\n"


class Watch:
    """Follows one request.

    Args:
        metrics: where it is counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.monotonic()
        self._first = True
        self._complete = False

    def admitted(self) -> None:
        """It is the request's turn."""
        self._metrics.time("queue_time_seconds", time.monotonic() - self._start)

    def saw(self, piece: TextDelta) -> None:
        """A piece of an answer has come."""
        now = time.monotonic()
        self._metrics.time("time_to_first_token_seconds" if self._first else "inter_token_seconds", now - self._last)
        self._first, self._last = False, now
        if piece.finish_reason is not None:
            self._metrics.finished(piece.finish_reason)
        if piece.usage is not None:
            self._complete = True
            self._metrics.prompt_tokens += piece.usage.prompt_tokens
            self._metrics.generation_tokens += piece.usage.completion_tokens

    def done(self) -> None:
        """The request is over."""
        self._metrics.time("e2e_request_latency_seconds", time.monotonic() - self._start)
        self._metrics.aborted += not self._complete
