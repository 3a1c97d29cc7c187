"""The Python entry: adapt a model, load adapters, switch and mix them, merge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from swift_core.config.fields import Section
from swift_core.errors import CheckpointError, ModelError
from swift_core.protocols import Tuner
from swift_core.registry import TUNERS
from swift_core.train.tuning import load_tuner
from torch import nn
from transformers import PreTrainedModel

from swift_tuners import adapters, switching
from swift_tuners.folders import tuner_of_folder
from swift_tuners.lora_options import FROM_DATA, LoraOptions
from swift_tuners.merge.peft_format import write_peft_format
from swift_tuners.methods.added import Added
from swift_tuners.methods.peft_tuner import PeftTuner, check_base, is_quantised
from swift_tuners.switching import Combination
from swift_tuners.targets import check_module_names

Config = PeftConfig | Section


class Swift:
    """Adapts models: `model = Swift.prepare_model(model, LoraConfig(r=8, target_modules="all-linear"))`.

    With tuners of PEFT the result is a `peft.PeftModel`: `model.save_pretrained(folder)` writes the adapters in PEFT's format.
    """

    @staticmethod
    def prepare_model(model: nn.Module, config: Config | Mapping[str, Config]) -> Any:
        """Return the model with new trainable parts and everything else frozen.

        Args:
            model: a transformers model.
            config: PEFT's config or the options of a tuner, such as `LoraOptions`; or a dict from adapter name to one. All
                adapters of a dict are active.

        Raises:
            ModelError: when a config does not fit the model.
        """
        named: Mapping[str, Config] = cast(Any, config) if isinstance(config, Mapping) else {"default": config}
        if not named:
            raise ModelError("no adapter is described", fix="give a config, or a dict from adapter name to config")
        if isinstance(model, PeftModel):
            raise ModelError("the model has adapters already", fix="add another one with Swift.add_adapter")
        if len(named) == 1 and "default" in named and isinstance(options := named["default"], Section):
            _check_start(options)
            return _tuner_of(options).prepare(model, options)
        adapted: nn.Module = model
        for name, (described, dtype) in {name: _described(model, one) for name, one in named.items()}.items():
            adapted = adapters.attach(adapted, described, dtype=dtype, adapter_name=name)
        if len(named) > 1:
            switching.activate(adapted, list(named))
        return adapted

    @staticmethod
    def from_pretrained(
        model: nn.Module, folder: str | Path | Mapping[str, str | Path], adapter_name: str = "default", *, is_trainable: bool = False
    ) -> Any:
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
            tuner = tuner_of_folder(Path(path))
            if name == "default" and not isinstance(model, PeftModel):
                model = tuner.load(model, Path(path), trainable=is_trainable)
                continue
            if not isinstance(tuner, PeftTuner) or not TUNERS.get(tuner.name).several:
                raise ModelError(f"an adapter of the kind {tuner.name} stands alone and has no name", fix="load it without a name")
            check_base(model, tuner.name)
            model = adapters.load(model, Path(path), trainable=is_trainable, adapter_name=name)
        return model

    @staticmethod
    def merge_and_unload(model: nn.Module) -> nn.Module:
        """Return the base model with the active adapters folded into its weights.

        Raises:
            ModelError: when the model has no adapter that can be merged, or its weights are quantised.
        """
        text: Any = getattr(model, "config", None)
        text = text.get_text_config() if hasattr(text, "get_text_config") else text
        if not isinstance(model, PeftModel) and getattr(text, "llamapro_blocks", None):
            return model.requires_grad_(True)  # new layers are in the model already
        if isinstance(added := getattr(model, "added_modules", None), Added):
            raise ModelError(
                f"{added.kind}: networks beside the weights cannot be folded into them", fix="serve the model with its adapter"
            )
        if not isinstance(model, PeftModel):
            raise ModelError(f"a {type(model).__name__} has no adapter that can be merged", fix="load one with Swift.from_pretrained")
        if not hasattr(model.base_model, "merge_and_unload"):
            raise ModelError("virtual tokens in front of the input cannot be folded into weights", fix="serve the model with its adapter")
        if is_quantised(model.get_base_model()):
            raise ModelError("quantised weights cannot take an update exactly", fix="load the model unquantised, then merge")
        merged = cast(nn.Module, cast(Any, model).merge_and_unload())
        if getattr(merged, "_require_grads_hooks", None):
            cast(PreTrainedModel, merged).disable_input_require_grads()
        return merged

    @staticmethod
    def save_to_peft_format(ckpt_dir: str | Path, output_dir: str | Path) -> list[str]:
        """Write the adapters of a checkpoint of ms-swift as PEFT reads them, and return their names.

        Raises:
            NotFoundError: when there is no adapter in it.
            CheckpointError: when PEFT has no such adapter, or the output folder is not empty.
        """
        target = Path(output_dir).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{str(target)!r} exists already", fix="choose another folder")
        target.mkdir(parents=True, exist_ok=True)
        return write_peft_format(Path(ckpt_dir).expanduser(), target)

    # ---- several adapters ------------------------------------------------------------------------------------------

    @staticmethod
    def add_adapter(model: nn.Module, name: str, config: Config) -> PeftModel:
        """Return the model with a further trainable adapter, which is active alone.

        Raises:
            ModelError: when the name is taken or the config does not fit the model.
        """
        described, dtype = _described(model, config)
        return adapters.attach(model, described, dtype=dtype, adapter_name=name)

    @staticmethod
    def adapters(model: nn.Module) -> list[str]:
        """Return the names of the model's adapters."""
        return switching.names_of(model)

    @staticmethod
    def activate(model: nn.Module, names: str | Sequence[str]) -> None:
        """Let all forward passes use these adapters from now on; several add up."""
        switching.activate(model, names)

    @staticmethod
    def deactivate(model: nn.Module) -> None:
        """Let all forward passes use the base model alone from now on; `activate` ends it."""
        switching.deactivate(model)

    @staticmethod
    def using(model: nn.Module, names: str | Sequence[str | None] | None) -> AbstractContextManager[None]:
        """Let forward passes of this thread use an adapter inside the block, None for the base, or one for each row."""
        return switching.using(model, names)

    @staticmethod
    def mix(
        model: nn.Module, weights: Mapping[str, float], name: str = "mixed", *, combination: Combination = "linear", **settings: Any
    ) -> None:
        """Add an adapter that is a weighted sum of others, and activate it."""
        switching.mix(model, weights, name, combination, **settings)

    @staticmethod
    def remove_adapter(model: nn.Module, name: str) -> nn.Module:
        """Return the model without an adapter, the base model when it was the last."""
        return switching.remove(model, name)


