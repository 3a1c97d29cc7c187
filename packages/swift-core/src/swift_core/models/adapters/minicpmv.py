"""MiniCPM-V from 2.5 on, and the images of MiniCPM-o.

The processor of the folder cuts an image into slices and tells the text that stands for it; the features of a slice take the
tokens between `<image>` and `</image>` or `<slice>` and `</slice>`. The model takes one dictionary, with lists of tensors in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from swift_core.models.adapters.base import Call, MediaAdapter, Pictures


class MiniCpmV(MediaAdapter):
    """Texts with `<unk>` for each feature; `pixel_values`, `tgt_sizes` and `image_bound` in lists, one entry a row."""

    always = True

    @cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        whole = (self._id("im_start_id", "<image>"), self._id("im_end_id", "</image>"))
        return [whole, (self._id("slice_start_id", "<slice>"), self._id("slice_end_id", "</slice>"))]

    def _id(self, name: str, token: str) -> int:
        found = getattr(self.tokenizer, name, None)
        return found if isinstance(found, int) else self.token_id(token)

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Return the processor's slices and placeholders."""
        processor: Any = self.needs("image_processor").image_processor
        output: Any = processor([list(images)], return_tensors="pt")
        write: Any = processor.get_slice_image_placeholder
        numbered = "image_idx" in inspect.signature(write).parameters
        sizes = output["image_sizes"][0]
        texts = [str(write(size, number) if numbered else write(size)) for number, size in enumerate(sizes)]
        slices = [torch.as_tensor(part) for part in output["pixel_values"][0]]
        return Pictures(list(texts), {"pixel_values": slices, "tgt_sizes": torch.as_tensor(output["tgt_sizes"][0])})

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Call the model with its dictionary."""
        data = {"input_ids": call.input_ids, "position_ids": call.position_ids, **self._media(model, call)}
        return own(data, attention_mask=call.attention_mask, **call.rest)

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method, which asks for the tokenizer."""
        rest = {name: value for name, value in call.rest.items() if name not in ("pad_token_id", "eos_token_id")}  # it sets these two
        media = self._media(model, call)
        return own(input_ids=call.input_ids, attention_mask=call.mask, tokenizer=self.tokenizer, **media, **rest)

    def _media(self, model: Any, call: Call) -> dict[str, Any]:
        none: list[Any] = []
        sizes = [media.tensors.get("tgt_sizes", none) for media in call.media]
        bounds = [self._image_bound(row, bool(media.places)) for row, media in zip(call.input_ids, call.media, strict=True)]
        return {
            "pixel_values": [media.tensors.get("pixel_values", none) for media in call.media],
            "tgt_sizes": sizes,
            "image_bound": bounds,
        }

    def _image_bound(self, ids: torch.Tensor, has_images: bool) -> torch.Tensor:
        """Return where the features of each slice begin and end, `[slices, 2]`."""
        if not has_images:
            return torch.zeros((0, 2), dtype=torch.long)
        starts = sum((ids == start for start, _ in self._bounds), torch.zeros_like(ids)).nonzero()[:, 0] + 1
        ends = sum((ids == end for _, end in self._bounds), torch.zeros_like(ids)).nonzero()[:, 0]
        count = min(len(starts), len(ends))
        return torch.stack([starts[:count], ends[:count]], dim=1)
