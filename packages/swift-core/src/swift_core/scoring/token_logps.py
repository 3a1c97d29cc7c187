"""Log-probabilities of chosen tokens under any head, in chunks of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from swift_core.scoring.head import CHUNK_ROWS, Head, wide


class TokenLogps(NamedTuple):
    """What was found out about chosen tokens.

    Attributes:
        logps: log-probability of each in nats, `[tokens]` with gradient, float32 or better.
        entropies: of the distributions they were drawn from in nats, `[tokens]` without gradient; None unless asked for.
    """

    logps: torch.Tensor
    entropies: torch.Tensor | None = None


def chunked_logps(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_rows: int = CHUNK_ROWS,
) -> TokenLogps:
    """Return the log-probability of each target under `softmax(head(hidden) / temperature)`.

    The logits of a chunk are made again in the backward pass instead of being kept.

    Args:
        hidden: `[rows, dim]`.
        targets: `[rows]`, token ids.
        head: maps `[n, dim]` to logits `[n, vocab]`.
        temperature: divides the logits.
        entropy: whether to return entropies as well.
        chunk_rows: rows whose logits are alive at a time.
    """
    if not len(targets):
        nothing = hidden.sum(-1).to(wide(hidden)) * 0
        return TokenLogps(nothing, nothing.detach() if entropy else None)

    def chunk(rows: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(rows).to(wide(rows)) / temperature
        normaliser = logits.logsumexp(-1)
        logps = logits.gather(-1, wanted[:, None])[:, 0] - normaliser
        if not entropy:
            return logps, logps.detach()
        free = logits.detach()
        return logps, normaliser.detach() - (free.softmax(-1) * free).sum(-1)

    found = [
        checkpoint(chunk, rows, wanted, use_reentrant=False) if torch.is_grad_enabled() else chunk(rows, wanted)
        for rows, wanted in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True)
    ]
    logps, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))  # pyright: ignore[reportArgumentType]
    return TokenLogps(logps, entropies if entropy else None)
