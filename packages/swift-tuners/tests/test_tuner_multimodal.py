"""Where adapters of a multimodal model go: not into parts that are frozen."""

from __future__ import annotations

from typing import Any

import pytest
from swift_core.models.modules import freeze, module_map, parameter_kind
from swift_tuners import LoraOptions
from swift_tuners.methods.lora import LoraTuner
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def llava() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(**SIZES, image_size=28, patch_size=14)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SIZES, vocab_size=40), image_token_index=39)
    )


def adapted(model: nn.Module) -> set[str]:
    parts = module_map(model)
    return {parameter_kind(name, parts) for name, _ in model.named_modules() if name.endswith(".lora_A")}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((False, True, True), {"language_model"}),
        ((False, False, True), {"language_model", "vision_tower"}),
        ((True, True, False), {"aligner"}),
        ((False, False, False), {"language_model", "vision_tower", "aligner"}),
    ],
)
def test_all_linear_leaves_frozen_parts_out(flags: tuple[bool, bool, bool], expected: set[str]) -> None:
    model = llava()
    freeze(model, module_map(model), freeze_llm=flags[0], freeze_vit=flags[1], freeze_aligner=flags[2])
    prepared = LoraTuner().prepare(model, LoraOptions())
    assert adapted(prepared) == expected
    assert module_map(prepared) == module_map(model)
    assert not any("lm_head" in name for name, parameter in prepared.named_parameters() if parameter.requires_grad)


def test_without_freezing_every_part_gets_adapters() -> None:
    assert adapted(LoraTuner().prepare(llava(), LoraOptions())) == {"language_model", "vision_tower", "aligner"}
