"""Media of models whose code lies in their folder: kept as their adapter made them, until it gives them their form for a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class SampleMedia:
    """The media of one sample, for a model whose code lies in its folder: an adapter gives them their form for each batch.

    Attributes:
        tensors: name -> tensor or list of tensors.
        places: tokens [start, stop) of each image, ascending.
    """

    tensors: dict[str, Any] = field(default_factory=dict[str, Any])
    places: tuple[tuple[int, int], ...] = ()

    def to(self, target: torch.device | torch.dtype) -> SampleMedia:
        """Return the media on a device, or with pictures in a number type."""
        return SampleMedia({name: _moved(value, target) for name, value in self.tensors.items()}, self.places)

    def shifted(self, by: int) -> SampleMedia:
        """Return the media of the same tokens, `by` places further on."""
        return SampleMedia(self.tensors, tuple((start + by, stop + by) for start, stop in self.places))


@dataclass(frozen=True, slots=True)
class BatchMedia:
    """The media of a batch, one entry a row; rows of text alone have an empty one."""

    samples: tuple[SampleMedia, ...]

    def to(self, target: torch.device | torch.dtype) -> BatchMedia:
        """Return the media on a device, or with pictures in a number type."""
        return BatchMedia(tuple(sample.to(target) for sample in self.samples))


def _moved(value: Any, target: torch.device | torch.dtype) -> Any:
    if isinstance(value, list):
        parts: list[Any] = value
        return [_moved(part, target) for part in parts]
    if isinstance(target, torch.dtype) and not value.is_floating_point():
        return value
    return value.to(target)
