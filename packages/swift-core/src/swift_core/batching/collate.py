"""Samples to tensors: padded rows, or one row of segments without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from swift_core.batching.layout import Layout
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
        positions: positions of a packed row where the model counts in a way of its own.
        samples: what a packed batch was made of, in order.
        pad_token_id: fills rows when it is padded after all.
        channels: for each sample the name that its loss is reported under, or "".
        parents: for each segment, number of the one that it continues, or -1; empty: none does.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    origins: list[str]
    segments: tuple[int, ...] | None = None
    loss_scale: torch.Tensor | None = None
    model_inputs: Mapping[str, Any] | None = None
    positions: torch.Tensor | None = None
    samples: Sequence[EncodedSample] = ()
    pad_token_id: int = 0
    parents: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout | None:
        """Return which tokens of a packed row see which; None when it is padded."""
        return None if self.segments is None else Layout(self.segments, self.parents)

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
        """Return the positions of a packed batch, `[1, tokens]` or as the model counts them: each sample starts from 0."""
        if self.positions is not None:
            return self.positions
        layout = self.layout or Layout((self.input_ids.shape[1],))
        return torch.tensor(layout.positions(), device=self.input_ids.device)[None]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        extra = self.model_inputs
        moved = {key: value.to(device) if hasattr(value, "to") else value for key, value in extra.items()} if extra else extra
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            loss_scale=None if self.loss_scale is None else self.loss_scale.to(device, non_blocking=True),
            model_inputs=moved,
            positions=None if self.positions is None else self.positions.to(device, non_blocking=True),
        )

    def masked(self) -> Batch:
        """Return the batch without any trained token: a rank that has no samples left runs it to stay in step with the others."""
        return replace(self, labels=torch.full_like(self.labels, IGNORED), origins=[])

    def filled(self, tokens: int) -> Batch:
        """Return a packed batch of so many tokens: what fills it is a sample of its own that nothing is trained of."""
        more, layout = tokens - self.input_ids.shape[1], self.layout
        if not more or layout is None:
            return self
        return replace(
            self,
            input_ids=F.pad(self.input_ids, (0, more)),
            attention_mask=F.pad(self.attention_mask, (0, more)),
            labels=F.pad(self.labels, (0, more), value=IGNORED),
            loss_scale=None if self.loss_scale is None else F.pad(self.loss_scale, (0, more)),
            positions=F.pad(self.position_ids, (0, more)),
            segments=(*layout.lengths, more),
            parents=(*layout.parents, -1) if layout.parents else (),
        )

    def padded(self) -> Batch:
        """Return a packed batch as padded rows."""
        if self.segments is None:
            return self
        padded = collate(self.samples, pad_token_id=self.pad_token_id).to(self.input_ids.device)
        return padded if (self.labels != IGNORED).any() else padded.masked()


Positions = Callable[[Sequence[EncodedSample]], torch.Tensor]


def collate(samples: Sequence[EncodedSample], *, pad_token_id: int, packed: bool = False, positions: Positions | None = None) -> Batch:
    """Lay samples out: as one row of segments when `packed`, else padded on the right to the longest of them.

    Args:
        samples: samples of one micro-batch.
        pad_token_id: fills shorter rows.
        packed: one row without padding; samples with media are packed only where `positions` is given.
        positions: counts the positions of a packed row, for models that do it in a way of their own.
    """
    media = any(sample.model_inputs for sample in samples)
    scaled = any(sample.loss_scale is not None for sample in samples)
    origins = [sample.origin for sample in samples]
    channels = tuple(sample.channel or "" for sample in samples)
    inputs = None
    packed = packed and (not media or positions is not None)
    if media:
        from swift_core.batching.media import merge_model_inputs  # texts do without the image libraries

        inputs = merge_model_inputs(samples, packed=packed)
    if packed:
        ids = torch.tensor([token for sample in samples for token in sample.input_ids], dtype=torch.long)[None]
        labels = torch.tensor([label for sample in samples for label in (IGNORED, *sample.labels[1:])], dtype=torch.long)[None]
        scale = torch.tensor([weight for sample in samples for weight in _scale(sample)])[None] if scaled else None
        return Batch(
            ids,
            torch.ones_like(ids),
            labels,
            origins,
            segments=tuple(len(sample) for sample in samples),
            loss_scale=scale,
            model_inputs=inputs,
            positions=positions(samples) if media and positions is not None else None,
            samples=samples,
            pad_token_id=pad_token_id,
            channels=channels,
        )
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
    return Batch(input_ids, attention_mask, labels, origins, loss_scale=scale, model_inputs=inputs, channels=channels)


def _scale(sample: EncodedSample) -> list[float]:
    return sample.loss_scale if sample.loss_scale is not None else [1.0] * len(sample)
