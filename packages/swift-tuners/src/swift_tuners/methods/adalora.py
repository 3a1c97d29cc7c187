"""AdaLoRA: ranks move to the layers that need them while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError, ModelError
from swift_core.train.tuning import RunStart
from torch import Tensor, nn

from swift_tuners.lora_options import AdaLoraOptions
from swift_tuners.methods.peft_tuner import PeftTuner, target_settings
from swift_tuners.precision import DTYPES

STATE = "adalora_state.safetensors"
_ADAPTER = "default"
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraTuner(PeftTuner[AdaLoraOptions]):
    """Trains `B diag(E) A` beside each chosen weight and zeroes the entries of E that matter least.

    PEFT saves what is left; the whole matrices and their importance are saved beside it, so that training can go on.
    """

    name = "adalora"
    options_class = AdaLoraOptions

    def dtype(self, options: AdaLoraOptions) -> torch.dtype:
        """Return the number type of the matrices: float32 unless told otherwise."""
        return DTYPES[options.lora_dtype or "float32"]

    def configure(self, model: nn.Module, options: AdaLoraOptions) -> PeftConfig:
        """Return PEFT's AdaLoRA config for this model.

        Raises:
            ModelError: when there is no rank to take away.
        """
        if options.adalora_init_r <= options.adalora_target_r:
            raise ModelError(
                f"--adalora_init_r {options.adalora_init_r} must exceed --adalora_target_r {options.adalora_target_r}",
                fix="raise --adalora_init_r",
            )
        return AdaLoraConfig(
            target_r=options.adalora_target_r,
            init_r=options.adalora_init_r,
            tinit=options.adalora_tinit,
            tfinal=options.adalora_tfinal,
            deltaT=options.adalora_deltaT,
            beta1=options.adalora_beta1,
            beta2=options.adalora_beta2,
            orth_reg_weight=options.adalora_orth_reg_weight,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            # The length of the run is known at its start only; PEFT asks for one at once.
            total_step=options.adalora_tinit + options.adalora_tfinal + 2,
            **target_settings(model, options),
        )

    def start(self, model: nn.Module, run: RunStart) -> None:
        """Spread the schedule over the run.

        Raises:
            ModelError: when the run is too short for it.
        """
        config = _config(model)
        if config.tinit + config.tfinal + 1 >= run.total_steps:
            raise ModelError(
                f"a run of {run.total_steps} steps has no room between --adalora_tinit {config.tinit} and --adalora_tfinal {config.tfinal}",
                fix="train longer or lower them",
            )
        config.total_step = run.total_steps
        _allocator(model).set_total_step(run.total_steps)

    def before_step(self, model: nn.Module, step: int) -> None:
        """Add the gradient of the penalty that keeps A and B orthogonal."""
        weight = _config(model).orth_reg_weight
        matrices = [(name, parameter) for name, parameter in model.named_parameters() if _is_matrix(name) and parameter.requires_grad]
        if not weight or not matrices:
            return
        with torch.enable_grad():
            penalty = torch.stack([_distance(parameter if ".lora_A." in name else parameter.T) for name, parameter in matrices]).mean()
            # Not through backward(): the reducer of several processes has summed the gradients already.
            gradients = torch.autograd.grad(penalty * weight, [parameter for _, parameter in matrices])
        for (_, parameter), gradient in zip(matrices, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Note how much each entry matters and take ranks away where it is time."""
        cast(Any, model).base_model.update_and_allocate(step)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what is left in PEFT's format, and the whole matrices with their importance."""
        pattern = _config(model).rank_pattern
        super().save(model, folder)
        _config(model).rank_pattern = pattern  # PEFT rewrites its names while saving
        tensors = {f"weights.{name}": value for name, value in _weights(model).items()}
        allocator = getattr(cast(Any, model).base_model, "rankallocator", None)
        for score in _SCORES if allocator is not None else ():
            tensors |= {f"{score}.{name}": value for name, value in getattr(allocator, score).items()}
        save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, Path(folder) / STATE)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put whole matrices, importance and ranks back into a prepared model, in place.

        Raises:
            CheckpointError: when they do not fit, or only what is left was saved.
        """
        file = Path(folder) / STATE
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: only what inference needs was saved", fix="start a new run")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged: {error}", fix="resume from an older checkpoint") from error
        weights = _weights(model)
        stored = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
        if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in stored.items()}:
            raise CheckpointError(f"{file} does not fit this model", fix="use the settings the run was started with")
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(stored[name])
        allocator, device = _allocator(model), next(model.parameters()).device
        for score in _SCORES:
            found = {name.removeprefix(f"{score}."): value.to(device) for name, value in tensors.items() if name.startswith(f"{score}.")}
            setattr(allocator, score, found)
        pattern: Any = PeftConfig.from_pretrained(str(folder)).rank_pattern  # pyright: ignore[reportAttributeAccessIssue]
        _config(model).rank_pattern = {_with_adapter(name): kept for name, kept in pattern.items()} if pattern else None


def _config(model: nn.Module) -> Any:
    return cast(Any, model).peft_config[_ADAPTER]


def _allocator(model: nn.Module) -> Any:
    return cast(Any, model).base_model.rankallocator


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _is_matrix(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _distance(rows: Tensor) -> Tensor:
    return torch.linalg.norm(rows @ rows.T - torch.eye(rows.shape[0], dtype=rows.dtype, device=rows.device))


def _with_adapter(name: str) -> str:
    return name if name.endswith(f".{_ADAPTER}") else f"{name}.{_ADAPTER}"
