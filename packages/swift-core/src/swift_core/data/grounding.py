"""Boxes and points of a row: checked, scaled to an image, and written into the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swift_core.data.values import Refused, as_object, kind_of
from swift_core.errors import DataError
from swift_core.protocols import Message

REF, BOX = "<ref-object>", "<bbox>"
_TAG = re.compile(r"<ref-object>|<bbox>")
_KEYS = ("ref", "bbox", "bbox_type", "image_id")
# Annotations often lie a rounding error beyond the edge; further out they belong to another image or another unit.
_SLACK = 0.01


@dataclass(frozen=True, slots=True)
class GroundingStyle:
    """How a model family writes references and boxes.

    Attributes:
        ref: text of a reference, with `{ref}`.
        box: text of a box, with `{x1}`, `{y1}`, `{x2}` and `{y2}`.
        point: text of a point, with `{x}` and `{y}`.
    """

    ref: str = "{ref}"
    box: str = "[({x1},{y1}),({x2},{y2})]"
    point: str = "({x},{y})"

    def write_box(self, numbers: Sequence[float]) -> str:
        """Return the text of a box of four numbers or a point of two."""
        shown = [int(number) if number == int(number) else number for number in numbers]
        if len(shown) == 2:
            return self.point.format(x=shown[0], y=shown[1])
        return self.box.format(x1=shown[0], y1=shown[1], x2=shown[2], y2=shown[3])


STYLES = {
    "default": GroundingStyle(),
    "json": GroundingStyle(box="[{x1}, {y1}, {x2}, {y2}]", point="[{x}, {y}]"),
    "qwen2_vl": GroundingStyle(
        ref="<|object_ref_start|>{ref}<|object_ref_end|>",
        box="<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
        point="<|box_start|>({x},{y})<|box_end|>",
    ),
    "internvl": GroundingStyle(ref="<ref>{ref}</ref>", box="<box>[[{x1}, {y1}, {x2}, {y2}]]</box>", point="<box>[[{x}, {y}]]</box>"),
}
"""Named styles; `json` is that of Qwen2.5-VL and later."""


def read_objects(value: Any, messages: Sequence[Message], images: int, what: str = "column 'objects'") -> dict[str, Any]:
    """Return grounding data with every key present, checked against the tags and the number of images.

    Raises:
        Refused: when it is malformed, or does not match the tags or images.
    """
    given = as_object(value, what)
    unknown = sorted(set(given) - set(_KEYS) - {"width", "height"})
    if unknown:
        raise Refused(f"{what} has the key {unknown[0]!r}", f"allowed keys: {', '.join(_KEYS)}")
    refs, boxes = _list(given, "ref", what), _list(given, "bbox", what)
    kind = given.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise Refused(f"'bbox_type' of {what} is {kind!r}", "write 'real' (pixels) or 'norm1' (0 to 1)")
    for number, ref in enumerate(refs, start=1):
        if not isinstance(ref, str) or not ref.strip():
            raise Refused(f"reference {number} of {what} is {'empty' if ref == '' else kind_of(ref)}, not a text")
    boxes = [_box(box, number, kind) for number, box in enumerate(boxes, start=1)]
    ids = _image_ids(_list(given, "image_id", what), len(boxes), images, what)
    _check_tags(messages, refs, boxes)
    return {"ref": refs, "bbox": boxes, "bbox_type": kind, "image_id": ids}


def _list(given: Mapping[str, Any], key: str, what: str) -> list[Any]:
    value = given.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(f"{key!r} of {what} is {kind_of(value)}, not a list")
    return value


def _box(box: Any, number: int, kind: str) -> list[float]:
    fix = "write [x1, y1, x2, y2] for a box or [x, y] for a point"
    if not isinstance(box, list) or len(box) not in (2, 4):
        raise Refused(f"box {number} is {box!r}, not a list of 4 or 2 numbers", fix)
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and x >= 0 for x in box):
        raise Refused(f"box {number} is {box!r}, not numbers from 0 up", fix)
    if len(box) == 4 and (box[2] < box[0] or box[3] < box[1]):
        raise Refused(f"box {number} is {box!r}: its second corner lies before the first", fix)
    if kind == "norm1" and max(box) > 1:
        raise Refused(f"box {number} is {box!r}, and 'bbox_type' norm1 means 0 to 1", "write 'bbox_type': 'real' for pixels")
    return box


def _image_ids(ids: list[Any], boxes: int, images: int, what: str) -> list[int]:
    if len(ids) > boxes:
        raise Refused(f"'image_id' of {what} has {len(ids)} entries for {boxes} boxes", "give one for each box")
    for index in ids:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < max(images, 1):
            raise Refused(f"'image_id' {index!r} of {what} is no image: there are {images}", "count the images from 0")
    if not images:
        raise Refused(f"{what} holds boxes or references, and the row has no image", "give the column 'images'")
    # Boxes without an image of their own belong to the first one.
    return [*ids, *[0] * (boxes - len(ids))]


def _check_tags(messages: Sequence[Message], refs: Sequence[Any], boxes: Sequence[Any]) -> None:
    texts = [str(message["content"]) for message in messages]
    for tag, things, name in ((REF, refs, "references"), (BOX, boxes, "boxes")):
        count = sum(text.count(tag) for text in texts)
        if count != len(things):
            raise Refused(f"{count} {tag} tags and {len(things)} {name}", f"write one {tag} for each entry of 'objects'")


def scale_boxes(
    objects: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
    *,
    norm_bbox: Literal["norm1000", "none"],
    resized: Sequence[tuple[int, int]] | None = None,
    origin: str = "",
) -> list[list[int]]:
    """Return the boxes of a sample as whole numbers.

    Args:
        objects: as in `Sample.objects`.
        sizes: width and height of each image as annotated.
        norm_bbox: `norm1000` gives thousandths of the image, `none` pixels.
        resized: for pixels, width and height of each image as the model sees it; default: `sizes`.
        origin: of the sample, for the error.

    Raises:
        DataError: when a box lies outside its image.
    """
    targets = resized or sizes
    scaled: list[list[int]] = []
    for number, (box, index) in enumerate(zip(objects["bbox"], objects["image_id"], strict=True), start=1):
        size = (1, 1) if objects["bbox_type"] == "norm1" else sizes[index]
        target = (1000, 1000) if norm_bbox == "norm1000" else targets[index]
        scaled.append([_scaled(x, size[axis % 2], target[axis % 2], number, origin) for axis, x in enumerate(box)])
    return scaled


def _scaled(value: float, size: int, target: int, number: int, origin: str) -> int:
    share = value / size
    if share > 1 + _SLACK:
        raise DataError(
            f"box {number} reaches to {value}, and the image ends at {size}",
            location=origin or None,
            fix="check 'image_id', and 'bbox_type' (real means pixels, norm1 means 0 to 1)",
        )
    return round(min(share, 1.0) * target)


def write_objects(
    messages: Sequence[Message], refs: Sequence[str], boxes: Sequence[Sequence[float]], style: GroundingStyle = STYLES["default"]
) -> list[Message]:
    """Return messages with every `<ref-object>` and `<bbox>` replaced by the next reference and box."""
    next_ref, next_box = iter(refs), iter(boxes)

    def text(match: re.Match[str]) -> str:
        return style.ref.format(ref=next(next_ref)) if match[0] == REF else style.write_box(next(next_box))

    return [
        {**message, "content": _TAG.sub(text, message["content"])} if isinstance(message["content"], str) else message
        for message in messages
    ]
