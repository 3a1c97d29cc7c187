"""`swift export --to_cached_dataset`, and training data taken from what it wrote."""

import json

import pytest
from swift_core.batching.cache import load_or_encode
from swift_core.config.export import ExportConfig
from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, DataError
from swift_core.models.loading import load_tokenizer
from swift_core.tasks.export_tokens import export_tokens
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"query": f"q{i}", "response": f"a{i}"}) + "\n" for i in range(10)))
    model = make_tiny_model(tmp_path / "model", layers=1)
    target = tmp_path / "tokens"
    config = ExportConfig(
        to_cached_dataset=True, model=str(model), dataset=[str(rows)], split_dataset_ratio=0.2, output_dir=str(target), max_length=64
    )
    assert export_tokens(config) == target
    return config, target


def load(model, folders, val=(), max_length=64, tokenizer=None, **chat):
    section = TemplateSection(**chat)
    template = build_template(tokenizer or load_tokenizer(model, trust_remote_code=False), section)
    encoding = EncodingSection(cached_dataset=[str(each) for each in folders], cached_val_dataset=[str(each) for each in val])
    return load_or_encode(DataSection(), ModelSection(), encoding, template, section, max_length=max_length)


def test_what_was_exported_is_what_encoding_gives(exported, tmp_path):
    config, target = exported
    found = load(tmp_path / "model", [target], [target])
    section = TemplateSection()
    template = build_template(load_tokenizer(tmp_path / "model", trust_remote_code=False), section)
    direct = load_or_encode(config.data, config.loading, EncodingSection(), template, section, max_length=64)
    assert list(found.train) == list(direct.train) and list(found.val) == list(direct.val)
    assert json.loads((target / "manifest.json").read_text())["parts"] == {"train": 8, "val": 2}
    assert "token ids are taken from" in found.rows.summary()
    both = load(tmp_path / "model", [target / "train", target / "val"])
    assert list(both.train) == [*direct.train, *direct.val]
    assert both.train[-1] == direct.val[-1] and both.train.lengths.tolist() == [len(sample) for sample in both.train]
    assert both.train_report.kept == 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_length": 32}, "--max_length 64 there, 32 here"),
        ({"system": "Be brief."}, "--system None there, 'Be brief.' here"),
        ({"tokenizer": make_tiny_tokenizer(vocab_size=300)}, "another tokenizer or chat template"),
    ],
)
def test_another_template_is_refused(exported, tmp_path, change, reason):
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path / "model", [exported[1]], **change)


def test_what_is_not_an_export_is_refused(exported, tmp_path):
    with pytest.raises(DataError, match=r"no folder of token ids.*swift export"):
        load(tmp_path / "model", [tmp_path / "model"])


def test_a_folder_with_files_is_not_overwritten(exported):
    with pytest.raises(ConfigError, match="not empty"):
        export_tokens(exported[0])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({}, "to_cached_dataset true"),
        ({"to_cached_dataset": True}, "--model"),
        ({"to_cached_dataset": True, "model": "m", "dataset": ["d"], "output_dir": "o", "streaming": True}, "--streaming"),
    ],
)
def test_export_settings(settings, flag):
    with pytest.raises(ConfigError, match=flag):
        ExportConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dataset": ["d"], "streaming": True}, "--max_steps"),
        ({"dataset": ["d"], "streaming": True, "max_steps": 5, "split_dataset_ratio": 0.1}, "--split_dataset_ratio"),
        ({"dataset": ["d"], "shuffle_buffer_size": 5}, "acts on a stream only"),
        ({"dataset": ["d"], "cached_dataset": ["c"]}, "does nothing beside --cached_dataset"),
        ({"dataset": ["d"], "cached_val_dataset": ["c"]}, "needs --cached_dataset"),
        ({"dataset": ["d"], "lazy_tokenize": True, "dataset_num_proc": 4}, "--dataloader_num_workers"),
    ],
)
def test_what_does_not_go_together_in_training(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        SftConfig(model="m", tuner_type="full", **settings)


def test_exported_data_is_enough_for_training():
    assert SftConfig(model="m", tuner_type="full", cached_dataset=["c"], cached_val_dataset=["c"]).has_eval_data
