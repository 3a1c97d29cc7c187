"""Metrics: values worked out by hand, and torch or numpy as a second opinion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.metrics.classification import accuracy, f1_scores, macro_f1, matthews, micro_f1
from swift_core.metrics.correlation import mean_squared_error, pearson, ranks, spearman
from swift_core.metrics.ranking import mean_ranking, ranking_metrics


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_classes_by_hand() -> None:
    predicted, labels = ints(0, 0, 1, 2), ints(0, 1, 1, 1)
    # class 0: 1 hit, 2 predicted, 1 there: 2/3; class 1: 1 hit, 1 predicted, 3 there: 1/2; class 2: none
    assert f1_scores(predicted, labels, classes=3).tolist() == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert macro_f1(predicted, labels, classes=3) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert accuracy(predicted, labels) == micro_f1(predicted, labels, classes=3) == 0.5


def test_a_class_that_nobody_saw_does_not_lower_the_mean() -> None:
    assert macro_f1(ints(0, 1), ints(0, 1), classes=5) == 1.0


def test_several_labels_by_hand() -> None:
    predicted, labels = np.array([[1, 0, 1], [0, 1, 0]]), np.array([[1, 0, 1], [1, 1, 0]])
    assert accuracy(predicted, labels) == 0.5
    assert micro_f1(predicted, labels, classes=3) == pytest.approx(2 * 3 / (3 + 4))
    assert macro_f1(predicted, labels, classes=3) == pytest.approx((2 / 3 + 1 + 1) / 3)


def test_matthews_of_two_classes_is_the_textbook_formula() -> None:
    predicted, labels = ints(1, 1, 1, 0, 0, 1), ints(1, 1, 0, 0, 1, 1)
    hits, misses, false, true_no = 3, 1, 1, 1
    expected = (hits * true_no - false * misses) / math.sqrt((hits + false) * (hits + misses) * (true_no + false) * (true_no + misses))
    assert matthews(predicted, labels, classes=2) == pytest.approx(expected)
    assert matthews(labels, labels, classes=2) == pytest.approx(1.0)
    assert matthews(ints(1, 1), ints(0, 1), classes=2) == 0.0


def test_equal_values_share_a_rank() -> None:
    assert ranks(floats(10, 30, 20, 20)).tolist() == [1, 4, 2.5, 2.5]


def test_correlations_by_hand() -> None:
    assert spearman(floats(1, 2, 3), floats(1, 10, 100)) == pytest.approx(1.0)
    assert spearman(floats(1, 2, 3), floats(3, 1, 2)) == pytest.approx(-0.5)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(floats(1, 2, 2, 3), floats(1, 2, 3, 4)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert pearson(floats(0.1, 0.1, 0.1), floats(1, 2, 3)) == 0.0
    assert mean_squared_error(floats(1, 2), floats(1, 4)) == 2.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=20))
def test_pearson_agrees_with_numpy(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = floats(*(pair[0] for pair in pairs)), floats(*(pair[1] for pair in pairs))
    if ours.std() > 0 and theirs.std() > 0:
        assert pearson(ours, theirs) == pytest.approx(float(np.corrcoef(ours, theirs)[0, 1]), abs=1e-9)


def test_ranking_by_hand() -> None:
    # order by score: relevance 0, 1, 0, 1
    found = ranking_metrics(floats(0.9, 0.8, 0.7, 0.6), floats(0, 1, 0, 1))
    assert found["mrr"] == 0.5
    assert found["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["ndcg"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert found["hit"] == 0.0


def test_ndcg_looks_at_the_first_ten() -> None:
    scores, relevance = np.arange(12, 0, -1).astype(np.float64), np.zeros(12)
    relevance[10] = 1
    assert ranking_metrics(scores, relevance)["ndcg"] == 0.0
    assert ranking_metrics(scores, relevance, cutoff=11)["ndcg"] == pytest.approx(1 / math.log2(12))


def test_one_score_for_all_is_the_worst_order() -> None:
    assert ranking_metrics(floats(1, 1, 1, 1), floats(1, 0, 0, 0))["mrr"] == 0.25


def test_queries_without_a_relevant_document_are_left_out_of_the_mean() -> None:
    scores, relevance, groups = floats(2, 1, 3, 1, 2), floats(1, 0, 0, 0, 1), ints(0, 0, 1, 2, 2)
    assert mean_ranking(scores, relevance, groups)["mrr"] == 1.0
    shuffled = np.array([4, 2, 0, 3, 1])
    assert mean_ranking(scores[shuffled], relevance[shuffled], groups[shuffled]) == mean_ranking(scores, relevance, groups)
