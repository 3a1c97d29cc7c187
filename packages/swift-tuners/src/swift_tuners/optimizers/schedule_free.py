"""Schedule-free optimizers: averages of weights in place of a falling learning rate (arXiv:2405.15682)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from swift_core.errors import MissingDependencyError
from swift_core.train.optim import Request


def _build(request: Request, kind: str, **arguments: Any) -> torch.optim.Optimizer:
    if importlib.util.find_spec("schedulefree") is None:
        raise MissingDependencyError("schedulefree", needed_for=f"--optim {request.section.optim}", install="swift-tuners[schedulefree]")
    import schedulefree  # pyright: ignore[reportMissingImports]

    return request.build(getattr(schedulefree, kind), request.groups(), **arguments)


def adamw(request: Request) -> torch.optim.Optimizer:
    """Return schedule-free AdamW; `--warmup_steps` warm it up."""
    return _build(request, "AdamWScheduleFree", **request.adam, warmup_steps=request.warmup)


def radam(request: Request) -> torch.optim.Optimizer:
    """Return schedule-free RAdam, which needs no warm-up."""
    return _build(request, "RAdamScheduleFree", **request.adam)


def sgd(request: Request) -> torch.optim.Optimizer:
    """Return schedule-free SGD; `--warmup_steps` warm it up."""
    return _build(request, "SGDScheduleFree", warmup_steps=request.warmup)
