"""Attention over a row of which each process holds a part: keys and values travel around the group, queries stay.

Published as ring attention. Softmax is put together piece by piece with its logarithmic normaliser, and the backward pass makes the
probabilities of each piece again, so that no process ever holds the scores of the whole row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from swift_core.batching.layout import Layout
from swift_core.errors import ModelError
from swift_core.scoring.attention import current_layout, packed_attention
from swift_core.scoring.sequence import SequenceShare, places

# Queries and keys of a piece of the scores: pieces that nothing sees are left out, larger ones run faster.
TILE = 512


class _Tile(NamedTuple):
    """Queries and keys of a piece, and which query sees which key; None where each sees all."""

    queries: slice
    keys: slice
    seen: torch.Tensor | None


@lru_cache(maxsize=64)
def tiles(layout: Layout, size: int, rank: int, other: int, window: int | None) -> tuple[_Tile, ...]:
    """Return the pieces of what one process's queries see of another one's keys."""
    segments = torch.repeat_interleave(torch.arange(len(layout.lengths)), torch.tensor(layout.lengths))
    positions = torch.tensor(layout.positions())
    sees = torch.eye(len(layout.lengths), dtype=torch.bool)
    for number, parent in enumerate(layout.parents):
        if parent >= 0:
            sees[number] |= sees[parent]
    dealt = places(layout.tokens, size, balanced=True)
    found: list[_Tile] = []
    for start, queries in _pieces(dealt[rank]):
        for begin, keys in _pieces(dealt[other]):
            seen = sees[segments[queries]][:, segments[keys]] & (keys[None] <= queries[:, None])
            if window is not None:
                seen &= positions[queries][:, None] - positions[keys][None] < window
            if seen.any():
                spans = slice(start, start + len(queries)), slice(begin, begin + len(keys))
                found.append(_Tile(*spans, None if seen.all() else seen))
    return tuple(found)


def _pieces(places: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(places), TILE):
        yield start, places[start : start + TILE]


class _Ring:
    """The tensors of a group on their way from each process to the next one."""

    def __init__(self, share: SequenceShare) -> None:
        ahead, behind = (share.rank + 1) % share.size, (share.rank - 1) % share.size
        self._group = share.group
        self._ahead, self._behind = (dist.get_global_rank(share.group, rank) for rank in (ahead, behind))

    def start(self, tensor: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Send a tensor on; returns what will have come once `finish` is done."""
        sent = tensor.contiguous()
        coming = torch.empty_like(sent)
        both = [dist.P2POp(dist.isend, sent, self._ahead, self._group), dist.P2POp(dist.irecv, coming, self._behind, self._group)]
        return coming, [*dist.batch_isend_irecv(both), sent]

    @staticmethod
    def finish(under_way: tuple[torch.Tensor, list[Any]]) -> torch.Tensor:
        """Wait and return what has come."""
        coming, (*requests, _) = under_way
        for request in requests:
            request.wait()
        return coming


def _scores(query: torch.Tensor, key: torch.Tensor, tile: _Tile, scale: float) -> torch.Tensor:
    """Return `[key heads, groups, queries, keys]` in float32 or better, -inf where a query does not look."""
    found = torch.einsum("hgqd,hkd->hgqk", query[:, :, tile.queries], key[:, tile.keys])
    found = found.to(torch.promote_types(found.dtype, torch.float32)) * scale
    return found if tile.seen is None else found.masked_fill(~tile.seen.to(found.device), float("-inf"))


