"""KTO, CPO, SimPO, ORPO and reward models against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses import cpo_loss, kto_kl, kto_loss, log_odds_ratio, orpo_loss, reward_model_loss, simpo_loss
from swift_rlhf.losses.reference_free import log1mexp

CHOSEN, REJECTED = torch.tensor([-10.0], dtype=torch.float64), torch.tensor([-14.0], dtype=torch.float64)
LENGTHS = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}


def test_cpo() -> None:
    assert cpo_loss(CHOSEN, REJECTED, **LENGTHS, cpo_alpha=0).item() == pytest.approx(0.513015252, abs=1e-8)
    assert cpo_loss(CHOSEN, REJECTED, **LENGTHS).item() == pytest.approx(2.513015252, abs=1e-8)
    assert cpo_loss(CHOSEN, REJECTED, **LENGTHS, loss_type="hinge", cpo_alpha=0).item() == pytest.approx(0.6)
    assert cpo_loss(CHOSEN, REJECTED, **LENGTHS, loss_type="ipo", cpo_alpha=0).item() == pytest.approx((1.5 - 5) ** 2)
    smoothed = cpo_loss(CHOSEN, REJECTED, **LENGTHS, cpo_alpha=0, label_smoothing=0.1).item()
    assert smoothed == pytest.approx(0.513015252 + 0.1 * 0.4, abs=1e-8)


def test_simpo_has_no_cost_of_the_better_answer_unless_asked_for() -> None:
    assert simpo_loss(CHOSEN, REJECTED, **LENGTHS, beta=2, gamma=0.5).item() == pytest.approx(0.078889734, abs=1e-8)
    assert simpo_loss(CHOSEN, REJECTED, **LENGTHS, beta=2, gamma=0.5, cpo_alpha=1).item() == pytest.approx(2.078889734, abs=1e-8)


def test_alpha_rewards_of_impossible_answers_stay_finite() -> None:
    far = torch.tensor([-3e4], requires_grad=True)
    loss = cpo_loss(far, REJECTED.float(), **LENGTHS, loss_type="simpo", alpha=0.25, beta=2.5, cpo_alpha=0)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(far.grad).all()
    # (1 - p^-a) / a of p = e^-2 and e^-3.5
    expected = -math.log(1 / (1 + math.exp(-(2.5 * ((1 - math.exp(0.5)) - (1 - math.exp(0.875))) / 0.25 - 0.1))))
    found = cpo_loss(CHOSEN, REJECTED, **LENGTHS, loss_type="simpo", alpha=0.25, beta=2.5, simpo_gamma=0.1, cpo_alpha=0)
    assert found.item() == pytest.approx(expected)


def test_orpo() -> None:
    assert log_odds_ratio(CHOSEN / 5, REJECTED / 4).item() == pytest.approx(1.614750742, abs=1e-8)
    assert orpo_loss(CHOSEN, REJECTED, **LENGTHS).item() == pytest.approx(2 + 0.018143804, abs=1e-8)
    with_prompt = orpo_loss(CHOSEN, REJECTED, **LENGTHS, nll=torch.tensor([30.0], dtype=torch.float64), tokens_per_answer=15)
    assert with_prompt.item() == pytest.approx(2 + 0.018143804, abs=1e-8)


def test_a_mean_over_pairs_is_a_mean_over_tokens() -> None:
    chosen, rejected = torch.tensor([-10.0, -2.0], dtype=torch.float64), torch.tensor([-14.0, -3.0], dtype=torch.float64)
    lengths = {"chosen_lengths": torch.tensor([5, 1]), "rejected_lengths": torch.tensor([4, 2])}
    plain, more = (cpo_loss(chosen, rejected, **lengths, cpo_alpha=alpha).mean() for alpha in (0, 1))
    assert float(more - plain) == pytest.approx(12 / 6)
    halves = [
        cpo_loss(chosen[i : i + 1], rejected[i : i + 1], **{k: v[i : i + 1] for k, v in lengths.items()}, tokens_per_answer=3.0)
        for i in (0, 1)
    ]
    assert float(torch.cat(halves).mean()) == pytest.approx(float(more))


@given(st.floats(-50, -1e-12))
def test_log1mexp_keeps_its_digits(value) -> None:
    found = log1mexp(torch.tensor([value], dtype=torch.float64)).item()
    expected = math.log(-math.expm1(value)) if value > -0.7 else math.log1p(-math.exp(value))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_log1mexp_has_a_gradient_at_both_ends() -> None:
    values = torch.tensor([-1e-6, -80.0, -0.6931, 0.0], requires_grad=True)
    log1mexp(values).sum().backward()
    assert torch.isfinite(values.grad).all()


def test_kto() -> None:
    policy, reference = torch.tensor([-10.0, -14.0], dtype=torch.float64), torch.tensor([-12.0, -13.0], dtype=torch.float64)
    good = torch.tensor([True, False])
    found = kto_loss(policy, reference, good, kl=0.5)
    assert found.tolist() == pytest.approx([0.462570155, 0.462570155], abs=1e-8)
    weighted = kto_loss(policy, reference, good, kl=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    assert weighted.tolist() == pytest.approx([2 * 0.462570155, 3 * 0.462570155], abs=1e-8)
    unpaired = kto_loss(policy, reference, good, loss_type="apo_zero_unpaired")
    assert unpaired.tolist() == pytest.approx([1 / (1 + math.exp(0.2)), 1 / (1 + math.exp(0.1))])
    for settings in ({}, {"kl": 0.1, "loss_type": "apo_zero_unpaired"}, {"kl": 0.1, "beta": 0.0}, {"kl": 0.1, "loss_type": "bco"}):
        with pytest.raises(TrainingError):
            kto_loss(policy, reference, good, **settings)


def test_the_kl_of_kto_adds_up_over_micro_batches() -> None:
    policy, reference = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    whole = kto_kl(policy, reference)
    parts = [kto_kl(policy[part], reference[part]) for part in (slice(0, 2), slice(2, 6))]
    assert float(whole.mean()) == pytest.approx(float((policy - reference).mean()))
    assert float(sum(p.total for p in parts) / sum(p.weight for p in parts)) == pytest.approx(float(whole.mean()))


def test_reward_model() -> None:
    chosen, rejected = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    found = reward_model_loss(chosen, rejected, margin=torch.tensor([0.5]), center_coefficient=0.01)
    assert found.item() == pytest.approx(0.568755244, abs=1e-8)
    assert reward_model_loss(chosen, chosen).item() == pytest.approx(math.log(2))
