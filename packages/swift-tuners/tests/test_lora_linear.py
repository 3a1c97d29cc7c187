"""LoRA's layer in one function: same results as PEFT's, and PEFT's own way wherever there is more to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from swift_core.fusions.install import Fused
from swift_tuners.methods.lora_linear import LoraLinearFusion, lora_product
from torch import nn


def adapted(*, dtype: torch.dtype = torch.float32, bias: bool = True, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Linear(5, 6, bias=bias)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], **settings), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model


def results(model: nn.Module, rows: torch.Tensor) -> list[torch.Tensor]:
    given = rows.clone().requires_grad_()
    output = model(given)
    wanted = [given, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), wanted)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_those_of_peft(dtype: torch.dtype, bias: bool) -> None:
    model = adapted(dtype=dtype, bias=bias)
    rows = torch.randn(2, 3, 6).to(dtype)
    expected = results(model, rows)
    assert Fused(model, {"lora_linear": LoraLinearFusion()}).counts == {"lora_linear": 2}
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for one, other in zip(results(model, rows), expected, strict=True):
        assert one.dtype == other.dtype
        assert float((one.double() - other.double()).norm() / other.double().norm()) < limit


def test_formula_with_dropout_has_the_right_gradients() -> None:
    torch.manual_seed(0)
    rows, dropped, weight, bias, down, up = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (3, 6), (5, 6), (5,), (2, 6), (5, 2))
    )
    weight, bias = weight.detach(), bias.detach()
    found = lora_product(rows, lambda: weight, bias, down, up, 1.5, dropped=dropped)
    expected = rows @ weight.t() + bias + 1.5 * (dropped @ down.t()) @ up.t()
    torch.testing.assert_close(found, expected)
    wanted = [rows, dropped, down, up]
    for one, other in zip(*(torch.autograd.grad(value.square().sum(), wanted) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_draws_as_peft_draws() -> None:
    model = adapted(lora_dropout=0.5).train()
    rows = torch.randn(4, 6)
    torch.manual_seed(3)
    expected = results(model, rows)
    Fused(model, {"lora_linear": LoraLinearFusion()})
    torch.manual_seed(3)
    for one, other in zip(results(model, rows), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("state", ["disabled", "merged", "two", "autocast"])
def test_what_is_more_than_the_formula_goes_the_way_of_peft(state: str) -> None:
    model = adapted()
    rows = torch.randn(2, 6)
    Fused(model, {"lora_linear": LoraLinearFusion()})
    plain = adapted()
    if state == "two":
        for one in (model, plain):
            torch.manual_seed(5)
            one.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
            one.base_model.set_adapter(["default", "other"])
    if state == "merged":
        model.merge_adapter()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=state == "autocast"):
        if state == "disabled":
            with model.disable_adapter(), plain.disable_adapter():
                torch.testing.assert_close(model(rows), plain(rows))
        else:
            torch.testing.assert_close(model(rows), plain(rows))


def test_saved_weights_have_their_usual_names(tmp_path: Path) -> None:
    model = adapted()
    names = set(model.state_dict())
    Fused(model, {"lora_linear": LoraLinearFusion()})
    assert set(model.state_dict()) == names


def test_dora_keeps_its_own_way() -> None:
    model = adapted(use_dora=True)
    rows = torch.randn(2, 6)
    expected = results(model, rows)
    Fused(model, {"lora_linear": LoraLinearFusion()})
    for one, other in zip(results(model, rows), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_four_bit_weights_are_unpacked_in_both_passes() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    base = nn.Sequential(bnb.nn.modules.Linear4bit(64, 48, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"))
    base[0].weight.data.normal_()
    base = base.to("cpu")
    base[0].weight = base[0].weight.to("cpu")
    base[0].support_avx512bf16_for_cpu = False
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0"], init_lora_weights=False))
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    expected = results(model, rows)
    assert Fused(model, {"lora_linear": LoraLinearFusion()}).counts == {"lora_linear": 1}
    for one, other in zip(results(model, rows), expected, strict=True):
        assert float((one.double() - other.double()).norm() / other.double().norm()) < 3e-2
