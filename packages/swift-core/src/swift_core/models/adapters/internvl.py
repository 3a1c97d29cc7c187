"""InternVL in its first form (`InternVLChatModel`): tiles of 448 pixels, and `<IMG_CONTEXT>` for each of their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Parts, Pictures
from swift_core.models.adapters.pictures import IMAGENET, tile, to_tensor


class InternVl(MediaAdapter):
    """`pixel_values` `[tiles, 3, edge, edge]` of all rows, and `image_flags`, 0 for the blank tile of a batch of text."""

    always = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        vision: Any = self.config.vision_config
        self.edge = int(getattr(self.config, "force_image_size", None) or vision.image_size)
        self.tokens = int((self.edge // int(vision.patch_size)) ** 2 * float(self.config.downsample_ratio) ** 2)
        self._context = self.token_id("<IMG_CONTEXT>")

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Cut the images into tiles."""
        pixels: list[torch.Tensor] = []
        texts: list[str] = []
        for image in images:
            tiles = self._tiles(image)
            pixels += [to_tensor(part, IMAGENET) for part in tiles]
            texts.append("<img>" + "<IMG_CONTEXT>" * (self.tokens * len(tiles)) + "</img>")
        return Pictures(list(texts), {"pixel_values": torch.stack(pixels)})

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        if not getattr(self.config, "dynamic_image_size", False):
            return [image.resize((self.edge, self.edge), Image.Resampling.BICUBIC)]
        least, most = (int(getattr(self.config, f"{name}_dynamic_patch", value)) for name, value in (("min", 1), ("max", 12)))
        return tile(image, self.edge, least=least, most=most, thumbnail=bool(getattr(self.config, "use_thumbnail", False)))

    def prepare(self, model: Any) -> Any:
        """Tell the model which token stands for a feature; it is no part of its config."""
        model.img_context_token_id = self._context
        return super().prepare(model)

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Call the model with the tiles of the batch, or with a blank one that no token stands for."""
        tiles = call.tensors("pixel_values")
        blank = torch.zeros((1, 3, self.edge, self.edge), device=call.input_ids.device)
        pixels = (torch.cat(tiles) if tiles else blank).to(model.dtype)
        flags = torch.full((len(pixels), 1), int(bool(tiles)), dtype=torch.long, device=pixels.device)
        return own(pixel_values=pixels, input_ids=call.input_ids, attention_mask=call.attention_mask, image_flags=flags, **call.rest)

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method."""
        tiles = call.tensors("pixel_values")
        pixels = torch.cat(tiles).to(model.dtype) if tiles else None
        return own(pixel_values=pixels, input_ids=call.input_ids, attention_mask=call.mask, **call.rest)
