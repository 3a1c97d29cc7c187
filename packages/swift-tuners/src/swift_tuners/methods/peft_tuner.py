"""What every tuner of PEFT has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import torch
from peft import PeftConfig
from pydantic import BaseModel
from swift_core.errors import ModelError
from torch import nn

from swift_tuners import adapters
from swift_tuners.config import TargetOptions
from swift_tuners.targets import check_module_names, is_classifier

OptionsT = TypeVar("OptionsT", bound=TargetOptions)


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
        own = self._own(options)
        return adapters.attach(model, self.configure(model, own), dtype=self.dtype(own))

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with a saved adapter put on.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
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

    def _own(self, options: BaseModel) -> OptionsT:
        if not isinstance(options, self.options_class):
            raise ModelError(
                f"the tuner {self.name} takes {self.options_class.__name__}, not {type(options).__name__}",
                fix=f"--tuner_type {self.name}",
            )
        return options


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
