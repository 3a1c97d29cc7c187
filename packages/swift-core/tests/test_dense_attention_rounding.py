"""Blocks of half-precision attention whose shapes are rounded up give what exact ones give."""

from __future__ import annotations

import pytest
import torch
from swift_core.batching.collate import Batch
from swift_core.batching.layout import Layout
from swift_core.scoring import dense_attention
from swift_core.scoring.dense_attention import dense_causal

LAYOUTS = {
    "one short": Layout((5,)),
    "round": Layout((64, 32)),
    "ends at the row": Layout((40, 200, 17)),
    "several blocks": Layout((450, 3)),
    "branches": Layout((70, 33, 20, 50), (-1, 0, 0, -1)),
}


def outcome(layout: Layout, window: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    tokens = sum(layout.lengths)
    parts = [torch.randn(1, heads, tokens, 16).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    found = dense_causal(parts[0], parts[1], parts[2], scale=0.25, layout=layout, window=window)
    direction = torch.randn(found.shape).to(dtype)
    return [found.detach(), *torch.autograd.grad(found, parts, direction)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("window", [None, 30])
def test_values_and_gradients_equal_those_of_exact_blocks(name: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS[name]
    expected = outcome(layout, window, torch.float64)
    monkeypatch.setattr(dense_attention, "STEP", 1)
    exact = outcome(layout, window, torch.bfloat16)
    monkeypatch.undo()
    rounded = outcome(layout, window, torch.bfloat16)
    for true, one, other in zip(expected, exact, rounded, strict=True):
        assert torch.isfinite(other).all()
        lost = float((one.double() - true).norm())
        assert float((other.double() - true).norm()) <= 1.2 * lost + 1e-6


def test_rounded_blocks_have_few_shapes() -> None:
    blocks = [block for length in range(1, 400) for block in dense_attention._blocks(Layout((length, 64)), None, 32)]
    first = [block for block in blocks if block.start == 0]
    assert {block.rows % 32 for block in first} == {0}
    assert {sum(stop - start for start, stop in block.spans) % 32 for block in first} == {0}
    assert all(block.queries <= block.rows and block.start + block.rows <= 464 for block in blocks)


def test_a_filled_row_has_the_same_trained_tokens() -> None:
    ids = torch.arange(1, 8)[None]
    batch = Batch(ids, torch.ones_like(ids), ids.clone(), ["a", "b"], segments=(3, 4), loss_scale=torch.ones(1, 7))
    filled = batch.filled(32)
    assert filled.input_ids.shape == (1, 32)
    assert filled.segments == (3, 4, 25)
    assert (filled.trained_tokens, filled.tokens) == (batch.trained_tokens, batch.tokens)
    assert filled.position_ids[0, :7].tolist() == batch.position_ids[0].tolist()
