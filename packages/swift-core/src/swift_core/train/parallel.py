"""Devices and ranks: the one place that knows how many processes there are and what they compute on."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import KwargsHandler, broadcast_object_list

from swift_core.config.combinations import check_processes
from swift_core.config.parallel import ParallelSection, mode_of, processes_for_a_sample
from swift_core.config.training import TrainingConfig
from swift_core.errors import LaunchError

T = TypeVar("T")

# What each kind of device talks through; others do it by main memory. ROCm calls its own library nccl.
BACKENDS = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl"}


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run.

    Attributes:
        accelerator: wraps model and optimizer for however many processes there are.
        sharing: successive processes that work on the same samples together.
    """

    accelerator: Accelerator
    sharing: int = 1

    @property
    def rank(self) -> int:
        """Return this process's number over all machines."""
        return self.accelerator.process_index

    @property
    def size(self) -> int:
        """Return the number of processes over all machines."""
        return self.accelerator.num_processes

    @property
    def data_size(self) -> int:
        """Return among how many the samples are dealt."""
        return self.size // self.sharing

    @property
    def data_rank(self) -> int:
        """Return this process's number among these."""
        return self.rank // self.sharing

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
    """Return the kind of device a run uses: `cuda` (NVIDIA and ROCm), `npu`, `xpu`, `mps`, another accelerator's name, or `cpu`."""
    if use_cpu:
        return "cpu"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def backend_of(device: str, asked: str | None = None) -> str:
    """Return what processes on a kind of device talk through.

    Raises:
        LaunchError: when the one that was asked for cannot move data of that device, or the device knows one process only.
    """
    if device == "mps":
        raise LaunchError("several processes cannot share an Apple GPU", fix="start one process, or --use_cpu true")
    usual = BACKENDS.get(device, "gloo")
    if asked is not None and asked not in (usual, "gloo"):
        raise LaunchError(f"--ddp_backend {asked} does not move data of the device {device}", fix=f"--ddp_backend {usual}, or remove it")
    return asked or usual


def layers_over_devices(section: ParallelSection) -> str | None:
    """Return how `--device_map` spreads a model over the devices of this process, None where it is not asked for.

    Raises:
        LaunchError: when there are not several devices.
    """
    if section.device_map is None:
        return None
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count < 2:
        found = f"there is {'one accelerator' if count else 'no accelerator'} here"
        raise LaunchError(f"--device_map {section.device_map}: {found}, and the layers are to be spread over several", fix="remove it")
    return section.device_map


def make_world(args: TrainingConfig) -> World:
    """Join the processes that torchrun or `NPROC_PER_NODE` started, or stand alone.

    Raises:
        LaunchError: when several processes were started and do not find one another, or there are not the devices asked for.
        ConfigError: when the settings of DeepSpeed contradict the run, or a mode needs other processes.
        MissingDependencyError: when DeepSpeed is asked for and not installed.
    """
    launch, bf16 = args.launch, bool(args.training.bf16)
    device = training_device(use_cpu=launch.use_cpu)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    mode = mode_of(args)
    check_processes(args, expected)
    layers_over_devices(args.parallel)  # refused before anything is loaded
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if expected > 1:  # naming a backend makes a lone process look for others
        timeout = datetime.timedelta(seconds=launch.ddp_timeout)
        handlers.append(InitProcessGroupKwargs(backend=backend_of(device, launch.ddp_backend), timeout=timeout))
    # Engines that spread weights have a number type of their own; autocast on top would round twice.
    precision = "bf16" if bf16 and mode in ("ddp", "device_map") else "no"
    # Accelerate remembers the settings of a run before this one in the same process, and would go by them without a word.
    AcceleratorState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    if mode == "deepspeed":
        from swift_core.train.sharding.zero import deepspeed_accelerator

        accelerator = deepspeed_accelerator(args, device=device, handlers=handlers)
    else:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
    if accelerator.num_processes != expected:
        raise LaunchError(
            f"{expected} processes were started but {accelerator.num_processes} joined",
            fix="start with NPROC_PER_NODE=N swift ..., or torchrun",
        )
    return World(accelerator, sharing=processes_for_a_sample(args.parallel))
