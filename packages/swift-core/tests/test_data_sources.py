import json
import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data import locate
from swift_core.data.mixing import set_aside, take
from swift_core.data.registered import register_dataset
from swift_core.data.report import BadRow, RowReport, write_rejected
from swift_core.data.sources import load_dataset, load_datasets, new_report
from swift_core.errors import ConfigError, DataError, NotFoundError, RegistryError
from swift_core.protocols import Sample
from swift_core.registry import DATASETS
from swift_core.specs import DatasetSpec

OFFLINE = ModelSection(offline=True)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count, start=0):
    return [{"query": f"q{i}", "response": f"a{i}"} for i in range(start, start + count)]


def load(*dataset, **settings):
    return load_datasets(DataSection(dataset=list(dataset), **settings), OFFLINE)


def questions(samples):
    return [sample.messages[0]["content"] for sample in samples]


@pytest.fixture
def ten(tmp_path):
    return write(tmp_path / "ten.jsonl", pairs(10))


def test_all_rows_shuffled_once(ten):
    loaded = load(ten)
    assert sorted(questions(loaded.train)) == [f"q{i}" for i in range(10)]
    assert questions(loaded.train) != [f"q{i}" for i in range(10)]
    assert questions(load(ten).train) == questions(loaded.train)
    assert questions(load(ten, data_seed=7).train) != questions(loaded.train)
    assert loaded.report.summary() == "rows read 10, used 10, bad 0; formats: query/response 10"


def test_order_is_kept_without_shuffling(ten, tmp_path):
    more = write(tmp_path / "more.jsonl", pairs(2, start=10))
    assert questions(load(more, ten, dataset_shuffle=False).train) == ["q10", "q11", *(f"q{i}" for i in range(10))]


def test_count(ten):
    assert questions(load(f"{ten}#3", dataset_shuffle=False).train) == ["q0", "q1", "q2"]
    assert questions(load(f"{ten}#23", dataset_shuffle=False).train) == [f"q{i % 10}" for i in range(23)]
    drawn = questions(load(f"{ten}#4").train)
    assert len(set(drawn)) == 4
    assert set(drawn) != {"q0", "q1", "q2", "q3"}
    repeated = Counter(questions(load(f"{ten}#25").train))
    assert sorted(repeated.values()) == [2] * 5 + [3] * 5


def test_first_rows_only_are_read_without_shuffling(tmp_path):
    path = write(tmp_path / "a.jsonl", [*pairs(3), "broken"])
    assert len(load(f"{path}#3", dataset_shuffle=False).train) == 3


def test_the_same_file_twice_draws_different_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(100))
    loaded = load(f"{path}#20", f"{path}#20")
    assert len(set(questions(loaded.train))) > 20


def test_reservoir_draws_every_row_equally_often():
    samples = [Sample(messages=[], origin=str(i)) for i in range(10)]
    counts = Counter(sample.origin for seed in range(2000) for sample in take(samples, 3, Random(seed)))
    assert all(abs(count - 600) < 100 for count in counts.values())
    assert len(counts) == 10


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "ratio", "aside"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.9, 1), (10, 0.99, 9)])
def test_split(tmp_path, shuffle, rows, ratio, aside):
    path = write(tmp_path / "a.jsonl", pairs(rows))
    loaded = load(path, split_dataset_ratio=ratio, dataset_shuffle=shuffle)
    assert len(loaded.val) == aside
    assert sorted(questions(loaded.train) + questions(loaded.val)) == sorted(f"q{i}" for i in range(rows))
    if not shuffle:
        assert questions(loaded.val) == [f"q{i}" for i in range(rows)][-aside:]


def test_a_repeated_row_is_never_on_both_sides(ten):
    loaded = load(f"{ten}#37", split_dataset_ratio=0.3)
    assert not set(questions(loaded.train)) & set(questions(loaded.val))
    assert len(loaded.val) == 3


def test_split_of_one_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least two rows"):
        load(write(tmp_path / "a.jsonl", pairs(1)), split_dataset_ratio=0.5)
    assert set_aside([Sample(messages=[], origin="a")], 0.5, None) == ([Sample(messages=[], origin="a")], [])


def test_val_dataset(ten, tmp_path):
    val = write(tmp_path / "val.jsonl", pairs(8, start=10))
    assert questions(load(ten, val_dataset=[val]).val) == [f"q{i}" for i in range(10, 18)]
    shuffled = questions(load(ten, val_dataset=[val], val_dataset_shuffle=True).val)
    assert shuffled != sorted(shuffled)
    assert set(shuffled) == {f"q{i}" for i in range(10, 18)}


