"""How well documents are ordered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def ranking_metrics(scores: Numbers, relevance: Numbers, *, cutoff: int = 10) -> dict[str, float]:
    """Return the metrics of one query's list.

    Equal scores are ordered at their worst, relevant documents last: a model that gives all documents one score knows nothing.

    Args:
        scores: `[documents]`.
        relevance: `[documents]`, gains; above 0 is relevant.
        cutoff: NDCG looks at so many documents.

    Returns:
        `mrr`: 1 / rank of the first relevant document; `map`: mean precision at the relevant documents; `ndcg`: discounted gain
        of the first `cutoff` documents over the best possible; `hit`: 1 when the first document is relevant. All are 0 without a
        relevant document.
    """
    order = np.lexsort((relevance, -scores))
    gains = relevance[order]
    found = np.flatnonzero(gains > 0)
    if not len(found):
        return {"mrr": 0.0, "map": 0.0, "ndcg": 0.0, "hit": 0.0}
    return {
        "mrr": 1.0 / (found[0] + 1),
        "map": float(np.mean(np.arange(1, len(found) + 1) / (found + 1))),
        "ndcg": discounted_gain(gains[:cutoff]) / discounted_gain(np.sort(relevance)[::-1][:cutoff]),
        "hit": float(found[0] == 0),
    }


def discounted_gain(gains: Numbers) -> float:
    """Return `sum gain / log2(rank + 1)` (Jarvelin and Kekalainen, 2002)."""
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def mean_ranking(scores: Numbers, relevance: Numbers, groups: NDArray[np.int64], *, cutoff: int = 10) -> dict[str, float]:
    """Return the mean of `ranking_metrics` over queries that have a relevant document.

    Args:
        scores: `[pairs]`.
        relevance: `[pairs]`.
        groups: `[pairs]`, number of the query.
        cutoff: NDCG looks at so many documents.
    """
    found: list[dict[str, float]] = []
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if (relevance[rows] > 0).any():
            found.append(ranking_metrics(scores[rows], relevance[rows], cutoff=cutoff))
    names = ("mrr", "map", "ndcg", "hit")
    return {name: float(np.mean([values[name] for values in found])) if found else 0.0 for name in names}
