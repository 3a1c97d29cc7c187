"""What ends a run from outside: memory that runs out, processes that are gone. Said in words, with what to change."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import LaunchError, OutOfMemory, SwiftError
from swift_core.train.dealing import CPU_TOKENS

_GIB = 2**30
# How gloo and NCCL say that the other end of a connection is gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextmanager
def explained_failures(
    args: TrainingConfig, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, device: torch.device | None = None
) -> Iterator[None]:
    """Turn errors of memory and of communication into ones that say what to do.

    Raises:
        OutOfMemory: with a table of what is taken and three settings to change.
        LaunchError: when another process of the job has gone.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SwiftError):
            raise
        if is_out_of_memory(error):
            table = memory_table(model, optimizer, device or torch.device("cpu"))
            raise OutOfMemory("\n".join([f"out of memory: {_first_line(error)}", *table]), fix=", or ".join(ways_out(args))) from error
        if any(part in str(error) for part in _GONE):
            fix = "look for the first error of the other processes above; go on with --resume_from_checkpoint"
            raise LaunchError("another process of the job has gone, and this one cannot go on alone", fix=fix) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device or the machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def memory_table(model: nn.Module | None, optimizer: torch.optim.Optimizer | None, device: torch.device) -> list[str]:
    """Return what is taken at the moment, a line for each purpose."""
    rows: list[tuple[str, float]] = []
    if model is not None:
        parameters = list(model.parameters())
        rows += [("weights", _bytes(parameters)), ("gradients", _bytes(p.grad for p in parameters if p.grad is not None))]
    if optimizer is not None:
        states = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
        rows.append(("optimizer", _bytes(states)))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        rows += [("in use at most", torch.cuda.max_memory_allocated(device)), (f"free of {total / _GIB:.2f} GiB", free)]
    else:
        rows += [("in use at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024), *_machine()]
    return [f"  {name:<24} {value / _GIB:8.2f} GiB" for name, value in rows]


def ways_out(args: TrainingConfig) -> list[str]:
    """Return three settings that need less memory than the present ones, those that cost least first."""
    training = args.training
    found: list[str] = []
    if training.padding_free is not False and (args.launch.use_cpu or training.per_device_token_budget):
        budget = training.per_device_token_budget or CPU_TOKENS
        found.append(f"--per_device_token_budget {max(budget // 2, 1)}")
    elif training.per_device_train_batch_size > 1:
        half, steps = training.per_device_train_batch_size // 2, training.gradient_accumulation_steps or 1
        found.append(f"--per_device_train_batch_size {half} --gradient_accumulation_steps {2 * steps}")
    if not training.gradient_checkpointing:
        found.append("--gradient_checkpointing true")
    if isinstance(args, SftConfig):
        if args.tuner.tuner_type == "full":
            found.append("--tuner_type lora")
        elif args.quantization.quant_method is None:
            found.append("--quant_method bnb --quant_bits 4")
        found.append(f"--max_length {max((args.chat.max_length or 2048) // 2, 1)}")
    found += ["--optim adamw_8bit", "--deepspeed zero3 on several devices", "a smaller model"]
    return found[:3]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _machine() -> list[tuple[str, float]]:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return []
    values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in file.read_text(encoding="ascii").splitlines()}
    return [(f"free of {values['MemTotal'] / _GIB:.2f} GiB RAM", values["MemAvailable"])]
