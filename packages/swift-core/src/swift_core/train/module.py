"""The module that is wrapped for data parallelism: batch in, loss out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swift_core.train.task import Task


class LossModule(nn.Module):
    """Runs the task's loss inside a forward call, which is where wrappers such as DDP and autocast act."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the summed loss of a batch, scalar."""
        return self._task.loss(self.model, batch)

    def measure(self, batch: Any) -> Any:
        """Return what the task's metrics need of an evaluation batch."""
        with torch.no_grad():
            return self._task.measure(self.model, batch)
