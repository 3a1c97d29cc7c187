"""Causal attention on CPUs by matrix products over blocks of queries, with the backward pass written out.

For samples of usual length this beats the fused kernel of PyTorch, which computes tile by tile with small products. All
segments of a row go through one function: nothing is split, joined or copied by autograd between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from swift_core.batching.layout import Layout

# Queries of a block: keys behind its last query are never looked at, so smaller blocks save work and larger ones run faster.
BLOCK = 128


class _Block(NamedTuple):
    """Queries `start:stop` of the row look at the key spans, all of which but the end of the last one they see in full."""

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]


def _blocks(layout: Layout, window: int | None) -> Iterator[_Block]:
    for number in range(len(layout.lengths)):
        begin, end = layout.span(number)
        before = layout.before(number)
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            first = begin if window is None or before else max(begin, start - window + 1)
            yield _Block(start, stop, (*before, (first, stop)))


@lru_cache(maxsize=512)
def causal_bias(groups: int, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return `[1, groups * queries, keys]`: 0 where a query may look, -inf elsewhere; the last query sees the last key."""
    at = torch.arange(keys - queries, keys)[:, None]
    seen = torch.arange(keys)[None]
    allowed = seen <= at
    if window is not None:
        allowed &= seen > at - window
    return torch.zeros(1, queries, keys, dtype=dtype).masked_fill_(~allowed, float("-inf")).repeat(1, groups, 1)


def _taken(tensor: torch.Tensor, spans: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Return `[key heads, tokens of the spans, width]`, contiguous, of `[1, key heads, tokens, width]`."""
    parts = [tensor[0, :, start:stop] for start, stop in spans]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(tensor: torch.Tensor, block: _Block, pairs: int) -> torch.Tensor:
    """Return `[key heads, query heads of a key head * queries, width]` of `[1, heads, tokens, width]`."""
    part = tensor[0, :, block.start : block.stop]
    return part.reshape(pairs, -1, part.shape[-1])


class _DenseCausal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, layout: Layout, window: int | None
    ) -> torch.Tensor:
        heads, tokens = query.shape[1:3]
        pairs = key.shape[1]
        output = query.new_empty(1, tokens, heads, value.shape[-1])
        kept: list[torch.Tensor] = []
        ctx.blocks = list(_blocks(layout, window))
        for block in ctx.blocks:
            queries = block.stop - block.start
            keys, values = _taken(key, block.spans), _taken(value, block.spans)
            bias = causal_bias(heads // pairs, queries, keys.shape[1], window, query.dtype)
            scores = torch.baddbmm(bias, _rows(query, block, pairs), keys.transpose(1, 2), alpha=scale)
            probabilities = torch.softmax(scores, -1, out=scores)
            found = torch.bmm(probabilities, values).view(heads, queries, -1)
            output[0, block.start : block.stop] = found.transpose(0, 1)
            kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        gradient = outputs[0].transpose(1, 2)
        heads, pairs = query.shape[1], key.shape[1]
        # Several blocks add to the same keys: in float32, since half precision would round every sum.
        wide = query.dtype if len(ctx.blocks) == 1 else torch.promote_types(query.dtype, torch.float32)
        of_query = torch.empty_like(query)
        of_key = torch.zeros_like(key, dtype=wide)
        of_value = torch.zeros_like(value, dtype=wide)
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            keys, values = _taken(key, block.spans), _taken(value, block.spans)
            above = _rows(gradient, block, pairs)
            _add(of_value, block.spans, torch.bmm(probabilities.transpose(1, 2), above))
            of_probabilities = torch.bmm(above, values.transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            found = torch.bmm(of_scores, keys).mul_(ctx.scale)
            of_query[0, :, block.start : block.stop] = found.view(heads, block.stop - block.start, -1)
            _add(of_key, block.spans, torch.bmm(of_scores.transpose(1, 2), _rows(query, block, pairs)).mul_(ctx.scale))
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _add(total: torch.Tensor, spans: tuple[tuple[int, int], ...], found: torch.Tensor) -> None:
    at = 0
    for start, stop in spans:
        total[0, :, start:stop] += found[:, at : at + stop - start]
        at += stop - start


def dense_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, layout: Layout, window: int | None = None
) -> torch.Tensor:
    """Return causal attention inside the segments of a packed row.

    Args:
        query: `[1, heads, tokens, width]`.
        key: `[1, key heads, tokens, width]`.
        value: `[1, key heads, tokens, width]`.
        scale: factor of the scores.
        layout: the segments of the row.
        window: how far back a token looks, itself included; None: to the start.

    Returns:
        `[1, tokens, heads, width]`.
    """
    return _DenseCausal.apply(query, key, value, scale, layout, window)  # pyright: ignore[reportReturnType]
