"""Losses of a classification head: values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from swift_core.losses.classification import multi_label, regression, single_label


def test_single_label_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    # softmax: 1/2 each; 3/4 and 1/4
    found = single_label(logits, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3)])


def test_multi_label_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    # logistic: 3/4 and 1/2; the first class applies, the second does not
    found = multi_label(logits, torch.tensor([[1.0, 0.0]]))
    assert found.tolist() == pytest.approx([(math.log(4 / 3) + math.log(2)) / 2])


def test_regression_by_hand() -> None:
    found = regression(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.5, 1.0], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([(0.25 + 4) / 2, 0.0])


def test_no_class_at_all_and_every_class_are_mirror_images() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    none, every = torch.zeros(4, 5), torch.ones(4, 5)
    torch.testing.assert_close(multi_label(logits, none), multi_label(-logits, every))