def test_result_does_not_depend_on_the_hash_seed(ten):
    """Another process has another seed than this one."""
    datasets = [f"{ten}#13", "self-cognition#9"]
    code = (
        "from swift_core.config.sections import *; from swift_core.data.sources import load_datasets\n"
        f"d = load_datasets(DataSection(dataset={datasets!r}, split_dataset_ratio=0.2), ModelSection(offline=True))\n"
        "print([s.origin for s in d.train], [s.origin for s in d.val])"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    here = load_datasets(DataSection(dataset=datasets, split_dataset_ratio=0.2), ModelSection(offline=True))
    assert printed.strip() == f"{[s.origin for s in here.train]} {[s.origin for s in here.val]}"
    assert "self-cognition" in printed


BAD = [*pairs(2), '{"query": "cut', {"messages": [{"role": "usr", "content": "x"}]}, *pairs(2, start=2), {"query": "only"}]


def test_fail_names_the_line_and_the_rows_read(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError) as raised:
        load(path)
    assert raised.value.location == f"{path}:3"
    assert "rows read so far: 3" in raised.value.message
    assert "--on_bad_row skip" in str(raised.value.fix)


def test_skip_reports_what_it_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    loaded = load(path, on_bad_row="skip")
    assert sorted(questions(loaded.train)) == ["q0", "q1", "q2", "q3"]
    summary = loaded.report.summary()
    assert "rows read 7, used 4, bad 3" in summary
    assert f"1 x turn 1 has the role 'usr' ({path}:4)" in summary


def test_quarantine_writes_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    report = load(path, on_bad_row="quarantine").report
    assert write_rejected(report, tmp_path / "run" / "rejected.jsonl") == 3
    written = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [record["origin"] for record in written] == [f"{path}:3", f"{path}:4", f"{path}:7"]
    assert [record["raw"] for record in written] == ['{"query": "cut', BAD[3], BAD[6]]
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["rejected.jsonl"]


def test_rejected_bytes_can_be_written(tmp_path):
    report = RowReport(bad=[BadRow("f:1", "not UTF-8", "\udcc4", "convert")])
    write_rejected(report, tmp_path / "rejected.jsonl")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["raw"] == "\udcc4"


def test_max_bad_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    assert len(load(path, on_bad_row="skip", max_bad_rows=3).train) == 4
    with pytest.raises(DataError, match=r"bad row 3 of 7 read; --max_bad_rows is 2"):
        load(path, on_bad_row="skip", max_bad_rows=2)


@pytest.mark.parametrize(("rows", "reason"), [([], "it holds no rows"), ([{"foo": 1}, {"foo": 2}], "all 2 rows are bad")])
def test_nothing_usable(tmp_path, rows, reason):
    with pytest.raises(DataError, match=reason):
        load(write(tmp_path / "a.jsonl", rows), on_bad_row="skip")


def test_columns_setting(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": "x", "a": "y", "text": "z"}])
    assert load(path, columns={"q": "query", "a": "response"}).train[0].messages[1]["content"] == "y"
    with pytest.raises(ConfigError, match=r"renames 'nope', which no row has.*columns in the data: q, a, text"):
        load(path, columns={"q": "query", "nope": "response"})


def test_missing_data_set_setting():
    with pytest.raises(ConfigError, match="--dataset"):
        load()


def test_a_missing_file_names_its_neighbour(ten):
    with pytest.raises(NotFoundError, match=r"ten\.jsonl"):
        load(ten.replace("ten.jsonl", "tan.jsonl"))


def test_a_file_has_no_subsets(ten):
    with pytest.raises(DataError, match="is a file, which has no subset 'en'"):
        load(f"{ten}:en")


def test_folder_of_files_reads_the_training_split(tmp_path):
    write(tmp_path / "set" / "train.jsonl", pairs(3))
    write(tmp_path / "set" / "test.jsonl", pairs(2, start=50))
    loaded = load(str(tmp_path / "set"), dataset_shuffle=False)
    assert questions(loaded.train) == ["q0", "q1", "q2"]
    assert loaded.train[0].origin.endswith("set/train.jsonl:1")


def test_folder_reads_rows_that_arrow_could_not_type(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "meta": {"x": 1}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}], "meta": ["y"]},
    ]
    write(tmp_path / "set" / "data.jsonl", rows)
    assert questions(load(str(tmp_path / "set")).train) == ["q", "q"]


CARD = """---
configs:
- config_name: en
  data_files: en.jsonl
- config_name: zh
  data_files: zh.jsonl
---
"""


