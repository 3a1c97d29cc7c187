"""GaLore: the optimizer keeps its state for a low-rank projection of each gradient (arXiv:2403.03507)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from swift_core.train.optim import Request
from torch import nn
from transformers.optimization import Adafactor

from swift_tuners.optimizers.bnb import bnb_optimizer
from swift_tuners.optimizers.matrices import Groups, layer_matrices
from swift_tuners.optimizers.projection import Projection, ProjectionSettings


class _Projected:
    """A weight, its projection, and the low-rank stand-in that the inner optimizer trains."""

    def __init__(self, weight: nn.Parameter, settings: ProjectionSettings) -> None:
        self.weight = weight
        self.projection = Projection(weight.shape, settings)
        # Holds memory only while the inner optimizer takes its step.
        self.stand_in = nn.Parameter(torch.empty(0, dtype=torch.float32, device=weight.device))

    def absorb(self) -> None:
        """Add the gradient, projected, to what the step has so far, and free it."""
        gradient = self.weight.grad
        if gradient is None:
            return
        if self.stand_in.grad is None and self.projection.due:
            self.projection.renew(gradient)
        low = self.projection.down(gradient)
        self.weight.grad = None
        if self.stand_in.grad is not None:
            self.stand_in.grad.add_(low)
            return
        self.stand_in.data = torch.zeros(self.projection.low_shape, dtype=torch.float32, device=low.device)
        self.stand_in.grad = low

    def apply(self, lr: float, decay: float) -> None:
        """Bring the step of the stand-in, which started at 0, back to the weight."""
        if self.stand_in.grad is None:
            return
        if decay:
            self.weight.mul_(1 - lr * decay)
        self.weight.add_(self.projection.up(self.stand_in).to(self.weight.dtype), alpha=self.projection.settings.scale)
        self.projection.advance()
        self.release()

    def release(self) -> None:
        """Free the gradient and the memory of the stand-in."""
        self.stand_in.grad = None
        self.stand_in.data = self.stand_in.data.new_empty(0)


class GaLore(torch.optim.Optimizer):
    """Runs another optimizer in the subspace of each gradient's leading singular vectors.

    Every `gap` steps P becomes the leading singular vectors of the gradient G. The inner optimizer turns `P^T G` into a step
    N, and the weight moves by `scale * P N`; its state has the size of `P^T G`. Weights whose smaller side is not above the
    rank are left to the inner optimizer as they are. Weight decay acts on the weight itself.

    Args:
        groups: parameter groups with `lr` and `weight_decay`.
        inner: makes the inner optimizer from groups of its own.
        projected: ids of the weights that are projected.
        settings: rank, gap, scale and side.
        per_parameter: project each gradient as soon as the backward pass has it and free it. Several backward passes of a
            step add up in the subspace, which the first of them chooses when a new one is due.

    Attributes:
        takes_gradients: whether gradients are gone after the backward pass; clip by `clip_gradients` then.
    """

    def __init__(
        self,
        groups: Groups,
        inner: Callable[[Groups], torch.optim.Optimizer],
        projected: set[int],
        settings: ProjectionSettings,
        *,
        per_parameter: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self.takes_gradients = per_parameter
        self._projected: list[list[_Projected]] = []
        self._plain: list[nn.Parameter] = []
        inner_groups: Groups = []
        for group in self.param_groups:
            chosen = [one for one in group["params"] if id(one) in projected and min(one.shape) > settings.rank]
            mine = {id(one) for one in chosen}
            plain = [one for one in group["params"] if id(one) not in mine]
            members = [_Projected(one, settings) for one in chosen]
            self._projected.append(members)
            self._plain += plain
            shared = {"lr": group["lr"]}
            inner_groups.append({**shared, "params": plain, "weight_decay": group["weight_decay"]})
            inner_groups.append({**shared, "params": [one.stand_in for one in members], "weight_decay": 0.0})
        self._filled = [number for number, group in enumerate(inner_groups) if group["params"]]
        self.inner = inner([inner_groups[number] for number in self._filled])
        if per_parameter:
            for member in self._members():
                member.weight.register_post_accumulate_grad_hook(lambda _, member=member: member.absorb())

    def _members(self) -> list[_Projected]:
        return [member for members in self._projected for member in members]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Project what is not projected yet, step in the subspaces, and bring the steps back."""
        for member in self._members():
            member.absorb()
        for place, number in enumerate(self._filled):
            self.inner.param_groups[place]["lr"] = self.param_groups[number // 2]["lr"]
        self.inner.step()
        for group, members in zip(self.param_groups, self._projected, strict=True):
            for member in members:
                member.apply(group["lr"], group["weight_decay"])

    def clip_gradients(self, limit: float) -> float:
        """Scale what the backward passes left down to a norm, and return the norm it had in the subspaces."""
        members = [member.stand_in for member in self._members() if member.stand_in.grad is not None]
        return float(nn.utils.clip_grad_norm_([*self._plain, *members], limit))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free all gradients, projected or not."""
        super().zero_grad(set_to_none)
        for member in self._members():
            member.release()

    def state_dict(self) -> dict[str, Any]:
        """Return groups, the inner optimizer's state and the projections."""
        projections = [member.projection.saved() for member in self._members()]
        return {**super().state_dict(), "inner": self.inner.state_dict(), "projections": projections}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a state back.

        Raises:
            ValueError: when it belongs to other weights.
        """
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.inner.load_state_dict(state_dict["inner"])
        for member, saved in zip(self._members(), state_dict["projections"], strict=True):
            member.projection.restore(saved, member.weight.device)


def galore_adamw(request: Request) -> torch.optim.Optimizer:
    """Return GaLore around AdamW."""
    return _galore(request, lambda groups: torch.optim.AdamW(groups, lr=request.rate, **request.adam))


def galore_adamw_8bit(request: Request) -> torch.optim.Optimizer:
    """Return GaLore around AdamW with 8-bit state."""
    return _galore(request, lambda groups: bnb_optimizer("AdamW8bit", groups, lr=request.rate, **request.adam))


def galore_adafactor(request: Request) -> torch.optim.Optimizer:
    """Return GaLore around Adafactor."""
    return _galore(request, lambda groups: Adafactor(groups, lr=request.rate, scale_parameter=False, relative_step=False))


def _galore(request: Request, inner: Callable[[Groups], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    request.no_further_arguments()
    memory = request.memory
    settings = ProjectionSettings(
        rank=memory.galore_rank,
        gap=memory.galore_update_proj_gap,
        scale=memory.galore_scale,
        kind=memory.galore_proj_type,
        bits=int(memory.galore_proj_bits) if memory.galore_quantization else 0,
        group=memory.galore_proj_group_size,
        threshold=memory.galore_cos_threshold,
        growth=memory.galore_gamma_proj,
        queue=memory.galore_queue_size,
    )
    chosen = layer_matrices(
        request.model,
        parts=memory.galore_target_modules,
        embeddings=memory.galore_with_embedding,
        setting="--galore_target_modules",
    )
    return GaLore(request.groups(), inner, chosen, settings, per_parameter=memory.galore_optim_per_parameter)
