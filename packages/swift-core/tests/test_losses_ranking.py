"""Losses of rerankers: values worked out by hand, and what must hold for any scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.losses.ranking import listwise, pointwise, yes_no_scores


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_pointwise_by_hand() -> None:
    found = pointwise(numbers(0.0, math.log(3)), numbers(1, 0))
    assert found.tolist() == pytest.approx([math.log(2), math.log(4)])


def test_listwise_by_hand() -> None:
    scores, targets, groups = numbers(0, 0, 0, math.log(3), 0), numbers(1, 0, 0, 1, 0), torch.tensor([0, 0, 0, 1, 1])
    # one of three alike; 3 to 1
    assert listwise(scores, targets, groups).tolist() == pytest.approx([math.log(3), math.log(4 / 3)])


def test_temperature_divides_the_scores() -> None:
    scores, targets, groups = numbers(1.0, -0.5), numbers(1, 0), torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(listwise(scores, targets, groups, temperature=0.5), listwise(scores * 2, targets, groups))


def test_relevant_documents_of_a_group_do_not_compete() -> None:
    both = listwise(numbers(1.0, 2.0, 0.0), numbers(1, 1, 0), torch.zeros(3, dtype=torch.long))
    alone = [listwise(numbers(score, 0.0), numbers(1, 0), torch.zeros(2, dtype=torch.long)).item() for score in (1.0, 2.0)]
    assert both.tolist() == pytest.approx(alone)


def test_a_group_without_a_rival_costs_nothing_and_without_a_relevant_document_is_absent() -> None:
    found = listwise(numbers(5.0, 1.0, 2.0), numbers(1, 0, 0), torch.tensor([0, 1, 1]))
    assert found.tolist() == pytest.approx([0.0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_listwise_does_not_see_a_shift_of_all_scores(seed: int, shift: float) -> None:
    scores = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    targets, groups = numbers(1, 0, 0, 1, 1, 0), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(listwise(scores + shift, targets, groups), listwise(scores, targets, groups))


def test_the_score_of_a_generative_reranker_is_the_log_odds_of_yes() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64)
    odds = torch.softmax(logits[:, [5, 2]], -1)
    found = yes_no_scores(logits, positive_id=5, negative_id=2)
    torch.testing.assert_close(torch.sigmoid(found), odds[:, 0])