def _tuner_of(options: Section) -> Tuner:
    kind = type(options)
    for spec in TUNERS:
        if spec.options == f"{kind.__module__}:{kind.__name__}":
            return load_tuner(spec.name)
    raise ModelError(f"{kind.__name__} is not the options class of a tuner", fix="see `swift list tuners`")


def _check_start(options: Section) -> None:
    if isinstance(options, LoraOptions) and options.init_weights in FROM_DATA:
        raise ModelError(
            f"init_weights {options.init_weights!r} starts from training samples, which are not here",
            fix="train with `swift sft`, or choose another start",
        )


def _described(model: nn.Module, config: Config) -> tuple[PeftConfig, torch.dtype]:
    if isinstance(config, Section):
        _check_start(config)
        tuner: Any = _tuner_of(config)
        if not isinstance(tuner, PeftTuner) or not TUNERS.get(tuner.name).several:
            raise ModelError(f"a model cannot hold several adapters of the kind {tuner.name}", fix="prepare the base model with it alone")
        bare = model.get_base_model() if isinstance(model, PeftModel) else model
        check_base(bare, tuner.name)
        return tuner.configure(bare, config), tuner.dtype(config)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, list | set | tuple):
        check_module_names(model, sorted(targets), "target_modules")
    # PEFT writes the resolved layers into the config; the caller's object stays as it was.
    return deepcopy(config), torch.float32
