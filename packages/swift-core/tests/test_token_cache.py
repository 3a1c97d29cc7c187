"""Encoding once: flat arrays, the cache and what it depends on, processes, lazy encoding, exported folders."""

import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from swift_core.batching import cache
from swift_core.batching.cache import DataPlan, encode_part, load_or_encode
from swift_core.batching.encode import CHUNK, Encoder, encode_samples
from swift_core.batching.tokens import TokenDataset, is_plain, merge, pack
from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
from swift_core.errors import ConfigError, DataError, TemplateError
from swift_core.protocols import EncodedSample, Sample
from swift_core.templates.chat import build_template
from swift_core.templates.tokens import TextTokens
from swift_core.testing.tiny import make_tiny_tokenizer

OFFLINE = ModelSection(offline=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, 20)
    return str(path)


def write(path, count):
    path.write_text("".join(json.dumps({"query": f"question {i}", "response": f"answer {i} " * (i % 5 + 1)}) + "\n" for i in range(count)))


def run(*dataset, encoding=None, template=None, tokenizer=None, max_length=None, **settings):
    section = TemplateSection(**(template or {}))
    made = build_template(tokenizer or make_tiny_tokenizer(), section)
    data = DataSection(dataset=list(dataset), **settings)
    return load_or_encode(data, OFFLINE, EncodingSection(**(encoding or {})), made, section, max_length=max_length)


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "tokens").glob("[!.]*"))


def from_cache(found):
    return "taken from the cache" in found.rows.summary()


SAMPLES = [
    EncodedSample([5, 6, 7, 8], [-100, 6, -100, 8], "a.jsonl:1"),
    EncodedSample([9], [9], "b\udcc4#2", loss_scale=[0.1]),
    EncodedSample([], [], ""),
    EncodedSample([1, 2, 3], [1, 2, 3], "c", loss_scale=[1.0, 0.25, 0.25], channel="x", label=[1, 0.5]),
    EncodedSample([4, 4], [-100, 3], "labels that are other tokens"),
    EncodedSample([7] * 5, [-100] * 5, "d:1", label=False),
]


def test_flat_arrays_give_the_samples_back():
    data = TokenDataset.of(SAMPLES)
    assert list(data) == SAMPLES
    assert [data[i] for i in range(-6, 0)] == SAMPLES
    assert data[1:4] == SAMPLES[1:4]
    assert data.lengths.tolist() == [4, 1, 0, 3, 2, 5]
    assert data.trained_tokens.tolist() == [sample.trained_tokens for sample in SAMPLES]
    with pytest.raises(IndexError):
        data[6]
    assert list(TokenDataset(merge([pack(SAMPLES[:2]), pack([]), pack(SAMPLES[2:])]))) == SAMPLES
    assert list(TokenDataset.of([])) == []
    assert list(pickle.loads(pickle.dumps(data))) == SAMPLES


def test_samples_that_flat_arrays_cannot_hold():
    assert all(map(is_plain, SAMPLES))
    assert not is_plain(EncodedSample([1], [1], model_inputs={"pixel_values": 1}))
    assert not is_plain(EncodedSample([1], [1], rejected=SAMPLES[0]))
    assert not is_plain(EncodedSample([1], [1], positives=[SAMPLES[0]]))


def test_the_second_run_reads_no_rows(rows, tmp_path, monkeypatch):
    first = run(rows, split_dataset_ratio=0.2)
    assert (len(first.train), len(first.val)) == (16, 4) and not from_cache(first)
    monkeypatch.setattr(cache, "load_datasets", lambda *_, **__: pytest.fail("rows were read"))
    second = run(rows, split_dataset_ratio=0.2)
    assert from_cache(second)
    assert isinstance(second.train._arrays["ids"], np.memmap)
    assert list(second.train) == list(first.train) and list(second.val) == list(first.val)
    assert second.train_report.summary() == first.train_report.summary()
    assert second.val_report.summary() == first.val_report.summary()
    assert second.rows.summary().startswith(first.rows.summary())
    assert second.train.lengths.tolist() == [len(sample) for sample in first.train]
    assert list(pickle.loads(pickle.dumps(second.train))) == list(first.train)
    assert len(pickle.dumps(second.train)) < 1000  # a worker maps the files itself


def test_the_cache_gives_what_encoding_gives(rows):
    section = TemplateSection()
    from swift_core.data.sources import load_datasets

    samples = load_datasets(DataSection(dataset=[rows]), OFFLINE).train
    expected, report = encode_samples(samples, build_template(make_tiny_tokenizer(), section), section, max_length=60)
    for encoding in ({}, {}, {"load_from_cache_file": False}):
        found = run(rows, encoding=encoding, max_length=60)
        assert list(found.train) == expected
        assert found.train_report.lengths if "load_from_cache_file" in encoding else True
        assert found.train_report.summary() == report.summary()


