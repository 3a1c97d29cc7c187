"""Where the parts of a model are, what freezing does to them, and where adapters go."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from swift_core.errors import ModelError
from swift_core.models.modules import (
    ModuleMap,
    _by_inspection,
    freeze,
    frozen_parts,
    module_map,
    parameter_kind,
    plain_name,
)
from torch import nn

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
PIXTRAL = {**CLIP, "model_type": "pixtral", "head_dim": 8}
LLAMA = {**TEXT, "model_type": "llama"}
QWEN = {**TEXT, "model_type": "qwen2"}
WHISPER: dict[str, Any] = {
    "num_mel_bins": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "max_source_positions": 20,
}
EYES = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "out_hidden_size": 32, "intermediate_size": 64}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
GLUE = "model.multi_modal_projector"

# Class, arguments of its config, and where the parts must be found: aligner, vision tower, audio tower.
MULTIMODAL: dict[str, tuple[str, dict[str, Any], list[str], list[str], list[str]]] = {
    "llava": ("LlavaForConditionalGeneration", {"vision_config": CLIP, "text_config": LLAMA}, [GLUE], ["model.vision_tower"], []),
    "llava next": ("LlavaNextForConditionalGeneration", {"vision_config": CLIP, "text_config": LLAMA}, [GLUE], ["model.vision_tower"], []),
    "onevision": (
        "LlavaOnevisionForConditionalGeneration",
        {"vision_config": SIGLIP, "text_config": QWEN},
        [GLUE],
        ["model.vision_tower"],
        [],
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"vision_config": PIXTRAL, "text_config": {**TEXT, "model_type": "mistral"}},
        [GLUE],
        ["model.vision_tower"],
        [],
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"vision_config": SIGLIP, "text_config": {**TEXT, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}},
        [GLUE],
        ["model.vision_tower"],
        [],
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {"vision_config": SIGLIP, "text_config": {**TEXT, "model_type": "gemma", "head_dim": 8}, "projection_dim": 32},
        [GLUE],
        ["model.vision_tower"],
        [],
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {"vision_config": SIGLIP, "text_config": LLAMA, "pad_token_id": 0},
        ["model.connector"],
        ["model.vision_model"],
        [],
    ),
    "smolvlm": (
        "SmolVLMForConditionalGeneration",
        {"vision_config": SIGLIP, "text_config": LLAMA, "pad_token_id": 0},
        ["model.connector"],
        ["model.vision_model"],
        [],
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        {"vision_config": EYES, "text_config": {**TEXT, **MROPE}},
        ["model.visual.merger"],
        ["model.visual"],
        [],
    ),
    "qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        {"vision_config": {**EYES, "deepstack_visual_indexes": [0, 1]}, "text_config": {**TEXT, **MROPE, "head_dim": 8}},
        ["model.visual.merger", "model.visual.deepstack_merger_list"],
        ["model.visual"],
        [],
    ),
    "glm-4v": (
        "Glm4vForConditionalGeneration",
        {"vision_config": EYES, "text_config": {**TEXT, **MROPE}},
        ["model.visual.merger"],
        ["model.visual"],
        [],
    ),
    "qwen2-audio": (
        "Qwen2AudioForConditionalGeneration",
        {"audio_config": {"model_type": "qwen2_audio_encoder", **WHISPER}, "text_config": QWEN},
        [GLUE],
        [],
        ["model.audio_tower"],
    ),
    "voxtral": (
        "VoxtralForConditionalGeneration",
        {
            "audio_config": {"intermediate_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
            "text_config": LLAMA,
        },
        [GLUE],
        [],
        ["model.audio_tower"],
    ),
    "blip-2": ("Blip2ForConditionalGeneration", {}, ["qformer", "language_projection"], ["vision_model"], []),
}


@cache
def build(case: str) -> nn.Module:
    """Return the model of a case without memory for its weights: only names and flags matter here."""
    name, arguments, *_ = MULTIMODAL[case]
    kind: Any = getattr(transformers, name)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return kind(kind.config_class(**arguments))


@pytest.mark.parametrize("case", MULTIMODAL)
def test_parts_of_multimodal_models(case: str) -> None:
    model = build(case)
    _, _, aligner, eyes, ears = MULTIMODAL[case]
    found = module_map(model)
    assert sorted(found.aligner) == sorted(aligner)
    assert (list(found.vision_tower), list(found.audio_tower)) == (eyes, ears)
    assert found.lm_head is not None
    assert model.get_submodule(found.lm_head) is model.get_output_embeddings()  # type: ignore[operator]
    assert model.get_submodule(str(found.embedding)) is model.get_input_embeddings()  # type: ignore[operator]
    layers = model.get_submodule(str(found.layers))
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]
    counts = Counter(parameter_kind(name, found) for name, _ in model.named_parameters())
    assert set(counts) == {"language_model", "aligner", "vision_tower" if eyes else "audio_tower"}
    assert parameter_kind(str(found.lm_head) + ".weight", found) == "language_model"


@pytest.mark.parametrize("case", MULTIMODAL)
def test_inspection_agrees_with_the_table(case: str) -> None:
    model = build(case)
    found, seen = module_map(model), _by_inspection(model)
    assert {name: parameter_kind(name, found) for name, _ in model.named_parameters()} == {
        name: parameter_kind(name, seen) for name, _ in model.named_parameters()
    }


def text_model(name: str, **more: Any) -> nn.Module:
    kind: Any = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**{**TEXT, **more}))


@pytest.mark.parametrize(
    ("name", "more", "head", "embedding", "layers"),
    [
        ("LlamaForCausalLM", {}, "lm_head", "model.embed_tokens", "model.layers"),
        ("Qwen3ForCausalLM", {"head_dim": 8}, "lm_head", "model.embed_tokens", "model.layers"),
        ("GPTNeoXForCausalLM", {}, "lm_head", "gpt_neox.embed_in", "gpt_neox.layers"),
        ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "lm_head", "transformer.wte", "transformer.h"),
        ("LlamaForSequenceClassification", {}, None, "model.embed_tokens", "model.layers"),
        ("LlamaModel", {}, None, "embed_tokens", "layers"),
        ("BertModel", {}, None, "embeddings.word_embeddings", "encoder.layer"),
    ],
)
def test_text_models_are_all_language_model(name: str, more: dict[str, Any], head: str | None, embedding: str, layers: str) -> None:
    model = text_model(name, **more)
    found = module_map(model)
    assert not found.multimodal
    assert (found.lm_head, found.embedding, found.layers) == (head, embedding, layers)
    assert {parameter_kind(name, found) for name, _ in model.named_parameters()} == {"language_model"}
    assert freeze(model, found, freeze_llm=False, freeze_vit=True, freeze_aligner=True) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ((False, True, True), {"language_model"}),
        ((False, False, True), {"language_model", "vision_tower"}),
        ((True, True, False), {"aligner"}),
        ((True, False, False), {"aligner", "vision_tower"}),
        ((False, False, False), {"language_model", "aligner", "vision_tower"}),
    ],
)
def test_freezing(flags: tuple[bool, bool, bool], trained: set[str]) -> None:
    model = build.__wrapped__("qwen2-vl")
    found = module_map(model)
    counts = freeze(model, found, freeze_llm=flags[0], freeze_vit=flags[1], freeze_aligner=flags[2])
    assert {parameter_kind(name, found) for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert set(counts) | trained == {"language_model", "aligner", "vision_tower"}
    assert set(frozen_parts(model, found)) == set(counts)


def test_freezing_everything_is_refused() -> None:
    model = build.__wrapped__("llava")
    with pytest.raises(ModelError, match="nothing to train"):
        freeze(model, module_map(model), freeze_llm=True, freeze_vit=True, freeze_aligner=True)
    text = text_model("LlamaForCausalLM")
    with pytest.raises(ModelError, match="text only"):
        freeze(text, module_map(text), freeze_llm=True, freeze_vit=True, freeze_aligner=True)


def test_freeze_vit_holds_for_sound_as_well() -> None:
    model = build.__wrapped__("qwen2-audio")
    found = module_map(model)
    assert set(freeze(model, found, freeze_llm=False, freeze_vit=True, freeze_aligner=False)) == {"audio_tower"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("base_model.model.model.visual.merger.mlp.0.lora_A.default.weight", "model.visual.merger.mlp.0.lora_A.default.weight"),
        ("module._orig_mod.model.visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.model.model.visual.blocks.0.attn.qkv.base_layer.weight", "model.visual.blocks.0.attn.qkv.weight"),
    ],
)
def test_wrappers_are_taken_off_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_longest_path_wins() -> None:
    found = ModuleMap(language_model=("model",), vision_tower=("model.visual",), aligner=("model.visual.merger",))
    kinds: dict[str, str] = {
        name: parameter_kind(name, found) for name in ("model.visual.merger.a", "model.visual.b", "model.visualx", "rest")
    }
    assert list(kinds.values()) == ["aligner", "vision_tower", "language_model", "language_model"]


def _towers() -> list[Callable[[], nn.Module]]:
    return [lambda: build.__wrapped__("llava"), lambda: build.__wrapped__("qwen3-vl")]


@pytest.mark.parametrize("make", _towers())
def test_registered_family_paths_win(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    from swift_core.cards.models import Family
    from swift_core.models import modules

    model = make()
    name = type(model).__name__
    family = Family(
        "own", "mllm", "causal_lm", True, architectures=(name,), modules={"vision_tower": ("lm_head",), "language_model": ("model",)}
    )
    monkeypatch.setattr(modules, "families", lambda: {"own": family})
    found = module_map(model)
    assert (found.vision_tower, found.source) == (("lm_head",), "table: own")
