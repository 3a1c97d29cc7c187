"""Losses of embeddings. All take L2-normalised vectors, for which the dot product is the cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cosine_similarity(anchors: torch.Tensor, others: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of each pair's cosine from its target (the regression objective of Sentence-BERT, 2019).

    Args:
        anchors: `[pairs, dim]`, normalised.
        others: `[pairs, dim]`, normalised.
        targets: `[pairs]`, the similarity that each pair should have.

    Returns:
        `[pairs]`.
    """
    return ((anchors * others).sum(-1) - targets).square()


def contrastive(anchors: torch.Tensor, others: torch.Tensor, targets: torch.Tensor, *, margin: float = 0.5) -> torch.Tensor:
    """Return `(y d^2 + (1 - y) max(margin - d, 0)^2) / 2` of each pair, with the cosine distance d (Hadsell et al., 2006).

    Args:
        anchors: `[pairs, dim]`, normalised.
        others: `[pairs, dim]`, normalised.
        targets: `[pairs]`, y: 1 for texts that belong together, 0 for texts that do not.
        margin: distance from which on texts that do not belong together cost nothing.

    Returns:
        `[pairs]`.
    """
    distance = 1 - (anchors * others).sum(-1)
    return (targets * distance.square() + (1 - targets) * F.relu(margin - distance).square()) / 2


def online_contrastive(anchors: torch.Tensor, others: torch.Tensor, targets: torch.Tensor, *, margin: float = 0.5) -> torch.Tensor:
    """Return the contrastive loss of the hard pairs only, 0 for the others (sentence-transformers' OnlineContrastiveLoss).

    A pair that does not belong together is hard when it is closer than the farthest pair that does; a pair that does is
    hard when it is farther than the closest pair that does not. Where a side has fewer than two pairs, the other side is
    compared with its own mean. Hard pairs cost `d^2` or `max(margin - d, 0)^2`.

    Args:
        anchors: `[pairs, dim]`, normalised.
        others: `[pairs, dim]`, normalised.
        targets: `[pairs]`, 1 for texts that belong together, 0 for texts that do not.
        margin: distance from which on texts that do not belong together cost nothing.

    Returns:
        `[pairs]`.
    """
    distance = 1 - (anchors * others).sum(-1)
    together = targets > 0.5
    near, far = distance[together].detach(), distance[~together].detach()
    hard = torch.zeros_like(together)
    if far.numel():
        hard |= ~together & (distance < (near.max() if near.numel() > 1 else far.mean()))
    if near.numel():
        hard |= together & (distance > (far.min() if far.numel() > 1 else near.mean()))
    cost = torch.where(together, distance.square(), F.relu(margin - distance).square())
    return cost * hard


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    positives: torch.Tensor,
    *,
    allowed: torch.Tensor | None = None,
    temperature: float = 0.1,
    fake_margin: float | None = None,
    other_queries: torch.Tensor | None = None,
    queries_allowed: torch.Tensor | None = None,
    documents_allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the InfoNCE loss of each query: cross-entropy of finding its document among the candidates.

    `-s(q, d+)/t + log sum_j exp(s_j/t)`, where j runs over d+ and all negatives (van den Oord et al., 2018). The negatives are
    the allowed documents; with `other_queries` also pairs of queries, and with `documents_allowed` also pairs of d+ with other
    documents (Qwen3 Embedding, 2025, equation 1, where `fake_margin` is 0.1 as well).

    Args:
        queries: `[q, dim]`, normalised.
        documents: `[d, dim]`, normalised.
        positives: `[q]`, row of `documents` that belongs to each query.
        allowed: `[q, d]`, true where a document may stand as a negative of a query; default: all. The positive always counts.
        temperature: t.
        fake_margin: leave out negatives whose similarity exceeds that of the positive by more than this; None keeps all.
        other_queries: `[o, dim]`, normalised, negatives to each query.
        queries_allowed: `[q, o]`, true where a query may stand as a negative.
        documents_allowed: `[q, d]`, true where a document is a negative to the positive of a query.

    Returns:
        `[q]`; 0 for a query without negatives.
    """
    own = F.one_hot(positives, documents.shape[0]).bool()
    chosen = documents[positives]
    similarity = queries @ documents.T
    positive = (queries * chosen).sum(-1)
    blocks = [(similarity, ~own if allowed is None else allowed & ~own)]
    if other_queries is not None:
        everyone = torch.ones(queries.shape[0], other_queries.shape[0], dtype=torch.bool, device=queries.device)
        blocks.append((queries @ other_queries.T, everyone if queries_allowed is None else queries_allowed))
    if documents_allowed is not None:
        blocks.append((chosen @ documents.T, documents_allowed & ~own))
    terms = [positive[:, None] / temperature]
    for values, mask in blocks:
        kept = mask if fake_margin is None else mask & (values.detach() <= positive.detach()[:, None] + fake_margin)
        terms.append((values / temperature).masked_fill(~kept, -torch.inf))
    return torch.logsumexp(torch.cat(terms, 1), 1) - terms[0][:, 0]
