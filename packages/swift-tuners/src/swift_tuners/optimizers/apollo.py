"""APOLLO: gradients scaled as AdamW would, told from a small random projection (arXiv:2412.05270)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from swift_core.train.optim import Request

from swift_tuners.optimizers.matrices import Groups, layer_matrices, with_adamw

# From Fira (arXiv:2410.01623), which the paper takes over: an update grows by at most this factor from step to step.
GROWTH = 1.01


class Apollo(torch.optim.Optimizer):
    """Scales each gradient by the ratio of Adam's step to the gradient in a random subspace.

    With a random P `[rank, short]` of variance 1 / rank, the gradient G `[short, long]` gives R = P G. Adam's moments of R make
    a step N, and G is scaled column by column by `|N_j| / |R_j|`, or as a whole by `|N| / |R|`; then by `sqrt(scale)`.
    P comes from a seed, so that nothing but the moments of R is kept.

    Args:
        groups: parameter groups of matrices with `lr` and `weight_decay`.
        rank: rows of the projection.
        gap: steps after which another P is drawn.
        scale: the update is multiplied by its root.
        per: `channel` scales each column (of the longer side), `tensor` the whole matrix.
        betas: decay of Adam's moments.
        eps: added to Adam's denominator.
        seed: seed of the projections.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        rank: int,
        gap: int = 200,
        scale: float = 1.0,
        per: Literal["channel", "tensor"] = "channel",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 42,
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self._rank, self._gap, self._scale, self._per = rank, gap, scale, per
        self._betas, self._eps, self._seed = betas, eps, seed
        self._drawn: dict[int, tuple[int, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix that has a gradient."""
        number = 0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._update(weight, number)
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(weight.dtype), alpha=-group["lr"])
                number += 1

    def _update(self, weight: torch.Tensor, number: int) -> torch.Tensor:
        gradient = weight.grad.float()  # pyright: ignore[reportOptionalMemberAccess]
        turned = gradient.shape[0] > gradient.shape[1]
        wide = gradient.T if turned else gradient
        state = self.state[weight]
        low = self._projection(number, int(state.get("step", 0)), wide) @ wide
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(low), exp_avg_sq=torch.zeros_like(low), norm=0.0)
        state["step"] += 1
        first, second = self._betas
        state["exp_avg"].lerp_(low, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(low, low, value=1 - second)
        root = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_().add_(self._eps)
        step = state["exp_avg"] / (1 - first ** state["step"]) / root
        over = 0 if self._per == "channel" else (0, 1)
        factor = torch.linalg.vector_norm(step, dim=over) / (torch.linalg.vector_norm(low, dim=over) + 1e-8)
        update = wide * (factor * self._scale**0.5)
        norm = float(torch.linalg.vector_norm(update))
        if state["norm"] > 0 and norm > GROWTH * state["norm"]:
            update *= GROWTH * state["norm"] / norm
            norm = GROWTH * state["norm"]
        state["norm"] = norm
        return update.T if turned else update

    def _projection(self, number: int, step: int, wide: torch.Tensor) -> torch.Tensor:
        period = step // self._gap
        drawn = self._drawn.get(number)
        if drawn is None or drawn[0] != period:
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + number) * 1_000_003 + period)
            values = torch.randn(min(self._rank, wide.shape[0]), wide.shape[0], generator=generator) / self._rank**0.5
            self._drawn[number] = drawn = (period, values.to(wide.device))
        return drawn[1]


def apollo_adamw(request: Request) -> torch.optim.Optimizer:
    """Return APOLLO, which scales column by column."""
    return _apollo(request, rank=256, scale=1.0, per="channel")


def apollo_mini(request: Request) -> torch.optim.Optimizer:
    """Return APOLLO-Mini, which projects to one row and scales a matrix as a whole."""
    return _apollo(request, rank=1, scale=128.0, per="tensor")


def _apollo(request: Request, *, rank: int, scale: float, per: Literal["channel", "tensor"]) -> torch.optim.Optimizer:
    request.no_further_arguments()
    memory = request.memory
    return with_adamw(
        request,
        layer_matrices(request.model),
        lambda groups: Apollo(
            groups,
            rank=memory.apollo_rank or rank,
            gap=memory.apollo_update_proj_gap,
            scale=memory.apollo_scale or scale,
            per=per,
            seed=request.seed,
            **request.adam,
        ),
    )
