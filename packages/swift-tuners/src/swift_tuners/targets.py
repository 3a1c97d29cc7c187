"""Which layers of a model an adapter goes to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from swift_core.errors import ModelError
from swift_core.models.modules import frozen_parts, module_map, parameter_kind
from swift_core.registry import nearest
from torch import nn
from transformers.pytorch_utils import Conv1D

from swift_tuners.config import ALL_LINEAR

# The new layers that transformers puts on a backbone for classification; they are trained in full, not adapted.
HEAD_NAMES = frozenset({"score", "classifier"})


def find_all_linears(model: nn.Module) -> list[str]:
    """Return names that match every linear layer of the model but its output head, as `target_modules` takes them.

    In a multimodal model whose parts were frozen (`swift_core.models.modules.freeze`) the frozen parts are left out.

    Raises:
        ModelError: when nothing is left.
    """
    modules = dict(model.named_modules())
    parts = module_map(model)
    frozen = frozen_parts(model, parts)
    wanted = [
        name
        for name, module in modules.items()
        if _is_linear(module)
        and not _is_head(model, name, module)
        and name != parts.lm_head
        and not (frozen and parameter_kind(name, parts) in frozen)
    ]
    if not wanted:
        raise ModelError(
            "all-linear finds no linear layer that may be trained", fix="unfreeze a part, or name layers with --target_modules"
        )
    suffixes = list(dict.fromkeys(_suffix(name) for name in wanted))
    # A suffix such as `dense` may also fit a layer that is left out; then only full names are exact.
    exact = {name for name in modules if matches(name, suffixes)} == set(wanted)
    return suffixes if exact else wanted


def matches(name: str, targets: Iterable[str]) -> bool:
    """Say whether a module name is one of the targets or ends in one, dot for dot."""
    return any(name == target or name.endswith("." + target) for target in targets)


def resolve_targets(
    model: nn.Module, target_modules: Sequence[str], target_regex: str | None, layers: Sequence[int] = ()
) -> list[str] | str:
    """Return the layers to adapt, checked against the model, as PEFT's `target_modules` takes them.

    Args:
        model: the base model.
        target_modules: names, or `all-linear`.
        target_regex: full names, instead.
        layers: numbers of the model's layers to which the names are limited; empty: all.

    Raises:
        ModelError: when a name or the expression matches nothing, or a layer shares its weight with another.
    """
    names = [name for name, _ in model.named_modules() if name]
    if target_regex is not None:
        if not any(re.fullmatch(target_regex, name) for name in names):
            raise ModelError(f"no layer name matches --target_regex {target_regex!r}", fix=_names_of(model))
        _refuse_tied(model, [name for name in names if re.fullmatch(target_regex, name)])
        return target_regex
    found: list[str] = []
    for target in target_modules:
        found += find_all_linears(model) if target == ALL_LINEAR else [_checked(model, target, names, "--target_modules")]
    _refuse_tied(model, [name for name in names if matches(name, found)])
    return _within(model, [name for name in names if matches(name, found)], layers) if layers else list(dict.fromkeys(found))


def layer_list(model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList]:
    """Return the dotted path of the list of a model's layers and the list.

    Raises:
        ModelError: when there is none, or not at `path`.
    """
    found = path or module_map(model).layers
    try:
        layers = model.get_submodule(found) if found else None
    except AttributeError as error:
        raise ModelError(f"{path!r} is no part of this model", fix="leave --reft_layer_key out") from error
    if found is None or not isinstance(layers, nn.ModuleList):
        raise ModelError(f"no list of layers is found in a {type(model).__name__}", fix="use a tuner such as lora, which needs none")
    return found, layers


def check_layer_numbers(count: int, numbers: Sequence[int], setting: str) -> None:
    """Check that a model with so many layers has those numbers.

    Raises:
        ModelError: for the first that it has not.
    """
    for number in numbers:
        if not 0 <= number < count:
            raise ModelError(f"{setting} {number}: this model has {count} layers", fix=f"give numbers from 0 to {count - 1}")


def _within(model: nn.Module, names: Sequence[str], layers: Sequence[int]) -> list[str]:
    path, found = layer_list(model)
    check_layer_numbers(len(found), layers, "--layers_to_transform")
    kept = [name for name in names if any(name.startswith(f"{path}.{number}.") for number in layers)]
    if not kept:
        raise ModelError("none of the chosen layers is in --layers_to_transform", fix="choose other --target_modules")
    return kept


def check_module_names(model: nn.Module, wanted: Sequence[str], setting: str) -> None:
    """Check that every name matches a module.

    Raises:
        ModelError: for the first that does not, with the nearest names.
    """
    names = [name for name, _ in model.named_modules() if name]
    for target in wanted:
        _checked(model, target, names, setting)


def check_parameter_names(model: nn.Module, wanted: Sequence[str]) -> None:
    """Check that every name matches a parameter.

    Raises:
        ModelError: for the first that does not, with the nearest names.
    """
    names = [name for name, _ in model.named_parameters()]
    for target in wanted:
        if not any(matches(name, [target]) for name in names):
            near = nearest(target, dict.fromkeys(".".join(name.split(".")[-target.count(".") - 1 :]) for name in names))
            fix = f"did you mean {' or '.join(near)}?" if near else f"names look like {', '.join(names[:3])}"
            raise ModelError(f"--target_parameters {target!r} matches no parameter of this model", fix=fix)


def is_tied(model: nn.Module) -> bool:
    """Say whether the input embedding and the output head share their weight."""
    inputs, outputs = _embedding(model, "get_input_embeddings"), _embedding(model, "get_output_embeddings")
    return inputs is not None and outputs is not None and getattr(inputs, "weight", None) is getattr(outputs, "weight", object())


def _refuse_tied(model: nn.Module, names: Iterable[str]) -> None:
    shared = {_embedding(model, "get_input_embeddings"), _embedding(model, "get_output_embeddings")}
    for name in names:
        if model.get_submodule(name) in shared and is_tied(model):
            raise ModelError(
                f"{name!r} shares its weight between input and output, so an adapter on it could not be merged",
                fix=f"leave it out, or train a copy in full with --modules_to_save {_suffix(name)}",
            )


def _checked(model: nn.Module, target: str, names: Iterable[str], setting: str) -> str:
    if not any(matches(name, [target]) for name in names):
        raise ModelError(f"{setting} {target!r} matches no layer of this model", fix=_names_of(model, target))
    return target


def _names_of(model: nn.Module, target: str = "") -> str:
    suffixes = list(dict.fromkeys(_suffix(name) for name, module in model.named_modules() if _is_linear(module)))
    every = dict.fromkeys(name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name)
    near = nearest(target, [name for name in every if not name.isdigit()])
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"linear layers: {', '.join(suffixes)}"


def _is_linear(module: nn.Module) -> bool:
    # Quantisation libraries bring layers of their own that are called ...Linear but are no nn.Linear.
    return isinstance(module, nn.Linear | Conv1D) or (type(module).__name__.endswith("Linear") and not any(module.children()))


def _is_head(model: nn.Module, name: str, module: nn.Module) -> bool:
    return module is _embedding(model, "get_output_embeddings") or (is_classifier(model) and name.split(".")[0] in HEAD_NAMES)


def is_classifier(model: nn.Module) -> bool:
    """Say whether the model has a classification head."""
    return "Classification" in type(model).__name__


def _embedding(model: nn.Module, getter: str) -> nn.Module | None:
    get = getattr(model, getter, None)
    try:
        return get() if get is not None else None
    except NotImplementedError:
        return None


def _suffix(name: str) -> str:
    parts = name.split(".")
    # `mlp.0` rather than `0`, which would match every numbered layer of the model.
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
