"""LongLoRA: long samples at the cost of short ones, by attention within groups while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from pydantic import BaseModel
from swift_core.errors import ModelError
from swift_core.models.modules import module_map, unwrap
from swift_core.scoring.attention import attend, current_segments, packed_attention, register_samplewise, set_text_attention, text_attention
from swift_core.train.tuning import RunStart
from torch import Tensor, nn

from swift_tuners.lora_options import LongLoraOptions, LoraOptions
from swift_tuners.methods.lora import LoraTuner

ATTENTION = "swift_longlora"


class LongLoraTuner(LoraTuner):
    """LoRA with trained embedding and norms, and attention within groups of tokens while training.

    Half of the heads have their groups shifted by half a group, so that what one group knows reaches the next. Evaluation and
    inference attend to everything. What is saved is an ordinary LoRA.
    """

    name = "longlora"
    options_class = LongLoraOptions  # pyright: ignore[reportAssignmentType]

    def configure(self, model: nn.Module, options: LoraOptions) -> PeftConfig:
        """Return PEFT's LoRA config with embedding and norms trained in full."""
        own = cast(LongLoraOptions, options)
        config = super().configure(model, own)
        more: list[str] = []
        parts = module_map(model)
        if own.longlora_trains_embedding and parts.embedding is not None:
            more.append(parts.embedding)
        if own.longlora_trains_norms:
            text = [name for name, module in model.named_modules() if _is_norm(module) and _in_text(name, parts.language_model)]
            more += text
        cast(Any, config).modules_to_save = [*(config.modules_to_save or []), *more] or None  # pyright: ignore[reportAttributeAccessIssue]
        return config

    def prepare(self, model: nn.Module, options: BaseModel) -> nn.Module:
        """Return the model with an adapter and attention within groups.

        Raises:
            ModelError: when the options do not fit the model, or its attention is not of transformers.
        """
        adapted = super().prepare(model, options)
        group_attention(adapted, cast(LongLoraOptions, options).longlora_group_ratio)
        return adapted

    def start(self, model: nn.Module, run: RunStart) -> None:
        """Set the group size of an adapter that was loaded, and do what LoRA does."""
        if isinstance(run.options, LongLoraOptions):
            group_attention(model, run.options.longlora_group_ratio)
        super().start(model, run)

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with a saved adapter put on; for training, `start` brings attention within groups."""
        return super().load(model, folder, trainable=trainable)


def group_attention(model: nn.Module, ratio: float) -> None:
    """Let a model attend within groups while it is in training mode, in place.

    Args:
        model: a transformers model, adapters may be on.
        ratio: tokens of a group as a share of the sample.

    Raises:
        ModelError: when its attention cannot be exchanged.
    """
    register_samplewise(ATTENTION, grouped_attention)
    bare: Any = unwrap(model)
    before = text_attention(bare)
    if before not in (ATTENTION, "swift_packed", "sdpa", "eager"):
        raise ModelError(f"longlora brings an attention of its own, and --attn_impl {before} was asked for", fix="leave --attn_impl out")
    try:
        set_text_attention(bare, ATTENTION)
    except ValueError as error:
        raise ModelError(f"the attention of a {type(bare).__name__} cannot be exchanged: {error}", fix="use lora") from error
    bare.config.get_text_config().longlora_group_ratio = ratio


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within groups of each sample while training, to everything else.

    Shapes are those of transformers' attention interface. Rows are padded on the right, so that no token sees padding.

    Raises:
        ModelError: for attention with sinks.
    """
    if not module.training or query.shape[2] != key.shape[2]:
        return packed_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise ModelError("longlora does not fit attention with sinks", fix="use lora")
    ratio = float(getattr(getattr(module, "config", None), "longlora_group_ratio", 0.25))
    settings: dict[str, Any] = {
        "scale": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "window": kwargs.get("sliding_window"),
        "softcap": kwargs.get("softcap"),
        "dropout": dropout,
    }
    lengths = list(current_segments() or (query.shape[2],))
    rows: list[Tensor] = []
    for row in range(query.shape[0]):
        one = slice(row, row + 1)
        samples = zip(query[one].split(lengths, 2), key[one].split(lengths, 2), value[one].split(lengths, 2), strict=True)
        rows.append(torch.cat([attend_in_groups(*sample, ratio=ratio, **settings) for sample in samples], dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def attend_in_groups(query: Tensor, key: Tensor, value: Tensor, *, ratio: float, **settings: Any) -> Tensor:
    """Return causal attention of one sample within groups; the second half of the heads has them shifted by half a group.

    Args:
        query: `[1, heads, length, width]`.
        key: `[1, key heads, length, width]`.
        value: `[1, key heads, length, width]`.
        ratio: tokens of a group as a share of the length.
        settings: further arguments of `swift_core.scoring.attention.attend`.

    Returns:
        `[1, heads, length, width]`.
    """
    length, heads, pairs = query.shape[2], query.shape[1], key.shape[1]
    size = max(1, -(-int(length * ratio * 1000) // 1000))
    if pairs % 2:  # key heads that cannot be halved are shared by both halves
        key, value = key.repeat_interleave(heads // pairs, 1), value.repeat_interleave(heads // pairs, 1)
        pairs = heads
    first, second = heads // 2, pairs // 2
    halves: list[Tensor] = []
    for own, shared, offset in (((0, first), (0, second), 0), ((first, heads), (second, pairs), size // 2)):
        if own[0] == own[1]:
            continue
        cuts = group_lengths(length, size, offset)
        parts = [tensor[:, slice(*which)].split(cuts, 2) for tensor, which in ((query, own), (key, shared), (value, shared))]
        halves.append(torch.cat([attend(*part, **settings) for part in zip(*parts, strict=True)], dim=2))
    return torch.cat(halves, dim=1)


def group_lengths(length: int, size: int, offset: int) -> list[int]:
    """Return the lengths of the groups of a sample: whole ones after a first one of `offset` tokens, where that is not 0."""
    first = [min(offset, length)] if offset else []
    rest = length - sum(first)
    return [*first, *[size] * (rest // size), *([rest % size] if rest % size else [])]


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))


def _in_text(name: str, paths: tuple[str, ...]) -> bool:
    return not paths or any(name == path or name.startswith(path + ".") for path in paths)
