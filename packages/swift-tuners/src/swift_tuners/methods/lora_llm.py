"""LoRA on the language model of a multimodal model, and its towers and aligner in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError, ModelError
from swift_core.models.modules import module_map, parameter_kind, plain_name, unwrap
from torch import Tensor, nn

from swift_tuners.lora_options import LoraLlmOptions
from swift_tuners.methods.lora import LoraTuner
from swift_tuners.targets import find_all_linears, matches

WEIGHTS = "vit.safetensors"
_IN_FULL = ("vision_tower", "audio_tower", "aligner")


class LoraLlmTuner(LoraTuner):
    """Trains `B A` beside the layers of the language model, and all weights of what sees, hears and carries over."""

    name = "lora_llm"
    options_class = LoraLlmOptions  # pyright: ignore[reportAssignmentType]

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with an adapter on its language model, towers and aligner trainable, everything else frozen.

        Raises:
            ModelError: when the model has no such parts, or a target lies in one of them.
        """
        parts = module_map(model)
        if not parts.multimodal:
            raise ModelError("lora_llm is for models with something besides a language model", fix="--tuner_type lora")
        outside = {name: parameter_kind(name, parts) in _IN_FULL for name, _ in model.named_parameters()}
        # all-linear leaves out the parts in which nothing is trainable.
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(not outside[name])
        wanted: Any = options
        if isinstance(options, LoraLlmOptions) and options.target_regex is None:
            names = [name for name, _ in model.named_modules() if parameter_kind(name, parts) not in _IN_FULL]
            targets = find_all_linears(model) if "all-linear" in options.target_modules else options.target_modules
            wanted = options.model_copy(update={"target_modules": [name for name in names if name and matches(name, targets)]})
        adapted = super().prepare(model, wanted)
        for name, parameter in adapted.named_parameters():
            if parameter_kind(name, parts) in _IN_FULL and parameter.is_floating_point():
                if ".lora_" in name:
                    raise ModelError(f"{plain_name(name)} is trained in full and adapted as well", fix="leave it out of the targets")
                parameter.requires_grad_(True)
        return adapted

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with saved towers and adapter.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the weights do not fit the model.
        """
        self._restore_parts(model, Path(folder))
        adapted = super().load(model, folder, trainable=trainable)
        if trainable:
            for parameter in _parts(adapted).values():
                parameter.requires_grad_(True)
        return adapted

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter, and the weights of towers and aligner."""
        super().save(model, folder)
        tensors = {name: parameter.detach().clone().contiguous().cpu() for name, parameter in _parts(model).items()}
        save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put saved weights back into a prepared model, in place.

        Raises:
            CheckpointError: when they do not fit the model.
        """
        super().restore(model, folder)
        self._restore_parts(model, Path(folder))

    def _restore_parts(self, model: nn.Module, folder: Path) -> None:
        file, parts = folder / WEIGHTS, _parts(model)
        try:
            tensors: dict[str, Tensor] = load_file(file)
        except (FileNotFoundError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}", fix="choose another checkpoint") from error
        if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in parts.items()}:
            raise CheckpointError(f"{file} belongs to another model", fix="load it on the base model that it was trained from")
        for name, parameter in parts.items():
            parameter.data.copy_(tensors[name])


def _parts(model: nn.Module) -> dict[str, nn.Parameter]:
    bare = unwrap(model)
    parts = module_map(bare)
    return {plain_name(name): value for name, value in bare.named_parameters() if parameter_kind(name, parts) in _IN_FULL}