class _RingAttention(torch.autograd.Function):
    """`[key heads, groups, part, width]` and twice `[key heads, part, width]` to `[key heads, groups, part, width]`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        share: SequenceShare,
        layout: Layout,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        output = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=wide, device=query.device)
        # A token sees itself, in the first round: from then on every normaliser is finite.
        normaliser = output.new_full(query.shape[:-1], float("-inf"))
        ring, travelling = _Ring(share), torch.cat([key, value], dim=-1)
        for round_ in range(share.size):
            under_way = ring.start(travelling) if round_ + 1 < share.size else None
            keys, values = travelling.split([key.shape[-1], value.shape[-1]], dim=-1)
            for tile in tiles(layout, share.size, share.rank, (share.rank - round_) % share.size, window):
                scores = _scores(query, keys, tile, scale)
                before = normaliser[:, :, tile.queries]
                now = torch.logaddexp(before, scores.logsumexp(-1))
                # A padded query may see nothing of this piece, and have seen nothing yet.
                reference = now.masked_fill(now == float("-inf"), 0)
                kept = (before - reference).exp()[..., None]
                probabilities = (scores - reference[..., None]).exp()
                more = torch.einsum("hgqk,hkd->hgqd", probabilities.to(values.dtype), values[:, tile.keys])
                output[:, :, tile.queries] = output[:, :, tile.queries] * kept + more
                normaliser[:, :, tile.queries] = now
            if under_way is not None:
                travelling = ring.finish(under_way)
        found = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, found, normaliser)
        ctx.settings = share, layout, scale, window
        return found

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, found, normaliser = ctx.saved_tensors
        share, layout, scale, window = ctx.settings
        above = outputs[0]
        shared = (above * found).to(normaliser.dtype).sum(-1)[..., None]
        of_query = torch.zeros_like(query, dtype=normaliser.dtype)
        widths = [key.shape[-1], value.shape[-1]]
        ring, travelling = _Ring(share), torch.cat([key, value], dim=-1)
        # The gradient of keys and values goes around with them, and comes home after the last round.
        gathered = torch.zeros_like(travelling, dtype=normaliser.dtype)
        for round_ in range(share.size):
            under_way = ring.start(travelling) if round_ + 1 < share.size else None
            keys, values = travelling.split(widths, dim=-1)
            of_key, of_value = gathered.split(widths, dim=-1)
            for tile in tiles(layout, share.size, share.rank, (share.rank - round_) % share.size, window):
                probabilities = (_scores(query, keys, tile, scale) - normaliser[:, :, tile.queries, None]).exp()
                gradient = above[:, :, tile.queries]
                of_value[:, tile.keys] += torch.einsum("hgqk,hgqd->hkd", probabilities.to(gradient.dtype), gradient)
                of_probabilities = torch.einsum("hgqd,hkd->hgqk", gradient, values[:, tile.keys])
                of_scores = (probabilities * (of_probabilities - shared[:, :, tile.queries]) * scale).to(query.dtype)
                of_query[:, :, tile.queries] += torch.einsum("hgqk,hkd->hgqd", of_scores, keys[:, tile.keys])
                of_key[:, tile.keys] += torch.einsum("hgqk,hgqd->hkd", of_scores, query[:, :, tile.queries])
            gathered = ring.finish(ring.start(gathered))
            if under_way is not None:
                travelling = ring.finish(under_way)
        of_key, of_value = gathered.split(widths, dim=-1)
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), None, None, None, None


class RingAttention:
    """Attention function of transformers' interface for rows that a group shares.

    Args:
        share: the group.
    """

    def __init__(self, share: SequenceShare) -> None:
        self._share = share

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend inside each sample of the row; `[1, heads, part, width]` in, `[1, part, heads, width]` out.

        Raises:
            TypeError: for attention with sinks or capped scores, which the scorer then refuses.
            ModelError: for attention with dropout.
        """
        layout = current_layout()
        if layout is None:
            return packed_attention(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
        self._share.check(layout, query.shape[2])
        for name in ("s_aux", "softcap"):
            if kwargs.get(name) is not None:
                raise TypeError(f"attention with {name} does not go around a ring; use --sequence_parallel_mode ulysses")
        if dropout and module.training:
            # Only seen in training, after the scorer has tried the model out: said to the user as it is.
            raise ModelError("attention with dropout does not go around a ring", fix="--sequence_parallel_mode ulysses")
        heads, pairs = query.shape[1], key.shape[1]
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        rows = query[0].reshape(pairs, heads // pairs, *query.shape[2:])
        found = _RingAttention.apply(rows, key[0], value[0], self._share, layout, scale, kwargs.get("sliding_window"))
        return found.flatten(0, 1).transpose(0, 1)[None], None  # pyright: ignore[reportOptionalMemberAccess]
