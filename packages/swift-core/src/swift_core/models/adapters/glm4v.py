"""GLM-4V 9B: one image a conversation, which the model itself puts between `<|begin_of_image|>` and `<|end_of_image|>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Parts, Pictures, without
from swift_core.models.adapters.pictures import CLIP, to_tensor

_MARK = ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>")


class Glm4V(MediaAdapter):
    """`images` `[rows, 3, edge, edge]`; the model widens the three tokens of an image, and all its rows must have one."""

    most_images = 1

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        vision: Any = self.config.vision_config
        values: dict[str, Any] = vision if isinstance(vision, dict) else vision.to_dict()
        self.edge = int(values["image_size"])
        self.tokens = (self.edge // int(values["patch_size"]) // 2) ** 2
        self._mark = [self.token_id(token) for token in _MARK]

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Bring the image to the model's size."""
        first, middle, last = self._mark
        pixels = [to_tensor(image.resize((self.edge, self.edge), Image.Resampling.BICUBIC), CLIP) for image in images]
        return Pictures([[first, *[middle] * self.tokens, last] for _ in images], {"images": torch.stack(pixels)})

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Run rows with an image, then rows without, and put their logits together.

        Rows are padded on the right, where nothing that counts looks at the padding, so no mask is given: the model would
        widen one in training, and take it as widened in evaluation.
        """
        seen = [row for row, media in enumerate(call.media) if media.places]
        blind = [row for row, media in enumerate(call.media) if not media.places]
        narrow = torch.stack([without(call.input_ids[row], call.media[row].places, self._mark) for row in seen])
        output = own(input_ids=narrow, images=self._images(model, call), **call.rest)
        if blind:
            texts = own(input_ids=call.input_ids[blind], **call.rest).logits
            order = torch.tensor([*seen, *blind], device=texts.device).argsort()
            output.logits = torch.cat([output.logits, texts.to(output.logits.dtype)])[order]
            output.past_key_values = None
        return output

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method from the three tokens of each image."""
        narrow = torch.stack([without(row, media.places, self._mark) for row, media in zip(call.input_ids, call.media, strict=True)])
        return own(input_ids=narrow, attention_mask=torch.ones_like(narrow), images=self._images(model, call), **call.rest)

    def _images(self, model: Any, call: Call) -> torch.Tensor:
        return torch.cat(call.tensors("images")).to(model.dtype)
