"""Putting samples together: into packs of a fixed length, or into micro-batches of like amounts of tokens. Pure."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack samples into packs of at most `capacity` tokens: longest first, each into the fullest pack that has room.

    Best-fit decreasing leaves at most 22% more packs than an optimal packing (Johnson 1973), in O(n log n). Equal lengths go
    in order of their index, so the result depends on the lengths alone.

    Args:
        lengths: tokens of each sample; a sample longer than the capacity gets a pack of its own.
        capacity: tokens of a pack.

    Returns:
        packs of sample indices, in the order of the smallest index in each.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            free, pack = room.pop(place)
            packs[pack].append(index)
            insort(room, (free - lengths[index], pack))
        else:
            packs.append([index])
            if lengths[index] < capacity:
                insort(room, (capacity - lengths[index], len(packs) - 1))
    return sorted((sorted(pack) for pack in packs), key=lambda pack: pack[0])


def best_fit_stream(items: Iterable[tuple[int, int]], capacity: int, *, window: int = 1000) -> Iterator[list[int]]:
    """Pack a stream window by window: each window of items is packed by `best_fit`, the least full pack goes to the next one.

    Args:
        items: (key, tokens) in order.
        capacity: tokens of a pack.
        window: items looked at together.

    Yields:
        packs of keys.
    """
    held: list[tuple[int, int]] = []
    for item in items:
        held.append(item)
        if len(held) < window:
            continue
        packs = best_fit([tokens for _, tokens in held], capacity)
        last = min(packs, key=lambda pack: sum(held[place][1] for place in pack))
        for pack in packs:
            if pack is not last or len(packs) == 1:
                yield [held[place][0] for place in pack]
        held = [held[place] for place in last] if len(packs) > 1 else []
    for pack in best_fit([tokens for _, tokens in held], capacity):
        yield [held[place][0] for place in pack]


def balanced_bins(items: Sequence[int], lengths: Sequence[int], *, bins: int) -> list[list[int]]:
    """Deal items into bins of like sums: longest first, each into the emptiest bin.

    The fullest bin holds at most 4/3 of what the best dealing gives it (Graham 1969).

    Args:
        items: sample indices.
        lengths: tokens of every sample of the data set.
        bins: how many; some are empty when there are fewer items.

    Returns:
        bins, fullest first.
    """
    heap = [(0, number) for number in range(bins)]
    found: list[list[int]] = [[] for _ in range(bins)]
    for index in sorted(items, key=lambda index: (-lengths[index], index)):
        tokens, number = heapq.heappop(heap)
        found[number].append(index)
        heapq.heappush(heap, (tokens + lengths[index], number))
    return sorted(found, key=lambda bin_: -sum(lengths[index] for index in bin_))
