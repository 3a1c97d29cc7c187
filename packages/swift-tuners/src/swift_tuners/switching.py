"""Which of several adapters a forward pass uses: for all, for one thread, or row by row."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from swift_core.errors import ModelError
from torch import nn

BASE = "__base__"  # PEFT's word for rows without an adapter

Combination = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]

# For each model the rows' adapters of this thread's forward passes.
_rows: ContextVar[tuple[int, list[str]] | None] = ContextVar("rows", default=None)
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_hooked: WeakKeyDictionary[nn.Module, None] = WeakKeyDictionary()


def names_of(model: nn.Module) -> list[str]:
    """Return the names of a model's adapters."""
    return list(model.peft_config) if isinstance(model, PeftModel) else []


def active(model: nn.Module) -> list[str]:
    """Return the adapters that forward passes use, where nothing else is said."""
    return [] if _disabled(_adapted(model)) else list(_adapted(model).active_adapters)


def activate(model: nn.Module, names: str | Sequence[str]) -> None:
    """Let all forward passes use these adapters from now on; several add up.

    Raises:
        ModelError: when the model has no such adapter, or this kind of adapter cannot be added up.
    """
    adapted = _adapted(model)
    wanted = [names] if isinstance(names, str) else list(names)
    _check_names(adapted, wanted)
    trainable = any(parameter.requires_grad for parameter in adapted.parameters())
    if _is_prompt(adapted):
        if len(wanted) != 1:
            raise ModelError("virtual tokens of several adapters cannot be added up", fix="activate one of them")
        adapted.set_adapter(wanted[0])
    else:
        cast(Any, adapted.base_model).enable_adapter_layers()
        cast(Any, adapted.base_model).set_adapter(wanted)
        adapted.active_adapter = wanted[0]
    if not trainable:
        adapted.requires_grad_(False)  # PEFT makes what is active trainable


def deactivate(model: nn.Module) -> None:
    """Let all forward passes use the base model alone from now on; `activate` ends it.

    Raises:
        ModelError: when the kind of adapter cannot be switched off for good.
    """
    adapted = _adapted(model)
    if _is_prompt(adapted):
        raise ModelError("virtual tokens are switched off for a block only", fix="with Swift.using(model, None): ...")
    cast(Any, adapted.base_model).disable_adapter_layers()


def mix(model: nn.Module, weights: Mapping[str, float], name: str, combination: Combination = "linear", **settings: Any) -> None:
    """Add an adapter that is a weighted sum of others, and activate it.

    Args:
        model: a model with LoRA adapters.
        weights: adapter name -> weight.
        name: name of the sum.
        combination: `linear` for adapters of one rank; `cat` is exact for any ranks; `svd` keeps the rank small.
        settings: further arguments of PEFT's `add_weighted_adapter`, such as `density`.

    Raises:
        ModelError: when an adapter is absent, the name is taken, or PEFT cannot combine them.
    """
    adapted = _adapted(model)
    _check_names(adapted, list(weights))
    if name in adapted.peft_config:
        raise ModelError(f"the model has an adapter {name!r} already", fix="choose another name")
    if not hasattr(adapted.base_model, "add_weighted_adapter"):
        raise ModelError(f"adapters of the kind {_kind(adapted)} cannot be mixed", fix="mix adapters of LoRA")
    try:
        cast(Any, adapted.base_model).add_weighted_adapter(
            list(weights), list(weights.values()), name, combination_type=combination, **settings
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"the adapters cannot be mixed: {error}", fix="try combination='cat', which takes any ranks") from error
    activate(adapted, name)


def remove(model: nn.Module, name: str) -> nn.Module:
    """Return the model without an adapter; without its last one it is the base model.

    Raises:
        ModelError: when the model has no such adapter.
    """
    adapted = _adapted(model)
    _check_names(adapted, [name])
    if len(adapted.peft_config) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*active which is now deleted.*")
            adapted.delete_adapter(name)
        return adapted
    inner = cast(Any, adapted.base_model)
    return inner.unload() if hasattr(inner, "unload") else adapted.get_base_model()


@contextmanager
def using(model: nn.Module, names: str | Sequence[str | None] | None) -> Iterator[None]:
    """Let forward passes of this thread use an adapter inside the block, whatever other threads do.

    LoRA takes one adapter for each row, and threads run side by side. Other kinds take one for all rows, and threads wait
    for one another.

    Args:
        model: a model with adapters.
        names: an adapter, None for the base model, or one of these for each row of the batch.

    Raises:
        ModelError: when the model has no such adapter or its kind cannot differ from row to row.
    """
    adapted = _adapted(model)
    rows = [names] if names is None or isinstance(names, str) else list(names)
    _check_names(adapted, [name for name in rows if name is not None])
    if takes_rows(adapted):
        _hook(adapted)
        token = _rows.set((id(adapted), [name or BASE for name in rows]))
        try:
            yield
        finally:
            _rows.reset(token)
        return
    if len(set(rows)) != 1:
        raise ModelError(f"adapters of the kind {_kind(adapted)} cannot differ from row to row", fix="run one batch for each adapter")
    with _locks.setdefault(adapted, threading.RLock()):
        before = active(adapted)
        if rows[0] is not None and (rows[0] != adapted.active_adapter or before != [rows[0]]):
            activate(adapted, rows[0])
        try:
            with adapted.disable_adapter() if rows[0] is None else nullcontext():
                yield
        finally:
            if before and active(adapted) != before:
                activate(adapted, before)


def _hook(model: PeftModel) -> None:
    """Let the adapted layers of a model look up the adapters of their rows, once for the model."""
    found = [module for module in model.modules() if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)]
    for module in found:
        if module not in _hooked:
            _hooked[module] = None
            module.register_forward_pre_hook(_RowHook(id(model)), with_kwargs=True)


class _RowHook:
    def __init__(self, owner: int) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chosen = _rows.get()
        if chosen is None or chosen[0] != self.owner or not args:
            return None
        count, names = len(args[0]), chosen[1]
        if count % len(names):
            raise ModelError(f"{len(names)} adapters are named for a batch of {count} rows", fix="name one for each row, or one for all")
        # A layer may see the tokens of all rows in one dimension.
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(count // len(names))]}


def takes_rows(model: nn.Module) -> bool:
    """Say whether every adapted layer can use another adapter for each row."""
    if not isinstance(model, PeftModel):
        return False
    if any(str(getattr(config.peft_type, "value", config.peft_type)) != "LORA" for config in model.peft_config.values()):
        return False
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not (
            isinstance(module, LoraLayer) and hasattr(module, "_mixed_batch_forward") and not any(module.use_dora.values())
        ):
            return False
        # A full copy of a layer: PEFT mixes those of a few kinds, norms not among them.
        if isinstance(module, ModulesToSaveWrapper) and not isinstance(module.original_module, nn.Linear | nn.Embedding):
            return False
    return True


def _adapted(model: nn.Module) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise ModelError(f"a {type(model).__name__} has no adapters", fix="load one with Swift.from_pretrained")
    return model


def _check_names(model: PeftModel, names: Sequence[str]) -> None:
    for name in names:
        if name not in model.peft_config:
            raise ModelError(f"the model has no adapter {name!r}", fix=f"it has {', '.join(model.peft_config)}")
    if not names and not model.peft_config:
        raise ModelError("no adapter is named", fix=f"the model has {', '.join(model.peft_config)}")


def _is_prompt(model: PeftModel) -> bool:
    return bool(model.active_peft_config.is_prompt_learning)


def _disabled(model: PeftModel) -> bool:
    return any(module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer))


def _kind(model: PeftModel) -> str:
    return str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type)).lower()
