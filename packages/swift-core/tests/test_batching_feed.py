"""Streams feed a run exactly, also after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swift_core.batching.feed import StreamFeed
from swift_core.batching.loader import Dealer
from swift_core.batching.plan import PlanShape
from swift_core.protocols import EncodedSample


class Counting(Iterator[EncodedSample]):
    """Samples whose tokens are their number, of varying length."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> EncodedSample:
        self.position += 1
        length = self.position * 7 % 11 + 2
        return EncodedSample([self.position] * length, [self.position] * length, str(self.position))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def steps(feed: StreamFeed, shape: PlanShape, start: int, stop: int, rank: int = 0) -> Iterator[Any]:
    return feed.steps(Dealer(shape, rank), start=start, stop=stop)


def origins(feed: StreamFeed, shape: PlanShape, start: int, stop: int, rank: int = 0) -> list[list[str]]:
    return [sorted(origin for batch in step.micros for origin in batch.origins) for step in steps(feed, shape, start, stop, rank)]


@pytest.mark.parametrize("capacity", [None, 16])
@given(cut=st.integers(1, 7), batch=st.integers(1, 3), accumulation=st.integers(1, 3))
def test_a_restored_stream_goes_on_where_it_stood(capacity: int | None, cut: int, batch: int, accumulation: int) -> None:
    shape = PlanShape(1, batch, accumulation)
    whole = origins(StreamFeed(Counting(), shape, capacity=capacity), shape, 0, 9)
    first = StreamFeed(Counting(), shape, capacity=capacity)
    assert origins(first, shape, 0, cut) == whole[:cut]
    second = StreamFeed(Counting(), shape, capacity=capacity)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert origins(second, shape, cut, 9) == whole[cut:]
    flat = [origin for step in whole for origin in step]
    assert len(flat) == len(set(flat))


def test_packs_are_full_and_nothing_is_lost() -> None:
    shape = PlanShape(1, 2, 2)
    feed = StreamFeed(Counting(), shape, capacity=64)
    taken = list(steps(feed, shape, 0, 30))
    assert sum(step.tokens for step in taken) > 0.95 * 30 * 4 * 64
    held = {sample["origin"] for sample in feed.state_dict()["held"]}
    used = {origin for step in taken for batch in step.micros for origin in batch.origins}
    assert sorted(int(origin) for origin in used | held) == list(range(1, len(used | held) + 1))


def test_ranks_share_a_step() -> None:
    shape = PlanShape(1, 2, 2, world_size=2)
    one, other = (list(steps(StreamFeed(Counting(), shape), shape, 0, 4, rank)) for rank in (0, 1))
    for left, right in zip(one, other, strict=True):
        assert len(left.micros) == len(right.micros)
        assert (left.trained_tokens, left.tokens, left.samples) == (right.trained_tokens, right.tokens, 8)
        mine, theirs = ({origin for batch in step.micros for origin in batch.origins} for step in (left, right))
        assert not mine & theirs and len(mine | theirs) == 8
