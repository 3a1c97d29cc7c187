"""The plan of a run: every sample once an epoch, repeatable from any step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from swift_core.batching.plan import PlanShape, epoch_order, split_step, step_samples


def steps_from(shape: PlanShape, lengths: list[int], *, start: int, stop: int) -> list[list[list[list[int]]]]:
    return [split_step(taken, shape, lengths) for taken in step_samples(shape, lengths, start=start, stop=stop)]


shapes = st.builds(
    PlanShape,
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
    group_by_length=st.booleans(),
    token_budget=st.sampled_from([None, 10, 30]),
)


def lengths_of(shape: PlanShape) -> list[int]:
    return [(index * 7919) % 23 + 1 for index in range(shape.num_samples)]


@given(shapes, st.integers(0, 3))
def test_an_epoch_takes_each_sample_once(shape: PlanShape, epoch: int) -> None:
    assert sorted(epoch_order(shape, epoch, lengths_of(shape))) == list(range(shape.num_samples))


@given(shapes)
def test_steps_of_an_epoch_take_each_sample_once_over_all_ranks(shape: PlanShape) -> None:
    steps = list(steps_from(shape, lengths_of(shape), start=0, stop=shape.steps_per_epoch))
    taken = [index for step in steps for micro in step for rank in micro for index in rank]
    assert sorted(taken) == list(range(shape.num_samples))
    for step in steps:
        assert all(len(micro) == shape.world_size for micro in step)
        assert shape.token_budget or all(len(rank) <= shape.batch_size for micro in step for rank in micro)
        assert all(micro[0] for micro in step)


@given(shapes, st.integers(0, 6), st.integers(0, 6))
def test_starting_later_gives_the_same_steps(shape: PlanShape, start: int, more: int) -> None:
    lengths = lengths_of(shape)
    whole = list(steps_from(shape, lengths, start=0, stop=start + more))
    assert list(steps_from(shape, lengths, start=start, stop=start + more)) == whole[start:]


@given(shapes)
def test_a_step_holds_the_same_samples_however_it_is_dealt(shape: PlanShape) -> None:
    lengths = lengths_of(shape)
    single = PlanShape(shape.num_samples, shape.samples_per_step, 1, 1, shape.seed, shape.shuffle, shape.group_by_length)

    def sets(plan: PlanShape) -> list[list[int]]:
        steps = steps_from(plan, lengths, start=0, stop=plan.steps_per_epoch)
        return [sorted(index for micro in step for rank in micro for index in rank) for step in steps]

    assert sets(shape) == sets(single)


def test_epochs_differ_and_seeds_differ() -> None:
    shape = PlanShape(50, 2, 1)
    lengths = [1] * 50
    assert epoch_order(shape, 0, lengths) != epoch_order(shape, 1, lengths)
    assert epoch_order(shape, 0, lengths) != epoch_order(PlanShape(50, 2, 1, seed=7), 0, lengths)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(PlanShape(8, 1, 1, seed=42), 0, [1] * 8) == [1, 2, 5, 7, 6, 0, 3, 4]


def test_samples_of_like_length_share_a_micro_batch() -> None:
    shape = PlanShape(4, 2, 2)
    assert split_step([0, 1, 2, 3], shape, [10, 90, 11, 91]) == [[[3, 1]], [[2, 0]]]
