"""Rows read while training: every row once an epoch, and going on exactly where a checkpoint stood."""

import itertools
import json
from collections import Counter

import pytest
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.streaming import SampleStream
from swift_core.errors import CheckpointError, ConfigError, DataError

OFFLINE = ModelSection(offline=True)


def write(path, count, start=0):
    path.write_text("".join(json.dumps({"query": f"q{i}", "response": f"a{i}"}) + "\n" for i in range(start, start + count)))
    return str(path)


def stream(*dataset, **settings):
    return SampleStream(DataSection(dataset=list(dataset), **settings), OFFLINE)


def draw(samples, count):
    return [sample.messages[0]["content"] for sample in itertools.islice(samples, count)]


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 20, start=100)]


def test_order_of_the_files_without_shuffling(files):
    assert draw(stream(*files, dataset_shuffle=False), 52) == [*(f"q{i}" for i in [*range(30), *range(100, 120)]), "q0", "q1"]


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_an_epoch_gives_every_row_once_and_the_next_one_in_another_order(files, buffer):
    rows = stream(*files, shuffle_buffer_size=buffer)
    first, second = draw(rows, 50), draw(rows, 50)
    assert sorted(first) == sorted(second) and len(set(first)) == 50
    assert (first != second) == (buffer > 1)
    assert first == draw(stream(*files, shuffle_buffer_size=buffer), 50)


@pytest.mark.parametrize("taken", [0, 1, 22, 28, 40, 49, 50, 51, 73])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shuffle_buffer_size": 9},
        {"dataset_shuffle": False},
        {"shuffle_buffer_size": 6, "interleave_prob": [0.8, 0.2]},
        {"shuffle_buffer_size": 9, "interleave_prob": [0.8, 0.2], "stopping_strategy": "all_exhausted"},
        {"dataset_shuffle": False, "interleave_prob": [0.3, 0.7], "stopping_strategy": "all_exhausted"},
    ],
)
def test_a_restored_stream_goes_on_as_the_first_one(files, settings, taken):
    rows = stream(*files, **settings)
    draw(rows, taken)
    state = json.loads(json.dumps(rows.state_dict()))
    expected = draw(rows, 60)
    again = stream(*files, **settings)
    draw(again, 3)  # whatever it did before does not matter
    again.load_state_dict(state)
    assert draw(again, 60) == expected


def test_count_takes_the_first_rows(files):
    assert sorted(draw(stream(f"{files[0]}#4"), 8)) == sorted([f"q{i}" for i in range(4)] * 2)


def test_chances(files):
    counts = Counter(int(q[1:]) >= 100 for q in draw(stream(*files, interleave_prob=[0.5, 0.5], stopping_strategy="all_exhausted"), 2000))
    assert 900 < counts[True] < 1100


def test_nothing_but_the_buffer_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 20)
    with path.open("a") as handle:
        handle.write("broken\n")
    rows = stream(str(path), shuffle_buffer_size=5)
    draw(rows, 15)
    with pytest.raises(DataError, match=rf"{path}:21"):
        draw(rows, 2)


def test_bad_rows_are_counted_in_the_first_pass_only(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 4)
    with path.open("a") as handle:
        handle.write("broken\n")
    rows = stream(str(path), on_bad_row="skip")
    draw(rows, 12)
    assert len(rows.report.bad) == 1
    assert rows.report.read == 5


def test_nothing_usable(tmp_path):
    (tmp_path / "a.jsonl").write_text("broken\n")
    with pytest.raises(DataError, match="nothing can be used"):
        draw(stream(str(tmp_path / "a.jsonl"), on_bad_row="skip"), 1)


def test_a_state_of_other_data_is_refused(files, tmp_path):
    rows = stream(*files)
    draw(rows, 40)
    state = rows.state_dict()
    with pytest.raises(CheckpointError, match="same --dataset"):
        stream(files[0]).load_state_dict(state)
    write(tmp_path / "a.jsonl", 3)
    with pytest.raises(CheckpointError, match="has 3 rows"):
        stream(*files).load_state_dict(state)


def test_a_folder_streams(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", 3)
    assert sorted(draw(stream(str(tmp_path / "set")), 3)) == ["q0", "q1", "q2"]


def test_settings_that_need_all_rows(files):
    with pytest.raises(ConfigError, match="--val_dataset"):
        stream(files[0], split_dataset_ratio=0.1)
