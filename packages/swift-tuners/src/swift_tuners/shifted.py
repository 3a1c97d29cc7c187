"""Adapters that start by taking something out of the base weights: PiSSA, OLoRA, CorDA, LoRA-GA.

They train over a base that was shifted by their start, `W - s B0 A0`. What is saved is an ordinary LoRA of twice the rank for
the base as it was, `[B, -B0] [A; A0]`, so that anything that reads LoRA can load it, beside other adapters as well.
"""

from __future__ import annotations

import math
from copy import copy
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError
from torch import Tensor, nn

SHIFTING = ("pissa", "olora", "corda", "lora_ga")

Start = dict[str, tuple[Tensor, Tensor]]
"""Layer name -> A `[rank, in]` and B `[out, rank]` as they were when the base was shifted."""

_starts: WeakKeyDictionary[nn.Module, dict[str, Start]] = WeakKeyDictionary()


def changes_the_base(config: PeftConfig) -> bool:
    """Say whether an adapter with this config changes the base weights when it is put on, loftq by quantising them."""
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start.startswith((*SHIFTING, "loftq"))


def remember(model: PeftModel, adapter_name: str, *, always: bool = False) -> None:
    """Note the start of an adapter that has just shifted the base, for saving; others are left alone."""
    start = getattr(model.peft_config[adapter_name], "init_lora_weights", True)
    if always or (isinstance(start, str) and start.startswith(SHIFTING)):
        matrices = {
            name: (layer.lora_A[adapter_name].weight.detach().clone(), layer.lora_B[adapter_name].weight.detach().clone())
            for name, layer in lora_layers(model, adapter_name).items()
        }
        _starts.setdefault(model, {})[adapter_name] = matrices


def shifted_adapters(model: nn.Module) -> list[str]:
    """Return the adapters of a model that have shifted its base."""
    return list(_starts.get(model, {}))


def lora_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, Any]:
    """Return the layers that have low-rank matrices of an adapter, by their name in the base model."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return {name: layer for name, layer in inner.named_modules() if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A}


def save_plain(model: PeftModel, folder: Path, adapter_name: str) -> None:
    """Write an adapter that shifted the base as one for the base as it was."""
    state = dict(get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False))
    for name, (a, b) in _starts[model][adapter_name].items():
        key_a, key_b = _keys(name)
        state[key_a] = torch.cat([state[key_a], a.to(state[key_a])])
        state[key_b] = torch.cat([state[key_b], -b.to(state[key_b])], dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().cpu() for key, value in state.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    config = copy(cast(LoraConfig, model.peft_config[adapter_name]))
    factor = math.sqrt(2) if config.use_rslora else 2  # keeps the scale, which is alpha / rank or alpha / sqrt(rank)
    config.r *= 2
    config.lora_alpha *= factor  # pyright: ignore[reportAttributeAccessIssue]
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: alpha * factor for key, alpha in (config.alpha_pattern or {}).items()}
    config.init_lora_weights, config.lora_ga_config, config.inference_mode = True, None, True
    config.save_pretrained(str(folder))


def restore_plain(model: PeftModel, file: Path, adapter_name: str) -> None:
    """Put weights that `save_plain` wrote back into a prepared model, in place.

    Raises:
        CheckpointError: when they do not fit.
    """
    state = load_file(file)
    starts = _starts[model][adapter_name]
    for name, layer in lora_layers(model, adapter_name).items():
        key_a, key_b = _keys(name)
        rank = layer.r[adapter_name]
        if key_a not in state or state[key_a].shape[0] != 2 * rank:
            raise CheckpointError(f"{str(file)!r} does not fit the adapter of {name}", fix="use the settings the run was started with")
        now = starts.get(name)
        then = (state[key_a][rank:].to(layer.lora_A[adapter_name].weight), -state[key_b][:, rank:].to(layer.lora_B[adapter_name].weight))
        if now is None or not (torch.equal(now[0], then[0]) and torch.equal(now[1], then[1])):
            # A start drawn from data or found on another machine may differ from the one that was saved.
            shift_base(layer, adapter_name, then, undo=now)
            starts[name] = then
        state[key_a], state[key_b] = state[key_a][:rank], state[key_b][:, :rank]
    result: Any = set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    stray = [*result.unexpected_keys, *(key for key in state if key in result.missing_keys)]
    if stray:
        raise CheckpointError(f"{str(file)!r}: {stray[0]} has no place in this model", fix="use the settings the run was started with")


@torch.no_grad()
def shift_base(layer: Any, adapter_name: str, start: tuple[Tensor, Tensor], undo: tuple[Tensor, Tensor] | None = None) -> None:
    """Take `s B0 A0` out of the weight of a layer, and put an earlier start back first where there was one."""
    weight = layer.get_base_layer().weight
    total = weight.data.float()
    for (a, b), sign in ((undo, 1.0), (start, -1.0)) if undo is not None else ((start, -1.0),):
        update = b.float() @ a.float() * layer.scaling[adapter_name] * sign
        total = total + (update.T if layer.fan_in_fan_out else update)
    weight.data = total.to(weight.dtype)


def _keys(name: str) -> tuple[str, str]:
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
