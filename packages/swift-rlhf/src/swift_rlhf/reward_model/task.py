"""A head with one output, trained so that the better of two answers scores higher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from swift_core.protocols import EncodedSample
from swift_core.tasks.texts import GroupBatch, Texts, collate_groups, group_length
from torch import Tensor, nn

from swift_rlhf.losses import reward_model_loss
from swift_rlhf.preference.totals import Totals


class RewardModel:
    """Scores from a head; a sample is a better and a worse answer, and its label the margin between them.

    With several outputs each learns on its own, and the score of an answer is their mean.

    Args:
        center: weight of the squared sum of both scores, or None.
    """

    unit = "pairs"
    packs = False

    def __init__(self, center: float | None) -> None:
        self._center = center
        self._totals = Totals("pairs")

    def weight(self, sample: EncodedSample) -> int:
        """Return 1: the loss is a mean over pairs."""
        return 1

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of both answers, prompts included."""
        return group_length(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> GroupBatch:
        """Return pairs as padded texts: better, worse, better, worse, ..."""
        return collate_groups(samples, pad_token_id=pad_token_id)

    def _scores(self, model: nn.Module, texts: Texts) -> Tensor:
        """Return `[texts, outputs]`."""
        return model(**texts.inputs(model)).logits.float()

    def begin_step(self, model: nn.Module, batches: Sequence[GroupBatch]) -> None:
        """Do nothing: a pair is judged on its own."""

    def loss(self, model: nn.Module, batch: GroupBatch) -> Tensor:
        """Return the summed loss over the pairs of a batch."""
        scores = self._scores(model, batch.texts)
        chosen, rejected = scores[0::2], scores[1::2]
        losses = self._losses(chosen, rejected, batch.targets[0::2])
        self._totals.add({"pairs": losses.new_tensor(len(losses)), **_sums(chosen, rejected)}, live=batch.live)
        return losses.sum() if batch.live else losses.sum() * 0

    def end_step(self, model: nn.Module, step: int) -> None:
        """Join the sums of all ranks."""
        self._totals.close_step()

    def log_values(self) -> dict[str, float]:
        """Return scores, margins and accuracies, means since the last call."""
        return self._totals.means()

    def measure(self, model: nn.Module, batch: GroupBatch) -> Tensor:
        """Return the outputs for both answers and the margin of each pair, `[pairs, 2 * outputs + 1]`."""
        scores = self._scores(model, batch.texts)
        return torch.cat([scores[0::2], scores[1::2], batch.targets[0::2, None]], dim=1).cpu()

    def metrics(self, parts: Iterable[Tensor]) -> dict[str, float]:
        """Return `loss`, the share of pairs ranked right, and the mean scores and margin."""
        values = torch.cat(list(parts))
        chosen, rejected = values[:, :-1].chunk(2, dim=1)
        losses = self._losses(chosen, rejected, values[:, -1])
        return {"loss": float(losses.mean()), **{name: float(total) / len(losses) for name, total in _sums(chosen, rejected).items()}}

    def _losses(self, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        """Return the loss of each pair, a mean over the outputs, `[pairs]`."""
        return reward_model_loss(chosen, rejected, margin=margin[:, None], center_coefficient=self._center).mean(1)

    def save(self, folder: Path) -> None:
        """Write nothing: the head is in the model, its size and kind in the model's config."""


def _sums(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    chosen, rejected = chosen.mean(1), rejected.mean(1)
    return {
        "rewards/chosen": chosen.detach().sum(),
        "rewards/rejected": rejected.detach().sum(),
        "rewards/margins": (chosen - rejected).detach().sum(),
        "rewards/accuracies": (chosen > rejected).float().sum(),
    }