def change_a_row(path):
    text = path.read_text()
    path.write_text(text.replace("question 3", "question X"))
    os.utime(path, ns=(1, 1))  # even where the clock of the file system is coarse


@pytest.mark.parametrize(
    "change",
    [
        {"data_seed": 1},
        {"template": {"system": "Be brief."}},
        {"template": {"template": "chatml"}},
        {"template": {"loss_scale": "all"}},
        {"max_length": 40},
        {"max_length": 40, "template": {"truncation_strategy": "right"}},
        {"tokenizer": make_tiny_tokenizer(vocab_size=300)},
        {"columns": {"query": "question"}},
    ],
)
def test_another_setting_encodes_anew(rows, tmp_path, change):
    run(rows)
    assert not from_cache(run(rows, **change))
    assert from_cache(run(rows, **change))
    assert from_cache(run(rows))
    assert len(folders(tmp_path)) == 2


def test_changed_rows_and_counts_encode_anew(rows, tmp_path):
    run(rows)
    assert len(run(f"{rows}#7").train) == 7
    change_a_row(tmp_path / "rows.jsonl")
    found = run(rows)
    assert not from_cache(found) and len(folders(tmp_path)) == 3


def test_another_chat_template_encodes_anew(rows):
    tokenizer = make_tiny_tokenizer()
    run(rows, tokenizer=tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\\n", "<|im_end|>")
    assert not from_cache(run(rows, tokenizer=tokenizer))


def test_the_cache_can_be_left_aside(rows, tmp_path):
    run(rows, encoding={"load_from_cache_file": False})
    assert folders(tmp_path) == []
    run(rows)
    assert not from_cache(run(rows, encoding={"load_from_cache_file": False}))


def test_rows_made_by_code_are_not_kept(tmp_path, rows):
    from swift_core.data.registered import register_dataset
    from swift_core.registry import DATASETS

    name = "made-anew"
    register_dataset(name, lambda: [{"query": "q", "response": "a"}])
    try:
        assert len(run(name).train) == 1
    finally:
        DATASETS._specs.pop(name)
    assert folders(tmp_path) == []
    run("self-cognition#3", model_name=["A"], model_author=["B"])
    assert from_cache(run("self-cognition#3", model_name=["A"], model_author=["B"]))
    assert not from_cache(run("self-cognition#3", model_name=["C"], model_author=["B"]))


@pytest.mark.parametrize("harm", ["cut", "lost", "manifest", "half"])
def test_a_damaged_cache_is_made_anew(rows, tmp_path, harm):
    first = list(run(rows).train)
    folder = tmp_path / "cache" / "tokens" / folders(tmp_path)[0]
    ids = folder / "train" / "ids.bin"
    if harm == "cut":
        ids.write_bytes(ids.read_bytes()[:-4])
    elif harm == "lost":
        ids.unlink()
    elif harm == "manifest":
        (folder / "train" / "manifest.json").write_text("{")
    else:
        folder.rename(folder.with_name(f".{folder.name}.partial"))
    again = run(rows)
    assert not from_cache(again) and list(again.train) == first
    assert from_cache(run(rows))


def test_a_cache_folder_that_cannot_be_written_is_done_without(rows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "file"))
    assert len(run(rows).train) == 20


def test_bad_rows_are_reported_from_the_cache_as_well(rows, tmp_path):
    with Path(rows).open("a") as handle:
        handle.write("broken\n")
    first, second = run(rows, on_bad_row="quarantine"), run(rows, on_bad_row="quarantine")
    assert from_cache(second)
    assert second.rows.bad == first.rows.bad and second.rows.bad[0].origin == f"{rows}:21"
    with pytest.raises(DataError, match=r"rows.jsonl:21"):
        run(rows)


def test_rows_are_read_before_a_template_is_there(rows):
    with Path(rows).open("a") as handle:
        handle.write("broken\n")
    with pytest.raises(DataError, match=r"rows.jsonl:21"):
        DataPlan(DataSection(dataset=[rows]), OFFLINE, EncodingSection())


def conversation(*roles, origin=""):
    return Sample([{"role": role, "content": f"{role} {origin}"} for role in roles], origin=origin)


