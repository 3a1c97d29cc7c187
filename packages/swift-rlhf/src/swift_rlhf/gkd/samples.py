"""Conversations that a student and its teacher read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from swift_core.batching.collate import IGNORED, Batch, collate
from swift_core.errors import DataError
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.templates.chat import ChatTemplate
from torch import Tensor

from swift_rlhf.grpo.prompts import question
from swift_rlhf.grpo.rewarded import Rewarded

COLUMN = "teacher_prompt"


@dataclass(slots=True)
class Lesson(EncodedSample):
    """A conversation whose labelled tokens both models predict.

    Attributes:
        teacher_prompt: what the teacher reads instead of all tokens before the first labelled one; empty: the same.
        own: whether the student wrote the labelled tokens.
    """

    teacher_prompt: list[int] = field(default_factory=list[int])
    own: bool = False

    def for_teacher(self) -> EncodedSample:
        """Return the conversation as the teacher reads it."""
        if not self.teacher_prompt:
            return EncodedSample(self.input_ids, self.labels, self.origin)
        start = next((place for place, label in enumerate(self.labels) if label != IGNORED), len(self.labels))
        ids = [*self.teacher_prompt, *self.input_ids[start:]]
        return EncodedSample(ids, [IGNORED] * len(self.teacher_prompt) + self.labels[start:], self.origin)


@dataclass(slots=True)
class LessonBatch:
    """Lessons of a micro-batch.

    Attributes:
        rows: as the student reads them.
        teacher_rows: as the teacher does, with the same labelled tokens in the same order.
        foreign: for each labelled token, 1 where the student did not write it, `[tokens]`.
        known: what the teacher has said already, rows `[tokens, ...]`; empty while it has not.
        origins: where the conversations came from.
    """

    rows: Batch
    teacher_rows: Batch
    foreign: Tensor
    origins: list[str]
    known: tuple[Tensor, ...] = ()

    @property
    def input_ids(self) -> Tensor:
        """Return the token ids, padding included."""
        return self.rows.input_ids

    @property
    def attention_mask(self) -> Tensor:
        """Return 1 where there is a token."""
        return self.rows.attention_mask

    def to(self, device: torch.device) -> LessonBatch:
        """Return the batch on a device."""
        known = tuple(each.to(device) for each in self.known)
        return replace(
            self, rows=self.rows.to(device), teacher_rows=self.teacher_rows.to(device), foreign=self.foreign.to(device), known=known
        )

    def masked(self) -> LessonBatch:
        """Return the batch without a labelled token."""
        return LessonBatch(self.rows.masked(), self.teacher_rows.masked(), self.foreign[:0], [])


def collate_lessons(lessons: Sequence[Lesson], *, pad_token_id: int, packed: bool) -> LessonBatch:
    """Return lessons as a batch; `packed` lays them side by side without padding."""
    rows = collate(lessons, pad_token_id=pad_token_id, packed=packed)
    other = any(lesson.teacher_prompt for lesson in lessons)
    shown = collate([lesson.for_teacher() for lesson in lessons], pad_token_id=pad_token_id, packed=packed) if other else rows
    foreign = [0.0 if lesson.own else 1.0 for lesson in lessons for _ in range(lesson.trained_tokens)]
    return LessonBatch(rows, shown, torch.tensor(foreign), rows.origins)


def teacher_prompt(sample: Sample, template: ChatTemplate, *, needed: bool) -> list[int]:
    """Return the tokens of a prompt in which the column `teacher_prompt` stands for the last question; empty without one.

    Args:
        sample: the row.
        template: of both models.
        needed: whether every row must have one.

    Raises:
        DataError: when it is needed and absent, or no text.
    """
    text: Any = sample.extra.get(COLUMN)
    if text is None:
        if needed:
            fix = f"add the column {COLUMN}, or --teacher_model MODEL"
            raise DataError(f"there is no {COLUMN}: without it the model would learn from itself", location=sample.origin or None, fix=fix)
        return []
    if not isinstance(text, str) or not text:
        raise DataError(f"{COLUMN} is {text!r}", location=sample.origin or None, fix="write a text")
    messages, _ = question(sample)
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not asked:
        raise DataError(
            f"{COLUMN} stands for the last question, and there is none", location=sample.origin or None, fix="add a user message"
        )
    messages[asked[-1]] = Message(role="user", content=text)
    return template.encode_prompt(messages, sample.tools)


def written_lesson(rewarded: Rewarded, prompt: list[int], *, own: bool) -> Lesson:
    """Return what a model wrote during the run as a lesson.

    Args:
        rewarded: a prompt with one answer.
        prompt: that the teacher reads, or nothing.
        own: whether the student wrote it.
    """
    group, answer = rewarded.group, rewarded.group.answers[0]
    labels = [token if counts else IGNORED for token, counts in zip(answer.ids, answer.mask, strict=True)]
    return Lesson([*group.input_ids, *answer.ids], [*group.labels, *labels], group.origin, teacher_prompt=prompt, own=own)
