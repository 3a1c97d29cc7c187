"""Optimizer, parameter groups and learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler
from transformers.optimization import Adafactor

from swift_core.config.sections import OptimSection
from swift_core.errors import ConfigError, ModelError, Problem


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices decay, vectors (biases, norms, scales) do not.

    Raises:
        ModelError: when nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError("no parameter is trainable", fix="check --tuner_type, --target_modules and the freeze settings")
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, section: OptimSection) -> torch.optim.Optimizer:
    """Build the optimizer that `--optim` names over the trainable parameters of a model."""
    groups = parameter_groups(model, section.weight_decay)
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
