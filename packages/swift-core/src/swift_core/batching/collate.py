"""Samples to tensors: padded rows, or one row of segments without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from swift_core.protocols import EncodedSample

IGNORED = -100


@dataclass(slots=True)
class Batch:
    """A micro-batch.

    Attributes:
        input_ids: `[batch, seq]`; packed: `[1, tokens]`.
        attention_mask: `[batch, seq]`, 1 where there is a token.
        labels: `[batch, seq]`, the token where it is trained, -100 elsewhere; not shifted. The first token of a sample is
            never trained: nothing predicts it.
        origins: where each sample came from.
        segments: lengths of the samples of a packed batch; None when it is padded.
        loss_scale: `[batch, seq]` weight of each token's loss, or None when all weigh 1.
        model_inputs: further inputs of the model, such as `pixel_values`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    origins: list[str]
    segments: tuple[int, ...] | None = None
    loss_scale: torch.Tensor | None = None
    model_inputs: Mapping[str, Any] | None = None

    @property
    def trained_tokens(self) -> int:
        """Return how many predictions carry loss."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Return how many tokens are not padding."""
        return int(self.attention_mask.sum())

    @property
    def position_ids(self) -> torch.Tensor:
        """Return the positions of a packed batch, `[1, tokens]`: each sample counts from 0."""
        lengths = self.segments or (self.input_ids.shape[1],)
        return torch.cat([torch.arange(length, device=self.input_ids.device) for length in lengths])[None]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        extra = self.model_inputs
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in extra.items()} if extra else extra
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            loss_scale=None if self.loss_scale is None else self.loss_scale.to(device, non_blocking=True),
            model_inputs=moved,
        )

    def masked(self) -> Batch:
        """Return the batch without any trained token: a rank that has no samples left runs it to stay in step with the others."""
        return replace(self, labels=torch.full_like(self.labels, IGNORED), origins=[])

    def padded(self, pad_token_id: int = 0) -> Batch:
        """Return a packed batch as padded rows."""
        if self.segments is None:
            return self

        def rows(packed: torch.Tensor, fill: float) -> torch.Tensor:
            parts = packed[0].split(list(self.segments or ()))
            return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=fill)

        return replace(
            self,
            input_ids=rows(self.input_ids, pad_token_id),
            attention_mask=rows(self.attention_mask, 0),
            labels=rows(self.labels, IGNORED),
            loss_scale=None if self.loss_scale is None else rows(self.loss_scale, 0.0),
            segments=None,
        )


def collate(samples: Sequence[EncodedSample], *, pad_token_id: int, packed: bool = False) -> Batch:
    """Lay samples out: as one row of segments when `packed`, else padded on the right to the longest of them.

    Samples with media are padded: their positions depend on the model.
    """
    media = [sample for sample in samples if sample.model_inputs]
    scaled = any(sample.loss_scale is not None for sample in samples)
    origins = [sample.origin for sample in samples]
    if packed and not media:
        ids = torch.tensor([token for sample in samples for token in sample.input_ids], dtype=torch.long)[None]
        labels = torch.tensor([label for sample in samples for label in (IGNORED, *sample.labels[1:])], dtype=torch.long)[None]
        scale = torch.tensor([weight for sample in samples for weight in _scale(sample)])[None] if scaled else None
        segments = tuple(len(sample) for sample in samples)
        return Batch(ids, torch.ones_like(ids), labels, origins, segments=segments, loss_scale=scale)
    longest = max(len(sample) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(samples), longest), dtype=torch.long)
    labels = torch.full((len(samples), longest), IGNORED, dtype=torch.long)
    scale = torch.zeros((len(samples), longest)) if scaled else None
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = torch.tensor(sample.input_ids, dtype=torch.long)
        attention_mask[row, : len(sample)] = 1
        labels[row, 1 : len(sample)] = torch.tensor(sample.labels[1:], dtype=torch.long)
        if scale is not None:
            scale[row, : len(sample)] = torch.tensor(_scale(sample))
    inputs = None
    if media:
        from swift_core.batching.media import merge_model_inputs  # texts do without the image libraries

        inputs = merge_model_inputs(list(samples))
    return Batch(input_ids, attention_mask, labels, origins, loss_scale=scale, model_inputs=inputs)


def _scale(sample: EncodedSample) -> list[float]:
    return sample.loss_scale if sample.loss_scale is not None else [1.0] * len(sample)
