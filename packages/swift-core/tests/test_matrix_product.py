"""Products that are cut in two where that pays are the products of PyTorch, bit for bit."""

from __future__ import annotations

import pytest
import torch
from swift_core.fusions import product as product_module
from swift_core.fusions.product import product


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("into", [False, True])
def test_halves_put_together_are_the_whole(transposed: bool, into: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_module, "_halves_pay", lambda *_: True)
    cut: list[int] = []
    plain_mm = torch.mm

    def counted(left: torch.Tensor, right: torch.Tensor, **settings: torch.Tensor) -> torch.Tensor:
        cut.append(right.shape[1])
        return plain_mm(left, right, **settings)

    monkeypatch.setattr(torch, "mm", counted)
    left = torch.randn(300, 48, dtype=torch.bfloat16)
    right = torch.randn(64, 48, dtype=torch.bfloat16).t() if transposed else torch.randn(48, 64, dtype=torch.bfloat16)
    out = torch.empty(300, 64, dtype=torch.bfloat16) if into else None
    found = product(left, right, out=out)
    assert cut == [32, 32]
    assert out is None or found is out
    assert torch.equal(found, plain_mm(left, right))


@pytest.mark.parametrize(("rows", "columns", "dtype"), [(10, 64, torch.bfloat16), (300, 60, torch.bfloat16), (300, 64, torch.float32)])
def test_what_cannot_gain_is_left_whole(rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> bool:
        raise AssertionError("it was timed")

    monkeypatch.setattr(product_module, "_halves_pay", unexpected)
    left, right = torch.randn(rows, 48, dtype=dtype), torch.randn(48, columns, dtype=dtype)
    assert torch.equal(product(left, right), torch.mm(left, right))


def test_timing_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    product_module._halves_pay.cache_clear()
    product_module._halves_pay(32, 64, False, 2)
    assert torch.equal(torch.rand(2), expected)
