"""Batches of tasks that look at whole texts: padded tokens, labels, and which texts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from swift_core.protocols import EncodedSample


@dataclass(slots=True)
class Texts:
    """Texts padded on the right.

    Attributes:
        input_ids: `[texts, seq]`.
        attention_mask: `[texts, seq]`, 1 where there is a token.
        further: further inputs of the model: token inputs such as `token_type_ids` `[texts, seq]`, and the media of all texts.
        samples: what the rows were made of.
        pad_token_id: fills shorter rows.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    further: dict[str, Any] = field(default_factory=dict[str, Any])
    samples: Sequence[EncodedSample] = ()
    pad_token_id: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """Return what a model's forward takes; media have the number type of the model."""
        found: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if not self.further:
            return found
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
        return {**found, **{name: _with_dtype(value, dtype) for name, value in self.further.items()}}

    def to(self, device: torch.device) -> Texts:
        """Return the texts on a device."""
        further = {name: value.to(device) for name, value in self.further.items()}
        ids, mask = (part.to(device, non_blocking=True) for part in (self.input_ids, self.attention_mask))
        return replace(self, input_ids=ids, attention_mask=mask, further=further)

    def split(self, size: int) -> list[Texts]:
        """Return the texts in parts of at most `size`, each as wide as its longest text."""
        starts = range(0, len(self), size)
        parts = [pad_texts(self.samples[start : start + size], pad_token_id=self.pad_token_id) for start in starts]
        return [part.to(self.input_ids.device) for part in parts]


def _with_dtype(value: Any, dtype: torch.dtype | None) -> Any:
    # Sizes and times have one axis and keep their own type.
    pictures = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1
    return value.to(dtype) if pictures and dtype is not None else value


def pad_texts(samples: Sequence[EncodedSample], *, pad_token_id: int) -> Texts:
    """Pad texts on the right to the longest of them, and put their media together.

    Raises:
        DataError: when the media of the texts do not go together.
    """
    longest = max(len(sample) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(samples), longest), dtype=torch.long)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = torch.tensor(sample.input_ids, dtype=torch.long)
        attention_mask[row, : len(sample)] = 1
    further: dict[str, Any] = {}
    if any(sample.model_inputs for sample in samples):
        from swift_core.batching.media import merge_model_inputs  # texts do without the image libraries

        further = dict(merge_model_inputs(samples))
    return Texts(input_ids, attention_mask, further, samples, pad_token_id)


@dataclass(slots=True)
class LabelledBatch:
    """Texts with a label each.

    Attributes:
        texts: `[batch]` texts.
        labels: `[batch]` class numbers, or `[batch, numbers]`.
        live: whether the batch carries loss.
        origins: where each sample came from.
    """

    texts: Texts
    labels: torch.Tensor
    live: bool
    origins: list[str]

    def to(self, device: torch.device) -> LabelledBatch:
        """Return the batch on a device."""
        return replace(self, texts=self.texts.to(device), labels=self.labels.to(device, non_blocking=True))

    def masked(self) -> LabelledBatch:
        """Return the batch without loss."""
        return replace(self, live=False, origins=[])


@dataclass(slots=True)
class GroupBatch:
    """Groups of texts: a query and its documents, as texts of their own or as pairs of both.

    Attributes:
        texts: the queries, if they are texts of their own, and then the documents, group by group.
        queries: how many queries lead `texts`: one for each group, or 0 for pairs.
        owners: `[documents]`, number of the group that a document belongs to, ascending.
        targets: `[documents]`, 1 for a document that belongs to the query, 0 for another; or a similarity.
        keys: `[texts]`, equal for equal texts.
        live: whether the batch carries loss.
        origins: where each group came from.
    """

    texts: Texts
    queries: int
    owners: torch.Tensor
    targets: torch.Tensor
    keys: torch.Tensor
    live: bool
    origins: list[str]

    def to(self, device: torch.device) -> GroupBatch:
        """Return the batch on a device."""
        owners, targets, keys = (part.to(device, non_blocking=True) for part in (self.owners, self.targets, self.keys))
        return replace(self, texts=self.texts.to(device), owners=owners, targets=targets, keys=keys)

    def masked(self) -> GroupBatch:
        """Return the batch without loss."""
        return replace(self, live=False, origins=[])


def collate_groups(samples: Sequence[EncodedSample], *, pad_token_id: int) -> GroupBatch:
    """Return groups as a batch; samples without tokens of their own hold pairs in their companions."""
    queries = [sample for sample in samples if sample.input_ids]
    documents = [document for sample in samples for document in companions(sample)]
    owners = [number for number, sample in enumerate(samples) for _ in companions(sample)]
    texts = [*queries, *documents]
    return GroupBatch(
        pad_texts(texts, pad_token_id=pad_token_id),
        len(queries),
        torch.tensor(owners, dtype=torch.long),
        torch.tensor([target for sample in samples for target in targets(sample)], dtype=torch.float32),
        torch.tensor([_key(text) for text in texts], dtype=torch.long),
        True,
        [sample.origin for sample in samples],
    )


def _key(text: EncodedSample) -> int:
    """Return a number that is equal for equal texts; two pictures are two texts."""
    media = [value for value in (text.model_inputs or {}).values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return hash((tuple(text.input_ids), *(float(value.double().sum()) for value in media)))


def companions(sample: EncodedSample) -> list[EncodedSample]:
    """Return the documents of a sample, those that belong to it first."""
    return [*sample.positives, *sample.negatives]


def targets(sample: EncodedSample) -> list[float]:
    """Return what each document's target is: the sample's label where it has one, else 1 for positives, and 0 for negatives."""
    own = 1.0 if sample.label is None else float(sample.label)
    return [own] * len(sample.positives) + [0.0] * len(sample.negatives)


def group_length(sample: EncodedSample) -> int:
    """Return the tokens of a sample and its documents."""
    return len(sample) + sum(len(document) for document in companions(sample))
