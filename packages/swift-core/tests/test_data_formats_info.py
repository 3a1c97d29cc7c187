"""Files that describe data sets, from reading them to the samples they lead to."""

import json

import pytest
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.dataset_info import read_dataset_info
from swift_core.data.sources import load_datasets
from swift_core.data.turns import rename_turns
from swift_core.errors import DataError, NotFoundError, RegistryError
from swift_core.registry import DATASETS


@pytest.fixture
def registry():
    """Names that a test registers are gone after it."""
    before = set(DATASETS.names())
    yield
    for name in set(DATASETS.names()) - before:
        DATASETS._specs.pop(name)


def write(folder, content, name="dataset_info.json"):
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def one(folder, entry, name="mine"):
    return read_dataset_info(write(folder, {name: entry}))[0]


def test_llama_factory_alpaca(tmp_path):
    spec = one(
        tmp_path,
        {
            "file_name": "rows.json",
            "columns": {"prompt": "ask", "query": "more", "response": "reply", "system": "sys", "history": "past", "images": "pics"},
        },
    )
    assert (spec.name, spec.path, spec.split) == ("mine", str(tmp_path / "rows.json"), ("train",))
    columns = {"ask": "instruction", "more": "input", "reply": "output", "sys": "system", "past": "history", "pics": "images"}
    # Columns that the description leaves out are not part of the sample, whatever they are called.
    unnamed = {"instruction": "_instruction", "input": "_input", "output": "_output", "history": "_history", "system": "_system"}
    assert spec.columns == {**columns, **unnamed, "tools": "_tools"}


def test_llama_factory_sharegpt_with_tags(tmp_path):
    spec = one(
        tmp_path,
        {
            "file_name": "rows.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "talk", "chosen": "good", "rejected": "bad", "tools": "tools", "system": "system"},
            "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "ME", "assistant_tag": "IT", "function_tag": "function_call"},
        },
    )
    assert spec.columns == {
        "talk": "messages",
        "good": "chosen",
        "bad": "rejected",
        "messages": "_messages",
        "conversations": "_conversations",
    }
    assert spec.turn_names == {"who": "role", "said": "content", "ME": "user", "IT": "assistant", "function_call": "tool_call"}
    assert spec.task == "rlhf"


