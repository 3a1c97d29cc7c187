"""Yi-VL: LLaVA with images of 448 pixels in a square. Its code is on GitHub and not in its folder; see the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import CausalLMOutputWithPast

from swift_core.models.adapters.base import Call, MediaAdapter, Parts, Pictures, with_features, without
from swift_core.models.adapters.pictures import CLIP, squared, to_tensor
from swift_core.models.folder import read_json

# Stands for an image in the token ids that the model takes.
_IMAGE = -200


class YiVl(MediaAdapter):
    """`images` `[images, 3, edge, edge]`, in the order of the batch."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        vision = self._vision_config(parts.folder)
        self.edge = int(vision.get("image_size", 448))
        self.tokens = (self.edge // int(vision.get("patch_size", 14))) ** 2
        self._filler: int = self.tokenizer.unk_token_id if self.tokenizer.unk_token_id is not None else self.tokenizer.pad_token_id

    def _vision_config(self, folder: Path) -> dict[str, Any]:
        file = folder / str(getattr(self.config, "mm_vision_tower", "")) / "config.json"
        if not file.is_file() or file == folder / "config.json":
            return {}
        values = read_json(file)
        return values.get("vision_config") or values

    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Lay each image into a square of the mean colour."""
        mean = tuple(int(255 * value) for value in CLIP[0])
        color = (mean[0], mean[1], mean[2])
        size = (self.edge, self.edge)
        pixels = [to_tensor(squared(image, color).resize(size, Image.Resampling.BICUBIC), CLIP) for image in images]
        return Pictures([[self._filler] * self.tokens for _ in images], {"images": torch.stack(pixels)})

    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Run the language model on embeddings.

        The model's own `forward` does the same, but pads rows anew and cannot do so without labels.
        """
        features = model.encode_images(self._images(model, call))
        inner = model.get_model()
        embeds = with_features(inner.embed_tokens(call.input_ids), call, list(features))
        mask, positions = call.attention_mask, call.position_ids
        output = inner(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **call.rest)
        return CausalLMOutputWithPast(logits=model.lm_head(output[0]))

    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate with the model's own method, with one token for each image."""
        narrow = torch.stack([without(row, media.places, [_IMAGE]) for row, media in zip(call.input_ids, call.media, strict=True)])
        return own(narrow, attention_mask=torch.ones_like(narrow), images=self._images(model, call), **call.rest)

    def _images(self, model: Any, call: Call) -> torch.Tensor:
        return torch.cat(call.tensors("images")).to(model.dtype)
