"""Muon for the matrices of layers, AdamW for everything else."""

from __future__ import annotations

import torch
from swift_core.train.optim import Request

from swift_tuners.optimizers.matrices import layer_matrices, with_adamw


def muon(request: Request) -> torch.optim.Optimizer:
    """Return PyTorch's Muon, with updates as large as AdamW's, so that the same learning rate fits both parts."""
    settings = {"adjust_lr_fn": "match_rms_adamw"}
    return with_adamw(request, layer_matrices(request.model), lambda groups: request.build(torch.optim.Muon, groups, **settings))
