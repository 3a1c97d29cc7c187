"""Several rewards at once: order, weights, rows they do not apply to, errors, time limits, processes."""

from __future__ import annotations

import math
import os
import threading
import time

import pytest
import torch
from swift_core.errors import ConfigError, TrainingError
from swift_core.plugins import load_plugin_files
from swift_rlhf.rewards.functions import Reward, RewardSample, make_rewards
from swift_rlhf.rewards.pool import RewardPool

FILE = """
import asyncio, time

def length(completions):
    return [len(text) for text in completions]

async def equal(completions, solution):
    await asyncio.sleep(0)
    return [None if right is None else float(text == right) for text, right in zip(completions, solution)]

class Scaled:
    def __init__(self, scale, offset=0.0):
        self.scale, self.offset = scale, offset
    def __call__(self, completions, **columns):
        return [self.scale * len(text) + self.offset for text in completions]

class Classic:
    def __init__(self, args=None, **more):
        self.scale = args.scale
    def __call__(self, completions, **columns):
        return [float(self.scale)] * len(completions)

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(FILE)
    return str(path)


def samples(*texts: str, **columns) -> list[RewardSample]:
    return [
        RewardSample(completion=text, columns={name: values[index] for name, values in columns.items()}, origin=f"rows.jsonl:{index + 1}")
        for index, text in enumerate(texts)
    ]


def reward(function, name="mine", **more) -> Reward:
    return Reward(name=name, function=function, **more)


def test_functions_from_files_and_classes_with_options(file) -> None:
    names = [f"{file}:{name}" for name in ("length", "equal", "Scaled", "Classic")]
    rewards = make_rewards(names, weights=[1, 2, 3, 4], options={"scale": 0.5, "other": 1})
    with RewardPool(rewards) as pool:
        table = pool.score(samples("a", "bb", "ccc", solution=["a", None, "x"]))
    assert table.names == ("length", "equal", "Scaled", "Classic")
    assert table.values.shape == (3, 4)
    assert torch.equal(table.values.nan_to_num(-1), torch.tensor([[1, 1, 0.5, 0.5], [2, -1, 1.0, 0.5], [3, 0, 1.5, 0.5]]))
    assert pool.weights.tolist() == [1, 2, 3, 4]
    stats = table.stats["equal"]
    assert (stats.mean, stats.applied, stats.not_applicable, stats.failed) == (0.5, 2, 1, 0)
    assert stats.std == pytest.approx(math.sqrt(0.5))


def test_all_problems_of_a_choice_come_at_once(file) -> None:
    with pytest.raises(ConfigError) as caught:
        make_rewards(["lenght", f"{file}:Scaled", f"{file}:absent", f"{file}:number"], weights=[1], channels={"format": ["a"]})
    text = str(caught.value)
    for part in ("1 weights for 4", "'format' is none", "'lenght'", "--scale", "no attribute 'absent'", "cannot be called"):
        assert part in text


def test_rewards_hold_for_their_data_sets_only() -> None:
    seen = []

    def only(completions):
        seen.extend(completions)
        return [1.0] * len(completions)

    rows = samples("a", "b", "c")
    for row, channel in zip(rows, ("math", "code", None), strict=True):
        row.channel = channel
    with RewardPool([reward(only, channels=frozenset({"code"}))]) as pool:
        table = pool.score(rows)
    assert seen == ["b"]
    assert table.values[:, 0].isnan().tolist() == [True, False, True]


def test_what_a_function_does_not_name_it_does_not_get() -> None:
    def everything(completions, **columns):
        return [float(set(columns) == {"messages", "completion_ids", "finish_reasons", "channels", "origins", "topic"})]

    def some(completions, topic, origins):
        return [float((topic, origins) == (["x"], ["rows.jsonl:1"]))]

    def absent(completions, answers):
        return [0.0]

    with RewardPool([reward(everything, "one"), reward(some, "two")]) as pool:
        assert pool.score(samples("a", topic=["x"])).values.tolist() == [[1, 1]]
    with RewardPool([reward(absent)]) as pool, pytest.raises(ConfigError, match="'answers', which no row has"):
        pool.score(samples("a", topic=["x"]))


def fragile(completions, **columns):
    if "bad" in completions:
        raise ZeroDivisionError("oh")
    return [float(len(completions))] * len(completions)


def test_the_row_that_fails_is_named() -> None:
    with RewardPool([reward(fragile)]) as pool, pytest.raises(TrainingError, match=r"reward 'mine' at rows\.jsonl:2: failed: ZeroDiv"):
        pool.score(samples("a", "bad", "c"))


def test_or_left_out_while_the_others_are_asked_together() -> None:
    with RewardPool([reward(fragile)], on_error="nan") as pool:
        table = pool.score(samples("a", "bad", "c"))
    assert table.values[:, 0].nan_to_num(-1).tolist() == [2, -1, 2]
    assert table.stats["mine"].failed == 1
    assert table.stats["mine"].not_applicable == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0], "returned 1 rewards for 2"), ([1.0, "x"], "returned 'x'"), ([1.0, math.inf], "returned inf"), (None, "NoneType")],
)
def test_wrong_results_are_refused(values, message) -> None:
    with RewardPool([reward(lambda completions: values)]) as pool, pytest.raises(TrainingError, match=message):
        pool.score(samples("a", "b"))


def test_slow_functions_run_into_their_limit() -> None:
    release = threading.Event()

    def slow(completions):
        release.wait(20)
        return [1.0] * len(completions)

    rewards = [reward(slow, "slow", timeout=0.05), reward(lambda completions: [2.0] * len(completions), "fast")]
    start = time.perf_counter()
    with RewardPool(rewards, on_error="nan") as pool:
        table = pool.score(samples("a", "b"))
    with (
        RewardPool(rewards) as pool,
        pytest.raises(TrainingError, match=r"'slow' at rows\.jsonl:1, rows\.jsonl:2: took longer than 0\.05 s"),
    ):
        pool.score(samples("a", "b"))
    release.set()
    assert time.perf_counter() - start < 15
    assert table.stats["slow"].timed_out == 2
    assert table.values[:, 1].tolist() == [2, 2]


def test_functions_run_side_by_side_and_batches_while_others_wait() -> None:
    meet = threading.Barrier(3, timeout=20)

    def together(completions):
        meet.wait()
        return [1.0] * len(completions)

    with RewardPool([reward(together, "one"), reward(together, "two")]) as pool:
        future = pool.submit(samples("a"))
        meet.wait()
        assert future.result(20).values.tolist() == [[1, 1]]


def test_a_process_that_hangs_is_killed_and_the_next_sample_gets_a_new_one(tmp_path) -> None:
    path = tmp_path / "heavy.py"
    path.write_text(
        "import os, time\n"
        "def heavy(completions, **columns):\n"
        "    print('noise')\n"
        "    if completions[0] == 'hang': time.sleep(60)\n"
        "    if completions[0] == 'die': os._exit(3)\n"
        "    if completions[0] == 'raise': raise KeyError('k')\n"
        "    return [float(len(completions[0]))]\n"
    )
    heavy = make_rewards([f"{path}:heavy"], timeout=2.0)[0]
    heavy = Reward(name="heavy", function=heavy.function, reference=heavy.reference, timeout=2.0, process=True)
    with RewardPool([heavy], on_error="nan", processes=1) as pool:
        table = pool.score(samples("abc", "hang", "de", "die", "raise", "f"))
        assert table.values[:, 0].nan_to_num(-1).tolist() == [3, -1, 2, -1, -1, 1]
        assert (table.stats["heavy"].timed_out, table.stats["heavy"].failed) == (1, 2)
    with (
        RewardPool([heavy], processes=1) as pool,
        pytest.raises(TrainingError, match=r"rows\.jsonl:2: failed: its process ended with code 3"),
    ):
        pool.score(samples("abc", "die"))


def test_pools_of_nothing_and_of_twins_are_refused() -> None:
    for rewards in ([], [reward(fragile), reward(fragile)]):
        with pytest.raises(ConfigError):
            RewardPool(rewards)
    pool = RewardPool([reward(fragile)])
    pool.close()
    pool.close()


def test_registered_rewards_of_plugin_files_run_in_processes(tmp_path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(
        "import os\n"
        "from swift_core.registry import REWARDS\n"
        "from swift_core.specs import RewardSpec\n"
        "class Elsewhere:\n"
        "    def __init__(self, bonus): self.bonus = bonus\n"
        "    def __call__(self, completions, solution):\n"
        "        assert len(completions) == 1\n"
        "        return [(os.getpid() != self.bonus) + float(completions[0] == solution[0])]\n"
        "spec = RewardSpec(name='elsewhere', summary='', target=f'{__name__}:Elsewhere', process=True)\n"
        "REWARDS.register(spec, source=__file__, override=True)\n"
    )
    load_plugin_files([str(path)])
    with RewardPool(make_rewards(["elsewhere"], options={"bonus": os.getpid()}), plugin_files=[str(path)], processes=1) as pool:
        assert pool.score(samples("a", "b", solution=["a", "c"])).values.tolist() == [[2], [1]]
    with pytest.raises(ConfigError, match="cannot be found by a process"):
        RewardPool([reward(fragile, process=True)])
