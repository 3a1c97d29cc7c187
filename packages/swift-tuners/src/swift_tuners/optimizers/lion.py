"""Lion: the sign of an average of gradients (arXiv:2302.06675)."""

from __future__ import annotations

from typing import Any

import torch
from swift_core.train.optim import Request

from swift_tuners.optimizers.matrices import Groups


class Lion(torch.optim.Optimizer):
    """Moves each weight by the learning rate in the direction `sign(beta1 m + (1 - beta1) g)`; then `m` follows `g` by beta2.

    Args:
        params: parameter groups.
        lr: learning rate.
        betas: share of the average in the direction, and decay of the average.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, params: Groups, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                average = state["exp_avg"]
                direction = torch.lerp(weight.grad, average, first).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(weight.grad, 1 - second)


def lion(request: Request) -> torch.optim.Optimizer:
    """Return Lion; a third to a tenth of AdamW's learning rate suits it."""
    return request.build(Lion, request.groups(), betas=request.adam["betas"])
