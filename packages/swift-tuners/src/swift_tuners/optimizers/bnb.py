"""Optimizers of bitsandbytes, whose state has 8 bits a number or moves between GPU and main memory."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from swift_core.errors import MissingDependencyError
from swift_core.train.optim import Request
from torch import nn

from swift_tuners.optimizers.matrices import Groups

# --optim -> class of bitsandbytes.optim
_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit",
    "paged_lion_8bit": "PagedLion8bit",
    "paged_lion_32bit": "PagedLion32bit",
    "ademamix": "AdEMAMix",
    "ademamix_8bit": "AdEMAMix8bit",
    "paged_ademamix_8bit": "PagedAdEMAMix8bit",
    "paged_ademamix_32bit": "PagedAdEMAMix32bit",
    "rmsprop_8bit": "RMSprop8bit",
}


def bnb_optimizer(kind: str, groups: Groups, **arguments: Any) -> torch.optim.Optimizer:
    """Return an optimizer of the library.

    Raises:
        MissingDependencyError: when it is not installed.
    """
    return library_class(kind)(groups, **arguments)


def library_class(kind: str) -> Any:
    """Return a class of `bitsandbytes.optim`.

    Raises:
        MissingDependencyError: when the library is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("bitsandbytes", needed_for=f"the optimizer {kind}", install="swift-tuners[bnb]")
    import bitsandbytes.optim as library  # pyright: ignore[reportMissingImports]

    return getattr(library, kind)


def make(request: Request) -> torch.optim.Optimizer:
    """Return the optimizer that `--optim` names; the state of embeddings stays in 32 bits, as the library's authors advise."""
    name = request.section.optim
    kind = library_class(_CLASSES[name])
    if name.endswith("8bit"):
        from bitsandbytes.optim.optimizer import GlobalOptimManager  # pyright: ignore[reportMissingImports]

        manager = GlobalOptimManager.get_instance()
        for module in request.model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    section = request.section
    betas: dict[str, Any] = {"betas": (section.adam_beta1, section.adam_beta2)}
    if "ademamix" in name:
        betas = {"betas": (section.adam_beta1, section.adam_beta2, 0.9999), "eps": section.adam_epsilon}
    elif "rmsprop" in name:
        betas = {"eps": section.adam_epsilon}
    elif "adam" in name:
        betas["eps"] = section.adam_epsilon
    return request.build(kind, request.groups(), **betas)
