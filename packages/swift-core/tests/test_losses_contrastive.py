"""Losses of embeddings: values worked out by hand, and what must hold for any vectors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.losses.contrastive import contrastive, cosine_similarity, info_nce, online_contrastive


def at(*degrees: float) -> torch.Tensor:
    """Return unit vectors in the plane."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], -1)


def random_vectors(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cosine_similarity_by_hand() -> None:
    found = cosine_similarity(at(0, 0), at(60, 90), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.25, 0.0])


def test_contrastive_by_hand() -> None:
    # cosine distances 0.5, 0.5 and 0; margin 0.8
    found = contrastive(at(0, 0, 0), at(60, 60, 0), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), margin=0.8)
    assert found.tolist() == pytest.approx([0.5**2 / 2, 0.3**2 / 2, 0.8**2 / 2])


def test_contrastive_stops_at_the_margin() -> None:
    assert contrastive(at(0), at(90), torch.zeros(1, dtype=torch.float64), margin=0.5).item() == 0


def test_online_contrastive_keeps_hard_pairs_only() -> None:
    # distances: positives 0.5 and 0, negatives 1 - cos 45 = 0.2929 and 1
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = online_contrastive(at(0, 0, 0, 0), at(60, 0, 45, 90), targets, margin=0.5)
    # hard positives are farther than 0.2929: the first; hard negatives closer than 0.5: the third
    assert found.tolist() == pytest.approx([0.25, 0.0, (0.5 - (1 - math.sqrt(0.5))) ** 2, 0.0])


@pytest.mark.parametrize("targets", [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
def test_online_contrastive_of_few_pairs_is_finite(targets: list[float]) -> None:
    found = online_contrastive(at(0, 0), at(60, 30), torch.tensor(targets, dtype=torch.float64))
    assert torch.isfinite(found).all()


def test_info_nce_by_hand() -> None:
    # one query at 0 degrees: its document at 0 (cosine 1), a negative at 90 (cosine 0), temperature 1
    found = info_nce(at(0), at(0, 90), torch.tensor([0]), temperature=1.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_info_nce_without_negatives_is_zero() -> None:
    assert info_nce(at(0), at(30), torch.tensor([0])).item() == pytest.approx(0.0)


def test_info_nce_is_the_cross_entropy_of_the_similarities() -> None:
    queries, documents = random_vectors(0, 4, 8), random_vectors(1, 6, 8)
    positives = torch.tensor([0, 2, 3, 5])
    expected = F.cross_entropy(queries @ documents.T / 0.05, positives, reduction="none")
    torch.testing.assert_close(info_nce(queries, documents, positives, temperature=0.05), expected)


def test_forbidden_documents_are_no_negatives() -> None:
    queries, documents = random_vectors(0, 2, 4), random_vectors(1, 4, 4)
    allowed = torch.tensor([[False, True, False, False], [True, False, False, True]])
    found = info_nce(queries, documents, torch.tensor([0, 2]), allowed=allowed)
    first = info_nce(queries[:1], documents[:2], torch.tensor([0]))
    second = info_nce(queries[1:], documents[[2, 0, 3]], torch.tensor([0]))
    torch.testing.assert_close(found, torch.cat([first, second]))


def test_fake_negatives_are_left_out_by_the_margin() -> None:
    # cosine with the positive is 0.5; negatives with 1 (0.5 above it) and cos 55 = 0.574 (0.074 above it)
    queries, documents, positive = at(0), at(60, 0, 55), torch.tensor([0])
    kept = info_nce(queries, at(60, 55), positive, temperature=1.0)
    assert info_nce(queries, documents, positive, temperature=1.0, fake_margin=0.1).item() == pytest.approx(kept.item())
    assert info_nce(queries, documents, positive, temperature=1.0, fake_margin=0.6).item() > kept.item()


def test_pairs_of_queries_and_of_documents_by_hand() -> None:
    queries, documents = at(0, 90), at(0, 90)
    not_oneself = ~torch.eye(2, dtype=torch.bool)
    terms = {"queries_allowed": not_oneself, "other_queries": queries, "documents_allowed": not_oneself}
    found = info_nce(queries, documents, torch.tensor([0, 1]), temperature=1.0, **terms)
    # e^1 against one document, one query and one document pair, each with cosine 0
    assert found.tolist() == pytest.approx([math.log(1 + 3 * math.exp(-1))] * 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), queries=st.integers(1, 5), extra=st.integers(0, 4))
def test_info_nce_is_at_least_zero_and_grows_with_negatives(seed: int, queries: int, extra: int) -> None:
    anchors, documents = random_vectors(seed, queries, 6), random_vectors(seed + 1, queries + extra + 1, 6)
    positives = torch.arange(queries)
    fewer, more = info_nce(anchors, documents[:-1], positives), info_nce(anchors, documents, positives)
    assert (fewer >= -1e-12).all()
    assert (more > fewer).all()


def test_gradients_agree_with_finite_differences() -> None:
    queries, documents = random_vectors(3, 3, 4).requires_grad_(), random_vectors(4, 5, 4).requires_grad_()
    everywhere = torch.ones(3, 5, dtype=torch.bool)

    def loss(anchors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        anchors, texts = F.normalize(anchors, dim=-1), F.normalize(texts, dim=-1)
        return info_nce(anchors, texts, torch.tensor([0, 1, 4]), other_queries=anchors, documents_allowed=everywhere)

    assert torch.autograd.gradcheck(loss, (queries, documents))
