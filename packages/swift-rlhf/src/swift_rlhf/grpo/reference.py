"""Log-probabilities that the update does not make itself: of the reference model, and of the policy before several updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from swift_core.batching.packing import balanced_bins
from swift_core.errors import ModelError
from swift_core.scoring.scorer import Scorer
from swift_core.train.parallel import World
from torch import nn

from swift_rlhf.grpo.samples import AnswerGroup, collate_answers


class LogpsPass:
    """Runs models over answers without gradients.

    Args:
        model: the policy.
        reference: model to stay close to; None: the policy without its adapters.
        world: the processes of the run; each takes its share.
        temperature: divides the logits.
        tokens: of a forward pass.
        shared: whether a prompt is computed once for its answers.
        pad_token_id: fills padded rows.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        world: World,
        *,
        temperature: float,
        tokens: int,
        shared: bool,
        pad_token_id: int,
    ) -> None:
        self._model, self._reference, self._world = model, reference, world
        self._temperature, self._tokens, self._shared, self._pad = temperature, tokens, shared, pad_token_id
        self._scorers: dict[int, Scorer] = {}

    def of_policy(self, groups: Sequence[AnswerGroup], *, entropy: bool = False) -> list[list[tuple[list[float], list[float] | None]]]:
        """Return, for each answer of each group, log-probabilities and entropies of its tokens under the policy as it is."""
        return self.over(groups, self._model, lambda part: self._scored(part, self._model, entropy))

    def of_reference(self, groups: Sequence[AnswerGroup]) -> list[list[tuple[list[float], list[float] | None]]]:
        """Return the log-probabilities under the reference."""
        model = self._model if self._reference is None else self._reference
        with without_adapters(model) if self._reference is None else nullcontext():
            return self.over(groups, model, lambda part: self._scored(part, model, entropy=False))

    def over(self, groups: Sequence[AnswerGroup], model: nn.Module, score: Callable[[Sequence[AnswerGroup]], list[Any]]) -> list[Any]:
        """Return what `score` finds of each group, asked for a few at a time with the model at rest, every rank for its share."""
        size = self._world.size
        mine = list(range(len(groups)))[self._world.rank :: size]
        lengths = [len(group) + sum(len(answer.ids) for answer in group.answers) for group in groups]
        bins = balanced_bins(mine, lengths, bins=max(1, -(-sum(lengths[index] for index in mine) // self._tokens))) if mine else []
        found: dict[int, Any] = {}
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for indices in bins:
                    for index, values in zip(indices, score([groups[index] for index in indices]), strict=True):
                        found[index] = values
        finally:
            model.train(training)
        merged = {index: values for of_rank in self._world.gather(found) for index, values in of_rank.items()}
        return [merged[index] for index in range(len(groups))]

    def _scored(self, groups: Sequence[AnswerGroup], model: nn.Module, entropy: bool) -> list[list[Any]]:
        scorer = self._scorers.setdefault(id(model), Scorer(model))
        batch = collate_answers(groups, pad_token_id=self._pad, shared=self._shared, inert=True).to(self._world.device)
        values: list[Any] = []
        if batch.lengths:
            scores = scorer.logps(batch.rows, temperature=self._temperature, entropy=entropy)
            logps = scores.logps.float().split(batch.lengths)
            entropies = scores.entropies.float().split(batch.lengths) if scores.entropies is not None else [None] * len(logps)
            values = [(one.tolist(), None if other is None else other.tolist()) for one, other in zip(logps, entropies, strict=True)]
        taken = iter(values)
        return [[next(taken) if answer.tokens else ([], [] if entropy else None) for answer in group.answers] for group in groups]


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Run a model as it was before adapters were put on.

    Raises:
        ModelError: when it has none to switch off.
    """
    if not hasattr(model, "disable_adapter"):
        raise ModelError("the model has no adapters to switch off, so there is no reference", fix="--beta 0, or --ref_model MODEL")
    with model.disable_adapter():
        yield


__all__ = ["LogpsPass", "without_adapters"]
