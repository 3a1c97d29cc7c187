"""The transformers engine answers conversations with pictures and sounds."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from swift_core.config.sections import MediaSection
from swift_core.errors import RequestError, TemplateError
from swift_core.protocols import InferRequest, Message, RequestConfig
from swift_core.testing.tiny import make_tiny_model
from swift_core.testing.tiny_multimodal import available_kinds, make_picture, make_tiny_multimodal
from swift_infer.engines.transformers import TransformersEngine
from swift_infer.server.wire import ChatCompletionRequest

GREEDY = RequestConfig(max_tokens=6, temperature=0)
KINDS = [kind for kind in ("gemma3", "idefics3", "mistral3", "qwen2_5_vl") if kind in available_kinds()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def engine_of(kind: str, folder: Path, **settings: Any) -> TransformersEngine:
    if not (folder / kind).is_dir():
        make_tiny_multimodal(kind, folder / kind)
    return TransformersEngine(folder / kind, use_cpu=True, **settings)


def ask(*parts: Any) -> InferRequest:
    return InferRequest([Message(role="user", content=list(parts) if not (len(parts) == 1 and isinstance(parts[0], str)) else parts[0])])


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_model_given_the_processors_inputs(kind: str, folder: Path) -> None:
    engine = engine_of(kind, folder)
    picture = make_picture(folder, "a.png")
    uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    requests = [
        ask({"type": "image", "image": str(picture)}, text("Who is it?")),
        ask("Hello"),
        ask({"type": "image_url", "image_url": {"url": uri}}, text("Who is it?")),
        ask({"type": "image", "image": str(picture)}, text("And"), {"type": "image", "path": str(picture)}),
    ]
    together = engine.infer(requests, GREEDY)
    alone = [engine.infer([request], GREEDY)[0] for request in requests]
    assert [answer.choices[0].token_ids for answer in together] == [answer.choices[0].token_ids for answer in alone]
    assert together[0].choices[0].token_ids == together[2].choices[0].token_ids
    turns = [{"role": "user", "content": [{"type": "image", "path": str(picture)}, text("Who is it?")]}]
    processor: Any = engine.template.processor  # pyright: ignore[reportAttributeAccessIssue]
    own = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert engine.prompt_ids(requests[0]) == own["input_ids"][0].tolist()
    with torch.inference_mode():
        ids = engine.model.generate(**own, max_new_tokens=6, do_sample=False, eos_token_id=sorted(engine.template.stop_token_ids))
    assert together[0].choices[0].token_ids == ids[0, own["input_ids"].shape[1] :].tolist()
    assert "".join(delta.text for delta in engine.stream(requests[0], GREEDY)) == together[0].choices[0].message.content


def test_a_picture_changes_the_numbers_that_come_out(folder: Path) -> None:
    engine = engine_of("llava_next", folder)
    pictures = [make_picture(folder, f"{number}.png", color=color) for number, color in enumerate(((255, 0, 0), (0, 255, 255)))]
    encoded: list[Any] = [engine.prompts.encode(ask({"type": "image", "image": str(picture)}, text("Who?"))) for picture in pictures]
    assert encoded[0].input_ids == encoded[1].input_ids
    assert not torch.equal(encoded[0].model_inputs["pixel_values"], encoded[1].model_inputs["pixel_values"])


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image", "image": "nothing.png"}, "no file"),
        ({"type": "image", "image": "http://127.0.0.1:9/a.png"}, "private network"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "not an image"),
        ({"type": "audio", "audio": "a.wav"}, "takes no audios"),
        ({"type": "image"}, "image"),
        ({"type": "hologram", "hologram": "x"}, "hologram"),
    ],
)
def test_media_that_cannot_be_read_are_refused(part: dict[str, Any], reason: str, folder: Path) -> None:
    engine = engine_of("llava_next", folder)
    with pytest.raises((RequestError, TemplateError), match=reason):
        engine.infer([ask(part, text("Who?"))], GREEDY)


def test_pixels_are_bounded_by_the_engines_settings(folder: Path) -> None:
    picture = {"type": "image", "image": str(make_picture(folder, "large.png", size=(200, 200)))}
    whole = engine_of("llava_next", folder).prompt_ids(ask(picture))
    small = engine_of("llava_next", folder, media=MediaSection(max_pixels=28 * 28)).prompt_ids(ask(picture))
    assert len(small) < len(whole)


def test_a_text_model_says_that_it_takes_texts_only(folder: Path) -> None:
    engine = TransformersEngine(make_tiny_model(folder / "text"), use_cpu=True)
    assert engine.prompt_ids(ask(text("Hello "), text("there"))) == engine.prompt_ids(ask("Hello there"))
    with pytest.raises(RequestError, match="texts only"):
        engine.infer([ask({"type": "image", "image": "a.png"}, text("Who?"))], GREEDY)


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "../a.png", "ftp://example.com/a.png", ""])
def test_the_server_never_takes_a_path(url: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    with pytest.raises(ValidationError, match="neither a data URI nor"):
        ChatCompletionRequest.model_validate(body)


def test_openai_bodies_with_pictures_and_sounds_reach_the_engine(folder: Path) -> None:
    engine = engine_of("llava_next", folder)
    picture = make_picture(folder, "wire.png")
    uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri, "detail": "low"}}, text("Who?")]
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": parts}]}).infer_request()
    assert engine.prompt_ids(request) == engine.prompt_ids(ask({"type": "image", "image": str(picture)}, text("Who?")))
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": [sound]}]}).infer_request()
    with pytest.raises(TemplateError, match="takes no audios"):
        engine.prompt_ids(request)
    inside = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": inside}]}).infer_request()
    with pytest.raises(RequestError, match="private network"):
        engine.prompt_ids(request)
