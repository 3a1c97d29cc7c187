"""A rendered conversation with the parts of it that are trained."""

from __future__ import annotations

from dataclasses import dataclass

from swift_core.templates.loss_scale import Weighted
from swift_core.templates.mask import Span


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered sample and the characters of it that are trained.

    Attributes:
        text: the whole conversation.
        spans: characters [start, end) that carry loss, ascending.
        weights: parts of them whose loss counts more or less than 1.
        notes: what is special about this sample's mask, one line each.
        origin: as in `Sample`.
    """

    text: str
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    origin: str = ""
    weights: tuple[Weighted, ...] = ()


@dataclass(frozen=True, slots=True)
class Located:
    """A rendered conversation: its text, where the answers asked for are, and notes."""

    text: str
    spans: dict[int, Span]
    notes: list[str]
