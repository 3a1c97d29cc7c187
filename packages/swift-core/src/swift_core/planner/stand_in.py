"""A model without numbers: shapes, number types and devices only, ready to be traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swift_core.config.training import SftConfig
from swift_core.fusions.install import Fusion
from swift_core.models.auto_class import auto_class
from swift_core.models.config import load_config
from swift_core.models.modules import freeze_parts, unwrap
from swift_core.train.tuning import load_tuner


def build(config: SftConfig, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the prepared model of a run on the meta device.

    Raises:
        ModelError: when the tuner does not fit the model, or transformers has no such architecture.
    """
    model_config = load_config(config.loading, folder)
    kind = auto_class(model_config, "causal_lm", folder)
    with init_empty_weights():
        model: Any = kind.from_config(model_config, trust_remote_code=config.loading.trust_remote_code, dtype=dtype)
        model.tie_weights()
        freeze_parts(model, config.tuner)
        model.config.use_cache = False
        options: Any = config.tuner if config.tuner.tuner_type == "full" else config.tuner.options
        prepared = load_tuner(config.tuner.tuner_type).prepare(model, options)
    inner: Any = unwrap(prepared)
    inner.tie_weights()
    return prepared


def text_config(model: nn.Module) -> Any:
    """Return the config of a model's language part."""
    inner: Any = unwrap(model)
    return inner.config.get_text_config()


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a language model, which repeat.

    Attributes:
        owner: the module that holds them.
        name: under this name.
        layers: all of them.
        first: layers before they repeat.
        period: after so many layers they repeat.
    """

    owner: nn.Module
    name: str
    layers: nn.ModuleList
    first: int
    period: int

    def depths(self) -> tuple[int, int] | None:
        """Return two depths that stand for all of them on a straight line; None where they are too few for it to pay."""
        small = self.first + self.period * max(1, 3 // self.period)
        large = small + self.period * max(1, 3 // self.period)
        return (small, large) if large < len(self.layers) else None

    def cut(self, depth: int) -> None:
        """Leave the first layers only."""
        setattr(self.owner, self.name, nn.ModuleList(list(self.layers)[:depth]))


def find_stack(model: nn.Module) -> Stack | None:
    """Return the repeating layers of a model, or None where it has no list of them."""
    text = text_config(model)
    depth = getattr(text, "num_hidden_layers", None)
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                marks = list(_marks(child, text))
                first, period = _repetition(marks)
                return Stack(owner, name, child, first, period)
    return None


def _marks(layers: nn.ModuleList, text: Any) -> Iterator[Any]:
    kinds = getattr(text, "layer_types", None) or [None] * len(layers)
    for kind, layer in zip(kinds, layers, strict=True):
        yield (kind, type(layer), tuple((name, tuple(value.shape), value.requires_grad) for name, value in layer.named_parameters()))


def _repetition(marks: list[Any]) -> tuple[int, int]:
    for period in range(1, len(marks) // 2 + 1):
        for first in range(period + 1):
            if all(marks[at] == marks[at + period] for at in range(first, len(marks) - period)):
                return first, period
    return 0, len(marks)


def materialise(model: nn.Module, mode: FakeTensorMode, device: str) -> None:
    """Put parameters and buffers that hold no numbers on a device, in place; those that share storage go on sharing it."""
    made: dict[int, torch.Tensor] = {}

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                fresh = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            made[id(tensor)] = made[id(fresh)] = fresh
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = stand_in(tensor)  # pyright: ignore[reportArgumentType]


def fuse(model: nn.Module, fusions: Mapping[str, Fusion]) -> None:
    """Fuse the layers that can be; there are no numbers to compare the results of."""
    for fusion in fusions.values():
        for module in model.modules():
            candidates = [] if "forward" in vars(module) else list(fusion.forwards(module))
            if candidates:
                module.forward = candidates[0]
