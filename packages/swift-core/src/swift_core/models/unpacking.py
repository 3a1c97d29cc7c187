"""Linear layers of compressed-tensors checkpoints that stay packed, so that adapters can go on them and be trained.

The library unpacks a whole model for good in its first forward pass, and layers cannot be adapted before. Here a layer unpacks its
own weight whenever it is used.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from swift_core.errors import MissingDependencyError

try:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.base import decompress_module
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize
except ImportError as error:
    raise MissingDependencyError("compressed_tensors", needed_for="packed weights", install="swift-core[packed]") from error


class UnpackingLinear(nn.Linear):
    """A linear layer whose weight is packed and unpacked when it is used.

    While training it is unpacked again in the backward pass rather than kept. A model in evaluation mode keeps the unpacked weights
    until it is trained again: each generated token would unpack them all.

    Args:
        packed: layer that the library has loaded, with its packed tensors.
    """

    def __init__(self, packed: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a whole weight
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.register_parameter("bias", packed.bias)
        scheme: Any = packed.quantization_scheme
        # Names by which the library looks for them when it rounds inputs.
        self.quantization_scheme = scheme
        self.quantization_status = packed.quantization_status
        self._unpack: Any = BaseCompressor.get_value_from_registry(scheme.format.value).decompress
        self._stored = {name: f"{name}_stored" if name == "weight" else name for name in _tensors(packed)}
        for name, tensor in _tensors(packed).items():
            self.register_buffer(self._stored[name], tensor.detach())
        self._kept: torch.Tensor | None = None
        self.train(packed.training)

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  computed here, a parameter there
        """Return the unpacked weight, `[out, in]`."""
        if self._kept is not None:
            return self._kept
        stored = {name: getattr(self, place) for name, place in self._stored.items()}
        with torch.no_grad():
            return self._unpack(stored, self.quantization_scheme)["weight"]

    def train(self, mode: bool = True) -> UnpackingLinear:
        """Set the mode; training lets go of the unpacked weight."""
        if mode:
            self._kept = None
        return super().train(mode)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input W^T + bias`, inputs and outputs rounded as the checkpoint says."""
        if not self.training and not torch.is_grad_enabled():
            self._kept = self.weight
        return cast(torch.Tensor, _Product.apply(input, self))

    def rounded(self, values: torch.Tensor, which: str) -> torch.Tensor:
        """Return inputs or outputs as a program that computes in few bits would have them."""
        args = getattr(self.quantization_scheme, f"{which}_activations", None)
        return values if args is None else forward_quantize(self, values, which, args)


class _Product(torch.autograd.Function):
    """`x W^T + b`; gradients pass rounded numbers as if they were not rounded."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: UnpackingLinear) -> torch.Tensor:
        ctx.layer = layer
        rows = layer.rounded(rows, "input")
        bias = None if layer.bias is None else layer.bias.to(rows.dtype)
        return layer.rounded(F.linear(rows, layer.weight.to(rows.dtype), bias), "output")

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        above = outputs[0]
        return above @ ctx.layer.weight.to(above.dtype) if ctx.needs_input_grad[0] else None, None


def keep_packed(model: nn.Module) -> None:
    """Let every linear layer of a loaded compressed-tensors model stay packed, in place; whatever else is packed is unpacked."""
    for name, module in list(model.named_modules()):
        if getattr(module, "quantization_scheme", None) is None or isinstance(module, UnpackingLinear):
            continue
        if isinstance(module, nn.Linear) and "weight_scale" in _tensors(module):
            model.set_submodule(name, UnpackingLinear(module))
        else:
            decompress_module(module)
    hook: Any = getattr(model, "ct_decompress_hook", None)
    if hook is not None:
        hook.remove()


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {name: tensor for name, tensor in found.items() if name != "bias"}