def test_processes_give_the_same_in_the_same_order():
    section = TemplateSection(template="mistral")
    samples = [conversation("user", "assistant", origin=f"f:{number}") for number in range(2 * CHUNK + 10)]
    samples[3] = conversation("user", "tool", "assistant", origin="f:bad")
    template = build_template(make_tiny_tokenizer(), section)
    skipping = Encoder(template, section, max_length=45, on_bad_row="skip")
    one, two = (encode_part(samples, skipping, processes=number) for number in (1, 2))
    assert list(one[0]) == list(two[0]) and len(one[0]) > CHUNK
    assert one[1] == two[1] and one[1].bad == 1
    with pytest.raises(TemplateError, match=r"^f:bad: "):
        encode_part(samples, Encoder(template, section, max_length=45), processes=2)


def test_lazy_rows_are_encoded_on_access(rows, monkeypatch):
    encoded = []
    found = run(rows, encoding={"lazy_tokenize": True}, max_length=45)
    whole = run(rows, max_length=45)
    assert whole.train_report.too_long
    original = found.train._encoder.encode
    monkeypatch.setattr(found.train._encoder, "encode", lambda samples: encoded.append(len(samples)) or original(samples))
    assert len(found.train) == 20 and not encoded
    assert found.train[0] in list(whole.train)
    assert found.train[0] is found.train[0]
    kept = {sample.origin for sample in whole.train}
    assert {found.train[i].origin for i in range(20)} == kept  # a row that is too long gives way to the next one
    assert found.train.report.too_long == whole.train_report.too_long
    assert sum(encoded) == 20


def test_lazy_rows_that_give_nothing(rows):
    found = run(rows, encoding={"lazy_tokenize": True}, max_length=2)
    with pytest.raises(DataError, match="no sample is left"):
        found.train[0]


def test_a_stream_is_encoded_and_restored(rows):
    settings = {"streaming": True, "shuffle_buffer_size": 6}
    stream = run(rows, max_length=45, **settings).train
    whole = {sample.origin: sample for sample in run(rows, max_length=45).train}
    taken = list(itertools.islice(stream, 31))
    assert all(whole[sample.origin] == sample for sample in taken)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = list(itertools.islice(stream, 90))
    again = run(rows, max_length=45, **settings).train
    again.load_state_dict(state)
    assert list(itertools.islice(again, 90)) == expected
    with pytest.raises(DataError, match="no sample is left"):
        next(run(rows, max_length=2, **settings).train)


def test_media_are_kept_as_a_list(rows, tmp_path, monkeypatch):
    from swift_core.batching import encode

    original = encode.Encoder.encode

    def with_media(self, samples):
        kept, report = original(self, samples)
        kept[0].model_inputs = {"pixel_values": [1.0]}
        return kept, report

    monkeypatch.setattr(encode.Encoder, "encode", with_media)
    found = run(rows, split_dataset_ratio=0.1)
    assert isinstance(found.train, list) and found.train[0].model_inputs == {"pixel_values": [1.0]}
    assert len(found.train) == 18 and len(found.val) == 2
    assert folders(tmp_path) == []


def test_labels_and_channels_of_rows_are_carried(tmp_path):
    section = TemplateSection()
    template = build_template(make_tiny_tokenizer(), section)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    kept, _ = encode_samples([Sample(turns, channel="code", label=3)], template, section, max_length=None)
    assert (kept[0].channel, kept[0].label) == ("code", 3)


def test_settings_of_the_stream_are_refused_elsewhere(rows):
    with pytest.raises(ConfigError, match="split_dataset_ratio"):
        run(rows, streaming=True, split_dataset_ratio=0.1)


def test_quick_tokens_are_those_of_the_tokenizer():
    tokenizer = make_tiny_tokenizer()
    tokenizer("cut me short " * 9, truncation=True, max_length=4)  # leaves its limit behind in the library's tokenizer
    texts = ["Hello <|im_end|> 你好", "", "  two  spaces\n\n", "e\u0301 🤗" * 50]
    expected = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    found = list(TextTokens(tokenizer).encode(texts))
    assert [ids for ids, _ in found] == expected["input_ids"]
    assert [offsets for _, offsets in found] == expected["offset_mapping"]

    class Wrapped(type(tokenizer)):
        def __call__(self, *args, **kwargs):
            kwargs["return_offsets_mapping"] = True
            return super().__call__([text.upper() for text in args[0]], **{k: v for k, v in kwargs.items()})

    tokenizer.__class__ = Wrapped
    assert [ids for ids, _ in TextTokens(tokenizer).encode(["abc"])] == [tokenizer.backend_tokenizer.encode("ABC").ids]
