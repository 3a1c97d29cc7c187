"""What a decoder keeps for its backward pass by its sizes alone, for models whose code cannot be followed without numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from swift_core.planner.simulate import BACKWARD, FORWARD, Pass, Traced
from swift_core.planner.tracing import GRADIENT, HEAD, OTHER, Moment
from swift_core.scoring.head import CHUNK_ROWS


def by_formula(config: Any, plan: Pass, *, trained: int, element: int) -> Traced:
    """Return what a micro-batch holds.

    Args:
        config: text config of the model.
        plan: how the micro-batch runs.
        trained: bytes of what is trained.
        element: bytes of a number of the base weights.
    """
    kept = activation_bytes(
        config, tokens=plan.tokens, element=2 if plan.autocast else element, checkpointing=plan.checkpointing is not None
    )
    rows = min(CHUNK_ROWS, plan.trained) if plan.split else plan.trained
    head = (3 if plan.split else 4) * rows * int(config.vocab_size) * 4
    before = trained if plan.micros > 1 else 0
    parts = {
        FORWARD: {GRADIENT: before, HEAD: 0, OTHER: kept},
        HEAD: {GRADIENT: before, HEAD: head, OTHER: kept},
        BACKWARD: {GRADIENT: trained, HEAD: 0, OTHER: kept // 2},
    }
    moments = {name: Moment(sum(kinds.values()), kinds) for name, kinds in parts.items()}
    return Traced(moments, trained, Counter())


def activation_bytes(config: Any, *, tokens: int, element: int, checkpointing: bool) -> int:
    """Estimate the activations of a decoder for one micro-batch.

    Counts, for every token and layer, what autograd keeps of norms, projections, attention output and a gated MLP, which in a
    mixture of experts is that of the experts a token goes to; with checkpointing only the input of each layer and one layer in full.

    Args:
        config: text config with hidden_size, intermediate_size, num_hidden_layers, attention heads.
        tokens: tokens of the micro-batch, padding included.
        element: bytes of a number.
        checkpointing: recompute layers in the backward pass.
    """
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    chosen = getattr(config, "num_experts_per_tok", None)
    if chosen:
        inner = int(chosen) * int(getattr(config, "moe_intermediate_size", None) or inner)
    layers = int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", 1))
    pairs = int(getattr(config, "num_key_value_heads", None) or heads)
    width = hidden + 2 * hidden * pairs // heads
    per_token = (8 * hidden + 2 * width + 5 * inner) * element
    if checkpointing:
        return tokens * (layers * hidden * element + per_token)
    return tokens * layers * per_token
