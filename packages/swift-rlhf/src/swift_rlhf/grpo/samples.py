"""Answers to a prompt as a training sample, and several of them as a batch that computes each prompt once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from swift_core.batching.collate import IGNORED, Batch, collate
from swift_core.protocols import EncodedSample
from torch import Tensor

from swift_rlhf.losses.tokens import padded

NAN = math.nan


@dataclass(slots=True)
class Answer:
    """What the model wrote to a prompt, as tokens.

    Attributes:
        ids: all tokens after the prompt: written by the model, or shown to it.
        mask: 1 where the model wrote the token and it counts, 0 elsewhere.
        sampler_logps: of the tokens with mask 1 when they were drawn; NaN where unknown.
        old_logps: the same under the trainer's weights at that time; None: as in the forward pass that trains them.
        ref_logps: the same under the reference model; None without one.
        keep: for the tokens with mask 1, whether they carry loss; None: all do.
        advantage: how much better than expected the answer is.
        episode: number of the episode in its group; its turns are answers of their own where history is written anew.
    """

    ids: list[int]
    mask: list[int]
    sampler_logps: list[float]
    old_logps: list[float] | None = None
    ref_logps: list[float] | None = None
    keep: list[bool] | None = None
    advantage: float = 0.0
    episode: int = 0

    @property
    def tokens(self) -> int:
        """Return how many tokens count."""
        return sum(self.mask)


@dataclass(slots=True)
class AnswerGroup(EncodedSample):
    """A prompt (`input_ids`) and answers to it.

    Attributes:
        answers: some or all answers of the group.
        group: number of the group in the run.
        version: optimizer steps before the answers were written.
        experts: answers of experts that are imitated in the same forward pass.
        expert_scale: factor of their summed cross-entropy.
        policy_scale: factor of the policy loss beside them.
    """

    answers: list[Answer] = field(default_factory=list[Answer])
    group: int = 0
    version: int = 0
    experts: list[EncodedSample] = field(default_factory=list[EncodedSample])
    expert_scale: float = 0.0
    policy_scale: float = 1.0

    @classmethod
    def of(cls, prompt_ids: Sequence[int], answers: Sequence[Answer], *, group: int, version: int, origin: str) -> AnswerGroup:
        """Return a group from a prompt and its answers."""
        ids = list(prompt_ids)
        return cls(ids, [IGNORED] * len(ids), origin, answers=list(answers), group=group, version=version)

    def parts(self, size: int) -> list[AnswerGroup]:
        """Return the group in parts of so many episodes."""
        episodes = 1 + max(answer.episode for answer in self.answers)
        return [
            replace(self, answers=[answer for answer in self.answers if start <= answer.episode < start + size])
            for start in range(0, episodes, size)
        ]

    def saved(self) -> dict[str, Any]:
        """Return the group as plain values."""
        return {
            "prompt_ids": self.input_ids,
            "answers": [asdict(answer) for answer in self.answers],
            "group": self.group,
            "version": self.version,
            "origin": self.origin,
        }

    @classmethod
    def restored(cls, values: dict[str, Any]) -> AnswerGroup:
        """Return a group that was saved."""
        answers = [Answer(**answer) for answer in values["answers"]]
        return cls.of(values["prompt_ids"], answers, group=values["group"], version=values["version"], origin=values["origin"])


@dataclass(slots=True)
class AnswerBatch:
    """Answers of a micro-batch.

    Attributes:
        rows: their tokens: one row with every prompt once and its answers as branches.
        lengths: tokens of each answer that count.
        advantages: `[answers]`.
        sampler_logps, old_logps, ref_logps: `[answers, tokens]`; NaN where unknown.
        keep: `[answers, tokens]`, bool, or None.
        group_ids: `[answers]`.
        origins: where each prompt came from.
        experts: answers of experts, or None.
        expert_scale: factor of their summed cross-entropy.
        policy_scale: factor of the policy loss.
    """

    rows: Batch
    lengths: tuple[int, ...]
    advantages: Tensor
    sampler_logps: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    keep: Tensor | None
    group_ids: Tensor
    origins: list[str]
    experts: Batch | None = None
    expert_scale: float = 0.0
    policy_scale: float = 1.0

    def to(self, device: torch.device) -> AnswerBatch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        names = ("advantages", "sampler_logps", "old_logps", "ref_logps", "group_ids")
        moved = {name: getattr(self, name).to(device) for name in names}
        keep = None if self.keep is None else self.keep.to(device)
        experts = None if self.experts is None else self.experts.to(device)
        return replace(self, rows=self.rows.to(device), keep=keep, experts=experts, **moved)

    def masked(self) -> AnswerBatch:
        """Return the batch with no answers."""
        return replace(self, lengths=(), origins=[], experts=None)


def collate_answers(groups: Sequence[AnswerGroup], *, pad_token_id: int, shared: bool = True, inert: bool = False) -> AnswerBatch:
    """Lay the answers of groups out.

    Args:
        groups: groups, or parts of them; parts of one group share its prompt.
        pad_token_id: fills rows where answers are padded.
        shared: whether a prompt is computed once for its answers; otherwise every answer is a padded row of its own.
        inert: whether to keep answers with an advantage of 0, which move nothing but a distance from the reference.
    """
    chosen: dict[int, list[Answer]] = {}
    heads: dict[int, AnswerGroup] = {}
    for group in groups:
        kept = [answer for answer in group.answers if answer.tokens and (inert or answer.advantage != 0)]
        if kept:
            chosen.setdefault(group.group, []).extend(kept)
            heads.setdefault(group.group, group)
    answers = [answer for found in chosen.values() for answer in found]
    samples = [_sample(heads[name], answer) for name, found in chosen.items() for answer in found]
    experts = [sample for group in groups for sample in group.experts]
    rows = _tree(chosen, heads) if shared else None
    if rows is None:
        rows = collate(samples, pad_token_id=pad_token_id) if samples else _nothing()
    rows = replace(rows, samples=samples, pad_token_id=pad_token_id)
    lengths = tuple(answer.tokens for answer in answers)
    names = [name for name, found in chosen.items() for _ in found]
    keep = (
        _padded([answer.keep or [True] * answer.tokens for answer in answers]).bool() if any(a.keep is not None for a in answers) else None
    )
    return AnswerBatch(
        rows,
        lengths,
        torch.tensor([answer.advantage for answer in answers]),
        _padded([answer.sampler_logps for answer in answers]),
        _padded([answer.old_logps or [NAN] * answer.tokens for answer in answers]),
        _padded([answer.ref_logps or [NAN] * answer.tokens for answer in answers]),
        keep,
        torch.tensor(names, dtype=torch.long),
        [group.origin for group in heads.values()],
        collate(experts, pad_token_id=pad_token_id, packed=shared) if experts else None,
        groups[0].expert_scale if groups else 0.0,
        groups[0].policy_scale if groups else 1.0,
    )


def _padded(values: Sequence[Sequence[float]]) -> Tensor:
    flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
    return padded(flat, [len(row) for row in values])[0] if values else flat[None, :0]


def _labels(answer: Answer) -> list[int]:
    return [token if counts else IGNORED for token, counts in zip(answer.ids, answer.mask, strict=True)]


def _sample(group: AnswerGroup, answer: Answer) -> EncodedSample:
    return EncodedSample([*group.input_ids, *answer.ids], [*group.labels, *_labels(answer)], group.origin)


def _nothing() -> Batch:
    ids = torch.zeros(1, 1, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORED), [])


def _tree(chosen: dict[int, list[Answer]], heads: dict[int, AnswerGroup]) -> Batch | None:
    ids: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    parents: list[int] = []
    for name, answers in chosen.items():
        prompt = heads[name].input_ids
        if not prompt:
            return None  # nothing predicts the first token of an answer
        trunk = len(lengths)
        ids += prompt
        labels += [IGNORED] * len(prompt)
        lengths.append(len(prompt))
        parents.append(-1)
        for answer in answers:
            ids += answer.ids
            labels += _labels(answer)
            lengths.append(len(answer.ids))
            parents.append(trunk)
    if not ids:
        return None
    row = torch.tensor(ids, dtype=torch.long)[None]
    branches = tuple(parents)
    return Batch(row, torch.ones_like(row), torch.tensor(labels)[None], [], segments=tuple(lengths), parents=branches)
