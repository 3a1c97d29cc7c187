"""Loading for a task, processors, and the settings that change positions and vocabulary."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.config.sections import ModelSection
from swift_core.errors import MissingDependencyError, ModelError, NotFoundError
from swift_core.models.loading import (
    get_model_processor,
    get_model_tokenizer,
    load_config,
    load_model,
    load_processor,
    load_tokenizer,
    max_model_length,
    tokenizer_of,
)
from swift_core.models.processing import fit_embeddings
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer
from transformers import BertConfig, BertModel, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    made = tmp_path_factory.mktemp("llava")
    tokenizer: Any = make_tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=LlamaConfig(**sizes, vocab_size=len(tokenizer), num_key_value_heads=4),
        image_token_index=len(tokenizer) - 1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(made)
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(images, tokenizer, patch_size=14, vision_feature_select_strategy="default").save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("task", "name", "labels"),
    [
        (None, "LlamaForCausalLM", None),
        ("causal_lm", "LlamaForCausalLM", None),
        ("generative_reranker", "LlamaForCausalLM", None),
        ("seq_cls", "LlamaForSequenceClassification", 3),
        ("reranker", "LlamaForSequenceClassification", 1),
        ("reward", "LlamaForSequenceClassification", 1),
        ("embedding", "LlamaModel", None),
    ],
)
def test_class_and_head_by_task(folder: Path, task: str | None, name: str, labels: int | None) -> None:
    count = 3 if task == "seq_cls" else None
    model = load_model(ModelSection(), folder, dtype=torch.float32, task_type=task, num_labels=count)
    assert type(model).__name__ == name
    if labels is not None:
        tokens = torch.tensor([[5, 6, 7], [5, 6, 0]])
        assert model(input_ids=tokens).logits.shape == (2, labels)  # needs a pad token id for more than one row


def test_saved_classifier_comes_back_as_it_was(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = "multi_label_classification"
    model = load_model(ModelSection(), folder, dtype=torch.float32, task_type="seq_cls", num_labels=4, problem_type=kind)
    model.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "swift_core"):
        again = load_model(ModelSection(), tmp_path, dtype=torch.float32)
    assert type(again).__name__ == "LlamaForSequenceClassification"
    assert (again.config.num_labels, again.config.problem_type) == (4, kind)
    assert torch.equal(again.score.weight, model.score.weight)
    assert caplog.text == ""
    with pytest.raises(ModelError, match=r"score\.weight: \[4, 32\] in the file, \[2, 32\]"):
        load_model(ModelSection(), tmp_path, dtype=torch.float32, task_type="seq_cls", num_labels=2)


def test_headless_task_does_not_warn_about_the_language_head(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "swift_core"):
        load_model(ModelSection(), folder, dtype=torch.float32, task_type="embedding")
        assert caplog.text == ""
        load_model(ModelSection(), folder, dtype=torch.float32, task_type="reward")
    assert "start at random: score.weight" in caplog.text
    assert "not used" not in caplog.text


def test_sentence_transformers_folder_is_an_embedding_model(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}]))
    assert type(load_model(ModelSection(), tmp_path, dtype=torch.float32)).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_type": "seq_cls"}, "set --num_labels"),
        ({"task_type": "sing"}, "'sing' is not known.*causal_lm"),
        ({"model_type": "lama"}, "did you mean llama"),
        ({"model_type": "qwen2"}, "Qwen2ForCausalLM, not LlamaForCausalLM"),
        ({"rope_scaling": "yarn"}, "--max_model_len, such as 1024"),
        ({"max_model_len": 4096}, "more than the 512 tokens.*--rope_scaling yarn"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        get_model_tokenizer(folder, **arguments)


def test_multimodal_model_with_its_processor(llava: Path) -> None:
    loaded: Any = get_model_processor(llava)
    model, processor = loaded
    assert (type(model).__name__, type(processor).__name__) == ("LlavaForConditionalGeneration", "LlavaProcessor")
    assert tokenizer_of(processor).pad_token == "<|endoftext|>"
    assert type(get_model_tokenizer(llava, load_model=False)[1]) is type(tokenizer_of(processor))
    with pytest.raises(ModelError, match="no class for --task_type prm with the architecture 'llava'"):
        get_model_tokenizer(llava, task_type="prm")


def test_multimodal_classifier_reads_pictures_and_survives_saving(llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = load_model(ModelSection(), llava, dtype=torch.float32, task_type="seq_cls", num_labels=3)
    assert "start at random: score.weight" in caplog.text
    base: Any = load_model(ModelSection(), llava, dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    image = model.config.image_token_id
    tokens = torch.tensor([[*[image] * 4, 5, 6], [*[image] * 4, 5, 0]])
    inputs = {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))}
    scores = model(**inputs).logits
    assert scores.shape == (2, 3)
    assert not torch.allclose(scores, model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits)
    hidden = base.model(**inputs).last_hidden_state
    assert torch.allclose(scores, torch.stack([model.score(hidden[0, 5]), model.score(hidden[1, 4])]), atol=1e-5)
    model.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    caplog.clear()
    again: Any = load_model(ModelSection(), tmp_path, dtype=torch.float32)
    assert caplog.text == ""
    assert torch.allclose(again(**inputs).logits, scores)


def test_text_model_gives_its_tokenizer(folder: Path) -> None:
    processor = load_processor(folder, trust_remote_code=False)
    assert tokenizer_of(processor) is processor


def test_multimodal_folder_without_processor_files(llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in llava.iterdir():
        if "processor" not in file.name and not file.name.endswith(".safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    processor = load_processor(tmp_path, trust_remote_code=False)
    assert tokenizer_of(processor) is processor
    assert "llava models have a processor" in caplog.text
    (tmp_path / "processor_config.json").write_text('{"a')
    with pytest.raises(ModelError, match=r"processor_config\.json: not readable"):
        load_processor(tmp_path, trust_remote_code=False)


def test_processor_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass P: pass\n")
    (tmp_path / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "evil.P"}}))
    with pytest.raises(ModelError, match="own Python code"):
        load_processor(tmp_path, trust_remote_code=False)
    assert not marker.exists()


def test_library_that_a_processor_needs(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swift_core.models import processing

    def fail(*arguments: object, **named: object) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found in your environment.")

    monkeypatch.setattr(processing.AutoProcessor, "from_pretrained", fail)  # pyright: ignore[reportPrivateImportUsage]
    with pytest.raises(MissingDependencyError, match="pip install 'torchvision'"):
        load_processor(llava, trust_remote_code=False)


@pytest.mark.parametrize(
    ("settings", "rope", "length"),
    [
        (
            {"rope_scaling": "yarn", "max_model_len": 2000},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
            2000,
        ),
        ({"rope_scaling": "linear", "max_model_len": 1024}, {"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_scaling": '{"type": "dynamic", "factor": 3.0}'}, {"rope_type": "dynamic", "factor": 3.0}, 1536),
        ({"max_model_len": 100}, {"rope_type": "default"}, 100),
    ],
)
def test_positions(folder: Path, settings: dict[str, Any], rope: dict[str, Any], length: int) -> None:
    section = ModelSection(**settings)
    config = load_config(section, folder)
    assert config.rope_parameters == {"rope_theta": 10000.0, **rope}
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    assert max_model_length(config, tokenizer) == length
    model = load_model(section, folder, dtype=torch.float32)
    assert model(input_ids=torch.arange(length)[None] % 500).logits.isfinite().all()


@pytest.mark.parametrize("value", ["yarm", '{"factor": 2}', '{"type"'])
def test_wrong_position_scaling(value: str) -> None:
    with pytest.raises(ValueError, match=r"rope_type|JSON"):
        ModelSection(rope_scaling=value)


def test_new_tokens_get_rows_and_survive_saving(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("<think>\n\n</think>\n")
    loaded: Any = get_model_tokenizer(folder, new_special_tokens=["<tool>", str(file), "<|im_end|>"])
    model, tokenizer = loaded
    old = get_model_tokenizer(folder)[0]
    assert old is not None
    before = old.get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert after.shape[0] == len(tokenizer) == before.shape[0] + 3
    assert torch.equal(after[: len(before)], before)
    assert torch.allclose(after[-3:], before.mean(0).expand(3, -1))
    assert model.lm_head.weight.shape[0] == len(tokenizer)
    ids = tokenizer("a<tool>b</think>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "<tool>"
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again: Any = get_model_tokenizer(tmp_path / "saved")
    assert torch.equal(again[0].get_input_embeddings().weight, after)
    assert again[1]("a<tool>b</think>", add_special_tokens=False)["input_ids"] == ids
    assert fit_embeddings(again[0], again[1]) == 0
    with pytest.raises(NotFoundError, match=r"absent\.txt"):
        get_model_tokenizer(folder, new_special_tokens=["absent.txt"])


def test_unmet_requirements_of_a_known_checkpoint_are_reported(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = tmp_path / "Llama-2-7b-AQLM-2Bit-1x16-hf"
    known.mkdir()
    for file in folder.iterdir():
        (known / file.name).write_bytes(file.read_bytes())
    load_model(ModelSection(), known, dtype=torch.float32)
    assert "asks for aqlm (not installed)" in caplog.text
    assert "pip install 'transformers>=4.38' 'aqlm'" in caplog.text
