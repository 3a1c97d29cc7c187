"""InternLM-XComposer 2.5: the model embeds images itself, and layers of their own look at them (`im_mask`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Parts, Pictures, with_features
from swift_core.models.adapters.code import own_function
from swift_core.models.adapters.pictures import CLIP, to_tensor

# A tile of an image has 560 pixels at each side, and 20 lines of 20 features.
_EDGE, _LINE = 560, 20
# Most tiles of the only image of a conversation, and of one of several.
_ONE, _SEVERAL = 24, 6


class XComposer(MediaAdapter):
    """An image is cut by `Image_transform` of the folder, embedded by `encode_img` of the model."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._transform: Any = own_function(parts.folder, "ixc_utils.Image_transform")
        unknown: Any = self.tokenizer.unk_token_id
        self._filler: int = unknown if unknown is not None else self.tokenizer.pad_token_id

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Cut the images; several of them get fewer tiles each, as in the model's own chat."""
        most = _ONE if len(images) == 1 else _SEVERAL
        pixels = [to_tensor(self._transform(image, hd_num=most), CLIP) for image in images]
        return Pictures([[self._filler] * self._count(pixel) for pixel in pixels], {"images": pixels})

    def _count(self, pixels: torch.Tensor) -> int:
        """Return the features of an image: of its tiles and of a view of the whole, with one behind each line and between both."""
        rows, columns = (size // _EDGE for size in pixels.shape[-2:])
        return (rows * columns + 1) * _LINE**2 + 1 + (rows + 1) * _LINE

    def prepare(self, model: Any) -> Any:
        """Give the model its tokenizer, which its own methods use."""
        model.tokenizer = self.tokenizer
        return super().prepare(model)

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Call the model with embeddings."""
        embeds, seen = self._embedded(model, call)
        return own(inputs_embeds=embeds, attention_mask=call.attention_mask, im_mask=seen, **call.rest)

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method from embeddings."""
        embeds, seen = self._embedded(model, call)
        return own(inputs_embeds=embeds, attention_mask=call.mask, im_mask=seen, **call.rest)

    def _embedded(self, model: Any, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = [image for row in call.media for image in row.tensors.get("images", ())]
        features = [model.encode_img(image[None].to(model.dtype))[0] for image in pictures]
        embeds = with_features(model.model.tok_embeddings(call.input_ids), call, features)
        seen = torch.zeros_like(call.input_ids, dtype=torch.bool)
        for row, start, stop in call.pictures:
            seen[row, start:stop] = True
        return embeds, seen
