"""A GGUF file written here becomes a normal model folder with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from swift_core.errors import ModelError
from swift_core.hub.resolve import resolve
from swift_core.models.loading import get_model_tokenizer
from swift_core.testing.tiny import CHATML, make_tiny_model
from transformers import AutoModelForCausalLM

HEADS, HIDDEN, LAYERS = 4, 32, 2
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key projection from the Hugging Face to the GGUF rotary layout."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(source: Path, file: Path) -> dict[str, torch.Tensor]:
    weights = AutoModelForCausalLM.from_pretrained(source).state_dict()
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
    for name, value in weights.items():
        plain = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }
        if name in plain:
            writer.add_tensor(plain[name], value.numpy())
            continue
        _, _, layer, *rest, _ = name.split(".")
        part = ".".join(rest)
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": HEADS // 2}.get(part)
        value = _interleave(value, heads) if heads else value
        writer.add_tensor(f"blk.{layer}.{_NAMES[part]}.weight", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_gguf_becomes_a_model_folder_once(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_tiny_model(tmp_path / "source", hidden=HIDDEN, layers=LAYERS, heads=HEADS)
    weights = write_gguf(source, tmp_path / "tiny.gguf")
    capfd.readouterr()
    folder = resolve(str(tmp_path / "tiny.gguf"), offline=True)
    assert "it/s" not in capfd.readouterr().err, "progress bars on a stream that is no terminal"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(tmp_path) not in (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()

    model, tokenizer = get_model_tokenizer(tmp_path / "tiny.gguf")
    assert model is not None
    assert (folder / "model.safetensors").stat().st_mtime_ns == written, "converted again"
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(loaded[name], value), name
    text = "Who are you? 你好\n"
    _, original = get_model_tokenizer(source, load_model=False)
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_damaged_gguf_leaves_no_folder(tmp_path: Path, cache: Path, keep: int) -> None:
    source = make_tiny_model(tmp_path / "source", hidden=HIDDEN, layers=LAYERS, heads=HEADS)
    write_gguf(source, tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[:keep])
    with pytest.raises(ModelError, match=r"tiny\.gguf.*(damaged|cannot be read)"):
        resolve(str(tmp_path / "tiny.gguf"))
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]
