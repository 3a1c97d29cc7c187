"""Putting fused layers into a model, each checked against the layer it stands in for.

A model's own layer is a chain of small operations, and autograd keeps something of each. On a CPU such passes over memory take
more time than the matrix products between them. A fused layer has the same weights and the same formula in one function with its
backward pass written out. Only `forward` of a module is set on the instance: classes, names and weights stay, and `remove` ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

logger = logging.getLogger(__name__)

Forward = Callable[..., torch.Tensor]

# Share of the norm by which a fused layer may differ: another order of sums, and in half precision roundings that it spares.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 2e-2


def is_plain(weight: object) -> bool:
    """Say whether a weight is one tensor with all its numbers at hand, neither packed nor spread over devices.

    While memory is planned, a tensor without numbers stands for it.
    """
    return type(weight) in (nn.Parameter, torch.Tensor, FakeTensor)


class Fusion(Protocol):
    """Knows one kind of layer."""

    def forwards(self, module: nn.Module) -> Iterable[Forward]:
        """Return what could stand in for `module.forward`, best first; nothing for a module of another kind."""
        ...


class Fused:
    """The fused layers of a model.

    Args:
        model: its layers are looked at one by one; those that a fusion knows, and that give the same results, are fused.
        fusions: by name.

    Attributes:
        counts: fused layers by name of the fusion.
    """

    def __init__(self, model: nn.Module, fusions: dict[str, Fusion]) -> None:
        self.counts = dict.fromkeys(fusions, 0)
        self._modules: list[nn.Module] = []
        chosen: dict[tuple[Any, ...], int | None] = {}
        for name, fusion in fusions.items():
            for module in model.modules():
                # A forward that somebody else has set already stays.
                candidates = [] if "forward" in vars(module) else list(fusion.forwards(module))
                if not candidates:
                    continue
                kind = _kind(name, module)
                if kind not in chosen:
                    chosen[kind] = _first_equal(module, candidates)
                    if chosen[kind] is None:
                        logger.warning("%s does not compute what %s does, so that stays as it is", name, type(module).__name__)
                number = chosen[kind]
                if number is not None:
                    module.forward = candidates[number]
                    self._modules.append(module)
                    self.counts[name] += 1

    def remove(self) -> None:
        """Give every layer its own way back."""
        for module in self._modules:
            del module.forward
        self._modules.clear()


def _kind(name: str, module: nn.Module) -> tuple[Any, ...]:
    shapes = tuple((key, tuple(value.shape), value.dtype) for key, value in module.named_parameters())
    return (name, type(module), shapes)


def _first_equal(module: nn.Module, candidates: list[Forward]) -> int | None:
    return next((number for number, candidate in enumerate(candidates) if _equal(module, candidate)), None)


def _equal(module: nn.Module, candidate: Forward) -> bool:
    """Compare outputs and gradients on a few random rows; random numbers of the run are left as they were."""
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    width, dtype, device = _input_width(module), parameters[0].dtype, parameters[0].device
    # Rows of an input are in the number type of the layer's own weights, not in that of an adapter beside them.
    dtype = next((parameter.dtype for parameter in parameters if not parameter.requires_grad), dtype)
    # Packed weights are integers; the layer says what it computes in.
    packed = (getattr(getattr(part, "base_layer", None), "compute_dtype", None) for part in module.modules())
    dtype = next((found for found in packed if found is not None), dtype)
    training = module.training
    module.eval()
    try:
        generator = torch.Generator().manual_seed(0)
        given = torch.randn(2, 3, width, generator=generator).to(device, dtype)
        direction: torch.Tensor | None = None
        own = cast(Forward, MethodType(cast(Any, type(module)).forward, module))
        found: list[list[torch.Tensor]] = []
        for forward in (own, candidate):
            rows = given.clone().requires_grad_()
            output = forward(rows)
            direction = torch.randn(output.shape, generator=generator).to(output) if direction is None else direction
            wanted = [rows, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
            gradients = torch.autograd.grad(output, wanted, direction, allow_unused=True)
            found.append([output.detach(), *(gradient for gradient in gradients if gradient is not None)])
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        logger.info("a fused %s was not tried: %s", type(module).__name__, error)
        return False
    finally:
        module.train(training)
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    return len(found[0]) == len(found[1]) and all(_near(*pair, tolerance=tolerance) for pair in zip(*found, strict=True))


def _near(one: torch.Tensor, other: torch.Tensor, *, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    share = (one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-12)
    return float(share) < tolerance


def _input_width(module: nn.Module) -> int:
    """Return the size of the rows that a layer takes: what it or its first part says, or the last dimension of its first weight."""
    sizes = (int(getattr(part, "in_features", 0)) for part in module.modules())
    return next((size for size in sizes if size), 0) or next(_weights(module)).shape[-1]


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from (parameter for name, parameter in module.named_parameters() if name.rpartition(".")[2] == "weight")
