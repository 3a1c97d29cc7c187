"""An answer with what each of its tokens was worth, and several of them as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from swift_rlhf.grpo.samples import AnswerBatch, AnswerGroup, collate_answers
from swift_rlhf.losses.tokens import padded

_COLUMNS = ("values", "advantages", "returns")


@dataclass(slots=True)
class ValuedAnswer(AnswerGroup):
    """A prompt with one answer; the lists have one number for each token that the model wrote.

    Attributes:
        values: what the critic expected when the answer was written.
        advantages: how much better than expected each token was.
        returns: what the critic should have expected.
    """

    values: list[float] = field(default_factory=list[float])
    advantages: list[float] = field(default_factory=list[float])
    returns: list[float] = field(default_factory=list[float])

    @property
    def tokens(self) -> int:
        """Return how many tokens are trained."""
        return sum(answer.tokens for answer in self.answers)

    @classmethod
    def valued(cls, group: AnswerGroup, columns: dict[str, list[float]]) -> Self:
        """Return a group with the worth of its tokens."""
        made = cls(group.input_ids, group.labels, group.origin, answers=group.answers, group=group.group, version=group.version)
        for name, values in columns.items():
            setattr(made, name, values)
        return made

    def saved(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**AnswerGroup.saved(self), **{name: getattr(self, name) for name in _COLUMNS}}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Self:
        """Return what was saved."""
        return cls.valued(AnswerGroup.restored(values), {name: values[name] for name in _COLUMNS})


@dataclass(slots=True)
class ValuedBatch:
    """Answers of a micro-batch.

    Attributes:
        answers: their tokens, and their log-probabilities before the update.
        values, advantages, returns: `[answers, tokens]`, 0 after the last token.
    """

    answers: AnswerBatch
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def origins(self) -> list[str]:
        """Return where each prompt came from."""
        return self.answers.origins

    @property
    def input_ids(self) -> Tensor:
        """Return the token ids, padding included."""
        return self.answers.rows.input_ids

    @property
    def attention_mask(self) -> Tensor:
        """Return 1 where there is a token."""
        return self.answers.rows.attention_mask

    def to(self, device: torch.device) -> ValuedBatch:
        """Return the batch on a device."""
        columns = {name: getattr(self, name).to(device) for name in _COLUMNS}
        return replace(self, answers=self.answers.to(device), **columns)

    def masked(self) -> ValuedBatch:
        """Return the batch with no answers."""
        return replace(self, answers=self.answers.masked())


def collate_valued(samples: Sequence[ValuedAnswer], *, pad_token_id: int, shared: bool) -> ValuedBatch:
    """Lay answers out; the arguments are those of `collate_answers`."""
    kept = [sample for sample in samples if sample.tokens]
    lengths = [sample.tokens for sample in kept]
    columns: dict[str, Tensor] = {}
    for name in _COLUMNS:
        flat = torch.tensor([value for sample in kept for value in getattr(sample, name)], dtype=torch.float32)
        columns[name] = padded(flat, lengths)[0] if kept else flat[None, :0]
    return ValuedBatch(collate_answers(kept, pad_token_id=pad_token_id, shared=shared, inert=True), **columns)
