"""The watch over ranks that hang: what counts as hanging, and what is shown."""

from __future__ import annotations

import threading

import pytest
from swift_core.train.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(clock: Clock, limit: float = 20.0) -> Watchdog:
    return Watchdog(limit, rank=1, size=2, together=lambda: None, clock=clock)


def test_the_first_step_may_take_any_time_and_counts_as_a_pause(clock: Clock) -> None:
    dog = watch(clock)
    clock.now = 1000.0
    assert dog.limit is None and dog.overdue() is None
    dog.step_done()
    assert dog.limit == 3000.0


@pytest.mark.parametrize(("waits", "idle", "hangs"), [(False, 20.0, False), (False, 20.5, True), (True, 24.0, False), (True, 26.0, True)])
def test_who_may_be_waiting_for_others_has_more_time(clock: Clock, waits: bool, idle: float, hangs: bool) -> None:
    dog = watch(clock)
    dog.step_done()
    dog.beat("computing", waits=waits)
    clock.now = idle
    assert dog.overdue() == ((idle, "computing") if hangs else None)


def test_long_pauses_that_were_none_of_trouble_raise_the_limit(clock: Clock) -> None:
    dog = watch(clock)
    dog.step_done()
    clock.now = 15.0
    dog.beat("computing")
    assert dog.limit == 45.0


def test_saving_may_take_any_time_and_does_not_raise_the_limit(clock: Clock) -> None:
    dog = watch(clock)
    dog.step_done()
    with dog.unlimited("saving"):
        clock.now = 600.0
        assert dog.overdue() is None
    assert dog.limit == 20.0 and dog.overdue() is None
    clock.now = 621.0
    assert dog.overdue() == (21.0, "after saving")


def test_ranks_leave_a_long_stage_together_while_the_watch_is_on() -> None:
    waited: list[bool] = []
    dog = Watchdog(60, rank=0, size=2, together=lambda: waited.append(True))
    with dog.unlimited("evaluating"):
        pass
    assert not waited  # outside of a run nobody else may be there
    with dog, dog.unlimited("evaluating"):
        assert not waited
    assert waited == [True]


def test_a_rank_that_hangs_says_who_it_is_and_where_it_stands(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def stuck_here() -> None:
        assert ended.wait(30)

    with Watchdog(0.05, rank=1, size=2, together=lambda: None, end=end) as dog:
        dog.step_done()
        dog.beat("computing a loss")
        stuck_here()
    shown = capfd.readouterr().err
    assert codes[0] == 1
    assert "rank 1 of 2" in shown and "in stuck_here" in shown and "while computing a loss" in shown and "--hang_timeout" in shown


@pytest.mark.parametrize(("limit", "size"), [(0.0, 2), (20.0, 1)])
def test_alone_or_switched_off_there_is_no_watch(limit: float, size: int) -> None:
    before = threading.active_count()
    with Watchdog(limit, rank=0, size=size, together=lambda: None):
        assert threading.active_count() == before
