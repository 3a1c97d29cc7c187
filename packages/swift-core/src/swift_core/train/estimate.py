"""How much memory a run will need, from the model's config and the settings, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose, for one device.

    Attributes:
        weights: the model's parameters.
        trained: copies that training adds for each trained parameter: gradient and optimizer state.
        activations: what the backward pass needs of one micro-batch.
        logits: the part of the logits that is alive at a time, with its gradient.
    """

    weights: int
    trained: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.weights + self.trained + self.activations + self.logits

    def lines(self) -> list[str]:
        """Return one line for each purpose."""
        parts = {"weights": self.weights, "gradients and optimizer": self.trained, "activations": self.activations, "logits": self.logits}
        rows = [f"{name:<24} {value / GIB:6.2f} GiB" for name, value in parts.items()]
        return [*rows, f"{'total':<24} {self.total / GIB:6.2f} GiB"]


def activation_bytes(config: Any, *, tokens: int, sequence: int, element: int, checkpointing: bool) -> int:
    """Estimate the activations of a decoder for one micro-batch.

    Counts, for every token and layer, what autograd keeps of norms, projections, attention output and a gated MLP; with
    checkpointing only the input of each layer and one layer in full.

    Args:
        config: text config with hidden_size, intermediate_size, num_hidden_layers, attention heads.
        tokens: tokens of the micro-batch, padding included.
        sequence: longest sequence.
        element: bytes of a number.
        checkpointing: recompute layers in the backward pass.
    """
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", 1))
    pairs = int(getattr(config, "num_key_value_heads", None) or heads)
    width = hidden + 2 * hidden * pairs // heads
    per_token = (8 * hidden + 2 * width + 5 * inner) * element
    if checkpointing:
        return tokens * (layers * hidden * element + per_token)
    return tokens * layers * per_token


def estimate_memory(
    model: nn.Module,
    config: Any,
    *,
    dtype: torch.dtype,
    batch_size: int,
    sequence: int,
    checkpointing: bool,
    states_per_parameter: float,
    logit_rows: int,
    projected_rank: int | None = None,
    packed_bits: int | None = None,
) -> MemoryEstimate:
    """Estimate the memory of a run from a prepared model, which may be on the meta device.

    Args:
        model: the model with its trainable parts.
        config: its text config.
        dtype: number type of the base weights.
        batch_size: samples of a micro-batch.
        sequence: tokens of the longest sample.
        checkpointing: recompute layers in the backward pass.
        states_per_parameter: numbers the optimizer keeps for each trained parameter.
        logit_rows: rows of logits alive at a time.
        projected_rank: rank to which the optimizer projects the gradients of matrices that are no embedding, or None.
        packed_bits: bits of a number in packed matrices of the base model, or None.
    """
    element = dtype.itemsize
    words = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    weights, trained = 0.0, 0.0
    for p in model.parameters():
        size, matrix = p.numel() * p.dtype.itemsize, p.ndim == 2 and id(p) not in words
        weights += p.numel() * packed_bits / 8 if packed_bits and matrix and not p.requires_grad else size
        if p.requires_grad:
            share = min(1.0, projected_rank / min(p.shape)) if projected_rank and matrix else 1.0
            trained += size * (1 + states_per_parameter * share)
    tokens = batch_size * sequence
    activations = activation_bytes(config, tokens=tokens, sequence=sequence, element=element, checkpointing=checkpointing)
    logits = 3 * min(logit_rows, tokens) * int(config.vocab_size) * 4
    return MemoryEstimate(int(weights), int(trained), activations, logits)
