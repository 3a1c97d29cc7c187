"""Which tokens of a packed row see which: samples side by side, and branches that share what came before them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a packed row.

    A token sees the tokens before it in its own segment, and all tokens of the segments that its segment continues. The
    answers to one prompt are laid out as one segment with the prompt and one for each answer that continues it, so the
    prompt runs once.

    Attributes:
        lengths: tokens of each segment, in the order of the row.
        parents: number of the segment that each one continues, -1 for none; it comes earlier in the row. Empty: none does.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...] = ()
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the parents.

        Raises:
            ValueError: when a segment continues one that does not come before it.
        """
        if self.parents and len(self.parents) != len(self.lengths):
            raise ValueError(f"{len(self.lengths)} segments have {len(self.parents)} parents")
        if any(parent >= number or parent < -1 for number, parent in enumerate(self.parents)):
            raise ValueError("a segment continues one that does not come before it")
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        object.__setattr__(self, "_starts", tuple(starts))

    @property
    def tokens(self) -> int:
        """Return the tokens of the row."""
        return self._starts[-1]

    @property
    def branches(self) -> bool:
        """Say whether any segment continues another."""
        return any(parent >= 0 for parent in self.parents)

    def span(self, number: int) -> tuple[int, int]:
        """Return where a segment starts and ends in the row."""
        return self._starts[number], self._starts[number + 1]

    def before(self, number: int) -> list[tuple[int, int]]:
        """Return the spans of the segments that a segment continues, first one first."""
        found: list[tuple[int, int]] = []
        while self.parents and self.parents[number] >= 0:
            number = self.parents[number]
            found.append(self.span(number))
        return found[::-1]

    def positions(self) -> list[int]:
        """Return the position of every token in its own sample: a branch counts on from what it continues."""
        return [
            position
            for number, length in enumerate(self.lengths)
            for offset in [sum(end - start for start, end in self.before(number))]
            for position in range(offset, offset + length)
        ]

    def predecessors(self) -> list[int]:
        """Return for every token the place in the row of the token before it in its own sample, -1 where there is none."""
        found = list(range(-1, self.tokens - 1))
        for number in range(len(self.lengths)):
            if self.lengths[number]:
                before = [span for span in self.before(number) if span[0] < span[1]]
                found[self._starts[number]] = before[-1][1] - 1 if before else -1
        return found
