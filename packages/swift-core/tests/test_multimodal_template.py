"""Token ids, tensors and loss masks of multimodal samples, for every architecture whose processor can be made here."""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from swift_core.config.sections import MediaSection, TemplateSection
from swift_core.errors import TemplateError
from swift_core.models.loading import load_processor
from swift_core.protocols import Message, Sample
from swift_core.templates.expansion import read_replacements, widen
from swift_core.templates.media import ProcessorTemplate, build_processor_template, is_multimodal
from swift_core.testing.tiny_multimodal import AUDIO_KINDS, VIDEO_KINDS, available_kinds, make_picture, make_tiny_multimodal

KINDS = available_kinds()
CONVERSATION = [
    ("user", "<medium>Who is this?"),
    ("assistant", "A red square."),
    ("user", "And what are these?<medium>\n<medium>"),
    ("assistant", "Two of them, I think."),
]


@pytest.fixture
def folder(media_models: Path) -> Path:
    return media_models


@cache
def plain_template(kind: str, folder: Path) -> ProcessorTemplate:
    return template_of(kind, folder)


def template_of(kind: str, folder: Path, media: MediaSection | None = None, **settings: Any) -> ProcessorTemplate:
    if not (folder / kind).is_dir():
        make_tiny_multimodal(kind, folder / kind)
    processor = load_processor(folder / kind, trust_remote_code=False)
    made = build_processor_template(processor, TemplateSection(**settings), media)
    assert isinstance(made, ProcessorTemplate)
    return made


def tone(folder: Path, name: str, seconds: float) -> Path:
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.sin(np.arange(int(16000 * seconds)) / 9) * 9000).astype("<i2").tobytes())
    return folder / name


def sources(kind: str, folder: Path) -> tuple[str, list[str]]:
    if kind in AUDIO_KINDS:
        return "audio", [str(tone(folder, f"{number}.wav", 0.2 + 0.1 * number)) for number in range(3)]
    sizes = ((48, 40), (70, 30), (33, 64))
    return "image", [str(make_picture(folder, f"{number}.png", size=size)) for number, size in enumerate(sizes)]


def sample_of(kind: str, folder: Path) -> Sample:
    medium, paths = sources(kind, folder)
    messages = [Message(role=role, content=text.replace("<medium>", f"<{medium}>")) for role, text in CONVERSATION]
    return Sample(messages, origin="rows.json:1", **{f"{medium}s": paths})  # pyright: ignore[reportArgumentType]


