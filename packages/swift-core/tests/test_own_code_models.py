"""Multimodal models whose code lies in their folder, on stand-ins for the published repositories: encoded, trained, run."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from swift_core.batching.collate import collate
from swift_core.batching.media import merge_model_inputs, with_dummy_media
from swift_core.config.sections import TemplateSection
from swift_core.errors import ModelError, TemplateError
from swift_core.models.adapters.base import MediaAdapter
from swift_core.models.adapters.find import read_own_code
from swift_core.models.loading import get_model_processor, load_processor
from swift_core.models.modules import freeze, module_map, parameter_kind
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.registry import import_target
from swift_core.scoring.scorer import Scorer
from swift_core.templates.adapted import AdapterTemplate
from swift_core.templates.media import build_processor_template
from swift_core.templates.requests import request_messages, sample_of_request
from swift_core.testing.own_code.build import FAMILIES, fill, make_own_code

WIDE, SMALL = Image.linear_gradient("L").resize((120, 40)).convert("RGB"), Image.new("RGB", (40, 44), (10, 200, 30))
# Tokens of the wide image and of the small one, and where language model, aligner and tower are.
EXPECTED: dict[str, tuple[tuple[int, ...], str, str, str]] = {
    "minicpmv2_6": ((21, 9), "llm", "resampler", "vpm"),  # three numbered views and one, with their frames
    "internvl_chat": ((14, 6), "language_model", "mlp1", "vision_model"),  # two tiles and a thumbnail, or one tile, of 4
    "deepseek_vl2": ((6, 5), "language", "projector", "vision"),  # a view of 1 x 1 with line ends, and tiles
    "chatglm4v": ((6, 6), "transformer.encoder", "", "transformer.vision"),
    "yi_vl": ((16, 16), "model.layers", "model.mm_projector", "model.vision_tower"),
    "xcomposer2_5": ((841,), "model", "vision_proj", "vit"),  # one tile and a view of the whole, 20 lines of 20 each
    "phi3_vision": ((8, 8), "model.layers", "model.vision_embed_tokens.img_projection", "model.vision_embed_tokens.img_processor"),
}


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the copies that transformers makes of trusted code out of the home folder."""
    folder = tmp_path_factory.mktemp("own_code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        patch.syspath_prepend(str(folder / "modules"))
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)
        yield folder
    _loaded.cache_clear()


@cache
def _loaded(family: str, root: Path) -> tuple[Any, AdapterTemplate]:
    folder = fill(make_own_code(family, root / family))
    model, processor = get_model_processor(folder, trust_remote_code=True)
    template = build_processor_template(processor, TemplateSection())
    assert isinstance(template, AdapterTemplate)
    return model, template


def with_images(family: str) -> Sample:
    one = [Message(role="user", content="<image>Who is this?"), Message(role="assistant", content="A red square.")]
    if family in ("chatglm4v", "xcomposer2_5"):  # the one takes no more, the other makes many tokens of each
        return Sample(one, images=[SMALL], origin="rows.json:1")
    more: list[Message] = [{"role": "user", "content": "And this, <image>?"}, {"role": "assistant", "content": "A green one, I think."}]
    return Sample([*one, *more], images=[WIDE, SMALL], origin="rows.json:1")


def of_text() -> Sample:
    return Sample([Message(role="user", content="Hello there"), Message(role="assistant", content="Good day to all of you.")])


