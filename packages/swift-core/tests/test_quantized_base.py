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
    ("method", "library"),
    [
        ("gptq", "swift-core[gptq]"),
        ("awq", "swift-core[gptq]"),
        ("bitsandbytes", "swift-core[bnb]"),
        ("compressed-tensors", "compressed-tensors"),
        ("torchao", "torchao"),
    ],
)
def test_packed_checkpoints_name_the_library_they_need(
    method: str, library: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method, "bits": 4}}
    assert packed_by(raw) == method
    monkeypatch.setattr(quantization, "_is_there", lambda module: False)
    with pytest.raises(MissingDependencyError) as caught:
        quantization_config(QuantizationSection(), raw, tmp_path, dtype=torch.float32, device="cpu")
    assert f"pip install '{library}'" in str(caught.value)
    with pytest.raises(ModelError, match=f"packed by {method} already"):
        quantization_config(QuantizationSection(quant_method="bnb"), raw, tmp_path, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("hqq", "does not load those that were saved packed.*--quant_method hqq"),
        ("quanto", "does not load those that were saved packed.*--quant_method quanto"),
        ("eetq", "run on a GPU, not on a CPU"),
    ],
)
def test_packed_checkpoints_that_cannot_be_loaded_here_are_refused_with_what_can(
    method: str, words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_is_there", lambda module: True)
    copy = make_tiny_model(tmp_path / "packed", layers=1)
    config = json.loads((copy / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load(copy)


def test_gptq_is_not_trained_through_on_a_cpu_and_the_way_out_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_is_there", lambda module: True)
    raw = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    settings: Any = {"dtype": torch.float32, "device": "cpu"}
    assert quantization_config(QuantizationSection(), raw, folder, **settings) is None
    with pytest.raises(ModelError, match="swift export --quant_method gptq"):
        quantization_config(QuantizationSection(), raw, folder, **settings, trainable=True)


def compress(folder: Path, target: Path, scheme: str) -> Path:
    """Write a model in the compressed-tensors format: 4 bits in groups, or FP8 with rounded inputs."""
    import shutil

    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    if scheme == "fp8":
        weights = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
        inputs = QuantizationArgs(num_bits=8, type="float", strategy="token", symmetric=True, dynamic=True)
    else:
        weights, inputs = QuantizationArgs(num_bits=4, strategy="group", group_size=16, symmetric=scheme == "int4"), None
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"])
    model: Any = load(folder)
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            size = module.in_features if scheme == "fp8" else 16
            parts = module.weight.detach().unflatten(1, (-1, size))
            scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), weights)
            module.weight_scale.data.copy_(scale)
            if getattr(module, "weight_zero_point", None) is not None:
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    model.save_pretrained(target)
    compressor.update_config(target)
    return target


@pytest.mark.parametrize("scheme", ["int4", "int4, asymmetric", "fp8"])
def test_layers_of_compressed_tensors_stay_packed_and_pass_gradients(scheme: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from swift_core.models.unpacking import UnpackingLinear
    from transformers import AutoModelForCausalLM

    packed = load(compress(folder, tmp_path / "packed", scheme))
    layers = {name: module for name, module in packed.named_modules() if isinstance(module, UnpackingLinear)}
    assert len(layers) == 7 * packed.config.num_hidden_layers
    assert all(
        tensor.dtype in (torch.int32, torch.int64, torch.float8_e4m3fn, torch.float32)
        for one in layers.values()
        for tensor in one.buffers()
    )
    ids = torch.arange(12)[None] + 5
    with torch.no_grad():
        found = packed(input_ids=ids).logits
        assert torch.allclose(
            found, AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)(input_ids=ids).logits, atol=1e-5
        )
        assert all(layer._kept is not None for layer in layers.values()), "answering unpacks a layer once"
    plain = load(folder)
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = layer.weight.float().clone()
    gradients = []
    for model in (packed, plain):
        weight = model.get_input_embeddings().weight.requires_grad_(True)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append(weight.grad)
    assert all(layer._kept is None for layer in layers.values()), "training keeps nothing unpacked"
    assert float(gradients[1].norm()) > 0
    # FP8 rounds inputs as well, and gradients pass that rounding as if it were not there.
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < (0.2 if scheme == "fp8" else 1e-5)


@pytest.mark.parametrize("settings", [{}, {"quant_bits": 8, "hqq_axis": 0, "quant_group_size": 16}], ids=str)
def test_hqq_packs_every_layer_but_the_head(settings: dict[str, Any], folder: Path) -> None:
    pytest.importorskip("hqq")
    from hqq.core.quantize import HQQLinear

    packed = load(folder, quant_method="hqq", **settings)
    layers = [module for module in packed.modules() if isinstance(module, HQQLinear)]
    assert len(layers) == 7 * packed.config.num_hidden_layers and type(packed.get_output_embeddings()) is nn.Linear
    with pytest.raises(ModelError, match="packed and cannot be trained"):
        FullTuner().prepare(packed, SftConfig(**GIVEN, tuner_type="full").tuner)
    ids = torch.arange(12)[None] + 5
    packed.get_input_embeddings().weight.requires_grad_(True)
    packed(input_ids=ids, labels=ids).loss.backward()
    assert float(packed.get_input_embeddings().weight.grad.norm()) > 0


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
