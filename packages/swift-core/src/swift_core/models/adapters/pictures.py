"""Images to tensors, for families whose folder holds no code for it. Pure, and without torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation of the red, green and blue that CLIP was trained on."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The same for ImageNet."""


def to_tensor(image: Image.Image, colors: tuple[Sequence[float], Sequence[float]]) -> torch.Tensor:
    """Return an image as `[3, height, width]`, each colour with the mean 0 and the deviation 1."""
    values = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(list(part))[:, None, None] for part in colors)
    return (values - mean) / deviation


def squared(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return an image in the middle of the smallest square around it."""
    edge = max(image.size)
    if image.size == (edge, edge):
        return image
    canvas = Image.new("RGB", (edge, edge), color)
    canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return canvas


def tile(image: Image.Image, edge: int, *, least: int = 1, most: int = 12, thumbnail: bool = True) -> list[Image.Image]:
    """Return an image cut into square tiles, row by row, in the grid whose shape is nearest to its own.

    Args:
        image: any size.
        edge: of a tile, in pixels.
        least: fewest tiles.
        most: most tiles.
        thumbnail: add the whole image as a last tile when there are several.
    """
    columns, rows = _grid(image, edge, least, most)
    wide = image.resize((columns * edge, rows * edge), Image.Resampling.BICUBIC)
    boxes = [(x * edge, y * edge, (x + 1) * edge, (y + 1) * edge) for y in range(rows) for x in range(columns)]
    found = [wide.crop(box) for box in boxes]
    return [*found, image.resize((edge, edge), Image.Resampling.BICUBIC)] if thumbnail and len(found) > 1 else found


def _grid(image: Image.Image, edge: int, least: int, most: int) -> tuple[int, int]:
    """Return columns and rows; of two grids of one shape the larger, once the image has half of its pixels."""
    grids = [(x, y) for x in range(1, most + 1) for y in range(1, most + 1) if least <= x * y <= most]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    shape = image.width / image.height
    best, gap = (1, 1), float("inf")
    for columns, rows in grids:
        apart = abs(shape - columns / rows)
        larger = image.width * image.height > 0.5 * edge * edge * columns * rows
        if apart < gap or (apart == gap and larger):
            best, gap = (columns, rows), apart
    return best
