"""FSDP2: every process keeps a part of each weight, gradient and optimizer state (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from swift_core.config.parallel import ParallelSection
from swift_core.errors import ModelError
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.sharding.tensors import DTensorEngine


class FullySharded(DTensorEngine):
    """FSDP2 over all ranks, one unit for each decoder layer and one for the rest.

    Args:
        world: the processes of the run.
        section: `--fsdp` and `--fsdp_config`.
        bf16: compute in bfloat16 over float32 weights.
    """

    def __init__(self, world: World, section: ParallelSection, *, bf16: bool) -> None:
        super().__init__(world)
        self._words = section.fsdp
        self._config = section.fsdp_config
        self._bf16 = bf16
        self._root: FSDPModule | None = None

    def place(self, model: nn.Module) -> None:
        """Leave the model where it is: each unit moves as it is cut, so that no device has to hold the whole model."""

    def shard(self, module: LossModule) -> None:
        """Spread the weights, in place.

        Raises:
            ModelError: when no layer is found that could be a unit.
        """
        layers = layers_of(module.model, self._config.get("transformer_layer_cls_to_wrap"))
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        pinned = self.world.device.type != "cpu"  # there is nothing to copy to where weights are in main memory anyway
        offload: OffloadPolicy = CPUOffloadPolicy(pin_memory=pinned) if "offload" in self._words else OffloadPolicy()
        # Sums of gradients stay in float32: half precision would lose what many ranks add up.
        kept = torch.bfloat16 if self._bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=kept, reduce_dtype=torch.float32 if self._bf16 else None)
        again = bool(self._config.get("reshard_after_forward", "shard_grad_op" not in self._words))
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=again, mp_policy=policy, offload_policy=offload)
        fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offload)
        self._root = cast(FSDPModule, module)

    def wrap(self, module: LossModule, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the module itself: it is spread already."""
        return module

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: before the last one gradients stay whole, and nothing is sent."""
        cast(FSDPModule, module).set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def measure(self, module: nn.Module, batch: Any) -> Any:
        """Return what the task's metrics need, through a forward call, which puts the weights together."""
        with torch.no_grad():
            return module(batch, measure=True)

    def _reshard(self, model: nn.Module) -> None:
        for part in (self._root, *model.modules()):
            if isinstance(part, FSDPModule):
                part.reshard()


def layers_of(model: nn.Module, names: Any = None) -> list[nn.Module]:
    """Return the layers that become units: those of the named classes, else the blocks that the model says not to split.

    Raises:
        ModelError: when there are none.
    """
    wanted: set[str] = {names} if isinstance(names, str) else set(names or ())
    known: set[str] = wanted or {name for part in model.modules() for name in (getattr(part, "_no_split_modules", None) or ())}
    found = list(_outermost(model, known))
    if not found:
        what = f"layers of the class {', '.join(sorted(known))}" if known else "layers that are not to be split"
        raise ModelError(
            f"--fsdp: the model has no {what}",
            fix='name the class of its layers: --fsdp_config \'{"transformer_layer_cls_to_wrap": "..."}\'',
        )
    return found


def _outermost(module: nn.Module, names: set[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in names:
            yield child
        else:
            yield from _outermost(child, names)