@pytest.fixture
def two_subsets(tmp_path):
    write(tmp_path / "set" / "en.jsonl", pairs(1))
    write(tmp_path / "set" / "zh.jsonl", pairs(2, start=10))
    (tmp_path / "set" / "README.md").write_text(CARD)
    return str(tmp_path / "set")


@pytest.mark.parametrize(("subsets", "count"), [(":en", 1), (":zh", 2), (":en/zh", 3), (":all", 3)])
def test_subsets(two_subsets, subsets, count):
    assert len(load(two_subsets + subsets).train) == count


def test_subsets_must_be_named_and_known(two_subsets):
    with pytest.raises(DataError, match=r"2 subsets and no default.*en, zh"):
        load(two_subsets)
    with pytest.raises(DataError, match=r"no subset 'fr'.*en, zh"):
        load(f"{two_subsets}:fr")


def test_files_left_out_are_noted(two_subsets):
    assert "not part of it: zh.jsonl" in load(f"{two_subsets}:en").report.summary()


def test_folder_without_data(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        load(str(tmp_path / "set"))


def test_known_data_set_uses_its_id_columns_and_split(tmp_path, monkeypatch):
    write(tmp_path / "set" / "train.jsonl", [{"system_prompt": "s", "question": "q", "response": "a"}])
    asked = []

    def resolve(name, **settings):
        asked.append((name, settings["kind"], settings["offline"]))
        return tmp_path / "set"

    monkeypatch.setattr(locate, "resolve", resolve)
    sample = load("OpenOrca-Chinese#1").train[0]
    assert [message["content"] for message in sample.messages] == ["s", "q", "a"]
    load("hf::yys/OpenOrca-Chinese")
    load("some/repo@v2")
    assert asked == [
        ("ms::AI-ModelScope/OpenOrca-Chinese", "dataset", True),
        ("hf::yys/OpenOrca-Chinese", "dataset", True),
        ("ms::some/repo@v2", "dataset", True),
    ]


def test_hub_names_that_cannot_be_had():
    with pytest.raises(NotFoundError, match=r"on ModelScope, not on Hugging Face.*ms::iic/ms_bench"):
        load("hf::ms-bench")
    with pytest.raises(NotFoundError, match="did you mean ms-bench"):
        load("ms-bnch")
    with pytest.raises(DataError, match=r"subset mini of msagent-bench.*choose from: default"):
        load("msagent-bench:mini")


def test_self_cognition_is_filled():
    loaded = load("self-cognition", model_name=["小雨", "Rain"], model_author=["Acme"])
    texts = [message["content"] for sample in loaded.train for message in sample.messages]
    assert len(loaded.train) == 110
    assert not any("{{" in text for text in texts)
    chinese = [any("\u4e00" <= char <= "\u9fff" for char in text.replace("小雨", "")) for text in texts]
    assert all(("Rain" not in text) if zh else ("小雨" not in text) for text, zh in zip(texts, chinese, strict=True))
    answers = texts[1::2]
    assert sum("小雨" in text or "Rain" in text for text in answers) > 80
    assert sum("Acme" in text for text in answers) > 80
    assert len({sample.messages[0]["content"] for sample in loaded.train}) == 110


def test_self_cognition_defaults_and_subsets():
    data = DataSection(dataset=["swift/self-cognition:qwen3"])
    samples = load_dataset("swift/self-cognition:qwen3#2", data=data, loading=OFFLINE, report=new_report(data), shuffle=False)
    assert all(sample.messages[0]["content"].endswith(" /no_think") for sample in samples)
    assert all(sample.messages[1]["content"].startswith("<think>\n\n</think>\n\n") for sample in samples)
    assert any("swift-robot" in sample.messages[1]["content"] for sample in samples)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dataset": ["self-cognition"], "model_name": ["a", "b", "c"]}, "--model_name: has 3 values"),
        ({"dataset": ["self-cognition"], "model_author": [" "]}, "--model_author"),
        ({"dataset": ["other.jsonl"], "model_name": ["a"]}, "only acts on the self-cognition data"),
    ],
)
def test_self_cognition_settings(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_datasets(DataSection(**settings), OFFLINE)


def test_prompts_only(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "q"}, {"messages": [{"role": "user", "content": "r"}]}])
    loaded = load_datasets(DataSection(val_dataset=[path]), OFFLINE, need_answer=False)
    assert questions(loaded.val) == ["q", "r"]


