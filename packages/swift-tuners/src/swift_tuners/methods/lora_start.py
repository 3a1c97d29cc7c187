"""Where the matrices of LoRA start, when that is neither zero nor at random nor in the base weights alone."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.utils.integrations import dequantize_module_weight
from pydantic import BaseModel
from safetensors import safe_open
from swift_core.errors import MissingDependencyError, ModelError
from swift_core.train.tuning import RunStart
from torch import Tensor, nn

from swift_tuners.lora_options import LoraOptions
from swift_tuners.shifted import lora_layers, remember

_SCALES = {"gd": "gd_scale", "weightS": "weight_svd", "unit": "unit", "stable": "stable"}
_ADAPTER = "default"


def check_start(model: nn.Module, options: LoraOptions, *, quantised: bool) -> None:
    """Check that a start fits the base weights and the other options.

    Raises:
        ModelError: when it does not.
    """
    start = options.init_weights
    if quantised and start in ("pissa", "olora", "lora-ga"):
        raise ModelError(
            f"--init_weights {start} takes a part out of the base weights, and quantised weights cannot give one exactly",
            fix="use loftq, which is made for them, or the default",
        )
    if start == "loftq":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingDependencyError("bitsandbytes", needed_for="--init_weights loftq", install="bitsandbytes")
        if quantised and options.loftq_iter > 1:
            raise ModelError(f"--loftq_iter {options.loftq_iter}: weights that are packed already stay as they are", fix="--loftq_iter 1")
        if not quantised and not torch.accelerator.is_available():
            raise ModelError(
                "--init_weights loftq quantises whole weights on a GPU, and there is none here",
                fix="add --quant_method bnb --quant_bits 4: over packed weights it runs on a CPU",
            )
    if start == "orthogonal" and options.lora_rank % 2:
        raise ModelError(f"--init_weights orthogonal needs an even rank, not {options.lora_rank}", fix="--lora_rank 8")
    if start in ("pissa", "olora", "lora-ga", "loftq", "eva") and options.target_parameters:
        raise ModelError(f"--init_weights {start} is for layers, not for --target_parameters", fix="--init_weights true")
    if start in ("lora-ga", "eva") and (options.rank_pattern or options.use_dora):
        other = "--use_dora" if options.use_dora else "--rank_pattern"
        raise ModelError(f"--init_weights {start} chooses what {other} depends on", fix=f"remove {other}, or --init_weights true")


def check_patterns(model: nn.Module, options: BaseModel) -> None:
    """Check that every pattern of ranks and scales has matched a layer.

    Raises:
        ModelError: for the first that has not.
    """
    if not isinstance(options, LoraOptions):
        return
    names = list(lora_layers(model))
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(options, setting):
            # As PEFT matches: the end of a name, or an expression with ^ that covers it.
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise ModelError(f"--{setting} {pattern!r} matches no adapted layer", fix=f"names look like {', '.join(names[:2])}")


@torch.no_grad()
def start_from_quantisation(model: nn.Module) -> None:
    """Let the matrices make up for the error of packed base weights (one round of LoftQ), in place, on any device.

    Raises:
        ModelError: when the weights before quantisation are not at hand.
    """
    source = Path(str(getattr(getattr(model, "config", None), "_name_or_path", "")))
    places: dict[str, Path] = {}
    for file in sorted(source.glob("*.safetensors")) if source.is_dir() else []:
        with safe_open(file, framework="pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    prefix = str(getattr(cast(PeftModel, model).get_base_model(), "base_model_prefix", "")) + "."
    for name, layer in lora_layers(model).items():
        key = next((key for key in (f"{name}.weight", f"{name}.weight".removeprefix(prefix)) if key in places), None)
        if key is None:
            raise ModelError(
                f"--init_weights loftq compares with the weights before quantisation, and those of {name} are not in the model's folder",
                fix="load a model that is quantised while it is loaded, from a folder of safetensors",
            )
        with safe_open(places[key], framework="pt") as tensors:
            weight = tensors.get_tensor(key)
        packed = cast(Tensor, dequantize_module_weight(layer.get_base_layer()))
        error = weight.to(packed.device, torch.float32) - packed.float()
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        rank, root = a.shape[0], values.sqrt()
        # PEFT's own start leaves the scale of the update out.
        b.data = (left[:, :rank] * root[:rank] / layer.scaling[_ADAPTER]).to(b)
        a.data = (root[:rank, None] * right[:rank]).to(a)


def start_from_gradients(model: nn.Module, options: LoraOptions, run: RunStart) -> None:
    """Set the matrices to directions of the gradient and take them out of the base (LoRA-GA), in place.

    Raises:
        ModelError: when a layer has no gradient.
    """
    layers = lora_layers(model)
    weights = {name: cast(nn.Parameter, layer.get_base_layer().weight) for name, layer in layers.items()}
    wanted = list(weights.values())
    sums: list[Tensor] = [torch.zeros_like(weight, dtype=torch.float32) for weight in wanted]
    training = model.training
    model.eval()  # no dropout in an estimate
    for weight in wanted:
        weight.requires_grad_(True)
    try:
        with cast(PeftModel, model).disable_adapter(), torch.enable_grad():
            for batch in islice(run.batches(options.lora_ga_batch_size, options.lora_ga_max_length), options.lora_ga_iters):
                found = torch.autograd.grad(run.loss(model, batch), wanted, allow_unused=True)
                for total, gradient in zip(sums, found, strict=True):
                    if gradient is not None:
                        total += gradient.float()
    finally:
        for weight in wanted:
            weight.requires_grad_(False)
        model.train(training)
    config = LoraGAConfig(
        direction=cast(Any, options.lora_ga_direction),
        scale=cast(Any, _SCALES[options.lora_ga_scale]),
        stable_gamma=options.lora_ga_stable_gamma,
    )
    for (name, layer), total in zip(layers.items(), sums, strict=True):
        if not bool(total.abs().max() > 0):
            raise ModelError(
                f"lora-ga: the gradient of {name} is zero", fix="leave the layer out of --target_modules, or --init_weights true"
            )
        dtype = layer.lora_A[_ADAPTER].weight.dtype
        layer.get_base_layer()._peft_loraga_grad = total
        layer.lora_ga_init(_ADAPTER, config)
        for matrix in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]):
            matrix.weight.data = matrix.weight.data.to(dtype)
    remember(cast(PeftModel, model), _ADAPTER, always=True)


def await_start(model: nn.Module) -> None:
    """Prepare a model for the start that its checkpoint brings, which resuming will put in."""
    for layer in lora_layers(model).values():
        layer.lora_B[_ADAPTER].weight.data.zero_()
    remember(cast(PeftModel, model), _ADAPTER, always=True)


def start_from_activations(model: nn.Module, options: LoraOptions, run: RunStart) -> None:
    """Set the input matrices to the main directions of the layers' inputs and share out the ranks by them (EVA), in place."""
    found = [_inputs(batch) for batch in _first(run.batches(8, None), -(-options.eva_samples // 8))]
    needed = int(options.eva_rho * options.lora_rank)
    # PEFT passes over smaller batches, and would wait for ever where there is no other.
    batches = [batch for batch in found if int((batch["labels"] != -100).sum()) >= max(needed, 1)]
    if not batches:
        raise ModelError(
            f"--init_weights eva needs 8 samples with {needed} trained tokens together, and there are none",
            fix="give more samples, lower --lora_rank or --eva_rho, or --init_weights true",
        )
    dtypes = {name: layer.lora_A[_ADAPTER].weight.dtype for name, layer in lora_layers(model).items()}
    training = model.training
    model.eval()
    try:
        initialize_lora_eva_weights(cast(PeftModel, model), batches, show_progress_bar=False, gather_distributed_inputs=False)
    except ValueError as error:
        raise ModelError(
            f"--init_weights eva cannot start from these samples: {error}", fix="give more samples, or --init_weights true"
        ) from error
    finally:
        model.train(training)
    for name, layer in lora_layers(model).items():
        for matrix in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]):
            matrix.weight.data = matrix.weight.data.to(dtypes[name])


def _first(batches: Iterator[Any], count: int) -> list[Any]:
    return list(islice(batches, count))


def _inputs(batch: Any) -> dict[str, Tensor]:
    plain = batch.padded() if getattr(batch, "segments", None) is not None else batch
    return {"input_ids": plain.input_ids, "attention_mask": plain.attention_mask, "labels": plain.labels, **(plain.model_inputs or {})}
