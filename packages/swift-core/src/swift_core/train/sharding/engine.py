"""What the trainer asks of whatever spreads a model over processes; alone and DDP need the least."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import nn

from swift_core.train.module import LossModule
from swift_core.train.parallel import World


class Beat(Protocol):
    """Takes note that this rank is alive."""

    def __call__(self, doing: str, *, waits: bool = False) -> None:
        """Note what it does now, and whether it may have to wait for other ranks in it."""
        ...


class Engine:
    """One process, or DDP: every process holds the whole model.

    Args:
        world: the processes of the run.

    Attributes:
        in_step: whether all ranks must run the same number of forward passes, evaluation included.
    """

    in_step = False

    def __init__(self, world: World) -> None:
        self.world = world

    def place(self, model: nn.Module) -> None:
        """Move the model to this process's device, unless it is spread over several devices, or on its way there when it is cut."""
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) < 2:
            model.to(self.world.device)

    def shard(self, module: LossModule) -> None:
        """Spread the weights, in place, before the optimizer is made."""

    def wrap(self, module: LossModule, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return what is called in training, once the optimizer is there."""
        return self.world.accelerator.prepare_model(module)

    def run(self, module: nn.Module, micros: Sequence[Any], scale: float, beat: Beat) -> list[float]:
        """Compute the gradients of an optimizer step.

        Args:
            module: what `wrap` returned.
            micros: this rank's micro-batches.
            scale: factor of their summed losses.
            beat: told what this rank does, and whether it may have to wait for others in it.

        Returns:
            the summed loss of each micro-batch.
        """
        losses: list[float] = []
        for number, batch in enumerate(micros):
            with self.accumulating(module, last=number == len(micros) - 1):
                beat("computing a loss", waits=self.in_step)
                loss = module(batch.to(self.world.device))
                beat("computing gradients", waits=True)
                self.backward(loss * scale)
            losses.append(float(loss.detach()))
        return losses

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch; ranks exchange gradients at the last one of a step."""
        return contextlib.nullcontext() if last else self.world.accelerator.no_sync(module)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        self.world.accelerator.backward(loss)

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """Scale the gradients of a step down to a norm and return the norm they had; 0 leaves them as they are."""
        if getattr(optimizer, "takes_gradients", False):
            return float(cast(Any, optimizer).clip_gradients(limit or math.inf))
        return float(self.world.accelerator.clip_grad_norm_(model.parameters(), limit or math.inf))  # pyright: ignore[reportArgumentType]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        optimizer.step()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients."""
        optimizer.zero_grad(set_to_none=True)

    def measure(self, module: nn.Module, batch: Any) -> Any:
        """Return what the task's metrics need of an evaluation batch."""
        return cast(LossModule, self.world.accelerator.unwrap_model(module)).measure(batch)

    @contextlib.contextmanager
    def saving(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights on rank 0 inside the block, as far as a checkpoint needs them; all ranks enter it."""
        yield

    @contextlib.contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights on all ranks inside the block, and train on with what they are at its end."""
        yield

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state as one process would have it; all ranks ask, and only rank 0's answer is complete."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take the state that one process would have, on all ranks."""
        optimizer.load_state_dict(state)
