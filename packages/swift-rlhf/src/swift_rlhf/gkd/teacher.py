"""Teachers in this process: another model, or the student as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from swift_core.scoring.predictions import as_they_are
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

from swift_rlhf.gkd.samples import LessonBatch
from swift_rlhf.losses import generalized_jsd, generalized_jsd_topk
from swift_rlhf.preference.scoring import at_rest


@dataclass(frozen=True, slots=True)
class Measure:
    """How two distributions are compared.

    Attributes:
        beta: from KL(teacher || student) at 0 to KL(student || teacher) at 1.
        temperature: divides the logits of both.
        topk: how many of the teacher's likeliest tokens are looked at; None: all.
    """

    beta: float
    temperature: float = 1.0
    topk: int | None = None

    def full(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence at each token from the logits of both, `[tokens]`."""
        if self.topk is None or self.topk >= teacher.shape[-1]:
            return generalized_jsd(student, teacher, beta=self.beta, temperature=self.temperature)
        logps, ids = (teacher.float() / self.temperature).log_softmax(-1).topk(self.topk)
        return generalized_jsd_topk(student, logps, ids, beta=self.beta, temperature=self.temperature)

    def partial(self, student: Tensor, logps: Tensor, ids: Tensor) -> Tensor:
        """Return it where the teacher's likeliest tokens are known, `[tokens]`."""
        return generalized_jsd_topk(student, logps, ids, beta=self.beta, temperature=self.temperature)


@dataclass(frozen=True, slots=True)
class Said:
    """What a teacher says of a batch.

    Attributes:
        rows: `[tokens, ...]`, from which `divergence` goes on.
        divergence: from the student's logits and the same rows to `[tokens]`.
    """

    rows: tuple[Tensor, ...]
    divergence: Callable[..., Tensor]


class Teacher(Protocol):
    """Who is learned from."""

    def prepare(self, model: nn.Module, batches: Sequence[LessonBatch]) -> None:
        """Ask about the batches of a step before the first of them is trained, where that is better than one by one."""
        ...

    def look(self, model: nn.Module, batch: LessonBatch) -> Said:
        """Return what the teacher says of a batch."""
        ...


class LocalTeacher:
    """A model in this process; its logits exist for a few tokens at a time.

    Args:
        model: the teacher, frozen here; None: the student without its adapters.
        measure: how distributions are compared.
        device: where the student computes.
        offload: keep the teacher in main memory between the steps.
    """

    def __init__(self, model: nn.Module | None, measure: Measure, device: torch.device, *, offload: bool = False) -> None:
        self.model = None if model is None else model.eval().requires_grad_(False)
        self._measure, self._device, self._offload = measure, device, offload
        self._scorer: Scorer | None = None
        self._head: Callable[[Tensor], Tensor] = as_they_are
        if self.model is not None and not offload:
            self.model.to(device)

    def prepare(self, model: nn.Module, batches: Sequence[LessonBatch]) -> None:
        """Bring an offloaded teacher in, keep its hidden states, and take it out again."""
        if not self._offload or self.model is None:
            return
        self.model.to(self._device)
        for batch in batches:
            batch.known = (self._states(model, batch.to(self._device)),)
        self._take_out()

    def look(self, model: nn.Module, batch: LessonBatch) -> Said:
        """Return the teacher's last hidden states, and the divergence that its head leads to."""
        if not batch.known and self._offload and self.model is not None:
            self.model.to(self._device)
            states = self._states(model, batch)
            self._take_out()
        else:
            states = batch.known[0] if batch.known else self._states(model, batch)
        head = self._head

        def divergence(student: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad(), self._speaking(model):
                teacher = head(rows)
            return self._measure.full(student, teacher)

        return Said((states,), divergence)

    def _states(self, model: nn.Module, batch: LessonBatch) -> Tensor:
        speaker = model if self.model is None else self.model
        if self._scorer is None or self._scorer.model is not speaker:
            self._scorer = Scorer(speaker)
        with self._speaking(model):
            found = self._scorer.predictions(batch.teacher_rows)
        self._head = found.head
        return found.states

    @contextmanager
    def _speaking(self, model: nn.Module) -> Iterator[None]:
        if self.model is not None:
            with torch.no_grad():
                yield
            return
        student: Any = model
        with at_rest(model), student.disable_adapter():
            yield

    def _take_out(self) -> None:
        """Move the teacher to main memory, but for its head, which is asked when the student's logits are there."""
        model: Any = self.model
        model.to("cpu")
        model.get_output_embeddings().to(self._device)
