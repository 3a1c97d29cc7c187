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
BLOCK = 192

# oneDNN builds a kernel for every shape that it meets, which takes longer than several products, and forgets it again when there
# are many. So queries and keys are rounded up to this where it multiplies half-precision numbers.
STEP = 32


class _Block(NamedTuple):
    """Queries `start:start + queries` of the row look at the key spans, all of which but the end of the last one they see in full.

    Attributes:
        start: first query.
        queries: how many there are.
        rows: how many are computed; those that are too many belong to later tokens, whose own blocks overwrite them.
        spans: keys that are read.
        keys: how many of them are seen.
    """

    start: int
    queries: int
    rows: int
    spans: tuple[tuple[int, int], ...]
    keys: int


def _blocks(layout: Layout, window: int | None, step: int) -> Iterator[_Block]:
    total = sum(layout.lengths)
    for number in range(len(layout.lengths)):
        begin, end = layout.span(number)
        before = layout.before(number)
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            first = begin if window is None or before else max(begin, start - window + 1)
            keys = sum(after - at for at, after in before) + stop - first
            more = -keys % step if stop + -keys % step <= total else 0
            rows = stop - start + -(stop - start) % step
            rows = rows if start + rows <= total else stop - start
            yield _Block(start, stop - start, rows, (*before, (first, stop + more)), keys)


@lru_cache(maxsize=512)
def causal_bias(groups: int, queries: int, rows: int, seen: int, keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return `[1, rows * groups, keys]`: 0 where a query may look, -inf elsewhere; the last query sees the last seen key.

    Args:
        groups: query heads of a key head.
        queries: those that count; further rows look at all keys that are seen.
        rows: queries that are computed.
        seen: keys that count.
        keys: keys that are read.
        window: how far back a query looks; None: to the start.
        dtype: of the scores.
    """
    at = torch.arange(seen - queries, seen - queries + rows)[:, None]
    key = torch.arange(keys)[None]
    allowed = (key <= at) & (key < seen)
    if window is not None:
        allowed &= (key > at - window) | (at >= seen)
    return torch.zeros(1, rows, keys, dtype=dtype).masked_fill_(~allowed, float("-inf")).repeat_interleave(groups, 1)


def _taken(tensor: torch.Tensor, spans: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """Return `[key heads, tokens of the spans, width]`, contiguous, of `[1, key heads, tokens, width]`."""
    parts = [tensor[0, :, start:stop] for start, stop in spans]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)


def _by_key_head(tensor: torch.Tensor, pairs: int) -> torch.Tensor:
    """Return `[key heads, tokens * query heads of a key head, width]` of `[tokens, heads, width]`, so that a block is a slice."""
    tokens, heads, width = tensor.shape
    return tensor.view(tokens, pairs, heads // pairs, width).transpose(0, 1).reshape(pairs, -1, width)


def _by_token(tensor: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return `[tokens, heads, width]` of what `_by_key_head` made."""
    pairs, _, width = tensor.shape
    return tensor.view(pairs, tokens, -1, width).transpose(0, 1).reshape(tokens, -1, width)


class _DenseCausal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, layout: Layout, window: int | None
    ) -> torch.Tensor:
        heads, tokens = query.shape[1:3]
        pairs = key.shape[1]
        group = heads // pairs
        rows = _by_key_head(query[0].transpose(0, 1), pairs)
        output = rows.new_empty(*rows.shape[:-1], value.shape[-1])
        kept: list[torch.Tensor] = []
        ctx.blocks = list(_blocks(layout, window, STEP if query.dtype.itemsize < 4 else 1))
        for block in ctx.blocks:
            at = slice(block.start * group, (block.start + block.rows) * group)
            keys, values = _taken(key, block.spans), _taken(value, block.spans)
            bias = causal_bias(group, block.queries, block.rows, block.keys, keys.shape[1], window, query.dtype)
            scores = torch.baddbmm(bias, rows[:, at], keys.transpose(1, 2), alpha=scale)
            probabilities = torch.softmax(scores, -1, out=scores)
            if block.rows > block.queries:  # no part in the gradient
                probabilities[:, block.queries * group :] = 0
            torch.bmm(probabilities, values, out=output[:, at])
            kept.append(probabilities)
        ctx.save_for_backward(rows, key, value, *kept)
        ctx.scale = scale
        return _by_token(output, tokens)[None]

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, key, value, *kept = ctx.saved_tensors
        pairs, tokens = key.shape[1:3]
        gradient = _by_key_head(outputs[0][0], pairs)
        group = rows.shape[1] // tokens
        # Several blocks add to the same keys: in float32, since half precision would round every sum.
        wide = key.dtype if len(ctx.blocks) == 1 else torch.promote_types(key.dtype, torch.float32)
        of_rows = torch.empty_like(rows)
        of_key = torch.zeros_like(key, dtype=wide)
        of_value = torch.zeros_like(value, dtype=wide)
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            at = slice(block.start * group, (block.start + block.rows) * group)
            keys, values = _taken(key, block.spans), _taken(value, block.spans)
            above = gradient[:, at]
            _add(of_value, block.spans, torch.bmm(probabilities.transpose(1, 2), above))
            of_probabilities = torch.bmm(above, values.transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            torch.bmm(of_scores, keys, out=of_rows[:, at])
            _add(of_key, block.spans, torch.bmm(of_scores.transpose(1, 2), rows[:, at]))
        of_query = _by_token(of_rows.mul_(ctx.scale), tokens).transpose(0, 1)[None]
        return of_query, of_key.mul_(ctx.scale).to(key.dtype), of_value.to(value.dtype), None, None, None


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
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # layers hand over several number types, and products into a buffer take one
        query, key, value = (one.to(torch.get_autocast_dtype(kind)) for one in (query, key, value))
    with torch.autocast(kind, enabled=False):
        return _DenseCausal.apply(query, key, value, scale, layout, window)  # pyright: ignore[reportReturnType]
