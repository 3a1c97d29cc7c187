"""Training the model's own weights, all of them or a part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from torch import nn
from transformers import PreTrainedModel

from swift_core.config.sections import TunerSection
from swift_core.errors import CheckpointError, ModelError
from swift_core.models.folder import check_model_folder
from swift_core.models.modules import frozen_names, module_map
from swift_core.models.quantization import refuse_full_training
from swift_core.models.quiet import quiet_transformers
from swift_core.registry import nearest


class FullTuner:
    """The tuner `full`: no adapter, the model's own parameters are trained."""

    name = "full"

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with its parameters frozen or trainable as the settings say.

        Freezing comes first, by share, prefix and expression; what is named trainable is then trained in spite of it.

        Args:
            model: any model.
            options: the `TunerSection` of the run.

        Raises:
            ModelError: when a pattern matches nothing or nothing is left to train.
        """
        if not isinstance(options, TunerSection):
            raise ModelError(f"the tuner full takes TunerSection, not {type(options).__name__}", fix="pass config.tuner")
        refuse_full_training(model)
        names = [name for name, _ in model.named_parameters()]
        parts = {"freeze_llm": options.freeze_llm, "freeze_vit": options.freeze_vit, "freeze_aligner": options.freeze_aligner}
        frozen = _first_share(model, options.freeze_parameters_ratio) | set(frozen_names(model, module_map(model), **parts))
        frozen |= _with_prefix(names, options.freeze_parameters, "--freeze_parameters")
        frozen |= _matching(names, options.freeze_parameters_regex, "--freeze_parameters_regex")
        frozen -= _with_prefix(names, options.trainable_parameters, "--trainable_parameters")
        frozen -= _matching(names, options.trainable_parameters_regex, "--trainable_parameters_regex")
        if len(frozen) == len(names):
            raise ModelError(
                "every parameter is frozen, so there is nothing to train",
                fix=f"freeze less, or name what is trained with --trainable_parameters {_examples(names)[-1]}",
            )
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(name not in frozen)
        return model

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with the weights of a folder copied into it, in the model's number types.

        With `trainable` what is trained stays as `prepare` chose it; without, everything is frozen.

        Raises:
            CheckpointError: when the weights belong to another model.
            ModelError: when the folder is incomplete or damaged.
        """
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"a {type(model).__name__} cannot be loaded from a model folder", fix="pass the transformers model itself")
        folder = Path(folder)
        check_model_folder(folder)
        try:
            # Through transformers, not tensor by tensor: the names in a file may differ from those in memory.
            with quiet_transformers():
                saved, info = cast(Any, type(model)).from_pretrained(
                    folder, dtype=model.dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            stray = sorted({*info["missing_keys"], *info["unexpected_keys"]})
            if stray:
                raise CheckpointError(f"{str(folder)!r}: weights are missing or have no place: {', '.join(stray[:3])}", fix=_LOAD_FIX)
            model.load_state_dict(saved.state_dict())
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{str(folder)!r} does not fit this model: {reason}", fix=_LOAD_FIX) from error
        if not trainable:
            model.requires_grad_(False)
        return model

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put the weights of a folder back into a prepared model, in place.

        Raises:
            CheckpointError: when the weights belong to another model.
            ModelError: when the folder is incomplete or damaged.
        """
        self.load(model, folder, trainable=True)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a normal transformers folder with safetensors weights.

        Raises:
            ModelError: when the model is no transformers model.
        """
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"a {type(model).__name__} cannot be saved as a model folder", fix="pass the transformers model itself")
        with quiet_transformers():
            model.save_pretrained(folder)


_LOAD_FIX = "load it into the model that it was saved from"


def _first_share(model: nn.Module, ratio: float) -> set[str]:
    """Return the parameters that come first and hold at most `ratio` of all weights, as ms-swift counts them."""
    sizes = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    budget, used = ratio * sum(size for _, size in sizes), 0
    found: set[str] = set()
    for name, size in sizes:
        used += size
        if used > budget:
            break
        found.add(name)
    return found


def _with_prefix(names: Sequence[str], prefixes: Sequence[str], setting: str) -> set[str]:
    found: set[str] = set()
    for prefix in prefixes:
        matched = {name for name in names if name.startswith(prefix)}
        if not matched:
            starts = {".".join(name.split(".")[:depth]): None for name in names for depth in range(1, name.count(".") + 2)}
            near = nearest(prefix, starts)
            fix = (f"did you mean {' or '.join(near)}? " if near else "") + f"names look like {', '.join(_examples(names))}"
            raise ModelError(f"{setting} {prefix!r} is the start of no parameter", fix=fix)
        found |= matched
    return found


def _matching(names: Sequence[str], pattern: str | None, setting: str) -> set[str]:
    if not pattern:
        return set()
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ModelError(f"{setting} {pattern!r} is no regular expression: {error}", fix=r"for example 'layers\.(0|1)\.'") from error
    found = {name for name in names if expression.search(name)}
    if not found:
        raise ModelError(f"{setting} {pattern!r} matches no parameter", fix=f"names look like {', '.join(_examples(names))}")
    return found


def _examples(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
