"""What every tuner of PEFT has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from peft import PeftConfig
from pydantic import BaseModel
from swift_core.config.fields import Section
from swift_core.errors import ModelError
from swift_core.registry import TUNERS
from torch import nn

from swift_tuners import adapters, switching
from swift_tuners.config import ALL_LINEAR, TargetOptions
from swift_tuners.targets import check_module_names, is_classifier, resolve_targets

OptionsT = TypeVar("OptionsT", bound=Section)


class PeftTuner(ABC, Generic[OptionsT]):
    """A tuner whose weights PEFT makes, saves and loads; a subclass turns its options into PEFT's config."""

    name: str
    options_class: type[OptionsT]

    @abstractmethod
    def configure(self, model: nn.Module, options: OptionsT) -> PeftConfig:
        """Return PEFT's description of the adapter, checked against the model."""

    def dtype(self, options: OptionsT) -> torch.dtype:
        """Return the number type of the adapter's weights."""
        return torch.float32

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with a new trainable adapter and everything else frozen.

        Raises:
            ModelError: when the options do not fit the model.
        """
        own = own_options(self.name, self.options_class, options)
        check_base(model, self.name)
        return adapters.attach(model, self.configure(model, own), dtype=self.dtype(own))

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with a saved adapter put on.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
        check_base(model, self.name)
        return adapters.load(model, Path(folder), trainable=trainable)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json into the folder."""
        adapters.save(model, Path(folder))

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put a saved adapter's weights back into a prepared model, in place.

        Raises:
            CheckpointError: when the adapter does not fit the model.
        """
        adapters.restore(model, Path(folder))

    def add(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        """Return the model with a saved adapter under a name, frozen; other adapters stay as they are.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
            ModelError: when the name is taken, or the model's adapters are of another kind.
        """
        check_base(model, self.name)
        return adapters.load(model, Path(folder), trainable=False, adapter_name=name)

    def remove(self, model: nn.Module, name: str) -> nn.Module:
        """Return the model without an adapter, the base model when it was the last."""
        return switching.remove(model, name)

    def mixes_rows(self, model: nn.Module) -> bool:
        """Say whether the rows of one batch may use different adapters."""
        return switching.takes_rows(model)

    def using(self, model: nn.Module, names: str | list[str | None] | None) -> AbstractContextManager[None]:
        """Let forward passes of this thread use an adapter, none, or one for each row; see `swift_tuners.switching`."""
        return switching.using(model, names)


def own_options(name: str, kind: type[OptionsT], options: BaseModel) -> OptionsT:
    """Return the options as those of a tuner.

    Raises:
        ModelError: when they are another tuner's.
    """
    if not isinstance(options, kind):
        raise ModelError(f"the tuner {name} takes {kind.__name__}, not {type(options).__name__}", fix=f"--tuner_type {name}")
    return options


def is_quantised(model: nn.Module) -> bool:
    """Say whether a model's weights are quantised."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None))


def check_base(model: nn.Module, name: str) -> None:
    """Check that a tuner can go on a base model.

    Raises:
        ModelError: when the weights are quantised and the tuner needs them as they were.
    """
    if is_quantised(model) and not (name in TUNERS and TUNERS.get(name).quantised):
        fitting = [spec.name for spec in TUNERS if spec.quantised]
        raise ModelError(
            f"the tuner {name} does not train over quantised weights", fix=f"load the model unquantised, or use one of {', '.join(fitting)}"
        )


def target_settings(model: nn.Module, options: TargetOptions) -> dict[str, Any]:
    """Return PEFT's settings that say where an adapter goes, checked against the model.

    Raises:
        ModelError: when a name matches nothing, or nothing is named.
    """
    if not options.target_modules and options.target_regex is None:
        raise ModelError("--target_modules is empty, so there is nothing to train", fix=f"--target_modules {ALL_LINEAR}")
    return {
        "target_modules": resolve_targets(model, options.target_modules, options.target_regex, options.layers_to_transform),
        "modules_to_save": modules_to_save(model, options),
        "task_type": task_type(model),
    }


def modules_to_save(model: nn.Module, options: TargetOptions) -> list[str] | None:
    """Return the layers that are trained in full, checked against the model, or None."""
    check_module_names(model, options.modules_to_save, "--modules_to_save")
    return list(options.modules_to_save) or None


def task_type(model: nn.Module) -> str | None:
    """Return PEFT's name of the model's task, or None where PEFT wraps without one."""
    name = type(model).__name__
    if "ForTokenClassification" in name:
        return "TOKEN_CLS"
    if is_classifier(model):
        return "SEQ_CLS"
    return "CAUSAL_LM" if hasattr(model, "generate") and hasattr(model, "prepare_inputs_for_generation") else None
