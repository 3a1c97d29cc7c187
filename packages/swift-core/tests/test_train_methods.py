"""What a run switches on in a model: checkpointing policies, embedding noise, offload, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core import get_model_tokenizer
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import ConfigError, MissingDependencyError, ModelError, TrainingError
from swift_core.models import liger
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpointing import enable_checkpointing
from swift_core.train.full import FullTuner
from swift_core.train.methods import Methods
from swift_core.train.noise import add_embedding_noise
from swift_core.train.offload import OffloadedActivations
from swift_core.train.optim import make_optimizer, parameter_groups
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

GIVEN = {"model": "m", "dataset": ["d"], "tuner_type": "full"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def fresh(folder: Path) -> Any:
    model, _ = get_model_tokenizer(folder)
    return model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(16)[None] + 7
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("policy", ["all", "every_2", "matmul", "attention"])
def test_checkpointing_policies_give_the_same_gradients(policy: str, folder: Path) -> None:
    expected = gradients(fresh(folder))
    model = fresh(folder)
    enable_checkpointing(model, policy)
    found = gradients(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_policies_keep_more_or_less_for_the_backward_pass(folder: Path) -> None:
    kept = {}
    for policy in (None, "all", "every_2", "matmul"):
        model = fresh(folder)
        if policy is not None:
            enable_checkpointing(model, policy)
        numbers = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        ids = torch.arange(16)[None] + 7
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=ids, labels=ids)
        kept[policy] = numbers
    assert kept["all"] < kept["every_2"] < kept[None]
    assert kept["matmul"] < kept[None]


def test_every_second_layer_recomputes(folder: Path) -> None:
    model = fresh(folder)
    enable_checkpointing(model, "every_2")
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [layer.gradient_checkpointing for layer in layers] == [number % 2 == 1 for number in range(len(layers))]
    with pytest.raises(ModelError, match="layers that can be recomputed"):
        enable_checkpointing(model, "every_99")
    with pytest.raises(ModelError, match="no tower"):
        enable_checkpointing(model, "all", towers=False)


def test_naming_a_policy_switches_checkpointing_on(folder: Path) -> None:
    model = fresh(folder)
    Methods(model, TrainingConfig(gradient_checkpointing_policy="every_2"), FullTuner(), torch.device("cpu"))
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_checkpointing": False, "gradient_checkpointing_policy": "matmul"}, "has no effect with --gradient_checkpointing false"),
        ({"gradient_checkpointing_policy": "every_1"}, "every_2"),
        ({"optim": "adamw_trch"}, "adamw_torch"),
        ({"optim": "lomo"}, "no release since 2024"),
        ({"optim": "galore_adamw_layerwise"}, "--galore_optim_per_parameter true"),
        ({"galore_rank": 4}, "galore_rank: has no effect with --optim adamw_torch"),
        ({"apollo_rank": 4, "optim": "sgd"}, "--optim apollo_adamw"),
        ({"use_galore": True, "optim": "sgd"}, "use adamw_torch, adamw_8bit or adafactor"),
        ({"lisa_step_interval": 5}, "--lisa_activated_layers 2"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SftConfig(**GIVEN, **settings)
    assert message in str(caught.value)


def test_noise_has_the_size_of_the_paper_and_ends_with_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(folder)
    embedding = model.get_input_embeddings()
    ids = torch.arange(20)[None]
    plain = embedding(ids).detach()
    methods = Methods(model, TrainingConfig(neftune_noise_alpha=5.0), FullTuner(), torch.device("cpu"))
    monkeypatch.setattr("swift_core.train.noise.current_segments", lambda: (4, 16))
    noise = (embedding(ids) - plain).detach()[0]
    for part, length in ((noise[:4], 4), (noise[4:], 16)):
        bound = 5.0 / (length * plain.shape[-1]) ** 0.5
        assert 0.8 * bound < float(part.abs().max()) <= bound * 1.0001
    model.eval()
    assert torch.equal(embedding(ids), plain)
    model.train()
    methods.release()
    assert torch.equal(embedding(ids), plain)


def test_rows_that_are_samples_share_one_length() -> None:
    model = nn.Module()
    model.get_input_embeddings = lambda: embedding  # type: ignore[assignment]
    embedding = nn.Embedding(10, 6)
    add_embedding_noise(model, 2.0)
    rows = torch.arange(8).view(2, 4)
    noise = embedding(rows) - nn.functional.embedding(rows, embedding.weight)
    noise = noise.detach()
    assert 0.7 < float(noise.abs().max()) / (2.0 / (4 * 6) ** 0.5) <= 1.0001


def test_offloaded_activations_give_the_same_gradients(folder: Path) -> None:
    expected = gradients(fresh(folder))
    model = fresh(folder)
    offload = OffloadedActivations(model, smallest=64)
    with offload():
        ids = torch.arange(16)[None] + 7
        loss = model(input_ids=ids, labels=ids).loss
    assert offload.moved > 10
    loss.backward()
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in model.named_parameters())


def test_what_needs_an_accelerator_is_refused_on_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(folder)
    with pytest.raises(TrainingError, match="this run is on a CPU"):
        Methods(model, TrainingConfig(activation_offload=True), FullTuner(), torch.device("cpu"))
    with pytest.raises(ModelError, match="Triton"):
        Methods(model, TrainingConfig(use_liger_kernel=True), FullTuner(), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"swift-core\[liger\]"):
        liger.use_liger(model, device="cuda")


def test_embedding_and_head_have_a_rate_of_their_own(folder: Path) -> None:
    model = fresh(folder)
    config = TrainingConfig(learning_rate=1e-3, embedding_lr=1e-5)
    rates = {id(one): group["lr"] for group in parameter_groups(model, config.optimization) for one in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (1e-5 if "embed_tokens" in name or "lm_head" in name else 1e-3), name
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    with pytest.raises(ModelError, match="--embedding_lr: this run trains neither"):
        make_optimizer(model, config.optimization)


def test_arguments_of_an_optimizer_are_checked() -> None:
    layer = nn.Linear(2, 2)
    sgd = TrainingConfig(optim="sgd", optim_args={"momentum": 0.5}).optimization
    assert make_optimizer(layer, sgd).param_groups[0]["momentum"] == 0.5
    with pytest.raises(ConfigError, match=r"no argument 'momentun'.*momentum"):
        make_optimizer(layer, TrainingConfig(optim="sgd", optim_args={"momentun": 0.5}).optimization)
    with pytest.raises(ConfigError, match="refuses its arguments"):
        make_optimizer(layer, TrainingConfig(optim="sgd", optim_args={"momentum": -1}).optimization)
