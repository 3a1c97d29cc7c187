"""Optimizer, parameter groups and learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler
from transformers.optimization import Adafactor

from swift_core.config.sections import OptimSection
from swift_core.errors import ConfigError, ModelError, Problem
from swift_core.models.modules import module_map, parameter_kind, unwrap


def parameter_groups(model: nn.Module, section: OptimSection) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate and decay: matrices decay, vectors (biases, norms, scales) do not.

    Raises:
        ModelError: when nothing is trainable, or a rate is given for a part that the model does not train.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ModelError("no parameter is trainable", fix="check --tuner_type, --target_modules and the freeze settings")
    rates = _rates(model, list(trainable), section)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault((rates[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": group, "lr": rate, "weight_decay": section.weight_decay if decays else 0.0} for (rate, decays), group in groups.items()
    ]


def _rates(model: nn.Module, names: list[str], section: OptimSection) -> dict[str, float]:
    rate = section.learning_rate or 1e-4
    special = {"vision_tower": section.vit_lr, "audio_tower": section.vit_lr, "aligner": section.aligner_lr}
    if not any(special.values()):
        return dict.fromkeys(names, rate)
    parts = module_map(unwrap(model))
    kinds = {name: parameter_kind(name, parts) for name in names}
    for flag, wanted in (("vit_lr", ("vision_tower", "audio_tower")), ("aligner_lr", ("aligner",))):
        if getattr(section, flag) and not any(kind in wanted for kind in kinds.values()):
            raise ModelError(
                f"--{flag}: this run trains no such part of the model", fix=f"remove it, or train that part: --freeze_{flag[:-3]} false"
            )
    return {name: special.get(kind) or rate for name, kind in kinds.items()}


def make_optimizer(model: nn.Module, section: OptimSection) -> torch.optim.Optimizer:
    """Build the optimizer that `--optim` names over the trainable parameters of a model."""
    groups = parameter_groups(model, section)
    rate = section.learning_rate or 1e-4
    if section.optim in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(
            groups,
            lr=rate,
            betas=(section.adam_beta1, section.adam_beta2),
            eps=section.adam_epsilon,
            fused=section.optim == "adamw_torch_fused",
        )
    if section.optim == "adafactor":
        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return torch.optim.SGD(groups, lr=rate)


def warmup_steps(section: OptimSection, total_steps: int) -> int:
    """Return the number of warm-up steps."""
    return section.warmup_steps or int(-(-total_steps * section.warmup_ratio // 1))


def make_scheduler(optimizer: torch.optim.Optimizer, section: OptimSection, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule that `--lr_scheduler_type` names.

    Raises:
        ConfigError: when `--lr_scheduler_kwargs` has an argument that this schedule does not know.
    """
    try:
        return get_scheduler(
            section.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(section, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=dict(section.lr_scheduler_kwargs),
        )
    except TypeError as error:
        raise ConfigError(
            [Problem("--lr_scheduler_kwargs", f"{section.lr_scheduler_type} does not take this: {error}", "remove it")]
        ) from error
