"""Bottleneck adapters: a narrow network with an activation behind the feed-forward part of every layer."""

from __future__ import annotations

import re

from torch import Tensor, nn
from transformers.activations import ACT2FN

from swift_tuners.methods.added import AddedTuner
from swift_tuners.options import BottleneckOptions
from swift_tuners.targets import check_module_names, layer_list, matches

_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|ff|block_sparse_moe|moe")


class Bottleneck(nn.Module):
    """`up(act(down(x)))`, with `up` zero at first.

    Args:
        width: of input and output.
        length: of the bottleneck.
        activation: its name in transformers.
    """

    def __init__(self, width: int, length: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, length)
        self.act: nn.Module = ACT2FN[activation]
        self.up = nn.Linear(length, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `[..., width]` for `[..., width]`."""
        return self.up(self.act(self.down(hidden)))


class BottleneckTuner(AddedTuner[BottleneckOptions]):
    """Trains a bottleneck in every layer."""

    name = "adapter"
    options_class = BottleneckOptions

    def places(self, model: nn.Module, options: BottleneckOptions) -> list[str]:
        """Return the named modules, or the feed-forward part of every layer; the layer where it has no such part."""
        if options.adapter_modules:
            check_module_names(model, options.adapter_modules, "--adapter_modules")
            return [name for name, _ in model.named_modules() if name and matches(name, options.adapter_modules)]
        path, layers = layer_list(model)
        found: list[str] = []
        for number, layer in enumerate(layers):
            inner = next((name for name, _ in layer.named_children() if _FEED_FORWARD.fullmatch(name)), None)
            found.append(f"{path}.{number}" + (f".{inner}" if inner else ""))
        return found

    def network(self, width: int, options: BottleneckOptions) -> nn.Module:
        """Return a bottleneck."""
        return Bottleneck(width, options.adapter_length, options.adapter_act)
