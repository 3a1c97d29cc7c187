"""The module that is wrapped for data parallelism: batch in, loss out."""

from __future__ import annotations

import torch
from torch import nn

from swift_core.batching.collate import Batch
from swift_core.scoring.scorer import Scorer


class LossModule(nn.Module):
    """Runs the scorer inside a forward call, which is where wrappers such as DDP and autocast act."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._scorer = Scorer(model)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the summed loss over the trained tokens of a batch, scalar."""
        return self._scorer(batch).loss_sum

    def evaluate(self, batch: Batch) -> tuple[float, int, float]:
        """Return summed loss, trained tokens and correct predictions of a batch."""
        with torch.no_grad():
            scores = self._scorer(batch, with_correct=True)
        correct = float(scores.correct) if scores.correct is not None else 0.0
        return float(scores.loss_sum), scores.trained_tokens, correct
