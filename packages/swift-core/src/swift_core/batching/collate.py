"""Samples to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swift_core.protocols import EncodedSample

IGNORED = -100


@dataclass(slots=True)
class Batch:
    """A padded micro-batch.

    Attributes:
        input_ids: `[batch, seq]`.
        attention_mask: `[batch, seq]`, 1 where there is a token.
        labels: `[batch, seq]`, the token where it is trained, -100 elsewhere; not shifted.
        origins: where each sample came from.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    origins: list[str]

    @property
    def trained_tokens(self) -> int:
        """Return how many predictions carry loss."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Return how many tokens are not padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.origins,
        )

    def masked(self) -> Batch:
        """Return the batch without any trained token: a rank that has no samples left runs it to stay in step with the others."""
        return Batch(self.input_ids, self.attention_mask, torch.full_like(self.labels, IGNORED), [])


def collate(samples: Sequence[EncodedSample], *, pad_token_id: int) -> Batch:
    """Pad samples on the right to the longest of them."""
    longest = max(len(sample) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(samples), longest), dtype=torch.long)
    labels = torch.full((len(samples), longest), IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = torch.tensor(sample.input_ids, dtype=torch.long)
        attention_mask[row, : len(sample)] = 1
        labels[row, : len(sample)] = torch.tensor(sample.labels, dtype=torch.long)
    return Batch(input_ids, attention_mask, labels, [sample.origin for sample in samples])
