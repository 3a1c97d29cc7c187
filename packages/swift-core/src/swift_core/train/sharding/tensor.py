"""Tensor parallel: each process keeps a part of each matrix, by the plan that transformers has for the model's layers."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from swift_core.config.parallel import ParallelSection
from swift_core.errors import ModelError
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.sharding.tensors import DTensorEngine


class TensorParallel(DTensorEngine):
    """Tensor parallel over all ranks, which work on the same samples.

    Args:
        world: the processes of the run.
        section: `--tensor_parallel_size`.
    """

    def __init__(self, world: World, section: ParallelSection) -> None:
        super().__init__(world)
        self._size = section.tensor_parallel_size
        self._several: list[Any] = []

    def shard(self, module: LossModule) -> None:
        """Spread the matrices, in place.

        Raises:
            ModelError: when there is no plan for the model, or its heads cannot be dealt out.
        """
        model = module.model
        self._check(model)
        mesh = init_device_mesh(self.world.device.type, (self._size,), mesh_dim_names=("tp",))
        try:
            apply_tensor_parallelism(model, mesh)
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"--tensor_parallel_size {self._size} does not fit this model: {error}", fix="use --fsdp full_shard"
            ) from error
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ModelError("--tensor_parallel_size: the plan of this model spreads nothing", fix="use --fsdp full_shard")

    def _check(self, model: nn.Module) -> None:
        if not isinstance(model, PreTrainedModel) or not model.supports_tp_plan:
            raise ModelError(f"transformers has no plan to cut a {type(model).__name__} into parts", fix="use --fsdp full_shard")
        config: Any = model.config.get_text_config()
        if config.tie_word_embeddings:
            raise ModelError(
                "--tensor_parallel_size: embedding and head of this model are one weight, which the plan cuts for one of them only",
                fix="use --fsdp full_shard or --deepspeed zero3",
            )
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = getattr(config, name, None)
            if heads is not None and heads % self._size:
                fix = f"choose a divisor of {heads}"
                raise ModelError(f"--tensor_parallel_size {self._size}: {name} is {heads}, which it does not divide", fix=fix)

    def wrap(self, module: LossModule, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the module itself: it is spread already."""
        self._several = [group.get("foreach") for group in optimizer.param_groups]
        self._one_by_one(optimizer)
        return module

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context without effect: gradients are never exchanged."""
        return contextlib.nullcontext()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state with whole tensors."""
        state = super().optimizer_state(optimizer)
        groups = [{**group, "foreach": asked} for group, asked in zip(state["param_groups"], self._several, strict=True)]
        return {**state, "param_groups": groups}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Keep this rank's part of the state."""
        super().load_optimizer_state(optimizer, state)
        self._one_by_one(optimizer)

    def _one_by_one(self, optimizer: torch.optim.Optimizer) -> None:
        # Norms are whole and matrices are not: functions over lists take one kind only.
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False
