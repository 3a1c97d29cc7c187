"""Gradient checkpointing: which layers recompute what in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from swift_core.errors import ModelError
from swift_core.models.modules import module_map, parameter_kind, unwrap
from swift_core.scoring.attention import checkpoint_contexts

_TOWERS = ("vision_tower", "audio_tower")
_aten = torch.ops.aten
# Linear layers come down to these products; the rest of a layer is cheap to repeat.
_MATMUL = frozenset({_aten.mm.default, _aten.addmm.default, _aten.linear.default})
# Attention, packed or not, comes down to these, whose cost grows with the square of the length.
_ATTENTION = frozenset(
    {
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
_KEPT = {"matmul": _MATMUL, "attention": _ATTENTION}


def enable_checkpointing(model: nn.Module, policy: str = "all", *, towers: bool | None = None) -> None:
    """Switch gradient checkpointing on.

    Args:
        model: a transformers model, with or without adapters.
        policy: `all` recomputes every layer, `every_N` each N-th layer, `matmul` all but the products of linear layers,
            `attention` all but what attention computes.
        towers: whether the towers of a multimodal model recompute; None: as the language model.

    Raises:
        ModelError: when a setting fits no layer of the model.
    """
    contexts = _selective(_KEPT[policy]) if policy in _KEPT else checkpoint_contexts
    cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts})
    every = int(policy.removeprefix("every_")) if policy.startswith("every_") else 1
    if every == 1 and towers is None:
        return
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    if every > 1 and len(layers) < every:
        raise ModelError(
            f"--gradient_checkpointing_policy {policy}: this model has {len(layers)} layers that can be recomputed", fix="use all"
        )
    parts = module_map(unwrap(model))
    in_tower = {name for name, _ in layers if parameter_kind(name, parts) in _TOWERS}
    if towers is not None and not in_tower:
        raise ModelError("--vit_gradient_checkpointing: this model has no tower that sees or hears", fix="remove it")
    counts = {True: 0, False: 0}
    for name, module in layers:
        tower = name in in_tower
        counts[tower] += 1
        kept_out = counts[tower] % every != 0 or (tower and towers is False)
        if kept_out:
            module.gradient_checkpointing = False


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def _selective(kept: frozenset[Any]) -> Callable[[], Contexts]:
    def policy(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Contexts:
        forward, recompute = checkpoint_contexts()
        caching, cached = create_selective_checkpoint_contexts(policy)
        return _both(forward, caching), _both(recompute, cached)

    return contexts


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Any:
    with ExitStack() as stack:
        stack.enter_context(first)
        stack.enter_context(second)
        yield