def test_llama_factory_hubs_kto_and_plain_text(tmp_path):
    spec = one(tmp_path, {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "file_name": "x.json", "subset": "en", "split": "test"})
    assert (spec.hf_id, spec.ms_id, spec.path, spec.subsets, spec.split) == ("a/b", "c/d", "", ("en",), ("test",))
    assert (
        one(tmp_path, {"file_name": "x.json", "formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "ok"}}).columns["ok"]
        == "label"
    )
    assert one(tmp_path, {"file_name": "x.txt", "columns": {"prompt": "body"}}).columns["body"] == "text"
    assert one(tmp_path, {"file_name": "x.json"}).columns == {}


@pytest.mark.parametrize(
    ("entry", "obstacle"),
    [
        ({"script_url": "belle"}, "only 'script_url'"),
        ({"cloud_file_name": "s3://x"}, "only 'cloud_file_name'"),
        ({"formatting": "alpaca"}, "no 'file_name' and no hub id"),
        ({"hf_hub_url": "a/b", "folder": "python"}, "'folder', which is not read"),
        ({"file_name": "x.json", "num_samples": 5}, "'num_samples', which is not read"),
    ],
)
def test_what_cannot_be_read_stops_only_those_who_ask_for_it(tmp_path, registry, entry, obstacle):
    write(tmp_path, [{"instruction": "q", "output": "a"}], "rows.json")
    file = write(tmp_path, {"odd": entry, "fine": {"file_name": "rows.json"}})
    data = DataSection(dataset=["fine"], custom_dataset_info=[str(file)])
    assert len(load_datasets(data, ModelSection()).train) == 1
    with pytest.raises(DataError, match=f"data set 'odd' cannot be read: .*{obstacle}"):
        load_datasets(data.model_copy(update={"dataset": ["odd"]}), ModelSection())


def test_ms_swift_list(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    entries = [
        {"ms_dataset_id": "org/one", "hf_dataset_id": "other/two", "subsets": ["a", {"name": "b", "subset": "b-on-hub"}], "tags": ["chat"]},
        {"dataset_path": "rows.jsonl", "columns": {"ask": "query"}, "help": "mine", "messages": {"role_key": "who", "user_role": "ME"}},
        {"dataset_name": "named", "hf_dataset_id": "x/y", "split": ["train", "test"]},
    ]
    one, two, three = read_dataset_info(write(tmp_path, entries))
    assert (one.name, one.ms_id, one.hf_id, one.subsets, one.hub_subsets) == ("one", "org/one", "other/two", ("a", "b"), {"b": "b-on-hub"})
    assert (two.name, two.path, two.columns, two.summary) == ("rows", str(tmp_path / "rows.jsonl"), {"ask": "query"}, "mine")
    assert two.turn_names == {"who": "role", "ME": "user"}
    assert (three.name, three.split) == ("named", ("train", "test"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1,", "dataset_info.json:1: it is not valid JSON"),
        ("3", "neither a list nor an object"),
        ({"mine": []}, "'mine' is not an object"),
        ({"mine": {"file_nam": "x"}}, "'mine' has the key 'file_nam' .*allowed keys: .*file_name"),
        ({"mine": {"file_name": "x", "formatting": "chatml"}}, "'mine' has the formatting 'chatml'"),
        ({"mine": {"file_name": "x", "columns": {"answer": "y"}}}, "'mine' has 'answer' among its 'columns' .*allowed: prompt"),
        ({"mine": {"file_name": "x", "columns": ["y"]}}, "not an object of texts"),
        ({"mine": {"file_name": 3}}, "'mine' has 'file_name' 3, not a text"),
        ([{"dataset_name": "x"}], "'entry 1' has no source"),
        ([{"dataset_path": "x", "subsets": [{"subset": "a", "columns": {}}]}], "a subset with 'columns' of its own"),
        ([{"dataset_path": "x"}, {"hf_dataset_id": "org/x"}], "two entries have the name 'x'"),
        ([{"dataset_path": "x", "messages": {"speaker": "y"}}], "'speaker' among its 'messages'"),
    ],
)
def test_reasons(tmp_path, content, reason):
    with pytest.raises(DataError, match=f"(?s){reason}") as raised:
        read_dataset_info(write(tmp_path, content))
    assert str(tmp_path) in str(raised.value)
    assert raised.value.fix


def test_no_such_file(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_dataset_info(tmp_path / "none.json")


def test_from_a_description_to_samples(tmp_path, registry):
    rows = [
        {
            "talk": [{"who": "ME", "said": "q"}, {"who": "IT", "said": "a0"}, {"who": "ME", "said": "p"}],
            "good": {"who": "IT", "said": "a"},
            "bad": {"who": "IT", "said": "c"},
            "rules": "s",
            "system": "not named by the description",
        }
    ]
    write(tmp_path, rows, "pairs.json")
    entry = {
        "file_name": "pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "talk", "chosen": "good", "rejected": "bad", "system": "rules"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "ME", "assistant_tag": "IT"},
    }
    data = DataSection(dataset=["mine"], custom_dataset_info=[str(write(tmp_path, {"mine": entry}))])
    loaded = load_datasets(data, ModelSection(), task="preference")
    assert [(message["role"], message["content"]) for message in loaded.train[0].messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a0"),
        ("user", "p"),
        ("assistant", "a"),
    ]
    assert loaded.train[0].rejected.messages[-1] == {"role": "assistant", "content": "c"}
    with pytest.raises(DataError, match=r"pairs.json:\d+: .*preference pair"):
        load_datasets(data, ModelSection())


def test_a_description_beats_the_built_in_table_and_not_other_descriptions(tmp_path, registry):
    write(tmp_path, [{"query": "q", "response": "a"}], "rows.json")
    table = DATASETS.get("openorca")
    try:
        file = write(tmp_path, {"openorca": {"file_name": "rows.json", "columns": {"prompt": "query", "response": "response"}}})
        data = DataSection(dataset=["openorca"], custom_dataset_info=[str(file)])
        assert len(load_datasets(data, ModelSection()).train) == 1
        other = write(tmp_path, {"openorca": {"file_name": "rows.json"}}, "other.json")
        with pytest.raises(RegistryError, match="registered twice"):
            load_datasets(data.model_copy(update={"custom_dataset_info": [str(file), str(other)]}), ModelSection())
    finally:
        DATASETS.register(table, source=table.source, override=True)


def test_undesirable_answers_in_sft_are_pointed_out(tmp_path):
    rows = [{"query": "q", "response": "a", "label": label} for label in (True, False, False)]
    data = DataSection(dataset=[str(write(tmp_path, rows, "kto.json"))])
    assert "label: false" in load_datasets(data, ModelSection()).report.summary()
    assert "label: false" not in load_datasets(data, ModelSection(), task="kto").report.summary()


def test_rename_turns():
    names = {"who": "role", "said": "content", "BOT": "assistant"}
    row = {"talk": [{"who": "BOT", "said": "BOT"}], "text": '[{"who": "BOT", "said": "x"}]', "BOT": "who", "meta": [{"said": "y"}], "n": 1}
    assert rename_turns(row, names) == {
        "talk": [{"role": "assistant", "content": "BOT"}],
        "text": [{"role": "assistant", "content": "x"}],
        "BOT": "who",
        "meta": [{"said": "y"}],
        "n": 1,
    }
    assert rename_turns({"talk": [{"from": "USER", "value": "x"}]}, {"USER": "user"}) == {"talk": [{"from": "user", "value": "x"}]}
