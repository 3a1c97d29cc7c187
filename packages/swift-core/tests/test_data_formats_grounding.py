"""Boxes and references: read, scaled, written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swift_core.data.formats import to_sample
from swift_core.data.grounding import STYLES, scale_boxes, write_objects
from swift_core.errors import DataError

FIND = {"role": "user", "content": "<image>Find <ref-object>"}
FOUND = {"role": "assistant", "content": "<bbox> and <bbox>"}
OBJECTS = {"ref": ["the cat"], "bbox": [[10, 20, 30, 40], [5, 6]]}


def row(**changes):
    return {"messages": [FIND, FOUND], "images": ["x.png"], "objects": {**OBJECTS, **changes}}


def test_rows():
    sample = to_sample(row(), "f:1")
    assert sample.objects == {**OBJECTS, "bbox_type": "real", "image_id": [0, 0]}
    assert sample.messages == [FIND, FOUND]
    assert sample.extra == {}


def test_objects_as_json_and_with_an_image_for_each_box():
    text = '{"ref": ["the cat"], "bbox": [[0.1, 0.2, 0.3, 0.4], [1, 1]], "bbox_type": "norm1", "image_id": [1]}'
    sample = to_sample(
        {"messages": [{**FIND, "content": "<image><image>Find <ref-object>"}, FOUND], "images": ["x", "y"], "objects": text}, "f:1"
    )
    assert (sample.objects["bbox_type"], sample.objects["image_id"]) == ("norm1", [1, 0])


def test_a_column_of_that_name_without_boxes_is_left_alone():
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "objects": ["table"]}
    assert to_sample(plain, "f:1").extra == {"objects": ["table"]}


def test_both_answers_of_a_pair_have_their_boxes():
    pair = {**row(bbox=[[1, 2]]), "messages": [FIND, {"role": "assistant", "content": "<bbox>"}], "rejected_response": "<bbox><bbox>"}
    sample = to_sample({**pair, "rejected_objects": {"ref": ["the cat"], "bbox": [[1, 2], [3, 4]]}}, "f:1", task="preference")
    assert (sample.objects["bbox"], sample.rejected.objects["bbox"]) == ([[1, 2]], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, "2 <bbox> tags and 1 boxes"),
        ({"ref": []}, "1 <ref-object> tags and 0 references"),
        ({"ref": [""]}, "reference 1 of column 'objects' is empty"),
        ({"bbox": [[1, 2, 3], [1, 2]]}, r"box 1 is \[1, 2, 3\], not a list of 4 or 2 numbers"),
        ({"bbox": [[1, 2], [5, 5, 1, 9]]}, "box 2 is .* second corner lies before the first"),
        ({"bbox": [[1, -2], [1, 2]]}, "box 1 is .*not numbers from 0 up"),
        ({"bbox_type": "norm1"}, "box 1 is .*norm1 means 0 to 1"),
        ({"bbox_type": "px"}, "'bbox_type' of column 'objects' is 'px'"),
        ({"image_id": [2]}, "'image_id' 2 of column 'objects' is no image: there are 1"),
        ({"image_id": [0, 0, 0]}, "3 entries for 2 boxes"),
        ({"category": ["x"]}, "has the key 'category' .*allowed keys: ref"),
    ],
)
def test_reasons(changes, reason):
    with pytest.raises(DataError, match=f"(?s)^f:3: .*{reason}"):
        to_sample(row(**changes), "f:3")


def test_boxes_need_an_image():
    with pytest.raises(DataError, match="holds boxes or references, and the row has no image"):
        to_sample({"query": "Find it", "response": "<bbox>", "objects": {"bbox": [[1, 2]]}}, "f:1")


@pytest.mark.parametrize(
    ("kind", "norm", "resized", "expected"),
    [
        ("real", "norm1000", None, [[50, 200, 150, 400], [25, 60]]),
        ("real", "none", None, [[10, 20, 30, 40], [5, 6]]),
        ("real", "none", [(400, 50)], [[20, 10, 60, 20], [10, 3]]),
        ("real", "norm1000", [(400, 50)], [[50, 200, 150, 400], [25, 60]]),
    ],
)
def test_scaling(kind, norm, resized, expected):
    objects = {**OBJECTS, "bbox_type": kind, "image_id": [0, 0]}
    assert scale_boxes(objects, [(200, 100)], norm_bbox=norm, resized=resized) == expected


def test_scaling_of_shares_and_of_the_second_image():
    objects = {"ref": [], "bbox": [[0.5, 0.25], [0.5, 0.25]], "bbox_type": "norm1", "image_id": [0, 1]}
    assert scale_boxes(objects, [(200, 100), (80, 40)], norm_bbox="none") == [[100, 25], [40, 10]]
    assert scale_boxes(objects, [(200, 100), (80, 40)], norm_bbox="norm1000") == [[500, 250], [500, 250]]


def test_boxes_outside_of_the_image():
    objects = {"ref": [], "bbox": [[0, 0, 201, 100]], "bbox_type": "real", "image_id": [0]}
    assert scale_boxes(objects, [(200, 100)], norm_bbox="norm1000") == [[0, 0, 1000, 1000]]  # a rounding error
    with pytest.raises(DataError, match="box 1 reaches to 201, and the image ends at 150"):
        scale_boxes(objects, [(150, 100)], norm_bbox="norm1000")


@given(st.integers(1, 5000), st.integers(1, 5000), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_thousandths_are_ordered_and_within_bounds(width, height, shares):
    x1, x2 = sorted(shares[:2])
    y1, y2 = sorted(shares[2:])
    box = [x1 * width, y1 * height, x2 * width, y2 * height]
    objects = {"ref": [], "bbox": [box], "bbox_type": "real", "image_id": [0]}
    (a, b, c, d) = scale_boxes(objects, [(width, height)], norm_bbox="norm1000")[0]
    assert 0 <= a <= c <= 1000
    assert 0 <= b <= d <= 1000


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("default", ["<image>Find the cat", "[(1,2),(3,4)] and (5,6)"]),
        ("json", ["<image>Find the cat", "[1, 2, 3, 4] and [5, 6]"]),
        (
            "qwen2_vl",
            [
                "<image>Find <|object_ref_start|>the cat<|object_ref_end|>",
                "<|box_start|>(1,2),(3,4)<|box_end|> and <|box_start|>(5,6)<|box_end|>",
            ],
        ),
        ("internvl", ["<image>Find <ref>the cat</ref>", "<box>[[1, 2, 3, 4]]</box> and <box>[[5, 6]]</box>"]),
    ],
)
def test_writing(style, expected):
    written = write_objects([FIND, FOUND], ["the cat"], [[1, 2, 3, 4], [5, 6.0]], STYLES[style])
    assert [message["content"] for message in written] == expected
    assert FOUND["content"] == "<bbox> and <bbox>"


def test_braces_in_a_reference_are_text():
    assert write_objects([FIND], ["{x1} {ref}"], [])[0]["content"] == "<image>Find {x1} {ref}"
