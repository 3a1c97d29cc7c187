"""The module that is wrapped for data parallelism: batch in, loss out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from swift_core.train.offload import no_offloading
from swift_core.train.task import Task


class LossModule(nn.Module):
    """Runs the task's loss inside a forward call, which is where wrappers such as DDP and autocast act.

    Args:
        model: the model.
        task: what it is trained for.
        activations: context of the forward pass, which may keep what autograd saves somewhere else.
    """

    def __init__(self, model: nn.Module, task: Task, activations: Callable[[], AbstractContextManager[Any]] = no_offloading) -> None:
        super().__init__()
        self.activations = activations
        self.model = model
        self.task = task

    def forward(self, batch: Any, *, measure: bool = False) -> Any:
        """Return the summed loss of a batch, scalar; or what `measure` returns, where weights come together in forward calls only."""
        if measure:
            return self.measure(batch)
        with self.activations():
            return self.task.loss(self.model, batch)

    def measure(self, batch: Any) -> Any:
        """Return what the task's metrics need of an evaluation batch."""
        with torch.no_grad():
            return self.task.measure(self.model, batch)
