"""Adapters in PEFT's format: put on a model, loaded, saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from swift_core.errors import CheckpointError, ModelError, NotFoundError
from torch import nn
from transformers import PreTrainedModel

from swift_tuners.precision import base_dtype, cast_adapter
from swift_tuners.shifted import changes_the_base, remember, restore_plain, save_plain, shifted_adapters

WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"


def attach(model: nn.Module, config: PeftConfig, *, dtype: torch.dtype = torch.float32, adapter_name: str = "default") -> PeftModel:
    """Return the model with a new trainable adapter, everything else frozen.

    Args:
        model: a base model, or a model that has adapters already.
        config: PEFT's description of the adapter.
        dtype: number type of the adapter's weights.
        adapter_name: name of the adapter.

    Raises:
        ModelError: when PEFT cannot put such an adapter on this model.
    """
    try:
        adapted = _wrap(model, config, adapter_name)
    except ModelError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"this model cannot take the adapter: {_short(error)}", fix="choose other layers with --target_modules") from error
    cast_adapter(adapted, adapter_name, dtype)
    remember(adapted, adapter_name)
    return _ready_to_train(adapted, adapter_name)


def load(model: nn.Module, folder: Path, *, trainable: bool, adapter_name: str = "default") -> PeftModel:
    """Return the model with a saved adapter put on, in the number type it was saved in.

    Args:
        model: a base model, or a model that has adapters already.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        trainable: whether training goes on with it.
        adapter_name: name of the adapter.

    Raises:
        NotFoundError: when the folder holds no adapter.
        CheckpointError: when the weights are pickled, damaged or made for another model; the model is left as it was.
    """
    check_adapter_folder(folder)
    adapted: PeftModel | None = None
    fix = "load it on the base model that it was trained from"
    try:
        dtype = _saved_dtype(folder / WEIGHTS)
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        adapted = _wrap(model, config, adapter_name)
        # Before the weights are copied in: a half precision layer would round them.
        cast_adapter(adapted, adapter_name, dtype)
        result = adapted.load_adapter(str(folder), adapter_name, is_trainable=trainable, autocast_adapter_dtype=False)
    except ModelError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _take_back(adapted, adapter_name, alone=adapted is not model)
        raise CheckpointError(f"the adapter in {str(folder)!r} does not fit this model: {_short(error)}", fix=fix) from error
    stray = _stray(result, config)
    if stray:
        _take_back(adapted, adapter_name, alone=adapted is not model)
        lost, extra = len(result.missing_keys), len(result.unexpected_keys)
        raise CheckpointError(
            f"the adapter in {str(folder)!r} does not fit this model: {lost} weights are missing and {extra} have no place, "
            f"the first is {stray[0]}",
            fix=fix,
        )
    adapted.set_adapter(adapter_name)
    if trainable:
        return _ready_to_train(adapted, adapter_name)
    # set_adapter makes weights trainable.
    return cast(PeftModel, adapted.requires_grad_(False))


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a model into a folder.

    Raises:
        ModelError: when the model has no adapter.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(f"a {type(model).__name__} has no adapter to save", fix="prepare the model with a tuner first")
    shifted = shifted_adapters(model)
    for name in shifted:
        save_plain(model, folder if name == "default" else folder / name, name)
    kept = [name for name in model.peft_config if name not in shifted]
    if not kept:
        return
    # "auto" would ask the hub for the base model's vocabulary size on every save.
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=kept)


def restore(model: nn.Module, folder: Path, adapter_name: str = "default") -> None:
    """Copy a saved adapter's weights into the adapter of a prepared model, in place.

    Raises:
        NotFoundError: when the folder holds no adapter.
        CheckpointError: when it does not fit the model.
    """
    check_adapter_folder(folder)
    if not isinstance(model, PeftModel):
        raise ModelError(f"a {type(model).__name__} has no adapter to restore", fix="prepare the model with a tuner first")
    try:
        if adapter_name in shifted_adapters(model):
            restore_plain(model, folder / WEIGHTS, adapter_name)
            return
        result = model.load_adapter(str(folder), adapter_name, is_trainable=True, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {str(folder)!r} does not fit this model: {_short(error)}", fix="use the settings the run was started with"
        ) from error
    stray = _stray(result, model.peft_config[adapter_name])
    if stray:
        raise CheckpointError(
            f"the adapter in {str(folder)!r} does not fit this model: the first of {len(stray)} weights without a place is {stray[0]}",
            fix="use the settings the run was started with",
        )


def check_adapter_folder(folder: Path) -> None:
    """Check that a folder holds an adapter that can be loaded without running code.

    Raises:
        NotFoundError: when it does not, naming the checkpoints inside where there are any.
        CheckpointError: when its weights are pickled.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no adapter folder {str(folder)!r}", fix="give a folder RUN/checkpoint-N")
    if not (folder / CONFIG).is_file():
        inside = sorted((path.parent for path in folder.glob(f"*/{CONFIG}")), key=lambda path: (len(path.name), path.name))
        fix = f"give one of the folders inside, such as {inside[-1]}" if inside else f"give a folder that holds {CONFIG}"
        raise NotFoundError(f"{str(folder)!r} holds no adapter: {CONFIG} is missing", fix=fix)
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLED_WEIGHTS).is_file():
        raise CheckpointError(
            f"{str(folder / PICKLED_WEIGHTS)!r} is a pickle, which can run code when it is opened",
            fix=f"if you trust it, convert it once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), {WEIGHTS!r})",
        )
    raise NotFoundError(f"{str(folder)!r} holds no adapter weights: {WEIGHTS} is missing", fix="choose another checkpoint")


