"""Low-rank adaptation and the variants that are a flag of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from swift_core.errors import MissingDependencyError, ModelError
from torch import nn

from swift_tuners.config import ALL_LINEAR, LoraOptions
from swift_tuners.methods.peft_tuner import PeftTuner, modules_to_save, task_type
from swift_tuners.precision import DTYPES
from swift_tuners.targets import check_parameter_names, resolve_targets

_INITS: dict[str, bool | str] = {"true": True, "false": False}


class LoraTuner(PeftTuner[LoraOptions]):
    """Trains `B A` with A `[rank, in]` and B `[out, rank]` beside each chosen weight `[out, in]`."""

    name = "lora"
    options_class = LoraOptions

    def dtype(self, options: LoraOptions) -> torch.dtype:
        """Return the number type of the matrices: float32 unless told otherwise."""
        return DTYPES[options.lora_dtype or "float32"]

    def configure(self, model: nn.Module, options: LoraOptions) -> PeftConfig:
        """Return PEFT's LoRA config for this model.

        Raises:
            ModelError: when a name matches no layer, or a setting would have no effect.
        """
        check_parameter_names(model, options.target_parameters)
        if options.lora_bias != "none" and not any(name.endswith("bias") for name, _ in model.named_parameters()):
            raise ModelError(f"--lora_bias {options.lora_bias}: this model has no biases", fix="--lora_bias none")
        settings: dict[str, Any] = {
            "r": options.lora_rank,
            "lora_alpha": options.lora_alpha,
            "lora_dropout": options.lora_dropout,
            "bias": options.lora_bias,
            "target_modules": _targets(model, options),
            "modules_to_save": modules_to_save(model, options),
            "use_rslora": options.use_rslora,
            "use_dora": options.use_dora,
            "init_lora_weights": _INITS.get(options.init_weights, options.init_weights),
            "task_type": task_type(model),
        }
        if options.target_parameters:
            if "target_parameters" not in {field.name for field in fields(LoraConfig)}:
                raise MissingDependencyError("peft", needed_for="--target_parameters", install="peft>=0.17")
            settings["target_parameters"] = options.target_parameters
        return LoraConfig(**settings)


def _targets(model: nn.Module, options: LoraOptions) -> list[str] | str | None:
    # Who names bare weights only, means these only.
    if options.target_parameters and "target_modules" not in options.model_fields_set and options.target_regex is None:
        return []
    if not options.target_modules and not options.target_parameters and options.target_regex is None:
        raise ModelError("--target_modules is empty, so there is nothing to train", fix=f"--target_modules {ALL_LINEAR}")
    return resolve_targets(model, options.target_modules, options.target_regex)
