"""Rows of which each process of a group holds a part of the tokens: who holds which, and sums over the group.

Every process is given the whole row as ids, which are small, and runs the layers over its own tokens. A loss is summed over
the group inside autograd, so that it is the same number on all its processes, as if each had scored the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from swift_core.batching.collate import Batch
from swift_core.batching.layout import Layout


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Each process has its own copy of the sum, and the gradient is that of all copies; averaging over processes takes it back.
        gradient = outputs[0].clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


@lru_cache(maxsize=64)
def places(tokens: int, size: int, *, balanced: bool) -> tuple[torch.Tensor, ...]:
    """Return for each process the places `[tokens / size]` of its tokens in a row.

    Args:
        tokens: length of the row, a multiple of what `slots` says.
        size: processes of the group.
        balanced: a piece from the front and its mirror image from the back, so that causal attention costs all the same;
            otherwise one piece after another.
    """
    row = torch.arange(tokens)
    if not balanced:
        return row.chunk(size)
    pieces = row.chunk(2 * size)
    return tuple(torch.cat([pieces[rank], pieces[2 * size - 1 - rank]]) for rank in range(size))


@dataclass(frozen=True, slots=True, eq=False)
class SequenceShare:
    """This process's share of the tokens of each row.

    Attributes:
        group: the processes that share rows.
        rank: this process's number in the group.
        size: processes of the group.
        mode: `ulysses` or `ring`.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    mode: str

    @property
    def slots(self) -> int:
        """Return the number that the length of a row is made a multiple of."""
        return 2 * self.size if self.mode == "ring" else self.size

    def places(self, tokens: int) -> torch.Tensor:
        """Return the places of this process's tokens in a row of so many, filled up."""
        return places(tokens + -tokens % self.slots, self.size, balanced=self.mode == "ring")[self.rank]

    def part(self, tensor: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Return this process's part `[..., tokens / size]` of a row `[..., tokens]`."""
        tokens = tensor.shape[-1]
        return F.pad(tensor, (0, -tokens % self.slots), value=fill).index_select(-1, self.places(tokens).to(tensor.device))

    def batch(self, batch: Batch) -> Batch:
        """Return what this process puts through the model; segments are those of the whole row."""
        tokens = batch.input_ids.shape[1]
        batch = batch.filled(tokens + -tokens % self.slots)
        return replace(
            batch,
            input_ids=self.part(batch.input_ids),
            attention_mask=self.part(batch.attention_mask),
            labels=self.part(batch.labels),
            positions=self.part(batch.position_ids),
        )

    def own(self, wanted: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of the wanted places `[n]` of a row this process holds, bool `[n]`, and where in its part they are."""
        there = torch.full((tokens + -tokens % self.slots,), -1)
        mine = self.places(tokens)
        there[mine] = torch.arange(len(mine))
        found = there.to(wanted.device)[wanted]
        return found >= 0, found[found >= 0]

    def check(self, layout: Layout, part: int) -> None:
        """Check that this process runs its part of a row.

        Raises:
            TypeError: when something else has come to attention, such as a whole row.
        """
        if part * self.size != layout.tokens:
            raise TypeError(f"{self.size} processes share a row of {layout.tokens} tokens, and this one runs {part} of them")

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over the group, with gradient."""
        return _Sum.apply(value, self.group)  # pyright: ignore[reportReturnType]

    def spread(self, found: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
        """Return `[n]` values of which each process has found those that are `mine`."""
        return self.total(found.new_zeros(len(mine)).masked_scatter(mine, found))

    def whole(self, part: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return a row `[1, tokens, dim]` of which each process has a part; without gradient."""
        filled = tokens + -tokens % self.slots
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        row = part.new_empty(1, filled, part.shape[-1])
        row[:, torch.cat(places(filled, self.size, balanced=self.mode == "ring")).to(part.device)] = torch.cat(parts, dim=1)
        return row[:, :tokens]


_SHARES: WeakKeyDictionary[nn.Module, SequenceShare] = WeakKeyDictionary()


def set_share(model: nn.Module, share: SequenceShare) -> None:
    """Let rows that this causal language model scores be shared."""
    _SHARES[model] = share


def share_of(model: nn.Module) -> SequenceShare | None:
    """Return how rows of a model are shared, None where each process runs whole ones."""
    return _SHARES.get(model)
