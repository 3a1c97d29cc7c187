"""Keys and values of many rows in pages, and attention of one new token for each row.

A page holds the keys of `PAGE` tokens of one row, or of a prompt that several rows continue. All pages in use lie side by side, so
attention is two batched matrix products over pages, of which only the last of a row is partly empty: rows of any length run together
without padding to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PAGE = 64


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt that several rows continue; its pages lie in the pool of shared ones."""

    length: int
    pages: list[int] = field(default_factory=list[int])
    rows: list[Row] = field(default_factory=list["Row"])


@dataclass(slots=True, eq=False)
class Row:
    """One answer that is being written.

    Attributes:
        length: tokens whose keys are there, the prompt's included.
        pages: its own pages, in order.
        prompt: the prompt that it shares with others, whose tokens are not in its own pages.
    """

    length: int = 0
    pages: list[int] = field(default_factory=list[int])
    prompt: Prompt | None = None

    @property
    def own(self) -> int:
        """Return how many tokens its own pages hold."""
        return self.length - (self.prompt.length if self.prompt else 0)


class Pool:
    """Pages of all layers; those in use are the first `count`."""

    def __init__(self) -> None:
        self.count = 0
        self._capacity = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def take(self, number: int) -> list[int]:
        """Return so many further pages."""
        pages = list(range(self.count, self.count + number))
        self.count += number
        if self.count > self._capacity:
            self._capacity = max(self.count, 2 * self._capacity)
            for layer, stores in enumerate(self._layers):
                grown = tuple(store.new_zeros(self._capacity, *store.shape[1:]) for store in stores)
                for old, large in zip(stores, grown, strict=True):
                    large[: len(old)] = old
                self._layers[layer] = (grown[0], grown[1])
        return pages

    def give_back(self, freed: Sequence[int]) -> dict[int, int]:
        """Free pages and close the gaps with pages from the end; return where pages went, old number -> new one."""
        holes, left = set(freed), self.count - len(freed)
        moved = [page for page in range(left, self.count) if page not in holes]
        goals = sorted(page for page in holes if page < left)
        self.count = left
        if moved:
            for stores in self._layers:
                for store in stores:
                    store[goals] = store[moved]
        return dict(zip(moved, goals, strict=True))

    def shrink(self) -> None:
        """Give the memory of all pages back."""
        self._capacity, self._layers = self.count, [] if not self.count else self._layers

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `[pages, heads, width, PAGE]` and values `[pages, heads, PAGE, width]`; a new layer is made like those given."""
        while len(self._layers) <= number:
            shape = (self._capacity, key.shape[1])
            # Zeros, not whatever lay in memory: a share of 0 times NaN would be NaN.
            self._layers.append((key.new_zeros(*shape, key.shape[3], PAGE), value.new_zeros(*shape, PAGE, value.shape[3])))
        keys, values = self._layers[number]
        return keys[: self.count], values[: self.count]


@dataclass(frozen=True, slots=True)
class View:
    """How a pool is read in one step.

    Attributes:
        pool: the pages.
        owners: rows that look at each page, `[pages, most rows of a page]`; the number of rows stands for none.
        ends: number of tokens in each page, `[pages]`.
        starts: position of the first of them in its row, `[pages]`.
    """

    pool: Pool
    owners: Tensor
    ends: Tensor
    starts: Tensor


class Step:
    """What all layers of one decode step share.

    Args:
        views: the pools that hold pages.
        at: page and place in it where each row's new token goes, `[rows]` each; the page is one of the first view.
        positions: position of each row's new token, `[rows]`.
    """

    def __init__(self, views: Sequence[View], at: tuple[Tensor, Tensor], positions: Tensor) -> None:
        self.views, self.at, self.positions = list(views), at, positions
        self._biases: dict[int | None, list[Tensor]] = {}

    def biases(self, window: int | None) -> list[Tensor]:
        """Return for each view what is added to scores: -inf where a row does not look, `[pages, 1, rows of a page, 1, PAGE]`."""
        if window not in self._biases:
            self._biases[window] = [self._bias(view, window) for view in self.views]
        return self._biases[window]

    def _bias(self, view: View, window: int | None) -> Tensor:
        places = torch.arange(PAGE, device=view.ends.device)
        outside = (places >= view.ends[:, None])[:, None].expand(-1, view.owners.shape[1], -1)
        if window is not None:
            newest = torch.cat([self.positions, self.positions.new_zeros(1)])[view.owners]
            outside = outside | ((view.starts[:, None] + places)[:, None] <= newest[:, :, None] - window)
        return torch.zeros(outside.shape, device=outside.device).masked_fill_(outside, -torch.inf)[:, None, :, None]


def attend(
    step: Step, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Store the keys of one new token for each row and return its attention, `[rows, 1, heads, width]`.

    Args:
        step: of this decode step.
        layer: number of the layer.
        query: `[rows, heads, 1, width]`.
        key: `[rows, key heads, 1, width]`.
        value: `[rows, key heads, 1, width]`.
        scale: factor of the scores.
        window: how far back a token looks, itself included; None: to the start.
        softcap: scores pass through `cap * tanh(score / cap)`.
    """
    rows, heads, _, width = query.shape
    pairs = key.shape[1]
    group = heads // pairs
    # One row more than there are: pages that fewer rows look at than others put what they find there.
    queries = torch.cat([query.view(rows, pairs, group, width), query.new_zeros(1, pairs, group, width)])
    highs: list[Tensor] = []
    scores: list[tuple[View, Tensor, Tensor]] = []
    for number, (view, bias) in enumerate(zip(step.views, step.biases(window), strict=True)):
        keys, values = view.pool.layer(layer, key, value)
        if number == 0:
            page, place = step.at
            keys[page, :, :, place] = key[:, :, 0]
            values[page, :, place] = value[:, :, 0]
        pages, across = view.owners.shape
        asked = queries[view.owners].transpose(1, 2).reshape(pages, pairs, across * group, width)
        found = (asked @ keys).float().mul_(scale).view(pages, pairs, across, group, PAGE)
        if softcap is not None:
            found = torch.tanh(found / softcap) * softcap
        found = found + bias
        highs.append(found.amax(-1).transpose(1, 2).reshape(pages * across, pairs, group))
        scores.append((view, found, values))
    owners = torch.cat([view.owners.flatten() for view, _, _ in scores])
    # Rows of no page at all cannot be: each has at least the page of its new token. The extra row may have only -inf.
    highest = torch.full((rows + 1, pairs, group), -torch.inf, device=query.device)
    highest.scatter_reduce_(0, owners[:, None, None].expand(-1, pairs, group), torch.cat(highs), "amax")
    highest[rows] = 0
    total = torch.zeros(rows + 1, pairs, group, device=query.device)
    result = torch.zeros(rows + 1, pairs, group, value.shape[3], device=query.device)
    for view, found, values in scores:
        pages, across = view.owners.shape
        shares = found.sub_(highest[view.owners].transpose(1, 2)[..., None]).exp_()
        owner = view.owners.flatten()
        total.index_add_(0, owner, shares.sum(-1).transpose(1, 2).reshape(pages * across, pairs, group))
        mixed = shares.to(value.dtype).view(pages, pairs, across * group, PAGE) @ values
        mixed = mixed.view(pages, pairs, across, group, -1).transpose(1, 2).reshape(pages * across, pairs, group, -1)
        result.index_add_(0, owner, mixed.float())
    return (result[:rows] / total[:rows, ..., None]).to(query.dtype).reshape(rows, 1, heads, -1)