def test_weights_mix_by_chance(tmp_path):
    first, second = write(tmp_path / "a.jsonl", pairs(300)), write(tmp_path / "b.jsonl", pairs(300, start=1000))
    loaded = load(f"{first}@0.75", f"{second}@0.25")
    counts = Counter(int(question[1:]) >= 1000 for question in questions(loaded.train))
    assert counts[False] == 300  # the first set is used up, the second in part
    assert 60 < counts[True] < 140
    assert questions(load(first, second, interleave_prob=[0.75, 0.25]).train) == questions(loaded.train)
    assert any(int(question[1:]) >= 1100 for question in questions(loaded.train))  # drawn from all of it, not from its start


def test_all_exhausted_repeats_the_shorter_set(tmp_path):
    first, second = write(tmp_path / "a.jsonl", pairs(5)), write(tmp_path / "b.jsonl", pairs(50, start=1000))
    train = questions(load(first, second, interleave_prob=[1, 1], stopping_strategy="all_exhausted").train)
    counts = Counter(train)
    assert all(counts[f"q{i}"] == 1 for i in range(1000, 1050))
    assert all(counts[f"q{i}"] > 5 for i in range(5))


def test_mixing_keeps_the_order_of_each_set_without_shuffling(tmp_path):
    first, second = write(tmp_path / "a.jsonl", pairs(20)), write(tmp_path / "b.jsonl", pairs(20, start=1000))
    train = [int(question[1:]) for question in questions(load(f"{first}@1", f"{second}@1", dataset_shuffle=False).train)]
    low, high = [i for i in train if i < 1000], [i for i in train if i >= 1000]
    assert low == sorted(low) and high == sorted(high) and train != low + high


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dataset": ["a@1", "b"], "interleave_prob": [1, 1]}, "weights of their own"),
        ({"dataset": ["a", "b"], "interleave_prob": [1]}, "has 1 values for 2 data sets"),
        ({"dataset": ["a", "b"], "interleave_prob": [1, 0]}, "not all positive"),
        ({"dataset": ["a"], "val_dataset": ["b.jsonl@0.5"]}, "reads every row once"),
        ({"dataset": ["a"], "streaming": True}, "while training"),
    ],
)
def test_mixing_settings_that_cannot_act(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_datasets(DataSection(**settings), OFFLINE)


@pytest.fixture
def registered(request):
    name = f"registered-{request.node.name}"
    yield name
    DATASETS._specs.pop(name, None)


def test_registered_loader(registered):
    register_dataset(registered, lambda: pairs(3))
    loaded = load(f"{registered}#2", dataset_shuffle=False)
    assert questions(loaded.train) == ["q0", "q1"]
    assert loaded.train[0].origin == f"{registered}#0"
    with pytest.raises(RegistryError, match="registered twice"):
        register_dataset(registered, lambda: pairs(1))
    register_dataset(registered, lambda subset: [{"query": subset, "response": "a"}], subsets=("x", "y"), override=True)
    assert questions(load(f"{registered}:y").train) == ["y"]
    register_dataset(registered, lambda: ["text"], override=True)
    with pytest.raises(DataError, match=r"#0: the loader .* gives str"):
        load(registered)


def test_registered_path_with_a_function_for_rows(registered, ten):
    def preprocess(row):
        if row["query"] == "q0":
            return None
        if row["query"] == "q1":
            raise KeyError("nope")
        return [row, {**row, "query": row["query"] + "!"}] if row["query"] == "q2" else row

    register_dataset(DatasetSpec(name=registered, summary="", path=ten), preprocess=preprocess)
    loaded = load(registered, on_bad_row="skip", dataset_shuffle=False)
    assert questions(loaded.train)[:3] == ["q2", "q2!", "q3"]
    assert "the preprocess function raised KeyError: 'nope'" in loaded.report.summary()
    with pytest.raises(DataError, match="has no source"):
        register_dataset(DatasetSpec(name="nothing", summary=""))


def test_a_known_set_of_the_other_hub_is_taken_from_there(tmp_path, monkeypatch):
    write(tmp_path / "set" / "train.jsonl", pairs(1))
    asked = []
    monkeypatch.setattr(locate, "resolve", lambda name, **_: asked.append(name) or tmp_path / "set")
    only_ms = next(spec for spec in DATASETS if spec.ms_id and not spec.hf_id and spec.subsets == ("default",))
    loaded = load_datasets(DataSection(dataset=[only_ms.name], columns={}), ModelSection(offline=True, use_hf=True))
    assert asked == [f"ms::{only_ms.ms_id}"]
    assert "it is not on Hugging Face" in loaded.report.summary()
