"""DPO losses against values worked out by hand, and what holds for all inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses.preference import dpo_loss

PAIR = tuple(torch.tensor([value], dtype=torch.float64) for value in (-10.0, -14.0, -12.0, -13.0))
LENGTHS = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}
logps = st.floats(-200, 0, allow_nan=False)


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss_type": "sigmoid"}, 0.554355244),
        ({"loss_type": "sigmoid", "label_smoothing": 0.1}, 0.584355244),
        ({"loss_type": "hinge"}, 0.7),
        ({"loss_type": "ipo", **LENGTHS}, 18.9225),
    ],
    ids=["sigmoid", "smoothed", "hinge", "ipo"],
)
def test_known_values(settings, expected) -> None:
    assert dpo_loss(*PAIR, beta=0.1, **settings).item() == pytest.approx(expected, abs=1e-8)


def test_a_policy_equal_to_the_reference_costs_log_two() -> None:
    same = torch.tensor([-3.0, -70.0])
    assert torch.allclose(dpo_loss(same, same - 1, same, same - 1), torch.full((2,), math.log(2)))


@given(logps, logps, logps, logps, st.floats(0.01, 1))
def test_gradient_of_sigmoid_is_minus_beta_times_the_doubt(chosen, rejected, ref_chosen, ref_rejected, beta) -> None:
    pair = tensors(chosen, rejected, ref_chosen, ref_rejected)
    pair[0].requires_grad_(True)
    dpo_loss(*pair, beta=beta).sum().backward()
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    assert pair[0].grad is not None
    assert pair[0].grad.item() == pytest.approx(-beta / (1 + math.exp(min(z, 700))), abs=1e-9)


@given(logps, logps, logps, logps, st.floats(-50, 50), st.sampled_from(["sigmoid", "hinge"]))
def test_a_constant_added_to_both_answers_changes_nothing(chosen, rejected, ref_chosen, ref_rejected, constant, kind) -> None:
    plain = dpo_loss(*tensors(chosen, rejected, ref_chosen, ref_rejected), loss_type=kind)
    moved = dpo_loss(*tensors(chosen + constant, rejected + constant, ref_chosen, ref_rejected), loss_type=kind)
    assert torch.allclose(plain, moved, atol=1e-9)


def test_half_precision_log_probabilities_are_widened_first() -> None:
    pair = [torch.tensor([value], dtype=torch.bfloat16) for value in (-200.0, -202.0, -201.0, -203.0)]
    loss = dpo_loss(*pair)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dpo_loss(*(each.float() for each in pair)))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "ipo"},
        {"loss_type": "ipo", "chosen_lengths": torch.tensor([5])},
        {"loss_type": "sigmoid", **LENGTHS},
        {"loss_type": "hinge", "label_smoothing": 0.1},
        {"label_smoothing": 0.5},
        {"beta": 0.0},
        {"loss_type": "kto"},
    ],
    ids=str,
)
def test_settings_that_would_be_ignored_are_refused(settings) -> None:
    with pytest.raises(TrainingError) as caught:
        dpo_loss(*PAIR, **settings)
    assert caught.value.fix
