"""Which rows are being written, and where their keys lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from swift_core.decoding.pages import PAGE, Pool, Prompt, Row, Step, View


class Rows:
    """The rows of a running generation, in the order of a batch.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows: list[Row] = []
        self._device = device
        self._own, self._shared = Pool(), Pool()
        self._prompts: list[Prompt] = []
        self._owners: Tensor | None = None  # of the rows' own pages and of shared ones; None: something has changed
        self._shared_view: View | None = None
        self._lengths = self._tensor([])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Return for how many tokens there are pages."""
        return PAGE * (self._own.count + self._shared.count)

    def add(self, lengths: Sequence[int], copies: Sequence[int]) -> Prefill:
        """Make room for prompts and add rows behind the others; return where the prompts' keys go.

        Args:
            lengths: tokens of each prompt.
            copies: how many rows continue each of them.
        """
        places: list[tuple[Pool, list[int]]] = []
        for length, count in zip(lengths, copies, strict=True):
            pool = self._own if count == 1 else self._shared
            pages = pool.take(-(-length // PAGE))
            places.append((pool, pages))
            if count == 1:
                self.rows.append(Row(length, pages))
                continue
            prompt = Prompt(length, pages)
            prompt.rows = [Row(length, prompt=prompt) for _ in range(count)]
            self._prompts.append(prompt)
            self.rows += prompt.rows
        self._changed()
        return Prefill(lengths, places, self._device)

    def keep(self, numbers: Iterable[int]) -> None:
        """Go on with these rows only, in this order."""
        kept = [self.rows[number] for number in numbers]
        alive = set(map(id, kept))
        gone = [row for row in self.rows if id(row) not in alive]
        self.rows = kept
        if not gone:
            self._changed()
            return
        _rename(self._own.give_back([page for row in gone for page in row.pages]), kept)
        for prompt in self._prompts:
            prompt.rows = [row for row in prompt.rows if id(row) in alive]
        over = [prompt for prompt in self._prompts if not prompt.rows]
        if over:
            self._prompts = [prompt for prompt in self._prompts if prompt.rows]
            _rename(self._shared.give_back([page for prompt in over for page in prompt.pages]), self._prompts)
        if not kept:
            self._own.shrink()
            self._shared.shrink()
        self._changed()

    def step(self) -> Step:
        """Make room for one more token in each row and return how the step reads and writes."""
        full = [row for row in self.rows if row.own == PAGE * len(row.pages)]
        for row, page in zip(full, self._own.take(len(full)), strict=True):
            row.pages.append(page)
        if full or self._owners is None:
            self._arrange()
        assert self._owners is not None
        positions = self._lengths
        place = self._own_lengths % PAGE
        ends = torch.full((self._own.count,), PAGE, device=self._device)
        ends[self._last] = place + 1
        view = View(self._own, self._owners, ends, self._starts)
        for row in self.rows:
            row.length += 1
        self._lengths = self._lengths + 1
        self._own_lengths = self._own_lengths + 1
        return Step([view, *([self._shared_view] if self._shared_view else [])], (self._last, place), positions)

    def _changed(self) -> None:
        self._owners = None

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _arrange(self) -> None:
        owners, starts = [0] * self._own.count, [0] * self._own.count
        for number, row in enumerate(self.rows):
            first = row.length - row.own
            for place, page in enumerate(row.pages):
                owners[page], starts[page] = number, first + place * PAGE
        self._owners, self._starts = self._tensor(owners)[:, None], self._tensor(starts)
        self._last = self._tensor([row.pages[-1] for row in self.rows])
        self._lengths = self._tensor([row.length for row in self.rows])
        self._own_lengths = self._tensor([row.own for row in self.rows])
        self._shared_view = self._read_shared() if self._prompts else None

    def _read_shared(self) -> View:
        number_of = {id(row): number for number, row in enumerate(self.rows)}
        most, none = max(len(prompt.rows) for prompt in self._prompts), len(self.rows)
        owners, ends, starts = [[none] * most for _ in range(self._shared.count)], [0] * self._shared.count, [0] * self._shared.count
        for prompt in self._prompts:
            numbers = [number_of[id(row)] for row in prompt.rows]
            for place, page in enumerate(prompt.pages):
                owners[page] = numbers + [none] * (most - len(numbers))
                starts[page], ends[page] = place * PAGE, min(PAGE, prompt.length - place * PAGE)
        return View(self._shared, torch.tensor(owners, device=self._device), self._tensor(ends), self._tensor(starts))


class Prefill:
    """Where the keys of prompts go that run side by side in one row.

    Args:
        lengths: tokens of each prompt.
        places: pool and pages of each.
        device: where the model is.
    """

    def __init__(self, lengths: Sequence[int], places: Sequence[tuple[Pool, list[int]]], device: torch.device) -> None:
        self._parts: list[tuple[Pool, Tensor, Tensor, Tensor]] = []
        for pool in dict.fromkeys(pool for pool, _ in places):
            tokens: list[int] = []
            pages: list[int] = []
            offsets: list[int] = []
            start = 0
            for length, (owner, numbers) in zip(lengths, places, strict=True):
                if owner is pool:
                    tokens += range(start, start + length)
                    pages += [numbers[token // PAGE] for token in range(length)]
                    offsets += [token % PAGE for token in range(length)]
                start += length
            at = [torch.tensor(one, device=device) for one in (tokens, pages, offsets)]
            self._parts.append((pool, at[0], at[1], at[2]))

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take over keys and values of the prompts in one layer, `[1, heads, tokens, width]`."""
        for pool, tokens, pages, offsets in self._parts:
            keys, values = pool.layer(layer, key, value)
            keys[pages, :, :, offsets] = key[0].transpose(0, 1)[tokens]
            values[pages, :, offsets] = value[0].transpose(0, 1)[tokens]


def _rename(moved: dict[int, int], holders: Iterable[Row | Prompt]) -> None:
    if moved:
        for holder in holders:
            holder.pages = [moved.get(page, page) for page in holder.pages]
