"""Log-probabilities of the answers of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from swift_core.scoring.head import CHUNK_ROWS
from swift_core.scoring.predictions import Predictions
from swift_core.scoring.scorer import Scorer
from swift_core.train.task import with_dtype
from torch import Tensor, nn

from swift_rlhf.losses import desensitized_logps, padded, sequence_logps, wpo_weights
from swift_rlhf.preference.layout import AnswerBatch


class Scored(NamedTuple):
    """What a model makes of the answers of a batch.

    Attributes:
        logps: log-probability of each answer in nats, with LD-DPO the discounted one, `[answers]`.
        plain: log-probability of each answer in nats, `[answers]`.
        weights: how likely the model itself is to write each answer, without gradient, `[answers]`; None unless asked for.
    """

    logps: Tensor
    plain: Tensor
    weights: Tensor | None = None


def score_answers(scorer: Scorer, batch: AnswerBatch, *, ld_alpha: float | None = None, weighting: bool = False) -> Scored:
    """Return the log-probabilities of a batch's answers.

    Args:
        scorer: of the model.
        batch: pairs, or answers on their own.
        ld_alpha: weight of tokens past the length of the shorter answer of a pair; None: 1.
        weighting: whether to return weights (WPO).
    """
    laid_out = with_dtype(batch.batch, scorer.model)
    weights = None
    if weighting:
        found = scorer.predictions(laid_out)
        logps = scorer.logps_of(found).logps
        rows, mask = padded(logps, batch.lengths)
        weights = wpo_weights(rows, padded(_log_sum_squares(found), batch.lengths)[0], mask)
    else:
        rows, mask = padded(scorer.logps(laid_out).logps, batch.lengths)
    plain = sequence_logps(rows, mask)
    if ld_alpha is None:
        return Scored(plain, plain, weights)
    lengths = torch.tensor(batch.lengths, device=rows.device)
    shorter = lengths.view(-1, 2).min(1).values.repeat_interleave(2)
    return Scored(desensitized_logps(rows, mask, shorter, alpha=ld_alpha), plain, weights)


@torch.no_grad()
def _log_sum_squares(found: Predictions) -> Tensor:
    """Return `log sum_v p(v)^2` at each token, `[tokens]`, with the logits of a few tokens at a time."""
    logits = (found.head(part).float() for part in found.states.split(CHUNK_ROWS))
    return torch.cat([(2 * part).logsumexp(-1) - 2 * part.logsumexp(-1) for part in logits])


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Let a model compute without gradients and as in use, then go on training where it did."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def silence_dropout(model: nn.Module) -> None:
    """Switch dropout off for good: answers are compared under equal weights."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", cast(Any, 0.0))  # noqa: B010  (nn.Module declares its attributes as tensors)
