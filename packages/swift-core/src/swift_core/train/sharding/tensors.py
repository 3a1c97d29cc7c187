"""Weights that are spread as DTensors, whole again for saving and restoring: FSDP2 and tensor parallel share this."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from swift_core.train.sharding.engine import Engine

Place = tuple[nn.Module, str]


def places_of(model: nn.Module) -> dict[nn.Parameter, list[Place]]:
    """Return every parameter with the places it is used in: tied weights have several."""
    found: dict[nn.Parameter, list[Place]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(parameter, []).append((module, name))
    return found


def put(places: Iterable[Place], parameter: nn.Parameter) -> None:
    """Put a parameter into its places, past the checks of modules that keep theirs spread."""
    for module, name in places:
        module._parameters[name] = parameter


@contextlib.contextmanager
def _without_load_hooks(model: nn.Module) -> Iterator[None]:
    # FSDP2 looks for its parts again after each `load_state_dict`, and whole weights stand in their places here.
    hooks = [(module, dict(module._load_state_dict_post_hooks)) for module in model.modules()]
    for module, _ in hooks:
        module._load_state_dict_post_hooks.clear()
    try:
        yield
    finally:
        for module, kept in hooks:
            module._load_state_dict_post_hooks.update(kept)


def whole(tensor: Any) -> Any:
    """Return a value with its parts from all ranks put together, on the CPU; all ranks call it."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


class DTensorEngine(Engine):
    """An engine whose parameters are DTensors."""

    in_step = True

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """Scale the gradients of a step down to a norm and return the norm they had."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norms = [cast(Any, whole(torch.nn.utils.get_total_norm(part))) for part in _alike(gradients) if part]
        norm = float(torch.stack([value.float().cpu() for value in norms]).norm()) if norms else 0.0
        if limit and norm > limit and math.isfinite(norm):
            for gradient in gradients:
                _local(gradient).mul_(limit / (norm + 1e-6))
        return norm

    @contextlib.contextmanager
    def saving(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights on rank 0 inside the block: all of them, or those of the adapters."""
        self._reshard(model)
        adapters = hasattr(model, "peft_config")
        spread: list[tuple[list[Place], nn.Parameter]] = []
        for parameter, places in places_of(model).items():
            if not isinstance(parameter, DTensor) or (adapters and not parameter.requires_grad):
                continue
            full = whole(parameter.detach())  # one at a time: no rank but the first keeps more than one whole weight
            if self.world.is_main:
                spread.append((places, parameter))
                put(places, nn.Parameter(full, requires_grad=parameter.requires_grad))
        try:
            yield
        finally:
            for places, parameter in spread:
                put(places, parameter)

    @contextlib.contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights on all ranks inside the block; each rank then keeps its part of what they have become."""
        self._reshard(model)
        spread: list[tuple[list[Place], nn.Parameter]] = []
        for parameter, places in places_of(model).items():
            if isinstance(parameter, DTensor):
                full = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
                spread.append((places, parameter))
                put(places, full)
        try:
            with _without_load_hooks(model):
                yield
            with torch.no_grad():
                for places, parameter in spread:
                    module, name = places[0]
                    cast(DTensor, parameter).to_local().copy_(_part(cast(torch.Tensor, module._parameters[name]), parameter).to_local())
        finally:
            for places, parameter in spread:
                put(places, parameter)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state with whole tensors."""
        state = optimizer.state_dict()
        gathered = {number: {name: whole(value) for name, value in one.items()} for number, one in state["state"].items()}
        return {"state": gathered, "param_groups": state["param_groups"]}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Keep this rank's part of the state."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        taken: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            owner = parameters[number] if number < len(parameters) else None
            taken[number] = {name: _part(value, owner) if _fits(value, owner) else value for name, value in values.items()}
        optimizer.load_state_dict({"state": taken, "param_groups": state["param_groups"]})

    def _reshard(self, model: nn.Module) -> None:
        """Put weights that a forward pass has left whole back into parts."""


def _fits(value: Any, owner: Any) -> bool:
    return isinstance(owner, DTensor) and isinstance(value, torch.Tensor) and value.shape == owner.shape and value.ndim > 0


def _part(value: torch.Tensor, like: Any) -> DTensor:
    # Every rank has the whole tensor: it cuts its own part out and nothing is sent.
    return distribute_tensor(value.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _alike(gradients: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Split gradients by where they are spread: one norm is of one kind."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    for gradient in gradients:
        kind = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        kinds.setdefault(kind, []).append(gradient)
    return list(kinds.values())
