"""Fused layers: same results as the layers they stand in for, and left alone where they are not."""

from __future__ import annotations

import pytest
import torch
from swift_core.fusions.gated_mlp import GatedMlpFusion, silu_product
from swift_core.fusions.install import Fused
from swift_core.fusions.rms_norm import RmsNormFusion, rms_norm
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
FUSIONS = {"rms_norm": RmsNormFusion(), "gated_mlp": GatedMlpFusion()}


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_equals_its_formula_with_all_gradients(offset: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    expected = rows / (rows.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (weight + offset)
    found = rms_norm(rows, weight, 1e-3, offset)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(value, [rows, weight], direction) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_product_with_the_activation_equals_its_formula() -> None:
    torch.manual_seed(0)
    gate, up, direction = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = gate * torch.sigmoid(gate) * up
    found = silu_product(gate, up)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(value, [gate, up], direction) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "norms", "mlps"),
    [
        (LlamaConfig(**SMALL), 5, 2),
        (Qwen3Config(**SMALL, head_dim=8), 9, 2),  # queries and keys are normed too
        (Gemma2Config(**SMALL, head_dim=8), 9, 0),  # weights count from 1, the activation is another
        (Gemma3TextConfig(**SMALL, head_dim=8), 13, 0),
        (Phi3Config(**SMALL), 5, 0),  # one matrix for gate and up
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_score_the_same_with_fused_layers(config: object, norms: int, mlps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(12)[None] + 3
    expected = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(model.parameters()), allow_unused=True)
    before = model.state_dict().keys()
    fused = Fused(model, FUSIONS)
    assert fused.counts == {"rms_norm": norms, "gated_mlp": mlps}
    found = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(model.parameters()), allow_unused=True)
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            assert float((one.double() - other.double()).norm()) <= limit * float(other.double().norm()) + 1e-6
    assert model.state_dict().keys() == before
    fused.remove()
    assert not any("forward" in vars(module) for module in model.modules())


class WrongRMSNorm(nn.Module):
    """Looks like a norm, and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * self.weight


def test_a_layer_that_computes_something_else_is_left_alone_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(WrongRMSNorm())
    state = torch.get_rng_state()
    fused = Fused(model, FUSIONS)
    assert fused.counts["rms_norm"] == 0
    assert "WrongRMSNorm" in caplog.text
    assert torch.equal(torch.get_rng_state(), state)


def test_a_forward_that_somebody_set_stays() -> None:
    norm = nn.RMSNorm(4, eps=1e-6)
    own = norm.forward
    norm.forward = own
    Fused(nn.Sequential(norm), FUSIONS)
    assert norm.forward is own
