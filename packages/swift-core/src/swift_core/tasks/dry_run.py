"""`--dry_run`: everything but the training, shown."""

from __future__ import annotations

import math
import sys

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from swift_core.batching.preview import legend, preview_samples
from swift_core.config.training import SftConfig
from swift_core.models.loading import resolve_dtype
from swift_core.scoring.head import CHUNK_ROWS
from swift_core.tasks.sft import Prepared, prepare
from swift_core.train.estimate import MemoryEstimate, estimate_memory
from swift_core.train.parallel import training_device
from swift_core.train.tuning import load_tuner

_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adafactor": 0, "sgd": 0}


def show(config: SftConfig) -> None:
    """Print three samples with their loss mask, what became of the data, the plan and a memory estimate.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    color = sys.stdout.isatty()
    write = sys.stdout.write
    write(legend(color=color) + "\n\n" + preview_samples(prepared.train[:3], prepared.tokenizer, color=color) + "\n")
    write(prepared.rows.summary() + "\n" + prepared.encoded[0].summary() + "\n\n")
    steps_per_epoch = math.ceil(len(prepared.train) / _samples_per_step(config))
    total = config.training.max_steps if config.training.max_steps > 0 else math.ceil(config.training.num_train_epochs * steps_per_epoch)
    write(f"plan: {total} steps of {_samples_per_step(config)} samples on each process, {steps_per_epoch} steps an epoch\n\n")
    write("memory of one device (estimate):\n" + "".join(f"  {line}\n" for line in _estimate(config, prepared).lines()))
    write("\nnothing was trained: remove --dry_run to start\n")


def _samples_per_step(config: SftConfig) -> int:
    return config.training.per_device_train_batch_size * (config.training.gradient_accumulation_steps or 1)


def _estimate(config: SftConfig, prepared: Prepared) -> MemoryEstimate:
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = resolve_dtype(config.loading, prepared.folder, device=device)
    remote = config.loading.trust_remote_code
    model_config = AutoConfig.from_pretrained(prepared.folder, trust_remote_code=remote, local_files_only=True)
    with init_empty_weights():
        model: nn.Module = AutoModelForCausalLM.from_config(model_config, trust_remote_code=remote, dtype=dtype)
        tuner = load_tuner(config.tuner.tuner_type)
        model = tuner.prepare(model, config.tuner if config.tuner.tuner_type == "full" else config.tuner.options)
    checkpointing = config.training.gradient_checkpointing
    return estimate_memory(
        model,
        model_config.get_text_config(),
        dtype=torch.bfloat16 if config.training.bf16 else dtype,
        batch_size=config.training.per_device_train_batch_size,
        sequence=max(len(sample) for sample in prepared.train),
        checkpointing=device != "cpu" if checkpointing is None else checkpointing,
        states_per_parameter=_STATES[config.optimization.optim],
        logit_rows=CHUNK_ROWS,
    )
