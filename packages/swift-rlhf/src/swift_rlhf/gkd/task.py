"""What distillation teaches: at each labelled token, the teacher's distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from swift_core.protocols import EncodedSample
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swift_rlhf.gkd.samples import Lesson, LessonBatch, collate_lessons
from swift_rlhf.gkd.teacher import Teacher
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.losses import chunked_sum

Sums = tuple[Tensor, Tensor]
"""Summed loss with gradient; and without: divergence, cross-entropy, tokens, tokens that the student did not write, `[4]`."""


class GkdTask:
    """A divergence between student and teacher, a mean over labelled tokens.

    Args:
        teacher: who is learned from.
        meter: takes what is logged.
        sft_alpha: weight of the cross-entropy of tokens that the student did not write.
        packed: lay conversations side by side without padding.
    """

    unit = "tokens"

    def __init__(self, teacher: Teacher, meter: Meter, *, sft_alpha: float, packed: bool) -> None:
        self.packs = packed
        self._teacher, self._meter, self._sft_alpha = teacher, meter, sft_alpha
        self._scorer: Scorer | None = None

    def weight(self, sample: EncodedSample) -> int:
        """Return the labelled tokens of a sample."""
        return sample.trained_tokens

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of a sample."""
        return len(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> LessonBatch:
        """Return lessons as a batch."""
        return collate_lessons(cast(Sequence[Lesson], samples), pad_token_id=pad_token_id, packed=self.packs)

    def begin_step(self, model: nn.Module, batches: Sequence[LessonBatch]) -> None:
        """Let the teacher look at the whole step, where that is better."""
        self._teacher.prepare(model, batches)

    def loss(self, model: nn.Module, batch: LessonBatch) -> Tensor:
        """Return the summed loss over the labelled tokens of a batch."""
        loss, sums = self._sums(model, batch)
        divergence, cost, tokens, foreign = sums.tolist()
        self._meter.add_value("gkd/divergence", divergence, tokens)
        self._meter.add_value("gkd/on_policy", tokens - foreign, tokens)
        if self._sft_alpha:
            self._meter.add_value("gkd/cross_entropy", cost, foreign)
        return loss

    def end_step(self, model: nn.Module, step: int) -> None:
        """Do nothing: the teacher stays as it is."""

    def measure(self, model: nn.Module, batch: LessonBatch) -> list[float]:
        """Return summed divergence and tokens."""
        divergence, _, tokens, _ = self._sums(model, batch)[1].tolist()
        return [divergence, tokens]

    def metrics(self, parts: Iterable[list[float]]) -> dict[str, float]:
        """Return `loss`, the divergence per token in nats."""
        divergence, tokens = (sum(column) for column in zip([0.0, 0.0], *parts, strict=True))
        return {"loss": divergence / max(tokens, 1)}

    def save(self, folder: Path) -> None:
        """Write nothing: weights and tokenizer say everything."""

    def log_values(self) -> dict[str, float]:
        """Return what has been logged since the last call."""
        return self._meter.values()

    def _sums(self, model: nn.Module, batch: LessonBatch) -> Sums:
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        said = self._teacher.look(model, batch)
        found = self._scorer.predictions(batch.rows)
        alpha, seen = self._sft_alpha, torch.zeros(2, dtype=torch.float64, device=found.states.device)

        def losses(states: Tensor, wanted: Tensor, foreign: Tensor, *rows: Tensor) -> Tensor:
            logits = found.head(states)
            divergence = said.divergence(logits, *rows)
            seen[0] += divergence.detach().sum()
            if not alpha:
                return divergence
            costs = cross_entropy(logits.to(divergence.dtype), wanted, reduction="none") * foreign
            seen[1] += costs.detach().sum()
            return divergence + alpha * costs

        parameters = [each for each in found.parameters if each.requires_grad]
        total = chunked_sum(losses, found.states, found.targets, batch.foreign, *said.rows, parameters=parameters)
        counts = torch.tensor([float(len(batch.foreign)), float(batch.foreign.sum())], dtype=torch.float64, device=seen.device)
        return total, torch.cat([seen, counts])