def as_parts(sample: Sample, template: ProcessorTemplate) -> list[dict[str, Any]]:
    """Write a sample the way transformers documents it for `processor.apply_chat_template`."""
    images, audios = iter(sample.images), iter(sample.audios)
    turns: list[dict[str, Any]] = []
    for message in sample.messages:
        parts: list[dict[str, Any]] = []
        for piece in message["content"].replace("<image>", "\0<image>\0").replace("<audio>", "\0<audio>\0").split("\0"):
            if piece == "<image>":
                parts.append({"type": "image", "path": next(images)})
            elif piece == "<audio>":
                parts.append({"type": "audio", "audio": template.loader.audio(next(audios), sampling_rate=16000)})
            elif piece:
                parts.append({"type": "text", "text": piece})
        turns.append({"role": message["role"], "content": parts})
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_and_tensors_are_those_of_the_processor(kind: str, folder: Path) -> None:
    template = plain_template(kind, folder)
    sample = sample_of(kind, folder)
    encoded = template.encode(sample)
    own: Any = template.processor.apply_chat_template(as_parts(sample, template), tokenize=True, return_dict=True, return_tensors="pt")
    expected: list[int] = own["input_ids"][0].tolist()
    # Where the template ends the last answer with nothing, the end-of-sequence token is added, so that the model learns to stop.
    assert encoded.input_ids[: len(expected)] == expected
    assert encoded.input_ids[len(expected) :] in ([], [template.tokenizer.eos_token_id])
    inputs = encoded.model_inputs or {}
    assert set(inputs) == set(own) - {"input_ids", "attention_mask"}
    for name, value in inputs.items():
        if name in template.token_inputs:
            assert value.tolist()[: len(expected)] == own[name][0].tolist()
        else:
            assert torch.equal(value, own[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_alone_are_trained(kind: str, folder: Path) -> None:
    template = plain_template(kind, folder)
    encoded = template.encode(sample_of(kind, folder))
    trained = [id_ for id_, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    assert all(label in (-100, id_) for id_, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert not set(trained) & template.placeholder_ids
    text = template.tokenizer.decode(trained)
    for word in template.stop_words:
        text = text.replace(word, "|")
    assert " ".join(text.replace("|", " ").split()) == "A red square. Two of them, I think."
    assert trained[-1] in template.stop_token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_of_a_generation_is_the_beginning_of_the_training_sample(kind: str, folder: Path) -> None:
    template = plain_template(kind, folder)
    sample = sample_of(kind, folder)
    encoded = template.encode(sample)
    prompt = template.encode_media_prompt(Sample(sample.messages[:3], images=sample.images, audios=sample.audios))
    assert encoded.input_ids[: len(prompt)] == prompt.input_ids
    assert set(prompt.labels) == {-100}
    first = next(at for at in range(len(prompt) - 1, len(encoded)) if encoded.labels[at] != -100)
    assert first == len(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_media_is_encoded_as_the_processor_does(kind: str, folder: Path) -> None:
    template = plain_template(kind, folder)
    sample = Sample([Message(role="user", content="Hello <b>there</b>"), Message(role="assistant", content="Good day.")])
    encoded = template.encode(sample)
    own: Any = template.processor.apply_chat_template(as_parts(sample, template), tokenize=True, return_dict=True)
    expected: list[int] = list(own["input_ids"][0])
    assert encoded.input_ids[: len(expected)] == expected
    assert set(encoded.model_inputs or {}) == set(template.token_inputs)
    prompt = template.encode_prompt(sample.messages[:1])
    assert encoded.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in VIDEO_KINDS and kind != "smolvlm"])
def test_videos_and_images_in_several_turns(kind: str, folder: Path) -> None:
    frames = [Image.new("RGB", (60, 44), (30 * number, 60, 90)) for number in range(6)]
    template = template_of(kind, folder, MediaSection(fps=2.0))
    messages: list[Message] = [
        {"role": "user", "content": "<video>What moves?"},
        {"role": "assistant", "content": "A red square."},
        {"role": "user", "content": "<image> and <video>?"},
        {"role": "assistant", "content": "Both."},
    ]
    picture = str(make_picture(folder, "v.png"))
    encoded = template.encode(Sample(messages, images=[picture], videos=[frames, frames]))
    array = np.stack([np.asarray(frame) for frame in frames])
    video = {"type": "video", "video": array}
    turns = [
        {"role": "user", "content": [video, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]},
        {
            "role": "user",
            "content": [{"type": "image", "path": picture}, {"type": "text", "text": " and "}, video, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Both."}]},
    ]
    told = [{"total_num_frames": 6, "fps": 2.0, "frames_indices": list(range(6)), "height": 44, "width": 60} for _ in range(2)]
    own: Any = template.processor.apply_chat_template(
        turns,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": False, "video_metadata": told},
    )
    assert encoded.input_ids == own["input_ids"][0].tolist()
    trained = [id_ for id_, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    assert template.tokenizer.decode(trained, skip_special_tokens=True) == "A red square.Both."


BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("<image>Who?", {"images": ["nothing.png"]}, "there is no file"),
    ("<image>Who?", {"images": [b"no picture"]}, "not an image"),
    ("<image><image>Who?", {"images": [Image.new("RGB", (9, 9))]}, "2 times"),
    ("Who?", {"images": [Image.new("RGB", (9, 9))]}, "place for 0 of 1 images"),
    ("Look: <image>", {}, "stands for images"),
    ("<audio>Who?", {"audios": [np.zeros(800, np.float32)]}, "takes no audios"),
    ("<video>Who?", {"videos": [[Image.new("RGB", (9, 9))]]}, "takes no videos"),
]


@pytest.mark.parametrize(("text", "media", "reason"), BAD_ROWS)
def test_rows_that_cannot_be_used_say_why(text: str, media: dict[str, Any], reason: str, folder: Path) -> None:
    template = template_of("llava", folder)
    sample = Sample([Message(role="user", content=text), Message(role="assistant", content="So.")], origin="rows.json:3", **media)
    with pytest.raises(TemplateError, match=reason) as caught:
        template.mark(sample)
    assert str(caught.value).startswith("rows.json:3: ")
    assert caught.value.fix


def test_a_tag_of_another_kind_is_plain_text(folder: Path) -> None:
    template = template_of("llava", folder)
    messages: list[Message] = [{"role": "user", "content": "<image>Is <video> an element?"}, {"role": "assistant", "content": "Yes."}]
    encoded = template.encode(Sample(messages, images=[Image.new("RGB", (30, 30))]))
    assert "Is <video> an element?" in template.tokenizer.decode(encoded.input_ids)


def test_a_cut_never_parts_media_from_their_placeholders(folder: Path) -> None:
    template = template_of("gemma3", folder)
    encoded = template.encode(sample_of("gemma3", folder))
    places = [at for at, id_ in enumerate(encoded.input_ids) if id_ in template.placeholder_ids]
    shorter = template.cut(encoded, 0, places[-1] + 1)
    assert shorter is not None
    assert len(shorter) == places[-1] + 1
    assert len((shorter.model_inputs or {})["token_type_ids"]) == len(shorter)
    assert template.cut(encoded, 0, places[-1]) is None
    assert template.cut(encoded, places[0] + 1, len(encoded)) is None
    assert template.cut(encoded, places[0], len(encoded)) is not None


def test_max_pixels_bounds_what_the_processor_sees(folder: Path) -> None:
    sample = Sample(
        [Message(role="user", content="<image>Who?"), Message(role="assistant", content="It.")], images=[Image.new("RGB", (112, 112))]
    )
    sizes = [
        (template_of("llava_next", folder, section).encode(sample).model_inputs or {})["image_sizes"].tolist()
        for section in (None, MediaSection(max_pixels=28 * 28))
    ]
    assert sizes == [[[112, 112]], [[28, 28]]]


@pytest.mark.skipif("qwen2_vl" not in KINDS, reason="torchvision is not installed")
def test_pixel_bounds_go_to_a_processor_that_has_its_own(folder: Path) -> None:
    sample = Sample(
        [Message(role="user", content="<image>Who?"), Message(role="assistant", content="It.")], images=[Image.new("RGB", (400, 400))]
    )
    grids = [
        (template_of("qwen2_vl", folder, section).encode(sample).model_inputs or {})["image_grid_thw"].prod().item()
        for section in (MediaSection(max_pixels=28 * 28 * 4), None, MediaSection(max_pixels=28 * 28 * 30))
    ]
    assert grids[0] < grids[1] < grids[2]
    assert grids[0] <= 16


def test_joined_texts_take_media_too(folder: Path) -> None:
    template = template_of("llava", folder, use_chat_template=False, loss_scale="all")
    encoded = template.encode(
        Sample([Message(role="assistant", content="A picture: <image> of a dog.")], images=[Image.new("RGB", (30, 30))])
    )
    trained = [id_ for id_, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    assert template.tokenizer.decode(trained[:-1]) == "A picture:  of a dog."
    assert trained[-1] == template.tokenizer.eos_token_id
    assert sum(id_ in template.placeholder_ids for id_ in encoded.input_ids) == 4


def test_a_template_that_takes_texts_only_gets_the_placeholder(folder: Path) -> None:
    template = template_of("llava", folder, template="chatml")
    encoded = template.encode(
        Sample([Message(role="user", content="<image>Who?"), Message(role="assistant", content="It.")], images=[Image.new("RGB", (30, 30))])
    )
    text = template.tokenizer.decode(encoded.input_ids)
    assert "<image><image><image><image>Who?<|im_end|>" in text
    assert template.processor.chat_template == template.tokenizer.chat_template


def test_a_tokenizer_alone_is_no_processor(folder: Path) -> None:
    template = template_of("llava", folder)
    assert is_multimodal(template.processor)
    assert not is_multimodal(template.tokenizer)


def test_replacements_are_read_back_from_tokens(folder: Path) -> None:
    template = template_of("gemma3", folder)
    text = "<start_of_image>one\n<start_of_image> two"
    wide = "\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n"
    expanded, _ = widen(text, [], [((0, 16), wide), ((20, 36), wide)])
    ids = template.tokenizer(expanded, add_special_tokens=False)["input_ids"]
    found = read_replacements(text, ids, template.tokenizer, ["<start_of_image>"])
    assert found == [((0, 16), wide), ((20, 36), wide)]
