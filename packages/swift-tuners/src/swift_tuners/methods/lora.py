"""Low-rank adaptation and the variants that are a flag of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftConfig
from pydantic import BaseModel
from swift_core.errors import MissingDependencyError, ModelError
from swift_core.train.tuning import RunStart
from torch import nn

from swift_tuners.lora_options import FROM_DATA, LoraOptions
from swift_tuners.methods import lora_start
from swift_tuners.methods.peft_tuner import PeftTuner, is_quantised, modules_to_save, target_settings, task_type
from swift_tuners.precision import DTYPES
from swift_tuners.targets import check_parameter_names

_INITS: dict[str, bool | str] = {"true": True, "false": False, "lora-ga": True}


class LoraTuner(PeftTuner[LoraOptions]):
    """Trains `B A` with A `[rank, in]` and B `[out, rank]` beside each chosen weight `[out, in]`."""

    name = "lora"
    options_class = LoraOptions

    def __init__(self) -> None:
        self._fresh = False

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
        lora_start.check_start(model, options, quantised=is_quantised(model))
        settings: dict[str, Any] = {
            "r": options.lora_rank,
            "lora_alpha": options.lora_alpha,
            "lora_dropout": options.lora_dropout,
            "bias": options.lora_bias,
            "rank_pattern": dict(options.rank_pattern),
            "alpha_pattern": dict(options.alpha_pattern),
            "use_rslora": options.use_rslora,
            "use_dora": options.use_dora,
            "init_lora_weights": _init(options, quantised=is_quantised(model)),
            **_targets(model, options),
        }
        if settings["init_lora_weights"] == "loftq":
            settings["loftq_config"] = {"loftq_bits": int(options.loftq_bits), "loftq_iter": options.loftq_iter}
        if options.init_weights == "eva":
            settings["eva_config"] = EvaConfig(rho=options.eva_rho)
        if options.trainable_token_indices:
            settings["trainable_token_indices"] = list(options.trainable_token_indices)
        if options.target_parameters:
            if "target_parameters" not in {field.name for field in fields(LoraConfig)}:
                raise MissingDependencyError("peft", needed_for="--target_parameters", install="peft>=0.17")
            settings["target_parameters"] = options.target_parameters
        return LoraConfig(**settings)

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with new matrices and everything else frozen.

        Raises:
            ModelError: when the options do not fit the model.
        """
        adapted = super().prepare(model, options)
        lora_start.check_patterns(adapted, options)
        if isinstance(options, LoraOptions) and options.init_weights == "loftq" and is_quantised(model):
            lora_start.start_from_quantisation(adapted)
        self._fresh = True
        return adapted

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with a saved adapter put on.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
        self._fresh = False
        return super().load(model, folder, trainable=trainable)

    def start(self, model: nn.Module, run: RunStart) -> None:
        """Set the matrices from the first samples where `--init_weights` says so.

        Raises:
            ModelError: when the base weights are quantised or cannot be read.
        """
        options = run.options
        if not (self._fresh and isinstance(options, LoraOptions) and options.init_weights in FROM_DATA):
            return
        if options.init_weights == "eva":
            # On resuming as well: it decides the ranks, which the saved weights must find.
            lora_start.start_from_activations(model, options, run)
        elif not run.resumed:
            lora_start.start_from_gradients(model, options, run)
        else:
            lora_start.await_start(model)

    def learning_rates(self, model: nn.Module, rate: float, options: BaseModel | None) -> Mapping[str, float]:
        """Return the rates of LoRA+: the output matrices learn `lorap_lr_ratio` times faster than the input matrices."""
        if not isinstance(options, LoraOptions) or options.lorap_lr_ratio is None:
            return {}
        rates: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or ".lora_" not in name:
                continue
            if "lora_embedding" in name:
                rates[name] = options.lorap_emb_lr
            elif "lora_B" in name or "lora_magnitude" in name:
                rates[name] = rate * options.lorap_lr_ratio
        return rates


def _init(options: LoraOptions, *, quantised: bool) -> bool | str:
    if options.init_weights == "pissa" and options.pissa_niter is not None:
        return f"pissa_niter_{options.pissa_niter}"
    if options.init_weights == "loftq" and quantised:
        return True  # set from the error of the quantisation that is there, once the matrices are
    return _INITS.get(options.init_weights, options.init_weights)


def _targets(model: nn.Module, options: LoraOptions) -> dict[str, Any]:
    names = options.target_modules and "target_modules" in options.model_fields_set
    if options.target_parameters and not names and options.target_regex is None:
        # Who names bare weights only, means these only.
        return {"target_modules": [], "modules_to_save": modules_to_save(model, options), "task_type": task_type(model)}
    return target_settings(model, options)
