"""Bytes of a model's weights and of what its optimizer keeps."""

from __future__ import annotations

from torch import nn

from swift_core.config.training import SftConfig
from swift_core.planner.packing import packed_bytes
from swift_core.planner.spread import Sizes
from swift_core.planner.stand_in import find_stack
from swift_core.registry import OPTIMIZERS


def sizes_of(model: nn.Module, config: SftConfig) -> Sizes:
    """Return the bytes of a prepared model, which may be on the meta device."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bytes_of = [parameter.numel() * parameter.element_size() for parameter in trained]
    numbers = sum(parameter.numel() for parameter in trained)
    stack = find_stack(model)
    layers = list(stack.layers) if stack is not None else []
    whole = [sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters()) for layer in layers]
    every = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    return Sizes(
        weights=packed_bytes(model, config).weights,
        trained=sum(bytes_of),
        numbers=numbers,
        largest=max(bytes_of, default=0),
        layer=max([*whole, *every]),
        state=_states(model, config),
    )


def _states(model: nn.Module, config: SftConfig) -> float:
    """Return the numbers that the optimizer keeps for each trained number, on average."""
    spec = OPTIMIZERS.get(config.optimization.optim)
    rank = _rank(config)
    if rank is None:
        return spec.states
    words = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    kept = total = 0.0
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        projected = parameter.ndim == 2 and id(parameter) not in words
        kept += parameter.numel() * (min(1.0, rank / min(parameter.shape)) if projected else 1.0)
        total += parameter.numel()
    return spec.states * kept / max(total, 1)


def _rank(config: SftConfig) -> int | None:
    """Return the rank that an optimizer projects gradients to, or None where it takes them as they are."""
    spec = OPTIMIZERS.get(config.optimization.optim)
    if not spec.projects:
        return None
    if spec.family == "galore":
        return config.memory.galore_rank
    return config.memory.apollo_rank or (1 if spec.name == "apollo_mini" else 256)