def _stray(result: Any, config: PeftConfig) -> list[str]:
    """Return the weights of a file that have no place and those of the model that were not in the file."""
    found = [*result.missing_keys, *result.unexpected_keys]
    # PEFT puts virtual tokens in by hand and reports their key all the same.
    return [] if config.is_prompt_learning else found


def _take_back(adapted: PeftModel | None, adapter_name: str, *, alone: bool) -> None:
    """Take an adapter whose weights did not fit off the model again, which others may be using."""
    if adapted is None:
        return
    if not alone:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*active which is now deleted.*")
            adapted.delete_adapter(adapter_name)
    elif hasattr(adapted.base_model, "unload"):
        cast(Any, adapted.base_model).unload()


def _wrap(model: nn.Module, config: PeftConfig, adapter_name: str) -> PeftModel:
    if not isinstance(model, PeftModel):
        with warnings.catch_warnings():
            # The base may have moved since the adapter was saved; PEFT notes the new place.
            warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*")
            return cast(PeftModel, get_peft_model(cast(PreTrainedModel, model), config, adapter_name, autocast_adapter_dtype=False))
    if adapter_name in model.peft_config:
        raise ModelError(f"the model has an adapter {adapter_name!r} already", fix="choose another adapter_name")
    if changes_the_base(config):
        raise ModelError(
            f"an adapter that starts from the base weights ({getattr(config, 'init_lora_weights', '')}) must be the only one",
            fix="merge it with `swift merge-lora`",
        )
    model.add_adapter(adapter_name, config, autocast_adapter_dtype=False)
    model.set_adapter(adapter_name)
    return model


def _ready_to_train(model: PeftModel, adapter_name: str) -> PeftModel:
    frozen = base_dtype(model)
    if getattr(model.peft_config[adapter_name], "bias", "none") != "none" and frozen in (torch.float16, torch.bfloat16):
        raise ModelError(
            f"biases of a {str(frozen).removeprefix('torch.')} model cannot be trained: small updates are lost in that number type",
            fix="load the model with --torch_dtype float32 (--bf16 true still computes in bfloat16), or --lora_bias none",
        )
    if hasattr(model, "enable_input_require_grads"):
        # Reentrant gradient checkpointing drops the gradients of a block whose input wants none, which is so when the
        # embedding is frozen. The trainer may switch checkpointing on before or after this.
        model.enable_input_require_grads()
    return model


def _saved_dtype(file: Path) -> torch.dtype:
    with safe_open(file, framework="pt") as tensors:
        kinds = (tensors.get_tensor(key).dtype for key in tensors.keys())  # noqa: SIM118  not a mapping
        return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A size mismatch lists every layer; the first two lines say it all.
    return " ".join(line.strip() for line in lines[:2]) + (f" (and {len(lines) - 2} more)" if len(lines) > 2 else "")
