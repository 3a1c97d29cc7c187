"""`--dry_run`: everything but the training, shown."""

from __future__ import annotations

import math
import sys
from itertools import islice

import torch
from accelerate import init_empty_weights
from torch import nn

from swift_core.batching.preview import legend, preview_samples
from swift_core.batching.stream import EncodedStream
from swift_core.config.training import SftConfig
from swift_core.models.auto_class import auto_class
from swift_core.models.config import load_config
from swift_core.models.modules import freeze_parts
from swift_core.protocols import EncodedSample
from swift_core.registry import OPTIMIZERS
from swift_core.scoring.head import CHUNK_ROWS
from swift_core.tasks.sft import Prepared, prepare
from swift_core.train.estimate import MemoryEstimate, estimate_memory
from swift_core.train.parallel import training_device
from swift_core.train.tuning import load_tuner, weights_dtype

_LOOKED_AT = 64


def show(config: SftConfig) -> None:
    """Print three samples with their loss mask, what became of the data, the plan and a memory estimate.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    color = sys.stdout.isatty()
    write = sys.stdout.write
    samples = _seen(prepared)
    write(legend(color=color) + "\n\n" + preview_samples(samples[:3], prepared.tokenizer, color=color) + "\n")
    write(prepared.rows.summary() + "\n" + (prepared.reports[0].summary() + "\n" if prepared.reports[0] else "") + "\n")
    write(_plan(config, prepared) + "\n\n")
    estimate = _estimate(config, prepared, longest=max(len(sample) for sample in samples))
    write("memory of one device (estimate):\n" + "".join(f"  {line}\n" for line in estimate.lines()))
    write("\nnothing was trained: remove --dry_run to start\n")


def _seen(prepared: Prepared) -> list[EncodedSample]:
    # Of a stream, and of data that is encoded while training, the first samples stand for all.
    if isinstance(prepared.train, EncodedStream):
        return list(islice(prepared.train, _LOOKED_AT))
    whole = prepared.reports[0] is not None
    return list(prepared.train if whole else islice(prepared.train, _LOOKED_AT))


def _plan(config: SftConfig, prepared: Prepared) -> str:
    per_step = _samples_per_step(config)
    if isinstance(prepared.train, EncodedStream):
        return f"plan: {config.training.max_steps} steps of {per_step} samples on each process, from a stream"
    an_epoch = math.ceil(len(prepared.train) / per_step)
    total = config.training.max_steps if config.training.max_steps > 0 else math.ceil(config.training.num_train_epochs * an_epoch)
    return f"plan: {total} steps of {per_step} samples on each process, {an_epoch} steps an epoch"


def _samples_per_step(config: SftConfig) -> int:
    return config.training.per_device_train_batch_size * (config.training.gradient_accumulation_steps or 1)


def _estimate(config: SftConfig, prepared: Prepared, *, longest: int) -> MemoryEstimate:
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = weights_dtype(config, prepared.folder, device=device)
    remote = config.loading.trust_remote_code
    model_config = load_config(config.loading, prepared.folder)
    kind = auto_class(model_config, "causal_lm", prepared.folder)
    with init_empty_weights():
        model: nn.Module = kind.from_config(model_config, trust_remote_code=remote, dtype=dtype)
        freeze_parts(model, config.tuner)
        tuner = load_tuner(config.tuner.tuner_type)
        model = tuner.prepare(model, config.tuner if config.tuner.tuner_type == "full" else config.tuner.options)
    checkpointing = config.training.gradient_checkpointing
    return estimate_memory(
        model,
        model_config.get_text_config(),
        dtype=torch.bfloat16 if config.training.bf16 else dtype,
        batch_size=config.training.per_device_train_batch_size,
        sequence=longest,
        checkpointing=device != "cpu" if checkpointing is None else checkpointing,
        states_per_parameter=_states(config),
        projected_rank=_rank(config),
        packed_bits=_bits(config),
        logit_rows=CHUNK_ROWS,
    )


def _states(config: SftConfig) -> float:
    return OPTIMIZERS.get(config.optimization.optim).states


def _rank(config: SftConfig) -> int | None:
    """Return the rank that an optimizer projects gradients to, or None where it takes them as they are."""
    spec = OPTIMIZERS.get(config.optimization.optim)
    if not spec.projects:
        return None
    if spec.family == "galore":
        return config.memory.galore_rank
    return config.memory.apollo_rank or (1 if spec.name == "apollo_mini" else 256)


def _bits(config: SftConfig) -> int | None:
    section = config.quantization
    if section.quant_method is None:
        return None
    return 8 if section.bits == "float8" else int(section.bits)
