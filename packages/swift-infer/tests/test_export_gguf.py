"""`swift export --to_gguf`: every architecture written, read back by transformers, and compared."""

import json

import gguf
import numpy as np
import pytest
import torch
from swift_core.config.export import ExportConfig
from swift_core.errors import CheckpointError, ModelError
from swift_core.tasks.exporting import export
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer
from swift_infer.export import gguf_file
from swift_infer.export.gguf_layout import LAYOUTS, layout_of
from swift_infer.export.gguf_vocab import read_vocabulary
from transformers import AutoConfig, AutoModelForCausalLM


def make_model(folder, model_type, **more):
    """A tiny random model of an architecture, with biases and norms that are not what they start as."""
    tokenizer = make_tiny_tokenizer()
    sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    config = AutoConfig.for_model(model_type, **sizes, head_dim=16, max_position_embeddings=256, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exported(folder, kind, **more):
    context = export(ExportConfig(model=str(folder), to_gguf=kind, **more))
    (file,) = context.folders["gguf"].glob("*.gguf")
    return file, context.results["gguf"]


# Gemma models share one matrix between input and output.
@pytest.mark.parametrize(
    ("model_type", "tied"), [(name, name.startswith("gemma") or name == "qwen2") for name in LAYOUTS] + [("llama", True)]
)
def test_every_architecture_answers_alike_once_read_back(tmp_path, model_type, tied):
    file, result = exported(make_model(tmp_path / "m", model_type, tie_word_embeddings=tied), "f32")
    assert "max difference" in result.metrics["GGUF F32 loaded again against the model"]
    reader = gguf.GGUFReader(file)
    names = {tensor.name for tensor in reader.tensors}
    assert "token_embd.weight" in names and ("output.weight" in names) is not tied
    arch = gguf.MODEL_ARCH_NAMES[LAYOUTS[model_type].arch]
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert (value["general.architecture"], value[f"{arch}.block_count"], value[f"{arch}.attention.head_count_kv"]) == (arch, 2, 2)
    assert value["tokenizer.chat_template"] == make_tiny_tokenizer().chat_template
    assert value["tokenizer.ggml.eos_token_id"] == make_tiny_tokenizer().eos_token_id


@pytest.mark.parametrize(("kind", "stored"), [("bf16", "BF16"), ("q4_0", "Q4_0")])
def test_matrices_are_stored_in_the_type_and_norms_in_full(tmp_path, kind, stored):
    model = make_tiny_model(tmp_path / "m", hidden=64)
    file, _ = exported(model, kind)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.ffn_down.weight"] == stored and kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["output.weight"] == ("Q8_0" if kind.startswith("q") else stored)
    assert file.name == f"m-{kind.upper()}.gguf"


def test_llama_3_positions_are_stored_as_factors(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    file, _ = exported(make_model(tmp_path / "m", "llama", rope_parameters=rope), "f32")
    factors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}["rope_freqs.weight"]
    assert factors.shape == (8,) and factors.min() == pytest.approx(1.0) and factors.max() == pytest.approx(8.0)


def test_a_file_that_answers_differently_leaves_nothing_behind(tmp_path, monkeypatch):
    model = make_tiny_model(tmp_path / "m", layers=1)
    monkeypatch.setattr(gguf_file, "arranged", lambda name, tensor, config, layout: tensor)
    with pytest.raises(CheckpointError, match="answers differently"):
        exported(model, "f32")
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name and not path.name.startswith(".")] == []


def test_what_gguf_has_no_place_for_is_refused(tmp_path):
    with pytest.raises(ModelError, match="'gpt2' models are not written"):
        layout_of(AutoConfig.for_model("gpt2"))
    folder = make_model(tmp_path / "m", "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ModelError, match="'dynamic' are not written"):
        exported(folder, "f32")
    with pytest.raises(ModelError, match="the embedding 100 rows"):
        read_vocabulary(make_tiny_tokenizer(), 100)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"(?i:'s)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s]+", "llama-bpe"),
        (r"(?i:'s)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s]+", "qwen2"),
        (None, "gpt-2"),
    ],
)
def test_the_way_texts_are_cut_is_named(pattern, name):
    from tokenizers import Regex, pre_tokenizers

    tokenizer = make_tiny_tokenizer()
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    found = read_vocabulary(tokenizer, 600)
    assert (found.kind, found.split) == ("gpt2", name)
    assert found.tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and len(found.tokens) == 600
    assert found.types[0] == gguf.TokenType.CONTROL and found.types[-1] == gguf.TokenType.UNUSED
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"][0] == found.merges[0].split(" ")
