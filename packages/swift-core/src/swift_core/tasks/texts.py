"""Batches of tasks that look at whole texts: padded tokens, labels, and which texts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from swift_core.protocols import EncodedSample


@dataclass(slots=True)
class Texts:
    """Texts padded on the right.

    Attributes:
        input_ids: `[texts, seq]`.
        attention_mask: `[texts, seq]`, 1 where there is a token.
        token_type_ids: `[texts, seq]`, 1 in the second part of a pair, for models that tell the parts apart; else None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return what a model's forward takes."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return found if self.token_type_ids is None else {**found, "token_type_ids": self.token_type_ids}

    def to(self, device: torch.device) -> Texts:
        """Return the texts on a device."""
        types = self.token_type_ids.to(device, non_blocking=True) if self.token_type_ids is not None else None
        return Texts(self.input_ids.to(device, non_blocking=True), self.attention_mask.to(device, non_blocking=True), types)

    def split(self, size: int) -> list[Texts]:
        """Return the texts in parts of at most `size`, each as wide as its longest text."""
        parts: list[Texts] = []
        for start in range(0, len(self), size):
            mask = self.attention_mask[start : start + size]
            width = int(mask.sum(1).max())
            types = self.token_type_ids[start : start + size, :width] if self.token_type_ids is not None else None
            parts.append(Texts(self.input_ids[start : start + size, :width], mask[:, :width], types))
        return parts


def pad_texts(samples: Sequence[EncodedSample], *, pad_token_id: int) -> Texts:
    """Pad texts on the right to the longest of them."""
    longest = max(len(sample) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(samples), longest), dtype=torch.long)
    kinds = [(sample.model_inputs or {}).get("token_type_ids") for sample in samples]
    types = torch.zeros((len(samples), longest), dtype=torch.long) if any(kind is not None for kind in kinds) else None
    for row, (sample, kind) in enumerate(zip(samples, kinds, strict=True)):
        input_ids[row, : len(sample)] = torch.tensor(sample.input_ids, dtype=torch.long)
        attention_mask[row, : len(sample)] = 1
        if types is not None and kind is not None:
            types[row, : len(sample)] = torch.tensor(kind, dtype=torch.long)
    return Texts(input_ids, attention_mask, types)


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
        torch.tensor([hash(tuple(text.input_ids)) for text in texts], dtype=torch.long),
        True,
        [sample.origin for sample in samples],
    )


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