def logits(model: Any, samples: list[EncodedSample]) -> torch.Tensor:
    batch = collate(samples, pad_token_id=0)
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **(batch.model_inputs or {})).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_code_of_the_folder_runs_only_when_it_is_trusted(family: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = make_own_code(family, tmp_path, marker=marker)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"own Python code.*--trust_remote_code true"):
        get_model_processor(folder)
    assert not marker.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_and_frozen(family: str, root: Path) -> None:
    model, template = _loaded(family, root)
    assert isinstance(template.adapter, MediaAdapter)
    _, language, aligner, tower = EXPECTED[family]
    found = module_map(model)
    assert (found.language_model[0], found.aligner, found.vision_tower) == (language, (aligner,) if aligner else (), (tower,))
    freeze(model, found, freeze_llm=False, freeze_vit=True, freeze_aligner=False)
    frozen = {parameter_kind(name, found) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.requires_grad_(True)
    assert frozen == {"vision_tower"}


@pytest.mark.parametrize("family", FAMILIES)
def test_images_take_their_tokens_and_answers_alone_are_trained(family: str, root: Path) -> None:
    _, template = _loaded(family, root)
    sample = with_images(family)
    encoded = template.encode(sample)
    places = (encoded.model_inputs or {})["media"].places
    assert tuple(stop - start for start, stop in places) == EXPECTED[family][0][: len(places)]
    assert all(label in (-100, id_) for id_, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert all(label == -100 for start, stop in places for label in encoded.labels[start:stop])
    trained = template.tokenizer.decode([id_ for id_ in encoded.labels if id_ != -100])
    for word in template.stop_words:
        trained = trained.replace(word, "|")
    assert [part for part in trained.split("|") if part.strip()] == [
        message["content"] for message in sample.messages if message["role"] == "assistant"
    ]
    prompt = template.encode_media_prompt(Sample(sample.messages[:-1], images=sample.images))
    assert encoded.input_ids[: len(prompt)] == prompt.input_ids
    assert set(prompt.labels) == {-100}
    shown = template.tokenizer.decode([id_ for at, id_ in enumerate(encoded.input_ids) if not any(a <= at < b for a, b in places)])
    plain = template.render([{**message, "content": message["content"].replace("<image>", "")} for message in sample.messages])
    assert shown == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_and_without_images_score_alike_alone_and_together(family: str, root: Path) -> None:
    model, template = _loaded(family, root)
    rows = [template.encode(of_text()), template.encode(with_images(family)), template.encode(of_text())]
    scorer = Scorer(model)
    model.zero_grad()
    together = scorer(collate(rows, pad_token_id=0))
    together.loss_sum.backward()
    assert {parameter_kind(name, module_map(model)) for name, value in model.named_parameters() if value.grad is None} == set()
    alone = [scorer(collate([row], pad_token_id=0)).loss_sum.item() for row in rows]
    assert together.loss_sum.item() == pytest.approx(sum(alone), rel=1e-4)
    assert together.trained_tokens == sum(row.trained_tokens for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_sees_the_image(family: str, root: Path) -> None:
    model, template = _loaded(family, root)
    sample = with_images(family)
    other = Sample(sample.messages, images=[Image.new("RGB", sample.images[0].size, (250, 0, 90)), *sample.images[1:]])
    one, two = (logits(model, [template.encode(item)])[0] for item in (sample, other))
    start, _ = (template.encode(sample).model_inputs or {})["media"].places[0]
    assert torch.allclose(one[:start], two[:start], atol=1e-5)
    assert not torch.allclose(one[-1], two[-1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_generated_is_what_the_whole_text_gives(family: str, root: Path) -> None:
    model, template = _loaded(family, root)
    for sample in (with_images(family), of_text()):
        prompt = template.encode_media_prompt(Sample(sample.messages[:1], images=sample.images[:1]))
        inputs = merge_model_inputs([prompt], pad_left=True)
        ids = torch.tensor([prompt.input_ids])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, **inputs)
        expected = list(prompt.input_ids)
        stops = [model.generation_config.eos_token_id, *map(template.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))]
        while len(expected) < len(prompt) + 3 and (len(expected) == len(prompt) or expected[-1] not in stops):
            row = EncodedSample(expected, [-100] * len(expected), model_inputs=prompt.model_inputs)
            expected.append(int(logits(model, [row])[0, -1].argmax()))
        written = expected[len(prompt) :]
        assert output[0, -len(written) :].tolist() == written


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_can_be_sent_to_another_process(family: str, root: Path) -> None:
    _, template = _loaded(family, root)
    again = pickle.loads(pickle.dumps(template))
    one, two = (made.encode(with_images(family)) for made in (template, again))
    assert (one.input_ids, one.labels) == (two.input_ids, two.labels)


def test_an_image_is_never_cut_and_keeps_its_place(root: Path) -> None:
    _, template = _loaded("internvl_chat", root)
    encoded = template.encode(with_images("internvl_chat"))
    (start, stop), (_, last) = (encoded.model_inputs or {})["media"].places
    shorter = template.cut(encoded, start, last)
    assert shorter is not None
    assert (shorter.model_inputs or {})["media"].places[0] == (0, stop - start)
    assert template.cut(encoded, start + 1, len(encoded)) is None
    assert template.cut(encoded, 0, last - 1) is None


def test_joined_texts_take_images_too(root: Path) -> None:
    for family in ("minicpmv2_6", "yi_vl"):
        model, _ = _loaded(family, root)
        section = TemplateSection(use_chat_template=False, loss_scale="all")
        template: Any = build_processor_template(model.media_adapter, section)
        encoded = template.encode(Sample([Message(role="assistant", content="A picture: <image> of a dog.")], images=[SMALL]))
        assert template.tokenizer.decode([label for label in encoded.labels if label != -100]).startswith("A picture:  of a dog.")
        assert encoded.input_ids[-1] == template.tokenizer.eos_token_id
        ((start, stop),) = encoded.model_inputs["media"].places
        assert set(encoded.labels[start:stop]) == {-100}


def test_ranks_without_images_get_a_blank_one(root: Path) -> None:
    _, template = _loaded("minicpmv2_6", root)
    dummy = template.dummy()
    assert dummy.trained_tokens == 0
    text, image = template.encode(of_text()), template.encode(with_images("minicpmv2_6"))
    assert len(with_dummy_media([text], dummy)) == 2
    assert len(with_dummy_media([text, image], dummy)) == 2


def test_rows_that_cannot_be_used_say_why(root: Path) -> None:
    _, template = _loaded("chatglm4v", root)
    two = Sample(
        [Message(role="user", content="<image><image>?"), Message(role="assistant", content="So.")], images=[WIDE, SMALL], origin="r:1"
    )
    with pytest.raises(TemplateError, match=r"^r:1: chatglm4v takes 1 image in a conversation, not 2"):
        template.encode(two)
    sound = Sample([Message(role="user", content="<audio>?"), Message(role="assistant", content="So.")], audios=["a.wav"], origin="r:2")
    with pytest.raises(TemplateError, match=r"^r:2: chatglm4v takes no audios"):
        template.encode(sound)


def test_code_that_is_published_elsewhere_has_to_be_copied(tmp_path: Path) -> None:
    folder = make_own_code("yi_vl", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"not in the folder.*VL/llava"):
        load_processor(folder, trust_remote_code=True)


def test_media_of_a_row_reach_an_engine_in_their_places(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").touch()
    messages: list[Message] = [
        {"role": "user", "content": "Is <image> like <image>?"},
        {"role": "assistant", "content": "<video> is a tag."},
    ]
    row = Sample(messages, images=["a.png", "https://example.org/b.png"], origin=f"{tmp_path / 'rows.jsonl'}:1")
    sent = request_messages(row, messages)
    again = sample_of_request(sent)
    assert (again.messages, again.images) == (messages, [str(tmp_path / "a.png"), "https://example.org/b.png"])
    assert request_messages(Sample(messages), messages) == messages


def test_every_row_of_the_table_can_be_imported() -> None:
    for row in read_own_code().values():
        for target in filter(None, (row.media, row.model)):
            assert callable(import_target(target, needed_for=row.model_type))
