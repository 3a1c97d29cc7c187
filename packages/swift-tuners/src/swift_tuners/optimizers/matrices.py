"""Which weights are matrices of layers, and several optimizers that act as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from swift_core.errors import ModelError
from swift_core.train.optim import Request, embedding_names
from torch import nn

Groups = list[dict[str, Any]]


def layer_matrices(model: nn.Module, *, parts: Sequence[str] = (), embeddings: bool = False, setting: str = "") -> set[int]:
    """Return the ids of the trainable matrices of layers.

    Args:
        model: the model.
        parts: words of which one must be in the name; none: every matrix.
        embeddings: whether embedding and output head count.
        setting: flag that the words come from, for messages.

    Raises:
        ModelError: when a word is in no name.
    """
    outside = set() if embeddings else embedding_names(model)
    named = {name: one for name, one in model.named_parameters() if one.requires_grad and one.ndim == 2 and name not in outside}
    for part in parts:
        if not any(part in name for name in named):
            raise ModelError(
                f"{setting} {part!r} is in the name of no matrix that is trained", fix=f"names look like {', '.join(list(named)[:3])}"
            )
    return {id(one) for name, one in named.items() if not parts or any(part in name for part in parts)}


def split(groups: Groups, wanted: set[int]) -> tuple[Groups, Groups]:
    """Return the groups of the parameters with these ids, and the groups of all others."""
    chosen = [{**group, "params": [one for one in group["params"] if id(one) in wanted]} for group in groups]
    rest = [{**group, "params": [one for one in group["params"] if id(one) not in wanted]} for group in groups]
    return [group for group in chosen if group["params"]], [group for group in rest if group["params"]]


def with_adamw(request: Request, wanted: set[int], make: Callable[[Groups], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Return an optimizer for the chosen parameters, and AdamW for all others."""
    chosen, rest = split(request.groups(), wanted)
    if not chosen:
        raise ModelError(f"--optim {request.section.optim}: no matrix of a layer is trained", fix="use --optim adamw_torch")
    first = make(chosen)
    return Together([first, torch.optim.AdamW(rest, lr=request.rate, **request.adam)]) if rest else first


class Together(torch.optim.Optimizer):
    """Several optimizers, each over parameters of its own, that act as one.

    Args:
        parts: the optimizers; their parameter groups are shared with this one, so a schedule reaches them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([one for part in parts for group in part.param_groups for one in group["params"]], {})
        self.parts = list(parts)
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Let every part take its step."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the states of the parts back.

        Raises:
            ValueError: when they are not the states of these parts.
        """
        states: Iterable[Any] = state_dict["parts"]
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
        self._share()
