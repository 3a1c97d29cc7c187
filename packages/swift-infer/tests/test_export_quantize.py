"""`swift export --quant_method`: rows, perplexity, settings, and, where the libraries are, the methods themselves."""

import importlib.util
import json
import math

import pytest
import torch
from swift_core.config.export import ExportConfig
from swift_core.errors import ConfigError, DataError, MissingDependencyError, ModelError
from swift_core.models.loading import load_tokenizer
from swift_core.protocols import EncodedSample
from swift_core.tasks.export_context import begin
from swift_core.tasks.exporting import export
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_model
from swift_infer.export.config import QuantSection
from swift_infer.export.perplexity import perplexity
from swift_infer.export.quantize import remedy
from swift_infer.export.rows import count_answers, read_rows
from transformers import AutoModelForCausalLM


@pytest.fixture
def model(tmp_path):
    return make_tiny_model(tmp_path / "model", hidden=64, layers=1)


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"query": f"What is {i}?", "response": f"It is {i}."}) + "\n" for i in range(12)))
    return file


def settings(model, rows, method, **more):
    return {"model": str(model), "dataset": [str(rows)], "quant_method": method, **more}


def test_rows_to_measure_on_are_not_calibrated_with(model, rows):
    config = ExportConfig(**settings(model, rows, "gptq"))
    template = build_template(load_tokenizer(model, trust_remote_code=False), config.chat)
    found = read_rows(begin(config), template, calibration=8, held_out=5, longest=100)
    assert (len(found.calibration), len(found.held_out)) == (8, 4)
    assert not {tuple(row) for row in found.calibration} & {tuple(row.input_ids) for row in found.held_out}
    many = read_rows(begin(config), template, calibration=100, held_out=64, longest=24)
    assert (len(many.calibration), len(many.held_out)) == (11, 1) and max(map(len, many.calibration)) == 24


def test_too_few_rows_or_no_answers_are_refused(model, tmp_path):
    one = tmp_path / "one.jsonl"
    one.write_text('{"query": "a", "response": "b"}\n')
    config = ExportConfig(**settings(model, one, "gptq"))
    template = build_template(load_tokenizer(model, trust_remote_code=False), config.chat)
    with pytest.raises(DataError, match="one row cannot both"):
        read_rows(begin(config), template, calibration=8, held_out=5, longest=100)
    one.write_text('{"query": "a", "response": "b"}\n' * 4)
    with pytest.raises(DataError, match="hold no answer"):
        read_rows(begin(config), template, calibration=2, held_out=1, longest=3)


def test_perplexity_counts_answer_tokens_only(model):
    loaded = AutoModelForCausalLM.from_pretrained(model)
    ids = [5, 9, 12, 40, 41]
    rows = [EncodedSample(ids, [-100, -100, -100, 40, 41])]
    with torch.no_grad():
        logprobs = loaded(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = math.exp(-(logprobs[2, 40] + logprobs[3, 41]).item() / 2)
    assert perplexity(loaded, rows) == pytest.approx(expected, rel=1e-5)
    assert count_answers(rows) == 2
    loaded.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        perplexity(loaded, rows)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quant_method": "gptq"}, "--dataset: is missing: gptq calibrates"),
        ({"quant_method": "awq", "quant_bits": 8, "dataset": ["d"]}, "--quant_bits 8: is not possible with awq"),
        ({"quant_method": "fp8", "group_size": 64}, "has no effect on fp8"),
        ({"quant_bits": 4}, "only acts when weights are quantised"),
        ({"quant_method": "gptq", "dataset": ["d"], "group_size": 0}, "positive number"),
        ({"quant_method": "hqq"}, "allowed: awq, gptq, bnb, fp8"),
    ],
)
def test_bad_settings_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        ExportConfig(model="m", **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quant_method": "gptq"}, "--group_size 64 or more rows or --quant_bits 8"),
        ({"quant_method": "gptq", "quant_bits": 8, "group_size": -1}, "--group_size 128 or more rows"),
        ({"quant_method": "awq", "group_size": 32}, "more rows or --quant_method gptq --quant_bits 8"),
        ({"quant_method": "bnb"}, "--quant_bits 8"),
        ({"quant_method": "fp8"}, "another --quant_method"),
    ],
)
def test_a_loss_of_perplexity_names_settings_that_the_method_has(given, words):
    assert remedy(QuantSection(**given)) == words


def test_a_missing_library_is_named_with_its_pip_line(model, rows, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llmcompressor" else found(name))
    with pytest.raises(MissingDependencyError, match=r"swift-infer\[quant\]"):
        export(ExportConfig(**settings(model, rows, "gptq")))


def test_adapters_are_not_quantised_unmerged(model, rows, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises((ConfigError, MissingDependencyError), match=r"--merge_lora true|quant"):
        export(ExportConfig(**settings(model, rows, "fp8", adapters=[str(adapter)])))


@pytest.mark.parametrize(
    ("method", "more", "packed"),
    [
        ("gptq", {"group_size": 32}, "weight_packed"),
        ("gptq", {"quant_bits": 8, "group_size": -1, "quant_batch_size": 4}, "weight_packed"),
        ("awq", {"group_size": 32}, "weight_packed"),
        ("fp8", {}, "weight_scale"),
    ],
)
def test_methods_write_packed_weights_that_load_and_predict(model, rows, tmp_path, method, more, packed):
    pytest.importorskip("llmcompressor")
    from safetensors.torch import load_file

    given = {**more, "quant_eval_samples": 4, **({} if method == "fp8" else {"quant_n_samples": 8})}
    context = export(ExportConfig(**settings(model, rows, method, **given)))
    folder = context.folders["quantize"]
    bits = more.get("quant_bits", 4)
    assert folder.name == ("model-fp8" if method == "fp8" else f"model-{method}-int{bits}")
    before, after, *_ = context.results["quantize"].metrics.values()
    assert after == pytest.approx(before, rel=0.2) and after != before
    assert any(name.endswith(packed) for name in load_file(folder / "model.safetensors"))
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    assert f"| {after:.6g} |" in (folder / "README.md").read_text()
    for file in folder.glob("*.json"):
        assert file.name == "export.json" or str(tmp_path) not in file.read_text()


def test_a_group_size_that_does_not_fit_names_one_that_does(model, rows):
    pytest.importorskip("llmcompressor")
    with pytest.raises(ModelError, match=r"does not divide the 64 inputs.*--group_size 64"):
        export(ExportConfig(**settings(model, rows, "gptq", group_size=128)))


def test_bitsandbytes_packs_and_loads(model, rows):
    pytest.importorskip("bitsandbytes")
    context = export(ExportConfig(**settings(model, rows, "bnb", quant_eval_samples=4)))
    before, after, *_ = context.results["quantize"].metrics.values()
    assert after == pytest.approx(before, rel=0.3) and after != before
    with pytest.raises(ModelError, match="quantised already"):
        export(ExportConfig(**settings(context.folders["quantize"], rows, "bnb")))
