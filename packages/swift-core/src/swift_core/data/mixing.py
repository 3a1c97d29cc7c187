"""Taking a number of samples, mixing, shuffling and setting some aside: the same result for the same seed on every machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Literal

from swift_core.protocols import Sample


def take(samples: Iterable[Sample], count: int | None, random: Random | None) -> list[Sample]:
    """Return `count` of the samples, or all of them.

    Fewer than there are: drawn without repetition, or the first ones when `random` is None (reading then stops there).
    More than there are: whole repetitions plus a drawn (or first) remainder. Holds at most max(count, size) samples.
    """
    if count is None:
        return list(samples)
    if random is None:
        kept: list[Sample] = []
        for sample in samples:
            kept.append(sample)
            if len(kept) == count:
                break
    else:
        kept = _reservoir(samples, count, random)
    if not kept or len(kept) == count:
        return kept
    repeats, remainder = divmod(count, len(kept))
    rest = kept[:remainder] if random is None else random.sample(kept, remainder)
    return kept * repeats + rest


def _reservoir(samples: Iterable[Sample], count: int, random: Random) -> list[Sample]:
    """Draw `count` samples in one pass without holding the others."""
    kept: list[tuple[int, Sample]] = []
    for index, sample in enumerate(samples):
        if index < count:
            kept.append((index, sample))
        else:
            place = random.randrange(index + 1)
            if place < count:
                kept[place] = (index, sample)
    kept.sort(key=lambda item: item[0])
    return [sample for _, sample in kept]


def set_aside(samples: Sequence[Sample], ratio: float, random: Random | None) -> tuple[list[Sample], list[Sample]]:
    """Split samples into (kept, set aside).

    The rows set aside number `ratio` of the different rows, at least one when there are two or more. A row that is
    repeated goes to one side only, and once when set aside. Without `random` the last rows are set aside.
    """
    origins = list(dict.fromkeys(sample.origin for sample in samples))
    if ratio <= 0 or len(origins) < 2:
        return list(samples), []
    wanted = min(max(1, round(ratio * len(origins))), len(origins) - 1)
    chosen = set(random.sample(origins, wanted) if random else origins[-wanted:])
    aside = {sample.origin: sample for sample in samples if sample.origin in chosen}
    return [sample for sample in samples if sample.origin not in chosen], list(aside.values())


Strategy = Literal["first_exhausted", "all_exhausted"]


def interleave(sets: Sequence[Sequence[Sample]], weights: Sequence[float], random: Random, strategy: Strategy) -> list[Sample]:
    """Draw from several sets by chance, each set in its own order.

    Args:
        sets: none of them empty.
        weights: chance of each set, relative to the others.
        random: decides which set is next.
        strategy: `first_exhausted` ends when the set that is drawn has no sample left; `all_exhausted` starts such a set
            again and ends once every set was used up.
    """
    mixed: list[Sample] = []
    taken = [0] * len(sets)
    used_up: set[int] = set()
    indices = range(len(sets))
    while True:
        number = random.choices(indices, weights)[0]
        if taken[number] == len(sets[number]):
            used_up.add(number)
            if strategy == "first_exhausted" or len(used_up) == len(sets):
                return mixed
            taken[number] = 0
        mixed.append(sets[number][taken[number]])
        taken[number] += 1
