"""Adapters folded into the weights that they stand beside, as long as answers are written: half as many products a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Rounding the sum to fewer digits would lose what the adapters have learned.
_EXACT = (torch.float32, torch.float64)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that hold adapters, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")}


def folds(model: nn.Module) -> bool:
    """Say whether all adapters of a model can be folded into its weights without losing digits."""
    layers = adapted_layers(model).values()
    return bool(layers) and hasattr(model, "disable_adapter") and all(_plain(layer) for layer in layers) and _nothing_else(model)


def _plain(layer: Any) -> bool:
    base = layer.base_layer
    weight = getattr(base, "weight", None)
    whole = type(weight) is nn.Parameter and weight.dtype in _EXACT and not weight.requires_grad
    return whole and type(base) is nn.Linear and not getattr(layer, "use_dora", {}).get("default", False) and not layer.merged


def _nothing_else(model: Any) -> bool:
    """Say whether nothing but the adapters differs from the base model."""
    config: Any = model.peft_config.get("default") if hasattr(model, "peft_config") else None
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
    return kind == "LORA" and not config.modules_to_save and config.bias == "none" and not getattr(config, "lora_bias", False)


def folded_weight(layer: Any) -> Tensor:
    """Return the weight of a layer with its active adapters in it, in a tensor of its own."""
    weight = layer.base_layer.weight.detach()
    total = weight.clone()
    for adapter in layer.active_adapters:
        total += layer.get_delta_weight(adapter).to(weight.dtype)
    return total


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Let a model compute with its adapters folded in; afterwards its weights are the very ones from before."""
    layers = list(adapted_layers(model).values()) if folds(model) else []
    if not layers:
        yield
        return
    kept = [layer.base_layer.weight.data for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.base_layer.weight.data = folded_weight(layer)
        with model.disable_adapter():
            yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.base_layer.weight.data = weight
