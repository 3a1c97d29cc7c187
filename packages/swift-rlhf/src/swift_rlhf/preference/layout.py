"""Answers to tensors: a prompt once with both of its answers behind it, or conversations one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from swift_core.batching.collate import IGNORED, Batch, Positions, collate
from swift_core.protocols import EncodedSample

from swift_rlhf.preference.samples import Answer


@dataclass(slots=True)
class AnswerBatch:
    """Answers whose log-probabilities are compared.

    Attributes:
        batch: the tokens; labels of all answers in their order.
        lengths: trained tokens of each answer.
        origins: where each row came from.
        labels: of each answer for KTO, `[answers]`, bool; None for pairs, which come as better, worse, better, worse, ...
        reference: log-probability of each answer under the reference model, `[answers]`; None while unknown.
        unrelated: prompts with answers to other prompts, for the KL of KTO.
        live: whether the batch carries loss.
    """

    batch: Batch
    lengths: tuple[int, ...]
    origins: list[str]
    labels: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    unrelated: AnswerBatch | None = None
    live: bool = True

    @property
    def input_ids(self) -> torch.Tensor:
        """Return the token ids, padding included."""
        return self.batch.input_ids

    @property
    def attention_mask(self) -> torch.Tensor:
        """Return 1 where there is a token."""
        return self.batch.attention_mask

    def to(self, device: torch.device) -> AnswerBatch:
        """Return the batch on a device."""
        return replace(
            self,
            batch=self.batch.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            reference=None if self.reference is None else self.reference.to(device),
            unrelated=None if self.unrelated is None else self.unrelated.to(device),
        )

    def masked(self) -> AnswerBatch:
        """Return the batch without loss."""
        return replace(self, origins=[], live=False, unrelated=None if self.unrelated is None else self.unrelated.masked())


def lay_out(rows: Sequence[Answer], *, pad_token_id: int, packed: bool, positions: Positions | None = None) -> AnswerBatch:
    """Return rows as a batch.

    Args:
        rows: pairs, or answers on their own.
        pad_token_id: fills rows when they are padded.
        packed: one row without padding, in which the two answers of a pair continue one prompt; media are never shared.
        positions: counts the positions of a packed row with media, for models that do it in a way of their own.
    """
    answers = [answer for row in rows for answer in row.answers]
    media = any(answer.model_inputs for answer in answers)
    shares = packed and not media and any(row.rejected is not None and row.shared for row in rows)
    batch = (
        _tree(rows, answers, pad_token_id) if shares else collate(answers, pad_token_id=pad_token_id, packed=packed, positions=positions)
    )
    known = [answer.reference for answer in answers if answer.reference is not None]
    judged = [row for row in rows if row.rejected is None]
    unrelated = [row.unrelated for row in rows if row.unrelated is not None]
    return AnswerBatch(
        batch,
        tuple(answer.trained_tokens for answer in answers),
        [row.origin for row in rows],
        labels=torch.tensor([bool(row.label) for row in judged]) if judged else None,
        reference=torch.tensor(known, dtype=torch.float64) if len(known) == len(answers) else None,
        unrelated=lay_out(unrelated, pad_token_id=pad_token_id, packed=packed, positions=positions) if unrelated else None,
    )


def row_tokens(row: Answer, *, shared: bool) -> int:
    """Return how many tokens a row puts through the model, with its prompt once where it is `shared`."""
    saved = row.shared if shared and row.rejected is not None and not row.model_inputs else 0
    return sum(map(len, row.answers)) - saved


def _tree(rows: Sequence[Answer], answers: Sequence[EncodedSample], pad_token_id: int) -> Batch:
    ids: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    parents: list[int] = []

    def add(answer: EncodedSample, start: int, stop: int, parent: int) -> None:
        ids.extend(answer.input_ids[start:stop])
        # Nothing predicts the first token of a conversation.
        labels.extend(answer.labels[start:stop] if start else [IGNORED, *answer.labels[1:stop]])
        lengths.append(stop - start)
        parents.append(parent)

    for row in rows:
        shared = row.shared if row.rejected is not None else 0
        if shared:
            add(row, 0, shared, -1)
        prompt = len(lengths) - 1 if shared else -1
        for answer in row.answers:
            add(answer, shared, len(answer), prompt)
    tokens = torch.tensor(ids)[None]
    return Batch(
        tokens,
        torch.ones_like(tokens),
        torch.tensor(labels)[None],
        [answer.origin for answer in answers],
        segments=tuple(lengths),
        samples=answers,
        pad_token_id=pad_token_id,
        parents=tuple(parents),
    )
