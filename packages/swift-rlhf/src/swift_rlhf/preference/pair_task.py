"""DPO, CPO, SimPO, ORPO: the better of two answers made likelier than the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from swift_core.protocols import EncodedSample
from swift_core.tasks.gathering import gather_rows, row_counts, world_size
from torch import Tensor, nn

from swift_rlhf.preference.answers import AnswerScores
from swift_rlhf.preference.layout import AnswerBatch
from swift_rlhf.preference.objectives import Objective, PairValues, StepFacts, pair_values
from swift_rlhf.preference.scoring import at_rest
from swift_rlhf.preference.totals import summed


class PairTask:
    """A loss over pairs of answers, a mean over the pairs of a step.

    Args:
        objective: the loss.
        scores: policy and reference.
    """

    unit = "pairs"

    def __init__(self, objective: Objective, scores: AnswerScores) -> None:
        self.packs = scores.packed
        self._objective = objective
        self._scores = scores
        self._facts = StepFacts(1.0)

    # ---- what the trainer asks ---------------------------------------------------------------------------------------

    def weight(self, sample: EncodedSample) -> int:
        """Return 1: the loss is a mean over pairs."""
        return 1

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens that a pair puts through the model."""
        return self._scores.length(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> AnswerBatch:
        """Return pairs as a batch."""
        return self._scores.collate(samples, pad_token_id=pad_token_id)

    def begin_step(self, model: nn.Module, batches: Sequence[AnswerBatch]) -> None:
        """Find out what the loss must know of the whole step."""
        live = [batch for batch in batches if batch.live]
        counts = [sum(sum(batch.lengths[0::2]) for batch in live), sum(len(batch.lengths) // 2 for batch in live)]
        device = next(model.parameters()).device
        tokens, pairs = summed(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()
        delta = self._running_mean() if self._objective.runs_mean else 0.0
        self._facts = StepFacts(tokens / max(pairs, 1), delta, self._population(model, batches))

    def loss(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        """Return the summed loss over the pairs of a batch."""
        values = self._values(model, batch)
        losses = self._objective.losses(values, self._facts)
        self._scores.totals.add({"pairs": losses.new_tensor(len(losses)), **self._objective.metrics(values)}, live=batch.live)
        return losses.sum() if batch.live else losses.sum() * 0

    def end_step(self, model: nn.Module, step: int) -> None:
        """Move what follows the training."""
        sums = self._scores.end_step(model, step)
        if self._objective.runs_mean:
            seen = self._scores.running
            rewards = (sums["rewards/chosen"] + sums["rewards/rejected"]) / 2
            self._scores.running = {"sum": seen.get("sum", 0.0) + rewards, "count": seen.get("count", 0.0) + sums["pairs"]}

    def log_values(self) -> dict[str, float]:
        """Return rewards, margins, accuracies and log-probabilities, means since the last call."""
        return self._scores.totals.means()

    def measure(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        """Return what the loss reads of each pair, `[pairs, 8]`."""
        values = self._values(model, batch)
        columns = [getattr(values, name) for name in PairValues.__slots__]
        return torch.stack([column.double() for column in columns], dim=1).cpu()

    def metrics(self, parts: Iterable[Tensor]) -> dict[str, float]:
        """Return `loss`, the accuracy and the margin of held-out pairs, and what else is logged."""
        columns = torch.cat(list(parts)).unbind(1)
        values = PairValues(*columns)
        facts = StepFacts(float(values.chosen_lengths.mean()), self._running_mean() if self._objective.runs_mean else 0.0)
        count = len(columns[0])
        found = {name: float(total) / count for name, total in self._objective.metrics(values).items()}
        return {"loss": float(self._objective.losses(values, facts).mean()), **found}

    def save(self, folder: Path) -> None:
        """Write nothing: weights and tokenizer say everything."""

    def save_state(self, folder: Path) -> None:
        """Write what a resumed run goes on from."""
        self._scores.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """Take it back."""
        self._scores.load_state(folder)

    # ---- inside --------------------------------------------------------------------------------------------------------

    def _values(self, model: nn.Module, batch: AnswerBatch) -> PairValues:
        reference = self._scores.reference(model, batch) if self._objective.needs_reference else None
        scored = self._scores.policy(model, batch)
        lengths = torch.tensor(batch.lengths, device=scored.logps.device)
        return pair_values(scored, reference, lengths)

    def _running_mean(self) -> float:
        seen = self._scores.running
        return seen["sum"] / seen["count"] if seen.get("count") else 0.0

    def _population(self, model: nn.Module, batches: Sequence[AnswerBatch]) -> tuple[Tensor, Tensor] | None:
        """Return the values that aot sorts among, from a pass over the whole step; None where one micro-batch is all."""
        if not self._objective.sorts or (len(batches) == 1 and world_size() == 1):
            return None
        device = next(model.parameters()).device
        columns: list[tuple[Tensor, Tensor]] = []
        with at_rest(model):
            for batch in batches:
                batch.reference = self._scores.reference(model, batch.to(device))
                values = self._values(model, batch.to(device))
                if not batch.live:
                    continue
                if self._objective.sorts == "aot":
                    columns.append((values.chosen - values.rejected, values.ref_chosen - values.ref_rejected))
                else:
                    columns.append((values.chosen - values.ref_chosen, values.rejected - values.ref_rejected))
        empty = torch.zeros(0, device=device)
        first, second = (torch.cat([column[side] for column in columns]) if columns else empty for side in (0, 1))
        counts = row_counts(first)
        return gather_rows(first, counts), gather_rows(second, counts)
