"""What a run switches on in a model for its length: checkpointing, offload, noise, kernels, layer sampling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from swift_core.config.training import TrainingConfig
from swift_core.errors import ModelError
from swift_core.fusions.install import Fused
from swift_core.models.liger import use_liger
from swift_core.models.quantization import keep_differentiable
from swift_core.protocols import Tuner
from swift_core.registry import CALLBACKS, FUSIONS
from swift_core.train.checkpointing import enable_checkpointing
from swift_core.train.early_stopping import EarlyStopping
from swift_core.train.health import HealthWatch
from swift_core.train.noise import add_embedding_noise
from swift_core.train.offload import OffloadedActivations, no_offloading, offloading
from swift_core.train.tuning import check_checkpointing


class Methods:
    """Switches the methods on that the settings ask for.

    Args:
        model: the prepared model.
        args: settings of the run.
        tuner: the tuner, which may not go with checkpointing.
        device: where the model will run.
        whole: whether each process holds whole weights, which fused layers read past the modules that own them.

    Attributes:
        activations: context of each forward pass.

    Raises:
        ModelError: when a method does not fit the model or the device.
        TrainingError: when there is no accelerator that activations could leave.
        MissingDependencyError: when a method's library is not installed.
    """

    def __init__(self, model: nn.Module, args: TrainingConfig, tuner: Tuner, device: torch.device, *, whole: bool = True) -> None:
        training = args.training
        keep_differentiable(model)
        if training.use_liger_kernel:
            use_liger(model, device=device.type)
        self._fused = self._fuse(model, training.fuse_layers if whole else False, device)
        able = hasattr(model, "gradient_checkpointing_enable")
        asked = training.gradient_checkpointing
        settings = ("gradient_checkpointing_policy", "vit_gradient_checkpointing")
        named = next((name for name in settings if args.given(name)), None)
        if asked is None and named is not None:
            asked = True  # who says how, says that
        if asked and not able:
            raise ModelError(f"--{named or 'gradient_checkpointing'}: a {type(model).__name__} has no layers to recompute", fix="remove it")
        if check_checkpointing(tuner, asked=asked, default=device.type != "cpu") and able:
            enable_checkpointing(model, training.gradient_checkpointing_policy, towers=training.vit_gradient_checkpointing)
        self.activations: Callable[[], AbstractContextManager[Any]] = no_offloading
        if offloading(device, wanted=training.activation_offload):
            self.activations = OffloadedActivations(model)
        alpha = training.neftune_noise_alpha
        self._noise = add_embedding_noise(model, alpha) if alpha is not None else None

    def _fuse(self, model: nn.Module, wanted: bool | None, device: torch.device) -> Fused | None:
        if not (device.type == "cpu" if wanted is None else wanted):
            return None
        fused = Fused(model, {name: FUSIONS.load(name)() for name in FUSIONS.names()})
        if wanted and not any(fused.counts.values()):
            raise ModelError("--fuse_layers: this model has no layer that can be fused", fix="remove it")
        return fused

    def release(self) -> None:
        """Take off what would disturb the model after the run."""
        if self._fused is not None:
            self._fused.remove()
        if self._noise is not None:
            self._noise.remove()


def method_callbacks(args: TrainingConfig) -> list[TrainerCallback]:
    """Return the callbacks of methods that act between steps, and of what watches over the run.

    Raises:
        RegistryError: when a method's package is not installed, with the line that installs it.
    """
    found: list[TrainerCallback] = [HealthWatch()]
    if args.memory.lisa_activated_layers:
        found.append(CALLBACKS.load("lisa")())
    patience, saving = args.saving.early_stop_interval, args.saving
    if patience is not None:
        found.append(EarlyStopping(patience, saving.metric_for_best_model, greater_is_better=bool(saving.greater_is_better)))
    return found
