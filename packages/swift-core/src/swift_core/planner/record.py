"""What a plan says. Plain numbers: nothing here imports torch, so that a web page can show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

GIB = 2**30
MIB = 2**20
# A run that needs more than this share of what is free may fail by what no plan knows: other programs, fragments, a longer sample.
COMFORT = 0.85

Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one device at the fullest moment of a run, by purpose.

    Attributes:
        weights: the model's parameters, and copies of them that the run keeps.
        gradients: of what is trained, as far as they are there at that moment.
        optimizer: its state, with what it needs in between where the moment is its step.
        activations: what is kept for the backward pass and made in it.
        head: what the output layer makes: logits, probabilities, gradients.
        cache: keys and values of answers that are being sampled.
        runtime: libraries and their buffers.
        moment: what the run is doing then.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    head: int = 0
    cache: int = 0
    runtime: int = 0
    moment: str = ""

    def parts(self) -> dict[str, int]:
        """Return bytes by purpose."""
        return {name: value for name, value in asdict(self).items() if name != "moment"}

    @property
    def total(self) -> int:
        """Return all of it."""
        return sum(self.parts().values())

    def lines(self) -> list[str]:
        """Return one line for each purpose that takes anything, and the total."""
        rows = [f"{name:<12} {size(value):>10}" for name, value in self.parts().items() if value]
        return [*rows, f"{'total':<12} {size(self.total):>10}  in the {self.moment}"]


@dataclass(frozen=True, slots=True)
class Extra:
    """What an algorithm needs besides training on its samples; a config says it in `planned_extra()`.

    Attributes:
        samples: samples that a row of the batch becomes, such as 2 for a pair.
        copies: whole frozen models beside the trained one.
        answers: answers that a process samples at a time, itself.
        answer_tokens: most tokens of an answer.
    """

    samples: int = 1
    copies: int = 0
    answers: int = 0
    answer_tokens: int = 0


@runtime_checkable
class PlansExtra(Protocol):
    """A config of an algorithm with more than samples to train on."""

    def planned_extra(self) -> Extra:
        """Return what it needs."""
        ...


@dataclass(frozen=True, slots=True)
class Capacity:
    """The memory of a device.

    Attributes:
        device: its name.
        total: bytes it has.
        free: bytes that nobody uses now.
    """

    device: str
    total: int
    free: int

    def verdict(self, needed: int) -> Verdict:
        """Say whether so many bytes fit."""
        return "fits" if needed <= COMFORT * self.free else "tight" if needed <= self.free else "does not fit"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change of settings that saves memory.

    Attributes:
        flags: what to add to the command.
        total: bytes of the whole run with it.
        saved: bytes less than without.
    """

    flags: str
    total: int
    saved: int


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """How long a run takes.

    Attributes:
        step_seconds: an optimizer step.
        steps_per_epoch: optimizer steps of an epoch, 0 where the data set is not known.
        steps: optimizer steps of the run, 0 where the data set is not known.
        tokens_per_second: on all devices together.
        method: where the numbers come from.
    """

    step_seconds: float
    steps_per_epoch: int
    steps: int
    tokens_per_second: float
    method: str

    @property
    def epoch_seconds(self) -> float:
        """Return the time of an epoch."""
        return self.step_seconds * self.steps_per_epoch

    def lines(self) -> list[str]:
        """Return it for people."""
        step = f"time: {self.step_seconds:.2f} s a step, {self.tokens_per_second:,.0f} tokens/s ({self.method})"
        if not self.steps:
            return [step, "  the time of an epoch needs --dataset"]
        hours, whole = self.epoch_seconds / 3600, self.step_seconds * self.steps / 3600
        return [step, f"  {hours:.2f} h an epoch of {self.steps_per_epoch} steps, {whole:.2f} h for all {self.steps} steps"]


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The plan of a run.

    Attributes:
        memory: of one device.
        capacity: of that device.
        processes: devices of the run.
        parameters: numbers of the model.
        trained: those that are trained.
        tokens: tokens of the fullest micro-batch.
        longest: tokens of its longest sample.
        traced: whether the model's own code was followed; otherwise a formula for decoders was used.
        time: how long it takes, where that was asked for.
        suggestions: what would need less, most effective first.
    """

    memory: MemoryEstimate
    capacity: Capacity
    processes: int
    parameters: int
    trained: int
    tokens: int
    longest: int
    traced: bool
    time: TimeEstimate | None = None
    suggestions: tuple[Suggestion, ...] = field(default_factory=tuple)

    @property
    def verdict(self) -> Verdict:
        """Say whether the run fits its device."""
        return self.capacity.verdict(self.memory.total)

    def lines(self) -> list[str]:
        """Return everything for people."""
        many = f", each of {self.processes} processes" if self.processes > 1 else ""
        found = [
            f"model: {self.parameters:,} parameters, {self.trained:,} trained ({self.trained / max(self.parameters, 1):.2%})",
            f"fullest micro-batch: {self.tokens:,} tokens, the longest sample has {self.longest:,}",
            f"memory of one device (estimate{many}):",
            *(f"  {line}" for line in self.memory.lines()),
            f"device: {self.capacity.device}, {size(self.capacity.free)} free of {size(self.capacity.total)}: {self.verdict}",
        ]
        if not self.traced:
            found.append("note: by a formula for decoders, as the model's own code could not be followed without its weights")
        if self.time is not None:
            found += self.time.lines()
        if self.suggestions:
            found += ["needs less:", *(f"  {one.flags:<60} {size(one.total):>10}  ({size(one.saved)} less)" for one in self.suggestions)]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, bytes as integers."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["verdict"] = self.verdict
        if self.time is not None:
            values["time"]["epoch_seconds"] = self.time.epoch_seconds
        return values


def size(count: int) -> str:
    """Return bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
