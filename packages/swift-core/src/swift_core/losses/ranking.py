"""Losses of rerankers: one score for each pair of query and document."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pointwise(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each pair: is this document relevant?

    Args:
        scores: `[pairs]`, logits of relevance.
        targets: `[pairs]`, 1 for a relevant document, 0 for another.

    Returns:
        `[pairs]`.
    """
    return F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none")


def listwise(scores: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """Return, for each relevant document, the cross-entropy of choosing it from its group.

    `-log(exp(s+/t) / (exp(s+/t) + sum exp(s-/t)))` over the irrelevant documents of the same query, which is the top-one loss of
    ListNet (Cao et al., 2007) for one relevant document. Other relevant documents of the group are no competitors.

    Args:
        scores: `[pairs]`.
        targets: `[pairs]`, 1 for a relevant document, 0 for another.
        groups: `[pairs]`, number of the query.
        temperature: t.

    Returns:
        `[relevant]`, in the order of the pairs; 0 where a group has no irrelevant document.
    """
    relevant = targets > 0.5
    scaled = scores / temperature
    competitor = (groups[relevant][:, None] == groups[None, :]) & ~relevant[None, :]
    others = scaled[None, :].expand(competitor.shape).masked_fill(~competitor, -torch.inf)
    own = scaled[relevant]
    return torch.logsumexp(torch.cat([own[:, None], others], 1), 1) - own


def yes_no_scores(logits: torch.Tensor, *, positive_id: int, negative_id: int) -> torch.Tensor:
    """Return the logit of relevance of a generative reranker: the logistic function of it is P(yes | yes or no).

    Args:
        logits: `[pairs, vocabulary]` at the position of the answer.
        positive_id: token of the answer yes.
        negative_id: token of the answer no.

    Returns:
        `[pairs]`.
    """
    return logits[:, positive_id] - logits[:, negative_id]
