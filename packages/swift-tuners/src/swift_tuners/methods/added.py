"""Tuners of our own that change the outputs of modules by small networks beside the model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, cast

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError, ModelError, NotFoundError
from torch import Tensor, nn

from swift_tuners.adapters import CONFIG, WEIGHTS
from swift_tuners.methods.peft_tuner import OptionsT, check_base, own_options

_HOME = "added_modules"


class Added(nn.Module):
    """The small networks of a model, one for each place.

    Attributes:
        paths: dotted paths of the modules whose outputs pass a network.
        networks: in the same order.
        kind: name of the tuner.
        options: its options as plain values.
        rows: `[batch, seq]`, which positions of the running forward pass are changed; None: all.
    """

    def __init__(self, paths: Sequence[str], networks: Sequence[nn.Module], kind: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.networks = nn.ModuleList(networks)
        self.kind = kind
        self.options = options
        self.rows: Tensor | None = None

    def changed(self, number: int, hidden: Tensor) -> Tensor:
        """Return `[batch, seq, width]` after network `number`; the networks compute in their own number type."""
        network = self.networks[number]
        dtype = next(network.parameters()).dtype
        if self.rows is None:
            return hidden + network(hidden.to(dtype)).to(hidden.dtype)
        if not bool(self.rows.any()):
            return hidden
        chosen = hidden[self.rows]
        result = hidden.clone()
        result[self.rows] = chosen + network(chosen.to(dtype)).to(hidden.dtype)
        return result


class AddedTuner(ABC, Generic[OptionsT]):
    """A tuner that adds `network(output)` to the outputs of some modules."""

    name: str
    options_class: type[OptionsT]

    @abstractmethod
    def places(self, model: nn.Module, options: OptionsT) -> list[str]:
        """Return the dotted paths of the modules whose outputs are changed, checked against the model."""

    @abstractmethod
    def network(self, width: int, options: OptionsT) -> nn.Module:
        """Return a new network `[..., width]` to `[..., width]` that gives 0, or little, at first."""

    def watch(self, model: nn.Module, added: Added, options: OptionsT) -> None:
        """Set up what decides which positions are changed; by default all are."""

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with new networks, everything else frozen.

        Raises:
            ModelError: when the options do not fit the model, or it has such networks already.
        """
        own = own_options(self.name, self.options_class, options)
        check_base(model, self.name)
        if hasattr(model, _HOME) or hasattr(model, "peft_config"):
            raise ModelError(f"the model is adapted already, and {self.name} stands alone", fix="prepare the base model")
        paths = self.places(model, own)
        model.requires_grad_(False)
        width = cast(Any, model).config.get_text_config().hidden_size
        device = next(model.parameters()).device
        networks = [self.network(width, own).to(device=device, dtype=torch.float32) for _ in paths]
        added = Added(paths, networks, self.name, own.model_dump())
        model.add_module(_HOME, added)
        for number, path in enumerate(paths):
            model.get_submodule(path).register_forward_hook(_OutputHook(added, number))
        self.watch(model, added, own)
        if hasattr(model, "enable_input_require_grads"):
            cast(Any, model).enable_input_require_grads()
        return model

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with saved networks.

        Raises:
            NotFoundError: when the folder holds none.
            CheckpointError: when they do not fit the model.
        """
        described = _read(Path(folder), self.name)
        prepared = self.prepare(model, self.options_class(**described["options"]))
        if added_to(prepared).paths != described["paths"]:
            raise CheckpointError(f"{str(folder)!r} was trained on another model", fix="load it on the base model that it was trained from")
        self.restore(prepared, folder)
        if not trainable:
            prepared.requires_grad_(False)
        return prepared

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        added = added_to(model)
        base = getattr(getattr(model, "config", None), "_name_or_path", None)
        described = {"peft_type": self.name.upper(), "base_model_name_or_path": base, "options": added.options, "paths": added.paths}
        (Path(folder) / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.detach().clone().contiguous().cpu() for name, value in added.state_dict().items()}
        save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put saved networks back into a prepared model, in place.

        Raises:
            NotFoundError: when the folder holds none.
            CheckpointError: when they do not fit.
        """
        _read(Path(folder), self.name)
        try:
            added_to(model).load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (RuntimeError, SafetensorError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{str(folder)!r} does not fit this model: {reason}", fix="use the settings of its run") from error


class _OutputHook:
    def __init__(self, added: Added, number: int) -> None:
        self.added = added
        self.number = number

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.added.changed(self.number, output[0]), *output[1:])
        return self.added.changed(self.number, output)


def added_to(model: nn.Module) -> Added:
    """Return the networks that a tuner has put on a model.

    Raises:
        ModelError: when there are none.
    """
    found = getattr(model, _HOME, None)
    if not isinstance(found, Added):
        raise ModelError(f"a {type(model).__name__} has no networks beside it", fix="prepare the model with a tuner first")
    return found


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise NotFoundError(f"{str(folder)!r} holds no adapter: {CONFIG} is missing", fix="give a folder RUN/checkpoint-N")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        kind = str(described["peft_type"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", fix="choose another checkpoint") from error
    if kind != name or "options" not in described:
        raise CheckpointError(f"{str(folder)!r} holds an adapter of the kind {kind}, not {name}", fix=f"--tuner_type {kind}")
    return described
