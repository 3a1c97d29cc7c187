"""Number types of an adapter's weights over a half precision model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cast_adapter(model: nn.Module, adapter_name: str, dtype: torch.dtype) -> None:
    """Give the weights of one adapter a number type, in place.

    Weights in half precision lose small updates, so adapters are kept in float32 and the layers around them are not.
    PEFT's own layers cast their inputs; a full copy of a layer gets hooks that do the same.
    """
    around = base_dtype(model)
    for parameter in _adapter_parameters(model, adapter_name):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if dtype != around:
        for wrapper in model.modules():
            if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
                _keep_activation_dtype(wrapper.modules_to_save[adapter_name], around)


def base_dtype(model: nn.Module) -> torch.dtype:
    """Return the number type of the first weight that belongs to no adapter, float32 when there is none."""
    adapted = {id(parameter) for module in model.modules() for parameter in _adapter_parts(module, None)}
    return next(
        (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point() and id(parameter) not in adapted),
        torch.float32,
    )


def _adapter_parameters(model: nn.Module, adapter_name: str) -> Iterator[nn.Parameter]:
    for module in model.modules():
        yield from _adapter_parts(module, adapter_name)


def _adapter_parts(module: nn.Module, adapter_name: str | None) -> Iterator[nn.Parameter]:
    """Yield the parameters that PEFT keeps by adapter name on one layer; None takes every adapter."""
    if not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
        return
    for part in module.children():
        if not isinstance(part, nn.ModuleDict | nn.ParameterDict):
            continue
        for name, value in part.items():
            if adapter_name not in (None, name):
                continue
            if isinstance(value, nn.Parameter):
                yield value
            elif isinstance(value, nn.Module):
                yield from value.parameters()


def _keep_activation_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    def enter(inner: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        own = next(inner.parameters()).dtype
        return tuple(_cast(value, own) for value in args)

    def leave(inner: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, dtype)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
