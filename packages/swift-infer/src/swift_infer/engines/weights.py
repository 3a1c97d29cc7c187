"""Replacing a model's weights while it stays loaded, and giving their memory back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from swift_core.errors import EngineError, RequestError
from torch import Tensor, nn

_SHOWN = 3
# Of the memory that is free after loading; the rest is for what a forward pass needs.
_SHARE = 0.5


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model by the names that they have without adapters, tied ones under every name."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".lora_" not in plain and ".modules_to_save." not in plain:
            found[plain.replace(".original_module.", ".")] = parameter
    return found


def replace_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model; where one does not fit, nothing is changed.

    Raises:
        RequestError: when the model has no parameter of that name and shape.
    """
    own = base_parameters(model)
    check_names(weights, {name: list(_shape(parameter)) for name, parameter in own.items()})
    with torch.no_grad():
        for name, tensor in weights.items():
            parameter = own[name]
            if parameter.numel():
                parameter.copy_(tensor)
            else:
                parameter.data = tensor.to(parameter.device, parameter.dtype, copy=True)


def check_names(weights: Mapping[str, Tensor], known: Mapping[str, list[int]]) -> None:
    """Refuse tensors that a model does not have.

    Args:
        weights: what is to be loaded.
        known: name -> shape of what there is; empty where that is not known.

    Raises:
        RequestError: with the first ones.
    """
    unknown = [name for name in weights if known and name not in known]
    if unknown:
        names = ", ".join(list(known)[:_SHOWN])
        raise RequestError(
            f"{len(unknown)} tensors have names that the model does not: {', '.join(unknown[:_SHOWN])}", fix=f"names are like {names}"
        )
    shapes = [name for name, tensor in weights.items() if known and list(tensor.shape) != known[name]]
    if shapes:
        name = shapes[0]
        what = f"{len(shapes)} tensors have another shape than in the model: {name} is {list(weights[name].shape)}"
        raise RequestError(what, fix=f"the model's is {known[name]}")


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """Return name -> shape of the tensors in a model's safetensors files; empty where it has none."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    return found


def drop_weights(model: nn.Module) -> None:
    """Give the memory of a model's own weights back; they are gone."""
    for parameter in base_parameters(model).values():
        parameter.swift_shape = _shape(parameter)  # pyright: ignore[reportAttributeAccessIssue]
        parameter.data = parameter.data.new_empty(0)


def missing_weights(model: nn.Module) -> list[str]:
    """Return the names of weights that were dropped and have not come back."""
    return [name for name, parameter in base_parameters(model).items() if parameter.shape != _shape(parameter)]


def token_budget(model: Any) -> int | None:
    """Return for how many tokens keys and values may be held: a part of the memory that is free now; None where it cannot be told."""
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        return None
    pairs = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    each = 2 * layers * pairs * width * next(model.parameters()).element_size()
    device = next(model.parameters()).device
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return int(_SHARE * free) // each


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "swift_shape", parameter.shape)


@contextmanager
def adapter_folder(settings: Mapping[str, Any], weights: Mapping[str, Tensor], inside: str | None = None) -> Iterator[Path]:
    """Return a folder that holds an adapter as PEFT saves it, for as long as the block runs.

    Raises:
        EngineError: when the settings are none of an adapter.
    """
    if not settings.get("peft_type"):
        raise EngineError("the adapter's settings name no peft_type", fix="send PEFT's adapter_config.json")
    with tempfile.TemporaryDirectory(prefix="swift-adapter-", dir=inside) as folder:
        place = Path(folder)
        (place / "adapter_config.json").write_text(json.dumps(dict(settings)), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, place / "adapter_model.safetensors")
        yield place
