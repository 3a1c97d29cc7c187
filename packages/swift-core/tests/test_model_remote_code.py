"""Models whose code lies in their folder: refused by default, and loaded, mapped and trained when it is trusted.

The stand-ins have the class names, module names and signatures of the published code, at a tiny size.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from swift_core.errors import ModelError
from swift_core.models.detection import detect_folder
from swift_core.models.loading import get_model_tokenizer
from swift_core.models.modules import freeze, module_map, parameter_kind
from swift_core.testing.tiny import make_tiny_tokenizer

CONFIG = """
from transformers import PretrainedConfig
class StandInConfig(PretrainedConfig):
    model_type = "{kind}"
    def __init__(self, vocab_size=512, hidden_size=16, num_hidden_layers=2, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)
"""
HEADER = """
import pathlib
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from .configuration_standin import StandInConfig
pathlib.Path(__file__)
def loss_of(logits, labels):
    if labels is None:
        return None
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
class Base(PreTrainedModel):
    config_class = StandInConfig
    base_model_prefix = "model"
    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0, 0.02)
"""
# InternLM 2: tok_embeddings, attention.wqkv, feed_forward.w1/w2/w3, and a head called `output`.
INTERNLM2 = """
class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.wqkv, self.wo = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
    def forward(self, x):
        q, k, v = (part[:, None] for part in self.wqkv(x).chunk(3, -1))
        return self.wo(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
class FeedForward(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(size, size, bias=False) for _ in range(3))
    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.attention, self.feed_forward = Attention(size), FeedForward(size)
    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)
class InternLM2Model(Base):
    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()
    def get_input_embeddings(self):
        return self.tok_embeddings
    def forward(self, input_ids):
        x = self.tok_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x
class InternLM2ForCausalLM(Base):
    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def get_input_embeddings(self):
        return self.model.tok_embeddings
    def get_output_embeddings(self):
        return self.output
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
        logits = self.output(self.model(input_ids))
        return CausalLMOutputWithPast(loss=loss_of(logits, labels), logits=logits)
"""
# Baichuan 2: W_pack, and a head that normalises its weight, for good once it is not training.
BAICHUAN2 = """
class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.W_pack, self.o_proj = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
    def forward(self, x):
        q, k, v = (part[:, None] for part in self.W_pack(x).chunk(3, -1))
        return self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.self_attn = Attention(size)
    def forward(self, x):
        return x + self.self_attn(x)
class NormHead(nn.Module):
    def __init__(self, hidden_size, vocab_size):
        super().__init__()
        self.weight, self.first_flag = nn.Parameter(torch.randn(vocab_size, hidden_size)), True
    def forward(self, x):
        if self.training:
            self.first_flag = True
            return nn.functional.linear(x, nn.functional.normalize(self.weight))
        if self.first_flag:
            self.first_flag, self.weight = False, nn.Parameter(nn.functional.normalize(self.weight))
        return nn.functional.linear(x, self.weight)
class BaichuanModel(Base):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()
    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x
class BaichuanForCausalLM(Base):
    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = BaichuanModel(config), NormHead(config.hidden_size, config.vocab_size)
        self.post_init()
    def get_input_embeddings(self):
        return self.model.embed_tokens
    def get_output_embeddings(self):
        return self.lm_head
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids))
        return CausalLMOutputWithPast(loss=loss_of(logits, labels), logits=logits)
"""
# MiniCPM-V 2.x: language model `llm`, vision tower `vpm`, aligner `resampler`, and a forward that takes one dictionary.
MINICPMV = """
class Llm(Base):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def forward(self, inputs_embeds):
        for layer in self.layers:
            inputs_embeds = inputs_embeds + layer(inputs_embeds)
        return self.lm_head(inputs_embeds)
class MiniCPMV(Base):
    def __init__(self, config):
        super().__init__(config)
        self.llm = Llm(config)
        self.vpm, self.resampler = nn.Linear(12, config.hidden_size), nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()
    def get_input_embeddings(self):
        return self.llm.embed_tokens
    def get_output_embeddings(self):
        return self.llm.lm_head
    def forward(self, data, **kwargs):
        embeds = self.llm.embed_tokens(data["input_ids"])
        embeds = embeds + self.resampler(self.vpm(data["pixel_values"])).mean(1, keepdim=True)
        logits = self.llm(embeds)
        return CausalLMOutputWithPast(loss=loss_of(logits, data.get("labels")), logits=logits)
