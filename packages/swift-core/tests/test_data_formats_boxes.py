"""Boxes from a row to the tokens of a multimodal model."""

import pytest
import torch
from swift_core.config.sections import MediaSection, TemplateSection
from swift_core.data.formats import to_sample
from swift_core.data.media import MediaLoader
from swift_core.errors import TemplateError
from swift_core.models.loading import load_processor
from swift_core.templates.grounding import with_boxes
from swift_core.templates.media import MarkedMedia, ProcessorTemplate, build_processor_template
from swift_core.testing.tiny_multimodal import make_picture, make_tiny_multimodal


@pytest.fixture
def folder(media_models):
    return media_models


def template_of(kind, folder, **media):
    if not (folder / kind).is_dir():
        make_tiny_multimodal(kind, folder / kind)
    processor = load_processor(folder / kind, trust_remote_code=False)
    template = build_processor_template(processor, TemplateSection(), MediaSection(**media))
    assert isinstance(template, ProcessorTemplate)
    return template


def sample_of(folder, box, **objects):
    picture = make_picture(folder, "picture.png", size=(112, 56))
    row = {
        "messages": [{"role": "user", "content": "Find <ref-object>"}, {"role": "assistant", "content": "<bbox>"}],
        "images": [str(picture)],
        "objects": {"ref": ["the cat"], "bbox": [box], **objects},
    }
    return to_sample(row, "rows.jsonl:7")


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        ({}, "[(250,250),(500,1000)]"),
        ({"bbox_format": "json"}, "[250, 250, 500, 1000]"),
        ({"bbox_format": "internvl"}, "<box>[[250, 250, 500, 1000]]</box>"),
        ({"norm_bbox": "none"}, "[(28,14),(56,56)]"),
        ({"norm_bbox": "none", "max_pixels": 1568}, "[(14,7),(28,28)]"),
        ({"max_pixels": 1568}, "[(250,250),(500,1000)]"),
    ],
)
def test_boxes_reach_the_trained_tokens(folder, media, expected):
    template = template_of("llava", folder, **media)
    marked = template.mark(sample_of(folder, [28, 14, 56, 56]))
    assert isinstance(marked, MarkedMedia)
    assert "the cat" in marked.text
    assert "<bbox>" not in marked.text
    assert "<ref-object>" not in marked.text
    trained = [token for token, label in zip(marked.encoded.input_ids, marked.encoded.labels, strict=True) if label != -100]
    assert expected in template.tokenizer.decode(trained)


def test_a_prompt_has_its_references_too(folder):
    template = template_of("llava", folder)
    sample = sample_of(folder, [28, 14, 56, 56])
    assert "Find the cat" in template.tokenizer.decode(template.encode_media_prompt(sample).input_ids)
    assert sample.objects is not None
    assert "<ref-object>" in sample.messages[0]["content"]


def test_a_box_outside_of_its_image_is_a_bad_row(folder):
    with pytest.raises(TemplateError, match=r"rows.jsonl:7: box 1 reaches to 300, and the image ends at 112"):
        template_of("llava", folder).mark(sample_of(folder, [0, 0, 300, 20]))


class Grid:
    """An image processor that cuts every image into 5 x 9 patches of 14 pixels, and wants to be asked in the right way."""

    patch_size = 14

    def __call__(self, images, size, return_tensors):
        assert (len(images), size, return_tensors) == (1, {"shortest_edge": 1}, "pt")
        return {"image_grid_thw": torch.tensor([[1, 5, 9]])}


@pytest.mark.parametrize(
    ("name", "media", "expected"),
    [
        ("Qwen2VLProcessor", {}, "<|box_start|>(250,250),(500,1000)<|box_end|>"),
        ("Qwen2_5_VLProcessor", {}, "[32, 18, 63, 70]"),
        ("Qwen2_5_VLProcessor", {"norm_bbox": "norm1000", "bbox_format": "qwen2_vl"}, "<|box_start|>(250,250),(500,1000)<|box_end|>"),
        ("Qwen3VLProcessor", {}, "[250, 250, 500, 1000]"),
        ("InternVLProcessor", {}, "<box>[[250, 250, 500, 1000]]</box>"),
        ("OtherProcessor", {}, "[(250,250),(500,1000)]"),
    ],
)
def test_each_family_has_its_own_unit_and_form(folder, name, media, expected):
    processor = type(name, (), {"image_processor": Grid()})()
    loader = MediaLoader(MediaSection(**media))
    written = with_boxes(sample_of(folder, [28, 14, 56, 56]), processor, loader, {"size": {"shortest_edge": 1}})
    assert written.messages[1]["content"] == expected
    assert (written.objects, written.images[0].size) == (None, (112, 56))


def test_rows_without_boxes_are_left_alone(folder):
    sample = to_sample({"query": "<image>q", "response": "<bbox> is a tag", "images": ["none.png"]}, "f:1")
    assert with_boxes(sample, None, MediaLoader(MediaSection()), {}) is sample
