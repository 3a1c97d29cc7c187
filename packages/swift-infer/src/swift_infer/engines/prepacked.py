"""Linear layers whose weights are laid out as the CPU multiplies them.

In bfloat16 and float16, PyTorch's oneDNN lays weights out anew in every product, which takes as long as a small product itself. A
server makes only small products with the same weights, so they are laid out once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# oneDNN's layout is for about as many rows as a decode step has; other numbers of rows work as well.
_ROWS = 32
# Weights are held twice: as the model has them, for updates and adapters, and laid out. Larger models keep to the first.
_LARGEST = 4 * 2**30


class PrepackedLinear(nn.Linear):
    """A linear layer that holds its weight twice.

    Args:
        plain: the layer whose weight it takes over.
    """

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self._packed: Tensor | None = None
        self._seen = (-1, -1)
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product `[..., out]` of `[..., in]`."""
        # Weights that were replaced have another version or lie elsewhere.
        now = (self.weight._version if not self.weight.is_inference() else 0, self.weight.data_ptr())
        if self._packed is None or now != self._seen:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), _ROWS)
            self._seen = now
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")


def prepack(model: nn.Module) -> int:
    """Let a model's own linear layers hold their weights laid out for this CPU, and return how many do.

    Layers that are something other than plain linear layers, such as quantised ones, stay as they are; a model that is not on a
    CPU, not in half precision or too large to be held twice does too.
    """
    plain = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear and _packs(layer)]
    size = sum(layer.weight.numel() * layer.weight.element_size() for _, layer in plain)
    if not plain or size > _LARGEST or not torch.backends.mkldnn.is_available():
        return 0
    for name, layer in plain:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, PrepackedLinear(layer))
    return len(plain)


def _packs(layer: nn.Linear) -> bool:
    weight: Any = layer.weight
    return weight.device.type == "cpu" and type(weight) is nn.Parameter and weight.dtype == torch.bfloat16
