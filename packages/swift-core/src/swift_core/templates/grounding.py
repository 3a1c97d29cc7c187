"""Boxes and references of a sample in the form that a model family writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from swift_core.data.grounding import STYLES, scale_boxes, write_objects
from swift_core.data.media import MediaLoader
from swift_core.models.adapters.base import MediaAdapter
from swift_core.protocols import Sample

_FAMILIES: dict[str, tuple[Literal["norm1000", "none"], str]] = {
    "Qwen2VLProcessor": ("norm1000", "qwen2_vl"),
    "Qwen2_5_VLProcessor": ("none", "json"),
    "Qwen3VLProcessor": ("norm1000", "json"),
    "InternVLProcessor": ("norm1000", "internvl"),
}


def with_boxes(sample: Sample, processor: Any, loader: MediaLoader, bounds: Mapping[str, Any]) -> Sample:
    """Return a sample with its `<ref-object>` and `<bbox>` tags written out, and its images read.

    Args:
        sample: any sample; one without grounding data is returned as it is.
        processor: of the model; decides unit and form of the boxes where the settings do not.
        loader: reads the images.
        bounds: arguments with which the image processor is called.

    Raises:
        DataError: when an image cannot be read, or a box lies outside of it.
    """
    if sample.objects is None:
        return sample
    section = loader.section
    # Boxes are annotated on the picture as it is in the file, before any resizing.
    whole = MediaLoader(section.model_copy(update={"max_pixels": None, "min_pixels": None}), allow_local=loader.allow_local)
    images = [whole.image(source, sample.origin) for source in sample.images]
    norm, style = _FAMILIES.get(type(processor).__name__, ("norm1000", "default"))
    norm = section.norm_bbox or norm
    seen = seen_sizes([loader.image(image, sample.origin) for image in images], processor, bounds) if norm == "none" else None
    boxes = scale_boxes(sample.objects, [image.size for image in images], norm_bbox=norm, resized=seen, origin=sample.origin)
    messages = write_objects(sample.messages, sample.objects["ref"], boxes, STYLES[section.bbox_format or style])
    return replace(sample, messages=messages, images=images, objects=None)


def seen_sizes(images: Sequence[Image.Image], processor: Any, bounds: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return width and height of each image in the pixels that the model sees.

    Processors with a grid of patches resize every image to a whole number of them; for others it is the image as given.
    """
    if isinstance(processor, MediaAdapter):
        return [image.size for image in images]
    part: Any = processor.image_processor
    sizes: list[tuple[int, int]] = []
    for image in images:
        grid: Any = dict(part(images=[image], return_tensors="pt", **bounds)).get("image_grid_thw")
        patch: Any = getattr(part, "patch_size", None)
        _, high, wide = grid[0].tolist() if grid is not None and isinstance(patch, int) else (0, 0, 0)
        sizes.append((wide * patch, high * patch) if wide else image.size)
    return sizes
