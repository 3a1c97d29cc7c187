import pytest
from hypothesis import given
from hypothesis import strategies as st
from swift_core.cards.datasets import find_dataset, read_datasets
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data import locate
from swift_core.data.dataset_id import DatasetId, parse_dataset_id
from swift_core.data.report import RowReport
from swift_core.errors import ConfigError
from swift_core.registry import DATASETS


def nothing(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("ms-bench", DatasetId("ms-bench")),
        ("hf::org/name:a/b#500", DatasetId("org/name", "hf", ("a", "b"), 500)),
        ("ms::org/name:all", DatasetId("org/name", "ms", ("all",))),
        ("org/name@v1:a", DatasetId("org/name@v1", None, ("a",))),
        ("data/train.jsonl#20", DatasetId("data/train.jsonl", count=20)),
        ("org/name@v1:a#5@0.3", DatasetId("org/name@v1", None, ("a",), 5, 0.3)),
        ("org/name@1.5", DatasetId("org/name@1.5")),
        ("org/name@1.5@0.5", DatasetId("org/name@1.5", weight=0.5)),
        ("data/train.jsonl@2.0", DatasetId("data/train.jsonl", weight=2.0)),
        ("ms-bench@0.25", DatasetId("ms-bench", weight=0.25)),
        (r"C:\data\train.jsonl", DatasetId(r"C:\data\train.jsonl")),
        ("D:/data/folder:en#7", DatasetId("D:/data/folder", None, ("en",), 7)),
    ],
)
def test_written_forms(text, parsed):
    assert parse_dataset_id(text, exists=nothing) == parsed
    assert str(parsed) == text


_NAME = st.from_regex(r"[A-Za-z0-9_.-]{1,8}(/[A-Za-z0-9_.-]{1,8}){0,2}", fullmatch=True)
_SUBSET = st.from_regex(r"[A-Za-z0-9_.-]{1,6}", fullmatch=True)


@given(
    st.builds(
        DatasetId,
        name=_NAME,
        hub=st.sampled_from(["hf", "ms", None]),
        subsets=st.lists(_SUBSET, max_size=3).map(tuple),
        count=st.integers(1, 10**9),
        weight=st.none() | st.integers(1, 10**6).map(lambda number: number / 1000),
    )
)
def test_round_trip(dataset):
    assert parse_dataset_id(str(dataset), exists=nothing) == dataset


@pytest.mark.parametrize("text", ["odd:na#me.jsonl", "hf::x#3", "a:b"])
def test_an_existing_path_is_taken_literally(text):
    assert parse_dataset_id(text, exists=lambda path: path == text) == DatasetId(text)


def test_an_existing_path_may_end_in_a_weight():
    assert parse_dataset_id("odd@0.5", exists=lambda path: path == "odd@0.5") == DatasetId("odd@0.5")
    assert parse_dataset_id("org/name@0.5", exists=lambda path: path == "org/name") == DatasetId("org/name", weight=0.5)


def test_an_existing_path_with_a_colon_may_have_a_count():
    assert parse_dataset_id("a:b.jsonl#3", exists=lambda path: path == "a:b.jsonl") == DatasetId("a:b.jsonl", count=3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a#", "count ''"),
        ("a#0", "count '0'"),
        ("a#-5", "count '-5'"),
        ("a#1.5", "count '1.5'"),
        ("a#5@x", "weight 'x'"),
        ("a#5@0", "weight '0'"),
        ("a#5@-1", "weight '-1'"),
        ("a:", "subsets ''"),
        ("a:b//c", "subsets 'b//c'"),
        (":b", "no name"),
        ("xx::a", "prefix 'xx::'"),
    ],
)
def test_wrong_forms(text, reason):
    with pytest.raises(ConfigError, match=reason) as raised:
        parse_dataset_id(text, exists=nothing)
    assert raised.value.problems[0].fix


def test_every_known_data_set_has_its_own_name_and_a_source():
    specs = list(read_datasets())
    assert len(specs) == 197
    assert len({spec.name for spec in specs}) == 197
    assert all(spec.ms_id or spec.hf_id for spec in specs)
    assert all(set(spec.hub_subsets) | set(spec.weak_subsets) | set(spec.views) <= set(spec.subsets) for spec in specs)
    assert len(DATASETS.names()) >= 197


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ms-bench", "ms-bench"),
        ("MS_Bench", "ms-bench"),
        ("iic/ms_bench", "ms-bench"),
        ("AI-ModelScope/alpaca-gpt4-data-zh", "alpaca-gpt4-data-zh"),
        ("llm-wizard/alpaca-gpt4-data-zh", "alpaca-gpt4-data-zh"),
        ("vicgalle/alpaca-gpt4", "alpaca-gpt4-data-en"),
        ("alpaca-gpt4", "alpaca-gpt4-data-en"),
        ("sahil2801/CodeAlpaca-20k", "code-alpaca-en"),
        ("codealpaca-20k", "codealpaca-20k"),
        ("swift/self-cognition", "self-cognition"),
        ("nobody/ms-bench", None),
        ("nothing-like-it", None),
    ],
)
def test_known_data_sets_are_found_by_any_name(name, found):
    spec = find_dataset(name)
    assert (spec.name if spec else None) == found


def test_an_id_belongs_to_its_hub():
    assert find_dataset("llm-wizard/alpaca-gpt4-data-zh", hub="ms") is None
    assert find_dataset("llm-wizard/alpaca-gpt4-data-zh", hub="hf") is not None


def test_columns_and_subsets_of_the_table():
    dolphin, agents = DATASETS.get("openorca"), DATASETS.get("msagent-bench")
    assert dolphin.columns == {"question": "query"}
    assert (agents.subsets, agents.views, agents.weak_subsets) == (("default", "mini"), ("mini",), ("mini",))
    assert DATASETS.get("xlam-function-calling-60k").hub_subsets == {"default": "dataset"}


@pytest.mark.parametrize("use_hf", [False, True])
def test_every_known_data_set_is_fetched_by_each_of_its_names(use_hf, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(locate, "resolve", lambda name, **_: asked.append(name) or tmp_path)
    monkeypatch.setattr(locate, "_folder", lambda folder, shown, subsets, spec, report: locate.Source(iter(()), spec.columns, (folder,)))
    loading = ModelSection(offline=True, use_hf=use_hf)
    for spec in read_datasets():
        if spec.name == "self-cognition":  # comes with swift
            continue
        here, there = (spec.hf_id, spec.ms_id) if use_hf else (spec.ms_id, spec.hf_id)
        hub = "hf" if bool(here) == use_hf else "ms"
        repo = here or there
        tail = repo.rpartition("/")[2]
        subset = next((each for each in spec.subsets if each not in spec.views), None)
        for written in (spec.name, spec.name.upper(), repo, tail):
            found = find_dataset(written)
            if written == tail and (found is None or found.name != spec.name):
                continue  # the last part of an id may be the name of another set, or shared by two
            wanted = DatasetId(written, subsets=(subset,) if subset else ())
            source = locate.find_rows(wanted, data=DataSection(), loading=loading, report=RowReport())
            assert asked[-1] == f"{hub}::{repo}", written
            assert source.columns == spec.columns
    assert len(set(asked)) > 190


def test_last_parts_of_ids_that_name_nothing_are_few():
    tails = {(spec.name, repo.rpartition("/")[2]) for spec in read_datasets() for repo in (spec.hf_id, spec.ms_id) if repo}
    lost = [tail for name, tail in tails if getattr(find_dataset(tail), "name", None) != name]
    assert len(lost) < 12, lost
