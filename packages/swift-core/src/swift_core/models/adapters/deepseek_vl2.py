"""DeepSeek-VL2: a view of the whole image and tiles of it, all tokens of which are `<image>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Pictures


class DeepSeekVl2(MediaAdapter):
    """`images` `[batch, views, 3, edge, edge]`, `images_spatial_crop` `[batch, images, 2]`, `images_seq_mask` `[batch, seq]`."""

    always = True  # the whole model does not generate

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Let the processor lay the images out; more than two are not cut into tiles."""
        processor: Any = self.needs("tokenize_with_images")
        text = processor.image_token * len(images)
        ids, views, _, crop, counts = processor.tokenize_with_images(text, list(images), bos=False, eos=False, cropping=len(images) <= 2)
        ends = list(accumulate(map(int, counts), initial=0))
        tensors = {"images": torch.stack(list(views)), "images_spatial_crop": torch.tensor(crop, dtype=torch.long)}
        return Pictures([[int(id_) for id_ in ids[start:stop]] for start, stop in pairwise(ends)], tensors)

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Call the model with the views of the rows, padded to the most views of a row."""
        return own(input_ids=call.input_ids, attention_mask=call.attention_mask, **self._media(model, call), **call.rest)

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the language model, from the embeddings that the whole model makes."""
        embeds = model.prepare_inputs_embeds(input_ids=call.input_ids, **self._media(model, call))
        return model.language.generate(inputs_embeds=embeds, attention_mask=call.mask, **call.rest)

    def _media(self, model: Any, call: Call) -> dict[str, torch.Tensor]:
        if not call.pictures:
            return {}
        images, crops = call.tensors("images"), call.tensors("images_spatial_crop")
        views, pictures = max(map(len, images)), max(map(len, crops))
        none, whole = images[0].new_zeros((0, *images[0].shape[1:])), crops[0].new_zeros((0, 2))
        seen = torch.zeros_like(call.input_ids, dtype=torch.bool)
        for row, start, stop in call.pictures:
            seen[row, start:stop] = True
        seen_views = [_padded(media.tensors.get("images", none), views) for media in call.media]
        tiles = [_padded(media.tensors.get("images_spatial_crop", whole), pictures) for media in call.media]
        return {"images": torch.stack(seen_views).to(model.dtype), "images_spatial_crop": torch.stack(tiles), "images_seq_mask": seen}


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Return a tensor with zeros behind it, up to a length of the first axis."""
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, length - len(tensor)])
