"""Devices and ranks: the one place that knows how many processes there are and what they compute on."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import KwargsHandler, broadcast_object_list

from swift_core.config.sections import LaunchSection
from swift_core.errors import LaunchError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run.

    Attributes:
        accelerator: wraps model and optimizer for however many processes there are.
    """

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """Return this process's number over all machines."""
        return self.accelerator.process_index

    @property
    def size(self) -> int:
        """Return the number of processes over all machines."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Say whether this process prints and writes shared files."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        return self.accelerator.device

    def sum(self, *values: float) -> list[float]:
        """Add values over all ranks; float64, so that counts stay exact."""
        if self.size == 1:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return self.accelerator.reduce(torch.tensor(values, dtype=dtype, device=self.device), "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]

    def broadcast(self, value: str) -> str:
        """Return rank 0's text on every rank."""
        if self.size == 1:
            return value
        return broadcast_object_list([value])[0]

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on all ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.accelerator.wait_for_everyone()


def training_device(*, use_cpu: bool) -> str:
    """Return the kind of device a run uses: `cuda`, `npu`, `xpu`, `mps` or `cpu`."""
    if use_cpu:
        return "cpu"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def make_world(launch: LaunchSection, *, bf16: bool) -> World:
    """Join the processes that torchrun or `NPROC_PER_NODE` started, or stand alone.

    Raises:
        LaunchError: when several processes were started and do not find one another.
    """
    device = training_device(use_cpu=launch.use_cpu)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    backend = launch.ddp_backend or {"cuda": "nccl", "npu": "hccl", "xpu": "xccl"}.get(device, "gloo")
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if expected > 1:  # naming a backend makes a lone process look for others
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=datetime.timedelta(seconds=launch.ddp_timeout)))
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if bf16 else "no", kwargs_handlers=handlers)
    if accelerator.num_processes != expected:
        raise LaunchError(
            f"{expected} processes were started but {accelerator.num_processes} joined",
            fix="start with NPROC_PER_NODE=N swift ..., or torchrun",
        )
    return World(accelerator)
