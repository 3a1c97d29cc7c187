"""LLaMA-Pro: new layers between those of the model, which start as doing nothing and are all that is trained."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from swift_core.errors import CheckpointError, ModelError
from swift_core.train.full import FullTuner
from torch import nn

from swift_tuners.methods.peft_tuner import check_base, own_options
from swift_tuners.options import LlamaProOptions
from swift_tuners.targets import layer_list

# Where the parts of a layer write into the residual stream, by the names that architectures give them.
_OUTPUTS = re.compile(r"(^|\.)(o_proj|out_proj|c_proj|down_proj|dense|dense_4h_to_h|fc2|fc_out|wo|w2)(\.(weight|bias))?$")
_NOTE = "llamapro_blocks"


class LlamaProTuner:
    """Puts copies of layers in, with zeroed outputs, and trains them alone; a checkpoint is a whole model."""

    name = "llamapro"

    def __init__(self) -> None:
        self._whole = FullTuner()

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with new layers, everything else frozen.

        Raises:
            ModelError: when the model has no list of layers, fewer layers than groups, or its layers cannot be made to do nothing.
        """
        own = own_options(self.name, LlamaProOptions, options)
        check_base(model, self.name)
        _, layers = layer_list(model)
        groups = own.llamapro_num_groups or own.llamapro_num_new_blocks
        if own.llamapro_num_new_blocks % groups:
            raise ModelError(
                f"{own.llamapro_num_new_blocks} new layers cannot be shared out evenly over {groups} groups",
                fix="change --llamapro_num_groups",
            )
        if groups > len(layers):
            raise ModelError(
                f"{len(layers)} layers cannot be cut into {groups} groups",
                fix=f"--llamapro_num_new_blocks {len(layers)} or --llamapro_num_groups {len(layers)}",
            )
        expand(model, new_positions(len(layers), own.llamapro_num_new_blocks, groups), check=True)
        return _train_new_layers(model)

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the base model with the new layers of a checkpoint, or the checkpoint's own model with its weights.

        Raises:
            CheckpointError: when the checkpoint has no new layers or belongs to another model.
        """
        saved = _saved_config(Path(folder))
        new = saved.get(_NOTE)
        if not new:
            raise CheckpointError(f"{str(folder)!r} holds no model that was trained with llamapro", fix="choose another checkpoint")
        check_base(model, self.name)
        _, layers = layer_list(model)
        if len(layers) + len(new) == saved.get("num_hidden_layers"):
            expand(model, new, check=False)
        self._whole.load(model, folder, trainable=trainable)
        return _train_new_layers(model) if trainable else model

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a normal transformers folder."""
        self._whole.save(model, folder)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put the weights of a checkpoint back into a prepared model, in place.

        Raises:
            CheckpointError: when they belong to another model.
        """
        self._whole.restore(model, folder)


def new_positions(count: int, new: int, groups: int) -> list[int]:
    """Return where the new layers stand among all: the same number of them behind each group of layers."""
    ends = [round((group + 1) * count / groups) for group in range(groups)]
    each = new // groups
    return [end + number * each + extra for number, end in enumerate(ends) for extra in range(each)]


def expand(model: nn.Module, new: Sequence[int], *, check: bool) -> None:
    """Put copies of layers into a model, each of the layer before it, with zeroed outputs, in place.

    Args:
        model: a transformers model.
        new: positions of the new layers among all.
        check: whether the model must answer as before.

    Raises:
        ModelError: when it does not.
    """
    path, layers = layer_list(model)
    bare: Any = model
    config: Any = bare.config.get_text_config() if hasattr(bare.config, "get_text_config") else bare.config
    before = _logits(model) if check else None
    sources: list[int] = []
    grown: list[nn.Module] = []
    for position in range(len(layers) + len(new)):
        fresh = position in new
        sources.append(sources[-1] if fresh else (len(grown) - sum(place < position for place in new)))
        grown.append(_silenced(layers[sources[-1]]) if fresh else layers[sources[-1]])
    count = len(layers)
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(cast(Sequence[Any], value)) == count:
            setattr(config, name, [value[source] for source in sources])
    config.num_hidden_layers = len(grown)
    setattr(config, _NOTE, list(new))
    for number, layer in enumerate(grown):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                cast(Any, module).layer_idx = number
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(grown))
    if before is not None and not torch.allclose(before, _logits(model), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"the layers of a {type(model).__name__} cannot be copied so that the copies do nothing", fix="use another tuner, such as lora"
        )


def _silenced(layer: nn.Module) -> nn.Module:
    # Configs stay shared: the model's attention is exchanged there, for all layers at once.
    shared = {id(part.config): part.config for part in cast(Any, layer).modules() if hasattr(part, "config")}
    twin = copy.deepcopy(layer, shared)
    found = [parameter for name, parameter in twin.named_parameters() if _OUTPUTS.search(name)]
    if not found:
        raise ModelError(f"it is not known where a {type(layer).__name__} writes its result", fix="use another tuner, such as lora")
    for parameter in found:
        nn.init.zeros_(parameter)
    return twin


@torch.no_grad()
def _logits(model: nn.Module) -> torch.Tensor:
    training = model.training
    model.eval()
    ids = torch.arange(3, 11, device=next(model.parameters()).device)[None]
    logits = cast(Any, model)(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    return logits


def _train_new_layers(model: nn.Module) -> nn.Module:
    bare: Any = model
    config = bare.config.get_text_config() if hasattr(bare.config, "get_text_config") else bare.config
    path, _ = layer_list(model)
    wanted = tuple(f"{path}.{number}." for number in getattr(config, _NOTE))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(wanted) and parameter.is_floating_point())
    return model


def _saved_config(folder: Path) -> dict[str, Any]:
    """Return the part of a checkpoint's config.json that describes its language model."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}", fix="choose another checkpoint") from error
    return next((part for part in (config, *config.values()) if isinstance(part, dict) and _NOTE in part), config)
