"""The low-rank projection of a weight's gradients (GaLore, arXiv:2403.03507; Q-GaLore, arXiv:2407.08296)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from swift_tuners.optimizers.packing import Packed, pack

Side = Literal["left", "right", "both"]


@dataclass(frozen=True, slots=True)
class ProjectionSettings:
    """How gradients are projected.

    Attributes:
        rank: columns of a projection.
        gap: updates between two looks for a new one.
        scale: factor of what comes back.
        kind: `std` projects the shorter side, `reverse_std` the longer one, or `left`, `right`, `full`.
        bits: 4 or 8 packs the projection; 0 keeps it in float32.
        group: numbers of a packed projection that share a scale.
        threshold: mean likeness of successive projections from which the gap grows; with `bits` only.
        growth: factor by which it grows.
        queue: successive likenesses that are averaged.
    """

    rank: int
    gap: int
    scale: float = 1.0
    kind: str = "std"
    bits: int = 0
    group: int = 256
    threshold: float = 0.4
    growth: int = 2
    queue: int = 5


def side_of(shape: torch.Size, kind: str) -> Side:
    """Return the side of a `[rows, columns]` weight that is projected."""
    if kind in ("left", "right"):
        return "left" if kind == "left" else "right"
    if kind == "full":
        return "both"
    short_is_right = shape[0] >= shape[1]
    return "right" if short_is_right == (kind == "std") else "left"


class Projection:
    """Maps gradients `[m, n]` to a subspace of their leading singular vectors and back.

    With the singular vectors P `[m, rank]` and Q `[n, rank]`, the left side gives `P^T G`, the right side `G Q`, both `P^T G Q`.

    Args:
        shape: of the weight; `settings.rank` is below both sides.
        settings: rank, gap and side.
    """

    def __init__(self, shape: torch.Size, settings: ProjectionSettings) -> None:
        self.settings = settings
        self.side = side_of(shape, settings.kind)
        rows, columns, rank = shape[0], shape[1], settings.rank
        self.low_shape = {"left": (rank, columns), "right": (rows, rank), "both": (rank, rank)}[self.side]
        self.gap = settings.gap
        self._left: torch.Tensor | Packed | None = None
        self._right: torch.Tensor | Packed | None = None
        self._age = 0
        self._likenesses: list[float] = []

    @property
    def due(self) -> bool:
        """Say whether the next gradient gives a new projection."""
        return self._age % self.gap == 0 or (self._left is None and self._right is None)

    def renew(self, gradient: torch.Tensor) -> None:
        """Take the leading singular vectors of a gradient `[m, n]`; with packing, wait longer if they have hardly moved."""
        left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
        new_left = left[:, : self.settings.rank].contiguous() if self.side != "right" else None
        new_right = right[: self.settings.rank].T.contiguous() if self.side != "left" else None
        if self.settings.bits:
            self._compare(new_left if new_left is not None else new_right)
        self._left, self._right = self._kept(new_left), self._kept(new_right)
        self._age = 0

    def advance(self) -> None:
        """Count an update."""
        self._age += 1

    def down(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return a gradient `[m, n]` in the subspace, float32."""
        low = gradient.float()
        if self._left is not None:
            low = _values(self._left).T @ low
        if self._right is not None:
            low = low @ _values(self._right)
        return low

    def up(self, low: torch.Tensor) -> torch.Tensor:
        """Return what is in the subspace as `[m, n]`, float32."""
        if self._left is not None:
            low = _values(self._left) @ low
        if self._right is not None:
            low = low @ _values(self._right).T
        return low

    def saved(self) -> dict[str, Any]:
        """Return the state, as tensors and plain values."""
        sides = {"left": _saved(self._left), "right": _saved(self._right)}
        return {**sides, "gap": self.gap, "age": self._age, "likenesses": list(self._likenesses)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Take a saved state back."""
        self._left, self._right = _restored(state["left"], device), _restored(state["right"], device)
        self.gap, self._age, self._likenesses = int(state["gap"]), int(state["age"]), list(state["likenesses"])

    def _kept(self, vectors: torch.Tensor | None) -> torch.Tensor | Packed | None:
        if vectors is None or not self.settings.bits:
            return vectors
        return pack(vectors, bits=self.settings.bits, group=self.settings.group)

    def _compare(self, vectors: torch.Tensor | None) -> None:
        old = self._left if self._left is not None else self._right
        if old is None or vectors is None:
            return
        # A singular vector and its negative are the same direction.
        self._likenesses.append(float(torch.cosine_similarity(_values(old), vectors, dim=0).abs().mean()))
        self._likenesses = self._likenesses[-self.settings.queue :]
        settled = sum(self._likenesses) / len(self._likenesses) >= self.settings.threshold
        if len(self._likenesses) == self.settings.queue and settled:
            self.gap *= self.settings.growth


def _values(side: torch.Tensor | Packed) -> torch.Tensor:
    return side.unpack() if isinstance(side, Packed) else side


def _saved(side: torch.Tensor | Packed | None) -> Any:
    return side.saved() if isinstance(side, Packed) else side


def _restored(saved: Any, device: torch.device) -> torch.Tensor | Packed | None:
    if saved is None:
        return None
    if isinstance(saved, torch.Tensor):
        return saved.to(device)
    tensors = {name: saved[name].to(device) for name in ("codes", "scale", "lowest")}
    return Packed(**tensors, shape=list(saved["shape"]), bits=int(saved["bits"]))