"""
FAMILIES: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "internlm2": ("InternLM2ForCausalLM", "internlm2", INTERNLM2, "AutoModelForCausalLM", {}),
    "baichuan2": ("BaichuanForCausalLM", "baichuan", BAICHUAN2, "AutoModelForCausalLM", {"vocab_size": 125696}),
    "minicpmv2_6": ("MiniCPMV", "minicpmv", MINICPMV, "AutoModel", {"version": "2.6"}),
}


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the copies that transformers makes of trusted code out of the home folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def make(folder: Path, family: str) -> Path:
    """Write a stand-in repository; `ran` appears beside it when its code is run."""
    name, kind, code, auto, more = FAMILIES[family]
    folder.mkdir()
    (folder / "configuration_standin.py").write_text(CONFIG.format(kind=kind))
    marker = str(folder.parent / "ran")
    (folder / "modeling_standin.py").write_text(HEADER.replace("pathlib.Path(__file__)", f"pathlib.Path({marker!r}).touch()") + code)
    auto_map = {"AutoConfig": "configuration_standin.StandInConfig", auto: f"modeling_standin.{name}"}
    content = {"architectures": [name], "model_type": kind, "auto_map": auto_map, "vocab_size": 512, **more, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(content))
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def fill(folder: Path) -> None:
    """Write random weights of the right names and shapes."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind: Any = get_class_from_dynamic_module(f"modeling_standin.{name}", str(folder))
    model = kind(AutoConfig.from_pretrained(folder, trust_remote_code=True))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_code_of_the_folder_runs_only_when_it_is_trusted(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "repository", family)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert detect_folder(folder).model_type == family
    with pytest.raises(ModelError, match=r"own Python code.*--trust_remote_code true"):
        get_model_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("family", "head", "embedding", "layers"),
    [
        ("internlm2", "output", "model.tok_embeddings", "model.layers"),
        ("baichuan2", "lm_head", "model.embed_tokens", "model.layers"),
        ("minicpmv2_6", "llm.lm_head", "llm.embed_tokens", "llm.layers"),
    ],
)
def test_trusted_code_is_loaded_mapped_and_trained(family: str, head: str, embedding: str, layers: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "repository", family)
    fill(folder)
    loaded: Any = get_model_tokenizer(folder, trust_remote_code=True)
    model, tokenizer = loaded
    assert type(model).__name__ == FAMILIES[family][0]
    found = module_map(model)
    assert (found.lm_head, found.embedding, found.layers) == (head, embedding, layers)
    ids = torch.tensor([tokenizer("Who are you?")["input_ids"]])
    if family.startswith("minicpmv"):
        assert (found.vision_tower, found.aligner) == (("vpm",), ("resampler",))
        freeze(model, found, freeze_llm=False, freeze_vit=True, freeze_aligner=False)
        output = model({"input_ids": ids, "labels": ids, "pixel_values": torch.randn(1, 4, 12)})
    else:
        assert not found.multimodal
        output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    untrained = {parameter_kind(name, found) for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untrained == ({"vision_tower"} if found.multimodal else set())


def test_the_head_of_baichuan_keeps_its_weight_between_training_and_evaluation(tmp_path: Path) -> None:
    folder = make(tmp_path / "repository", "baichuan2")
    fill(folder)
    model: Any = get_model_tokenizer(folder, trust_remote_code=True)[0]
    weight = model.lm_head.weight
    ids = torch.tensor([[5, 6, 7]])
    before = model.eval()(input_ids=ids).logits
    assert model.lm_head.weight is weight
    assert torch.equal(model.train()(input_ids=ids).logits, before)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(input_ids=ids, labels=ids).loss.backward()
    model.eval()(input_ids=ids)
    optimizer.step()
    assert not torch.equal(model(input_ids=ids).logits, before)
    assert dict(model.named_parameters())["lm_head.weight"] is weight
