"""HQQ: the linear layers of a loaded model packed one by one, with the library's own layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swift_core.config.quantization import QuantizationSection
from swift_core.errors import MissingDependencyError

try:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
except ImportError as error:
    raise MissingDependencyError("hqq", needed_for="--quant_method hqq", install="swift-core[hqq]") from error


def pack(model: nn.Module, section: QuantizationSection, *, dtype: torch.dtype, device: str) -> None:
    """Exchange every linear layer but the output head for a packed one, in place; the model goes to its device.

    Args:
        model: in full precision.
        section: bits, axis and group size.
        dtype: number type of the products.
        device: where it will run.
    """
    axis = int(section.hqq_axis) if section.hqq_axis is not None else 1
    settings: Any = BaseQuantizeConfig(nbits=int(section.bits), group_size=section.quant_group_size or 64, axis=axis)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            model.set_submodule(name, HQQLinear(module, settings, compute_dtype=dtype, device=device))
    model.requires_grad_(False).to(device)
    model.is_quantized = True  # pyright: ignore[reportArgumentType]  what transformers' own loading sets
