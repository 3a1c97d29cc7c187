"""The head that is one matrix product: same numbers as PyTorch's own loss, and as the general head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from swift_core.scoring import linear_head
from swift_core.scoring.linear_head import linear_cross_entropy, linear_logps, plain_weight
from torch import nn


def parts(*, rows: int = 7, vocab: int = 11, dim: int = 5, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = (torch.randn(rows, dim, dtype=torch.float64) * scale).requires_grad_()
    weight = torch.randn(vocab, dim, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(0, vocab, (rows,)), weight


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_and_both_gradients_equal_the_plain_way(rows: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "CHUNK_ROWS", 3)
    hidden, targets, weight = parts(rows=rows)
    weights = torch.linspace(0, 2, rows, dtype=torch.float64) if weighted else None
    found = linear_cross_entropy(hidden, targets, weight, weights=weights)
    each = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    expected = (each if weights is None else each * weights).sum()
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(value * 0.3, [hidden, weight]) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_log_probabilities_and_their_gradients_equal_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "CHUNK_ROWS", 3)
    hidden, targets, weight = parts()
    direction = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    found = linear_logps(hidden, targets, weight)
    expected = (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(value, [hidden, weight], direction) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_get_theirs() -> None:
    hidden, targets, weight = parts()
    weight = weight.detach()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, targets, weight), hidden)
    (expected,) = torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"), hidden)
    torch.testing.assert_close(gradient, expected)


def test_a_target_without_any_probability_keeps_its_true_loss() -> None:
    hidden, targets, weight = parts(scale=400.0)
    hidden, weight = hidden.detach().float(), weight.detach().float()
    found = linear_logps(hidden, targets, weight)
    expected = (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert float(expected.min()) < -200  # a probability that float32 cannot hold
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_bfloat16_loss_is_near_that_of_the_same_logits() -> None:
    hidden, targets, weight = (one.detach() for one in parts(rows=64, vocab=300, dim=16))
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    found = linear_cross_entropy(hidden, targets, weight)
    expected = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
    assert found.dtype == torch.float32
    assert abs(float(found - expected)) / len(targets) < 1e-3


@pytest.mark.parametrize("head", [nn.Linear(5, 11), nn.Sequential(nn.Linear(5, 11, bias=False)), nn.Linear(5, 11, bias=False).half()])
def test_only_a_bare_matrix_of_the_same_kind_counts_as_plain(head: nn.Module) -> None:
    assert plain_weight(head, torch.zeros(1, 5)) is None
    plain = nn.Linear(5, 11, bias=False)
    assert plain_weight(plain, torch.zeros(1, 5)) is plain.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert plain_weight(plain, torch.zeros(1, 5)) is None
