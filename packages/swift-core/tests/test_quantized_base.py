"""Base weights in few bits: what is refused, and that gradients pass through packed weights as through the numbers they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.config.quantization import QuantizationSection
from swift_core.config.sections import ModelSection
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import ConfigError, MissingDependencyError, ModelError
from swift_core.models import quantization
from swift_core.models.loading import load_model
from swift_core.models.quantization import keep_differentiable, packed_by, quantization_config
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.full import FullTuner
from swift_core.train.methods import Methods
from torch import nn

GIVEN = {"model": "m", "dataset": ["d"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def load(folder: Path, **settings: Any) -> Any:
    section = QuantizationSection(**settings)
    return load_model(ModelSection(model=str(folder)), folder, dtype=torch.float32, quantization=section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_bits": 4}, "quant_bits: has no effect without --quant_method"),
        ({"quant_method": "bnb", "quant_bits": 3}, "--quant_bits 3: bnb does not have it"),
        ({"quant_method": "bnb", "quant_bits": 8, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type: has no effect"),
        ({"quant_method": "bnb", "hqq_axis": 0}, "--hqq_axis: has no effect"),
        ({"quant_method": "bnb", "tuner_type": "full"}, "packed weights cannot be trained themselves"),
        ({"quant_method": "gguf"}, "allowed: bnb, hqq"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SftConfig(**GIVEN, **{"tuner_type": "full", **settings})
    assert message in str(caught.value)


def test_bits_default_to_what_a_method_is_used_with() -> None:
    assert [QuantizationSection(quant_method=method).bits for method in ("bnb", "hqq", "quanto", "eetq", "fp8")] == [
        "4",
        "4",
        "8",
        "8",
        "8",
    ]


@pytest.mark.parametrize(
    ("method", "line"),
    [("bnb", "swift-core[bnb]"), ("hqq", "swift-core[hqq]"), ("quanto", "swift-core[quanto]"), ("eetq", "swift-core[kernels]")],
)
def test_an_absent_library_is_named_with_its_pip_line(method: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_is_there", lambda module: False)
    with pytest.raises(MissingDependencyError, match="pip install") as caught:
        load(folder, quant_method=method)
    assert line in str(caught.value)


@pytest.mark.parametrize("method", ["eetq", "fp8"])
def test_methods_of_gpus_are_refused_on_a_cpu(method: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_is_there", lambda module: True)
    with pytest.raises(ModelError, match=r"packs weights on a GPU.*--quant_method bnb"):
        load(folder, quant_method=method)


@pytest.mark.parametrize(
    ("method", "library"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("hqq", "hqq"), ("bitsandbytes", "bitsandbytes")]
)
def test_packed_checkpoints_name_the_library_they_need(
    method: str, library: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method, "bits": 4}}
    assert packed_by(raw) == method
    monkeypatch.setattr(quantization, "_is_there", lambda module: False)
    with pytest.raises(MissingDependencyError, match=library) as caught:
        quantization_config(QuantizationSection(), raw, tmp_path, dtype=torch.float32, device="cpu")
    assert "swift-core[" in str(caught.value)
    with pytest.raises(ModelError, match=f"packed by {method} already"):
        quantization_config(QuantizationSection(quant_method="bnb"), raw, tmp_path, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("bits", ["4", "8"])
def test_gradients_pass_through_packed_weights_after_an_evaluation(bits: str, folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    packed, plain = load(folder, quant_method="bnb", quant_bits=bits), load(folder)
    with pytest.raises(ModelError, match="packed and cannot be trained"):
        FullTuner().prepare(packed, SftConfig(**GIVEN, tuner_type="full").tuner)
    _copy_values(packed, plain, bits)
    keep_differentiable(packed)
    ids = torch.arange(12)[None] + 5
    gradients = []
    for model in (packed, plain):
        with torch.no_grad():
            model.eval()(input_ids=ids)
        embedding = model.get_input_embeddings()
        embedding.weight.requires_grad_(True)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append(embedding.weight.grad)
    assert float(gradients[1].norm()) > 0
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < (1e-4 if bits == "4" else 0.1)


def test_weights_that_were_rearranged_for_answers_are_not_trained() -> None:
    layer = nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    layer.weight.quant_state = type("State", (), {"packing_format_for_cpu": True})()
    with pytest.raises(ModelError, match="load the model again"):
        Methods(nn.Sequential(layer), TrainingConfig(), FullTuner(), torch.device("cpu"))


def _copy_values(packed: nn.Module, plain: nn.Module, bits: str) -> None:
    """Give the plain model the numbers that the packed weights stand for."""
    import bitsandbytes as bnb

    for name, module in packed.named_modules():
        target = plain.get_submodule(name) if name else plain
        if isinstance(module, bnb.nn.modules.Linear4bit):
            target.weight.data = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif isinstance(module, bnb.nn.modules.Linear8bitLt):
            weight = module.weight
            target.weight.data = weight.data.float() * weight.SCB[:, None] / 127
