"""Bytes of weights that are packed while loading."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from swift_core.config.training import SftConfig


class Packed(NamedTuple):
    """Bytes of a model's weights.

    Attributes:
        weights: as they are kept, with the scales of packed ones.
        unpacked: the largest packed matrix, unpacked for a product.
    """

    weights: int
    unpacked: int


def packed_bytes(model: nn.Module, config: SftConfig) -> Packed:
    """Return the bytes of a prepared model: frozen matrices of linear layers are packed where the settings say so."""
    section = config.quantization
    bits = 0 if section.quant_method is None else 8 if section.bits == "float8" else int(section.bits)
    kept = _kept_whole(model)
    weights = unpacked = 0.0
    for parameter in model.parameters():
        size = parameter.numel() * parameter.element_size()
        if not bits or parameter.requires_grad or parameter.ndim != 2 or id(parameter) in kept:
            weights += size
            continue
        unpacked = max(unpacked, size)
        weights += parameter.numel() * bits / 8 + _scales(parameter.shape[0], parameter.numel(), config)
    return Packed(int(weights), int(unpacked))


def _scales(rows: int, numbers: int, config: SftConfig) -> float:
    section = config.quantization
    if section.quant_method == "bnb" and section.bits == "8":
        return rows * 4
    # bitsandbytes has a scale for each 64 numbers, in float32 or, quantised once more, in 8 bits.
    double = section.quant_method == "bnb" and section.bnb_4bit_use_double_quant
    return numbers / (section.quant_group_size or 64) * (1.02 if double else 4)


def _kept_whole(model: nn.Module) -> set[int]:
    """Return the ids of what no method packs: embeddings and the output head."""
    parts = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {id(parameter) for part in [*parts, *([head] if head is not None else [])] for parameter in part.parameters()}
