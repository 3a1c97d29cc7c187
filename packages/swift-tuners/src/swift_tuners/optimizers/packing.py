"""Tensors of small integers with a scale for each group of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class Packed:
    """A tensor of 4 or 8 bits a number: `lowest + scale * code`, with a scale and a lowest value for each group.

    Attributes:
        codes: `[groups, size]` of uint8, or half as many columns with two codes a byte.
        scale: `[groups, 1]`.
        lowest: `[groups, 1]`.
        shape: of the tensor.
        bits: 4 or 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    lowest: torch.Tensor
    shape: list[int]
    bits: int

    def unpack(self) -> torch.Tensor:
        """Return the tensor in float32."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
        values = (codes.float() * self.scale + self.lowest).flatten()
        count = 1
        for size in self.shape:
            count *= size
        return values[:count].view(self.shape)

    def saved(self) -> dict[str, Any]:
        """Return the fields, for a checkpoint."""
        return {"codes": self.codes, "scale": self.scale, "lowest": self.lowest, "shape": self.shape, "bits": self.bits}


def pack(tensor: torch.Tensor, *, bits: int, group: int) -> Packed:
    """Round a tensor to codes of 4 or 8 bits.

    Args:
        tensor: any shape.
        bits: 4 or 8.
        group: numbers that share a scale; an even number.
    """
    flat = tensor.detach().float().flatten()
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % group)).view(-1, group)
    lowest, highest = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scale = ((highest - lowest) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((flat - lowest) / scale).round().to(torch.uint8)
    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return Packed(codes, scale, lowest, list(tensor.shape), bits)
