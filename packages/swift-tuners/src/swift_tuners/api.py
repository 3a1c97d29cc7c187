"""The Python entry: adapt a model, load adapters, merge them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from swift_core.errors import ModelError
from torch import nn
from transformers import PreTrainedModel

from swift_tuners import adapters
from swift_tuners.config import LoraOptions
from swift_tuners.methods.lora import LoraTuner
from swift_tuners.targets import check_module_names

Config = PeftConfig | LoraOptions


class Swift:
    """Adapts models: `model = Swift.prepare_model(model, LoraConfig(r=8, target_modules="all-linear"))`.

    The result is a `peft.PeftModel`: `model.save_pretrained(folder)` writes the adapters in PEFT's format.
    """

    @staticmethod
    def prepare_model(model: nn.Module, config: Config | Mapping[str, Config]) -> PeftModel:
        """Return the model with new trainable adapters and everything else frozen.

        Args:
            model: a transformers model.
            config: PEFT's config or `LoraOptions`, or a dict from adapter name to one; all adapters of a dict are active.

        Raises:
            ModelError: when a config does not fit the model.
        """
        named = config if isinstance(config, Mapping) else {"default": config}
        if not named:
            raise ModelError("no adapter is described", fix="give a config, or a dict from adapter name to config")
        if isinstance(model, PeftModel):
            raise ModelError("the model has adapters already", fix="prepare the base model once, with a dict from adapter name to config")
        adapted: nn.Module = model
        for name, (described, dtype) in {name: _described(model, one) for name, one in named.items()}.items():
            adapted = adapters.attach(adapted, described, dtype=dtype, adapter_name=name)
        peft_model = cast(PeftModel, adapted)
        if len(named) > 1:
            cast(Any, peft_model.base_model).set_adapter(list(named))
        return peft_model

    @staticmethod
    def from_pretrained(
        model: nn.Module, folder: str | Path | Mapping[str, str | Path], adapter_name: str = "default", *, is_trainable: bool = False
    ) -> PeftModel:
        """Return the model with saved adapters put on.

        Args:
            model: the base model, or a model that has adapters already.
            folder: an adapter folder, or a dict from adapter name to folder; the last one loaded is active.
            adapter_name: name of the adapter when one folder is given.
            is_trainable: whether training goes on with it.

        Raises:
            NotFoundError: when a folder holds no adapter.
            CheckpointError: when an adapter does not fit the model.
        """
        named = folder if isinstance(folder, Mapping) else {adapter_name: folder}
        if not named:
            raise ModelError("no adapter folder is given", fix="give a folder, or a dict from adapter name to folder")
        for name, path in named.items():
            model = adapters.load(model, Path(path), trainable=is_trainable, adapter_name=name)
        return cast(PeftModel, model)

    @staticmethod
    def merge_and_unload(model: nn.Module) -> nn.Module:
        """Return the base model with the active adapters folded into its weights.

        Raises:
            ModelError: when the model has no adapter that can be merged.
        """
        if not isinstance(model, PeftModel) or not hasattr(model.base_model, "merge_and_unload"):
            raise ModelError(f"a {type(model).__name__} has no adapter that can be merged", fix="load one with Swift.from_pretrained")
        merged = cast(nn.Module, cast(Any, model).merge_and_unload())
        if getattr(merged, "_require_grads_hooks", None):
            cast(PreTrainedModel, merged).disable_input_require_grads()
        return merged


def _described(model: nn.Module, config: Config) -> tuple[PeftConfig, torch.dtype]:
    if isinstance(config, LoraOptions):
        tuner = LoraTuner()
        return tuner.configure(model, config), tuner.dtype(config)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, list | set | tuple):
        check_module_names(model, sorted(targets), "target_modules")
    # PEFT writes the resolved layers into the config; the caller's object stays as it was.
    return deepcopy(config), torch.float32
