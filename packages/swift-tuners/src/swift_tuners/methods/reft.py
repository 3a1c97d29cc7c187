"""ReFT: trained low-rank changes of what layers pass on, at some tokens of the prompt."""

from __future__ import annotations

import re
from typing import Any

import torch
from swift_core.scoring.attention import current_labels, current_segments
from torch import Tensor, nn

from swift_tuners.methods.added import Added, AddedTuner
from swift_tuners.options import ReftOptions
from swift_tuners.targets import check_layer_numbers, layer_list

# kind -> (rows of the projection are orthonormal, the wanted value is computed from the input, the present value is subtracted)
_KINDS = {
    "LoreftIntervention": (True, True, True),
    "NoreftIntervention": (False, True, True),
    "ConsreftIntervention": (True, False, True),
    "LobireftIntervention": (True, False, False),
    "DireftIntervention": (True, True, False),
    "NodireftIntervention": (False, True, False),
}


class Intervention(nn.Module):
    """`R^T (wanted(h) - R h)` with R `[rank, width]`; kinds leave the second term out or want a constant.

    Args:
        width: of the hidden state.
        rank: of the change.
        kind: name as in `_KINDS`.
    """

    def __init__(self, width: int, rank: int, kind: str) -> None:
        super().__init__()
        self.orthonormal, self.computed, self.subtracts = _KINDS[kind]
        self.directions = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width)))
        if self.computed:
            self.wanted: Any = nn.Linear(width, rank)
            if self.subtracts:  # starts as the present value, so that nothing changes at first
                with torch.no_grad():
                    self.wanted.weight.copy_(self.projection())
            else:
                nn.init.zeros_(self.wanted.weight)
            nn.init.zeros_(self.wanted.bias)
        else:
            self.constant = nn.Parameter(torch.zeros(rank))

    def projection(self) -> Tensor:
        """Return R `[rank, width]`."""
        if not self.orthonormal:
            return self.directions
        basis, upper = torch.linalg.qr(self.directions.T)
        # Of the two signs of each direction the one that it was trained with.
        return (basis * upper.diagonal().sign()).T

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what is added to `[..., width]`."""
        weight = self.projection()
        change = self.wanted(hidden) if self.computed else self.constant.expand(*hidden.shape[:-1], -1)
        if self.subtracts:
            change = change - hidden @ weight.T
        return change @ weight


class ReftTuner(AddedTuner[ReftOptions]):
    """Trains an intervention behind each chosen layer."""

    name = "reft"
    options_class = ReftOptions

    def places(self, model: nn.Module, options: ReftOptions) -> list[str]:
        """Return the chosen layers, or all."""
        path, layers = layer_list(model, options.reft_layer_key)
        check_layer_numbers(len(layers), options.reft_layers, "--reft_layers")
        return [f"{path}.{number}" for number in (sorted(set(options.reft_layers)) or range(len(layers)))]

    def network(self, width: int, options: ReftOptions) -> nn.Module:
        """Return an intervention."""
        return Intervention(width, options.reft_rank, options.reft_intervention_type)

    def watch(self, model: nn.Module, added: Added, options: ReftOptions) -> None:
        """Find the positions anew in every forward pass of the module that holds the layers."""
        if options.reft_positions == "all":
            return
        path, _ = layer_list(model, options.reft_layer_key)
        first, last = (int((re.search(rf"{letter}(\d+)", options.reft_positions) or ["", "0"])[1]) for letter in "fl")
        model.get_submodule(path.rpartition(".")[0]).register_forward_pre_hook(_Positions(added, first, last), with_kwargs=True)


class _Positions:
    """Says which positions of a forward pass are the first and last ones of a prompt."""

    def __init__(self, added: Added, first: int, last: int) -> None:
        self.added = added
        self.first = first
        self.last = last

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        tokens = args[0] if tokens is None else tokens
        rows = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        self.added.rows = rows
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return  # an answer goes on: its prompt has been changed already
        labels, mask = current_labels(), kwargs.get("attention_mask")
        for row, start, stop in _samples(rows, mask):
            end = stop
            if labels is not None and labels.shape == rows.shape:
                trained = (labels[row, start:stop] != -100).nonzero()
                end = start + int(trained[0]) if len(trained) else stop
            rows[row, start : min(start + self.first, end)] = True
            rows[row, max(start, end - self.last) : end] = True


def _samples(rows: Tensor, mask: Tensor | None) -> list[tuple[int, int, int]]:
    """Return row, start and end of each sample of a forward pass."""
    segments = current_segments()
    if segments is not None:
        ends = torch.tensor(segments).cumsum(0).tolist()
        return [(0, end - length, end) for end, length in zip(ends, segments, strict=True)]
    found: list[tuple[int, int, int]] = []
    for row in range(rows.shape[0]):
        real = mask[row].nonzero() if mask is not None and mask.shape == rows.shape else None
        found.append((row, int(real[0]), int(real[-1]) + 1) if real is not None and len(real) else (row, 0, rows.shape[1]))
    return found
