"""What a processor made of each sample, put together for a batch.

Processors give two sorts of tensors. A *token input*, such as `mm_token_type_ids` or `token_type_ids`, has one entry for each token
and no batch axis here: `[tokens]`. Everything else begins with an axis that counts media or pieces of media: `pixel_values`
`[images, 3, height, width]` or `[patches, values]` (Qwen), `image_grid_thw` `[images, 3]`, `input_features` `[sounds, mels, frames]`;
Idefics and SmolVLM count samples there, `[1, images, 3, height, width]`. A model finds the media of a placeholder by counting in that
order, so for a batch and for a packed row alike token inputs follow the tokens, and all else is joined along its first axis. Other
axes, on which samples may differ (tiles of an image, height and width), are padded with zeros at the end, as processors do themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from swift_core.errors import DataError
from swift_core.models.own_media import BatchMedia, SampleMedia
from swift_core.protocols import EncodedSample


def is_token_input(sample: EncodedSample, value: Any) -> bool:
    """Say whether a tensor of a sample has one entry for each token; media are always fewer than the tokens of their sample."""
    return isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) == len(sample)


def merge_model_inputs(
    samples: Sequence[EncodedSample], *, packed: bool = False, pad_left: bool = False, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Return the processor's tensors of a batch.

    Args:
        samples: in the order of the rows, or of the pieces of a packed row; those of text alone may have no tensors.
        packed: put the samples behind one another in one row.
        pad_left: pad token inputs at the left, for generation.
        dtype: number type of the model, which pictures and sounds take on; times and sizes keep theirs.

    Returns:
        name -> tensor: token inputs `[batch, seq]` padded with 0, or `[1, tokens]` when packed; media `[all media, ...]`. Empty
        where no sample has any. `SampleMedia` become one `BatchMedia`.

    Raises:
        DataError: when tensors of one name do not go together.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample.model_inputs or {}))
    merged: dict[str, Any] = {}
    for name in names:
        found = [(sample, tensor) for sample in samples if (tensor := (sample.model_inputs or {}).get(name)) is not None]
        if isinstance(found[0][1], SampleMedia):
            merged[name] = _batch_media(samples, name, packed=packed, pad_left=pad_left, dtype=dtype)
            continue
        tokens = [is_token_input(sample, tensor) for sample, tensor in found]
        if all(tokens):
            merged[name] = _token_rows(samples, name, packed=packed, pad_left=pad_left)
        elif any(tokens) or len({tensor.ndim for _, tensor in found}) > 1:
            raise DataError(f"the samples {', '.join(sample.origin for sample, _ in found)} have different kinds of {name!r}")
        else:
            joined = _joined(name, [tensor for _, tensor in found])
            merged[name] = joined.to(dtype) if dtype is not None and joined.is_floating_point() and joined.ndim > 1 else joined
    return merged


def _batch_media(samples: Sequence[EncodedSample], name: str, *, packed: bool, pad_left: bool, dtype: torch.dtype | None) -> BatchMedia:
    if packed:
        raise DataError("rows of a model whose code lies in its folder cannot be packed with media", fix="--packing false")
    longest = max(map(len, samples))
    parts: list[SampleMedia] = []
    for sample in samples:
        media: SampleMedia = (sample.model_inputs or {}).get(name) or SampleMedia()
        media = media.shifted(longest - len(sample)) if pad_left else media
        parts.append(media.to(dtype) if dtype is not None else media)
    return BatchMedia(tuple(parts))


def _token_rows(samples: Sequence[EncodedSample], name: str, *, packed: bool, pad_left: bool) -> torch.Tensor:
    known = [(sample.model_inputs or {}).get(name) for sample in samples]
    dtype = next(value.dtype for value in known if value is not None)
    rows = [torch.zeros(len(sample), dtype=dtype) if value is None else value for sample, value in zip(samples, known, strict=True)]
    if packed:
        return torch.cat(rows)[None]
    longest = max(map(len, rows))
    return torch.stack([F.pad(row, (longest - len(row), 0) if pad_left else (0, longest - len(row))) for row in rows])


def _joined(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    if name == "pixel_values_videos" and tensors[0].ndim == 5 and len({tensor.shape[1] for tensor in tensors}) > 1:
        # Frames of zeros would be features without a placeholder.
        counts = sorted({tensor.shape[1] for tensor in tensors})
        raise DataError(
            f"videos of {counts[0]} and {counts[-1]} frames cannot share a batch of this model",
            fix=f"--max_frames {counts[0]}, or --per_device_train_batch_size 1",
        )
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded: list[torch.Tensor] = []
    for tensor in tensors:
        amounts = [after for size, wanted in reversed(list(zip(tensor.shape[1:], shape, strict=True))) for after in (0, wanted - size)]
        padded.append(F.pad(tensor, amounts) if any(amounts) else tensor)
    return torch.cat(padded)


def has_media(sample: EncodedSample) -> bool:
    """Say whether a sample has tensors of media, besides token inputs."""
    return any(not is_token_input(sample, value) for value in (sample.model_inputs or {}).values())


def with_dummy_media(samples: Sequence[EncodedSample], dummy: EncodedSample) -> list[EncodedSample]:
    """Return the samples, and the dummy behind them where none of them has media.

    Ranks must run the same modules in the same order, or they wait for one another for ever: the vision tower too, where a rank's
    batch is text alone. The dummy is a row like any other, with a tiny blank picture and no trained token. So model and
    wrappers need no special case, its loss is zero, and its gradient is a zero that is there.

    Args:
        samples: a batch of one rank.
        dummy: made by `ProcessorTemplate.dummy`.
    """
    return list(samples) if any(map(has_media, samples)) else [*samples, dummy]


def packed_position_ids(model: Any, samples: Sequence[EncodedSample]) -> torch.Tensor:
    """Return the positions of a packed row, each piece counted from 0.

    Models with rotary positions of three axes (Qwen-VL, GLM-4V) tell the positions of each piece themselves; before them
    stands a row of plain positions, from which transformers sees where pieces begin.

    Args:
        model: the unwrapped model.
        samples: the pieces, in order.

    Returns:
        `[1, tokens]`, or `[4, 1, tokens]` for positions of three axes.
    """
    plain = torch.cat([torch.arange(len(sample)) for sample in samples])[None]
    inner = next((part for part in (model, getattr(model, "model", None)) if hasattr(part, "get_rope_index")), None)
    if inner is None:
        return plain
    pieces = [_axes(inner, sample) for sample in samples]
    return torch.cat([plain[None], torch.cat(pieces, dim=-1).to(plain.dtype)])


def _axes(model: Any, sample: EncodedSample) -> torch.Tensor:
    if not has_media(sample):
        return torch.arange(len(sample)).expand(3, 1, -1)
    inputs = merge_model_inputs([sample])
    known = inspect.signature(model.get_rope_index).parameters
    ids = torch.tensor([sample.input_ids])
    return model.get_rope_index(ids, **{name: value for name, value in inputs.items() if name in known})[0]
