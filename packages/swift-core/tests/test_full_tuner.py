"""Full tuning: what is trained, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from swift_core.config.sections import ModelSection, TunerSection
from swift_core.errors import CheckpointError, ModelError
from swift_core.registry import TUNERS
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.full import FullTuner
from transformers import AutoModelForCausalLM


def model_of(folder: Path, **sizes):
    return AutoModelForCausalLM.from_pretrained(make_tiny_model(folder, **sizes))


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def prepared(folder: Path, **options):
    model = FullTuner().prepare(model_of(folder), TunerSection(tuner_type="full", **options))
    return trained(model), {name for name, _ in model.named_parameters()}


def test_everything_is_trained_by_default(tmp_path) -> None:
    found, names = prepared(tmp_path)
    assert found == names


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (
            {"freeze_parameters": ["model.embed_tokens", "model.layers.0"]},
            lambda name: not name.startswith(("model.embed", "model.layers.0")),
        ),
        ({"freeze_parameters_regex": r"mlp|norm"}, lambda name: "mlp" not in name and "norm" not in name),
        ({"freeze_parameters_ratio": 1.0, "trainable_parameters": ["lm_head"]}, lambda name: name == "lm_head.weight"),
        (
            {"freeze_parameters_ratio": 1.0, "trainable_parameters_regex": r"layers\.1\..*q_proj"},
            lambda name: "layers.1.self_attn.q_proj" in name,
        ),
        ({"freeze_parameters": ["model"], "trainable_parameters": ["model.norm"]}, lambda name: name.startswith(("lm_head", "model.norm"))),
    ],
    ids=str,
)
def test_settings_choose_what_is_trained(tmp_path, options, kept) -> None:
    found, names = prepared(tmp_path, **options)
    assert found == {name for name in names if kept(name)}


def test_a_share_freezes_from_the_input_on(tmp_path) -> None:
    model = FullTuner().prepare(model_of(tmp_path), TunerSection(tuner_type="full", freeze_parameters_ratio=0.5))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert flags == sorted(flags)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert 0.4 < frozen / sum(parameter.numel() for parameter in model.parameters()) <= 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze_parameters_ratio": 1.0}, "--trainable_parameters lm_head.weight"),
        ({"freeze_parameters": ["model", "lm_head"]}, "nothing to train"),
        ({"freeze_parameters": ["model.leyers.0"]}, "did you mean model.layers.0"),
        ({"trainable_parameters": ["visual"]}, "names look like model.embed_tokens.weight"),
        ({"freeze_parameters_regex": "visual"}, "--freeze_parameters_regex 'visual' matches no parameter"),
        ({"trainable_parameters_regex": "("}, "no regular expression"),
    ],
    ids=str,
)
def test_settings_that_match_nothing_or_leave_nothing_are_refused(tmp_path, options, words) -> None:
    with pytest.raises(ModelError) as caught:
        prepared(tmp_path, **options)
    assert caught.value.fix
    assert words in str(caught.value)


def test_other_options_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="TunerSection"):
        FullTuner().prepare(model_of(tmp_path), ModelSection())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_weights_are_a_normal_model_and_come_back(tmp_path, tied, dtype) -> None:
    tuner = TUNERS.load("full")()
    make_tiny_model(tmp_path / "base", tie_word_embeddings=tied, dtype=dtype)
    model = tuner.prepare(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), TunerSection(tuner_type="full"))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tuner.save(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    fresh = tuner.load(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "saved", trainable=False)
    restored = tuner.prepare(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), TunerSection(tuner_type="full", freeze_parameters=["model.layers.0"])
    )
    chosen = trained(restored)
    tuner.restore(restored, tmp_path / "saved")
    for other in (plain, fresh, restored):
        assert all(torch.equal(mine, its) for mine, its in zip(model.parameters(), other.parameters(), strict=True))
        assert {parameter.dtype for parameter in other.parameters()} == {dtype}
    assert trained(fresh) == set()
    assert trained(restored) == chosen


@pytest.mark.parametrize("sizes", [{"layers": 1}, {"layers": 3}, {"hidden": 16}], ids=str)
def test_weights_of_another_model_are_refused(tmp_path, sizes) -> None:
    make_tiny_model(tmp_path / "other", **sizes)
    with pytest.raises(CheckpointError, match="saved from"):
        FullTuner().load(model_of(tmp_path / "base"), tmp_path / "other", trainable=True)
