"""LISA: a few layers at a time are trained, drawn anew again and again (arXiv:2403.17919)."""

from __future__ import annotations

import random
from typing import Any

import torch
from swift_core.errors import ModelError
from swift_core.models.modules import module_map, unwrap
from torch import nn
from transformers import TrainerCallback


class LisaCallback(TrainerCallback):
    """Lets the layers of a draw train and all others rest; embedding, norm and head always train.

    Every draw depends on the seed and its number alone, so that a resumed run draws the same layers. A layer that goes to
    rest loses its gradient and its optimizer state, as AdamW is started anew for each draw in the paper.
    """

    def __init__(self) -> None:
        self._layers: list[list[nn.Parameter]] = []
        self._draw: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Find the layers.

        Raises:
            ModelError: when there are fewer than are to be trained at a time.
        """
        model: nn.Module = context["model"]
        self._layers = [[one for one in layer.parameters() if one.requires_grad] for layer in find_layers(model)]
        self._layers = [layer for layer in self._layers if layer]
        if args.lisa_activated_layers > len(self._layers):
            raise ModelError(
                f"--lisa_activated_layers {args.lisa_activated_layers}: {len(self._layers)} layers of this model are trained",
                fix=f"give at most {len(self._layers)}",
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Draw when it is time."""
        number = state.global_step // args.lisa_step_interval
        if number == self._draw:
            return
        self._draw = number
        awake = drawn_layers(args.seed, number, args.lisa_activated_layers, len(self._layers))
        optimizer: torch.optim.Optimizer = context["optimizer"]
        for place, layer in enumerate(self._layers):
            for parameter in layer:
                parameter.requires_grad_(place in awake)
                if place not in awake:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Make all layers trainable again."""
        for layer in self._layers:
            for parameter in layer:
                parameter.requires_grad_(True)


def drawn_layers(seed: int, number: int, count: int, layers: int) -> set[int]:
    """Return which layers the draw of a number wakes, each with the same chance."""
    return set(random.Random(f"lisa {seed} {number}").sample(range(layers), count))


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the language model, from the input on.

    Raises:
        ModelError: when the model has no list of layers.
    """
    base = unwrap(model)
    path = module_map(base).layers
    found = base.get_submodule(path) if path else None
    if not isinstance(found, nn.ModuleList) or len(found) < 2:
        raise ModelError("--lisa_activated_layers: this model has no list of layers", fix="remove it")
    return list(found)
