"""Tiny repositories with code of their own: refused, loaded, trained and run like the published ones they stand in for.

They have the class names, module names, signatures and placeholders of the published code, and weights at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from swift_core.models.quiet import quiet_transformers
from swift_core.testing.own_code import deepseek_vl2, glm4v, internvl, minicpmv, phi3_vision, xcomposer, yi_vl
from swift_core.testing.tiny import make_tiny_tokenizer

_TEXT = {
    "vocab_size": 512,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True, slots=True)
class _Repository:
    """What is written.

    Attributes:
        name: class of the model.
        files: name of each module without `.py` -> its code; the first is the configuration, the second the model.
        config: class of the configuration.
        auto: Auto class that the model is loaded with.
        values: content of `config.json` besides names.
        tokens: special tokens of the tokenizer.
        processor: class names under `auto_map` of the processor's file, and that file's name.
        folder: name of the folder, where the family is told by it.
        template: whether the tokenizer has a chat template.
    """

    name: str
    files: dict[str, str]
    config: str
    auto: str
    values: Callable[[Any], dict[str, Any]]
    tokens: tuple[str, ...] = ()
    processor: dict[str, str] = field(default_factory=dict[str, str])
    folder: str = "repository"
    template: bool = True


_REPOSITORIES: dict[str, _Repository] = {
    "minicpmv2_6": _Repository(
        "MiniCPMV",
        {
            "configuration_minicpm": minicpmv.CONFIGURATION,
            "modeling_minicpmv": minicpmv.MODELING,
            "processing_minicpmv": minicpmv.PROCESSING,
        },
        "MiniCPMVConfig",
        "AutoModel",
        lambda tokenizer: {"model_type": "minicpmv", **_TEXT, "version": "2.6"},
        ("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
        {
            "AutoProcessor": "processing_minicpmv.MiniCPMVProcessor",
            "AutoImageProcessor": "processing_minicpmv.MiniCPMVImageProcessor",
        },
    ),
    "internvl_chat": _Repository(
        "InternVLChatModel",
        {"configuration_internvl_chat": internvl.CONFIGURATION, "modeling_internvl_chat": internvl.MODELING},
        "InternVLChatConfig",
        "AutoModelForCausalLM",
        lambda tokenizer: {
            "model_type": "internvl_chat",
            "llm_config": _TEXT,
            "vision_config": {},
            "force_image_size": 56,
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "max_dynamic_patch": 2,
        },
        ("<img>", "</img>", "<IMG_CONTEXT>"),
    ),
    "deepseek_vl2": _Repository(
        "DeepseekVLV2ForCausalLM",
        {
            "configuration_deepseek_vl_v2": deepseek_vl2.CONFIGURATION,
            "modeling_deepseek_vl_v2": deepseek_vl2.MODELING,
            "processing_deepseek_vl_v2": deepseek_vl2.PROCESSING,
        },
        "DeepseekVLV2Config",
        "AutoModelForCausalLM",
        lambda tokenizer: {"model_type": "deepseek_vl_v2", "language_config": _TEXT, "architectures": None},
        ("<image>", "<|User|>", "<|Assistant|>"),
        {"AutoProcessor": "processing_deepseek_vl_v2.DeepseekVLV2Processor"},
        template=False,
    ),
    "chatglm4v": _Repository(
        "ChatGLMForConditionalGeneration",
        {"configuration_chatglm": glm4v.CONFIGURATION, "modeling_chatglm": glm4v.MODELING},
        "ChatGLMConfig",
        "AutoModelForCausalLM",
        lambda tokenizer: {
            "model_type": "chatglm",
            "padded_vocab_size": 512,
            "vision_config": {"image_size": 56, "patch_size": 14},
            "boi_token_id": tokenizer.convert_tokens_to_ids("<|begin_of_image|>"),
            "eoi_token_id": tokenizer.convert_tokens_to_ids("<|end_of_image|>"),
        },
        ("<|begin_of_image|>", "<|end_of_image|>"),
    ),
    "yi_vl": _Repository(
        "LlavaLlamaForCausalLM",
        {"configuration_llava": yi_vl.CONFIGURATION, "modeling_llava": yi_vl.MODELING},
        "LlavaConfig",
        "AutoModelForCausalLM",
        lambda tokenizer: {"model_type": "llava", **_TEXT, "vocab_size": 64000, "mm_hidden_size": 8, "mm_vision_tower": "./vit"},
        ("<unk>",),
    ),
    "xcomposer2_5": _Repository(
        "InternLMXComposer2ForCausalLM",
        {
            "configuration_internlm_xcomposer2": xcomposer.CONFIGURATION,
            "modeling_internlm_xcomposer2": xcomposer.MODELING,
            "ixc_utils": xcomposer.UTILS,
        },
        "InternLMXcomposer2Config",
        "AutoModelForCausalLM",
        lambda tokenizer: {"model_type": "internlmxcomposer2", **_TEXT},
        ("<unk>",),
        folder="internlm-xcomposer2d5-tiny",
    ),
    "phi3_vision": _Repository(
        "Phi3VForCausalLM",
        {
            "configuration_phi3_v": phi3_vision.CONFIGURATION,
            "modeling_phi3_v": phi3_vision.MODELING,
            "processing_phi3_v": phi3_vision.PROCESSING,
        },
        "Phi3VConfig",
        "AutoModelForCausalLM",
        lambda tokenizer: {"model_type": "phi3_v", **_TEXT},
        ("<unk>",),
        {"AutoProcessor": "processing_phi3_v.Phi3VProcessor", "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor"},
    ),
}

FAMILIES = tuple(_REPOSITORIES)
"""Families that `make_own_code` makes."""


def make_own_code(family: str, parent: Path, *, marker: Path | None = None) -> Path:
    """Write a stand-in repository without weights into a folder below `parent` and return it.

    Args:
        family: one of `FAMILIES`.
        parent: any folder.
        marker: a file that appears when the model's code is run.
    """
    made = _REPOSITORIES[family]
    folder = parent / made.folder
    folder.mkdir(parents=True)
    configuration, modeling = list(made.files)[:2]
    for name, code in made.files.items():
        touch = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n" if marker and name != configuration else ""
        (folder / f"{name}.py").write_text(touch + code, "utf-8")
    tokenizer: Any = make_tiny_tokenizer(vocab_size=400)
    tokenizer.add_tokens([token for token in made.tokens if token not in tokenizer.get_vocab()], special_tokens=True)
    if "<unk>" in made.tokens:
        tokenizer.unk_token = "<unk>"
    if not made.template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    auto_map = {"AutoConfig": f"{configuration}.{made.config}", made.auto: f"{modeling}.{made.name}"}
    content = {"architectures": [made.name], "auto_map": auto_map, **made.values(tokenizer)}
    _write(folder / "config.json", {key: value for key, value in content.items() if value is not None})
    if made.processor:
        name = "preprocessor_config.json" if "AutoImageProcessor" in made.processor else "processor_config.json"
        kinds = {kind.removeprefix("Auto"): target.rpartition(".")[2] for kind, target in made.processor.items()}
        fields = {"processor_class": kinds["Processor"], "image_processor_type": kinds.get("ImageProcessor")}
        _write(folder / name, {"auto_map": made.processor, **{key: value for key, value in fields.items() if value}})
    if family == "yi_vl":
        (folder / "vit").mkdir()
        _write(folder / "vit" / "config.json", {"vision_config": {"image_size": 56, "patch_size": 14}})
    return folder


def fill(folder: Path, *, seed: int = 0) -> Path:
    """Write random weights into a stand-in repository, whose code is run for that, and return the folder."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    target = next(target for auto, target in config.auto_map.items() if auto != "AutoConfig")
    kind: Any = get_class_from_dynamic_module(target, str(folder))
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            parameter.data.uniform_(-0.2, 0.2)
        written = (folder / "config.json").read_text("utf-8")
        model.save_pretrained(folder)
    (folder / "config.json").write_text(written, "utf-8")
    return folder


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), "utf-8")
