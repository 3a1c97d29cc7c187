"""Phi-3-vision and Phi-3.5-vision: negative token ids stand for the features of an image, -1 for those of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Parts, Pictures


class Phi3Vision(MediaAdapter):
    """`pixel_values` `[images, crops, 3, edge, edge]` and `image_sizes` `[images, 2]`, in the order of the batch."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        unknown: Any = self.tokenizer.unk_token_id
        self._filler: int = unknown if unknown is not None else self.tokenizer.pad_token_id

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Let the image processor cut the images and count their tokens."""
        output: Any = self.needs("image_processor").image_processor(list(images), return_tensors="pt")
        tensors = {name: torch.as_tensor(output[name]) for name in ("pixel_values", "image_sizes")}
        return Pictures([[self._filler] * int(count) for count in output["num_img_tokens"]], tensors)

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Call the model with negative ids in the places of images."""
        return own(input_ids=self._ids(call), attention_mask=call.attention_mask, **self._media(model, call), **call.rest)

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method."""
        return own(input_ids=self._ids(call), attention_mask=call.mask, **self._media(model, call), **call.rest)

    def _ids(self, call: Call) -> torch.Tensor:
        ids = call.input_ids.clone()
        for number, (row, start, stop) in enumerate(call.pictures, 1):
            ids[row, start:stop] = -number
        return ids

    def _media(self, model: Any, call: Call) -> dict[str, torch.Tensor]:
        pixels, sizes = call.tensors("pixel_values"), call.tensors("image_sizes")
        return {"pixel_values": torch.cat(pixels).to(model.dtype), "image_sizes": torch.cat(sizes)}
