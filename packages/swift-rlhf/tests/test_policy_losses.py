"""Objectives of the GRPO family: golden values, what they divide by, and what must hold for all of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses import OBJECTIVES, aggregate, chord_mu, chord_phi, policy_loss, sample_weights
from swift_rlhf.losses.objectives import vespo_phi

ROWS = [(1.5, 1.0), (1.5, -1.0), (0.5, 1.0), (0.5, -1.0), (6.0, -1.0)]
GOLDEN = {
    "clip": ({"epsilon": 0.2, "epsilon_high": 0.28}, [-1.28, 1.5, -0.5, 0.8, 6.0]),
    "two-sided": ({"epsilon": 0.2, "epsilon_high": 0.28, "delta": 4.0}, [-1.28, 1.5, -0.5, 0.8, 4.0]),
    "dual": ({"epsilon": 0.2, "epsilon_high": 0.28, "dual_clip": 3.0}, [-1.28, 1.5, -0.5, 0.8, 3.0]),
    "sapo": ({"loss_type": "sapo"}, [-2.489837, 2.393585, -1.510163, 1.415938, 3.789638]),
}


def one_token(ratio: float, advantage: float, **settings) -> tuple[float, float]:
    """Return value and gradient of the log-probability of a token with a ratio."""
    logps = torch.tensor([[math.log(ratio) - 2]], dtype=torch.float64, requires_grad=True)
    old = torch.full((1, 1), -2.0, dtype=torch.float64)
    found = policy_loss(logps, old, torch.tensor([advantage]), torch.ones(1, 1), **settings)
    (gradient,) = torch.autograd.grad(found.loss.total, logps)
    return found.loss.total.item(), gradient.item()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name) -> None:
    settings, expected = GOLDEN[name]
    assert [one_token(*row, **settings)[0] for row in ROWS] == pytest.approx(expected, abs=1e-6)


def test_cispo_caps_the_factor_and_keeps_every_gradient() -> None:
    assert [one_token(*row, loss_type="cispo")[1] for row in ROWS] == pytest.approx([-1.5, 1.5, -0.5, 0.5, 5.0])


def data(answers: int = 5, tokens: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(answers, tokens, generator=generator, dtype=torch.float64)
    logps = old + 0.4 * torch.randn(answers, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([7, 3, 0, 5, 1, 6, 2, 4])[:answers]
    mask = torch.arange(tokens) < lengths[:, None]
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 1.0, -1.0])[:answers].double()
    return logps.requires_grad_(True), old, advantages, mask


def settings_of(name: str) -> dict:
    more: dict = {"max_completion_length": 8} if name == "dr_grpo" else {}
    return {"loss_type": name, **more, **({"group_ids": torch.tensor([0, 0, 0, 1, 1])} if name == "real" else {})}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_policy_the_gradient_is_minus_the_advantage(name) -> None:
    logps, _, advantages, mask = data()
    found = policy_loss(logps, None, advantages, mask, **settings_of(name))
    (gradient,) = torch.autograd.grad(found.loss.total, logps)
    assert torch.isfinite(gradient).all()
    assert not gradient[~mask].any()
    if name == "real":
        assert torch.equal(gradient[mask].sign(), -advantages.sign()[:, None].expand(mask.shape)[mask])
        return
    by_token = OBJECTIVES[name].aggregation in ("token_mean", "fixed_length", "sequence_sum")
    lengths = mask.sum(-1, keepdim=True).clamp_min(1)
    share = torch.ones_like(logps) if by_token else 1 / lengths.double().expand(mask.shape)
    if name == "bnpo":
        share = torch.full_like(logps, 4 / 16)
    assert torch.allclose(gradient, torch.where(mask, -advantages[:, None] * share, 0), atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_lies_outside_the_mask_does_not_matter(name) -> None:
    logps, old, advantages, mask = data()
    found = policy_loss(logps, old, advantages, mask, **settings_of(name))
    spoilt = [torch.where(mask, each.detach(), torch.nan) for each in (logps, old)]
    spoilt[0].requires_grad_(True)
    other = policy_loss(*spoilt, advantages, mask, **settings_of(name))
    assert torch.equal(found.loss.total, other.loss.total)
    assert torch.isfinite(torch.autograd.grad(other.loss.total, spoilt[0])[0]).all()


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        (name, cut)
        for name in OBJECTIVES
        for cut in ((0, 3, 5), (0, 2, 3, 4, 5))
        if name not in ("bnpo", "real") or (name, len(cut)) == ("real", 3)
    ],
)
def test_sums_and_weights_add_up_over_micro_batches(name, cut) -> None:
    logps, old, advantages, mask = data()
    kl = None if name == "real" else (logps - old).square()
    more = settings_of(name)
    groups = more.pop("group_ids", None)

    def part(of: slice):
        extra = {**more, **({"group_ids": groups[of]} if groups is not None else {"kl": kl[of], "kl_coef": 0.1})}
        return policy_loss(logps[of], old[of], advantages[of], mask[of], **extra).loss

    whole, parts = part(slice(None)), [part(slice(*ends)) for ends in itertools.pairwise(cut)]
    assert sum(float(each.weight) for each in parts) == float(whole.weight)
    gradients = [torch.autograd.grad(total, logps, retain_graph=True)[0] for total in (whole.total, sum(each.total for each in parts))]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"), [("sequence_mean", 0.75), ("token_mean", 0.625), ("fixed_length", 0.3125), ("sequence_sum", 2.5)]
)
def test_aggregations(rule, expected) -> None:
    losses = torch.tensor([[1.0, 1.0, 9, 9, 9, 9], [0.5] * 6], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1] * 6])
    found = aggregate(losses, mask, rule, max_completion_length=8)
    assert found.mean().item() == pytest.approx(expected)
    assert sample_weights(mask, rule, max_completion_length=8).sum().item() == found.weight.item()


def test_answers_without_tokens_have_no_weight_but_tokens_that_are_not_kept_do() -> None:
    losses, mask = torch.ones(3, 4, dtype=torch.float64), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    keep = torch.tensor([[False], [True], [True]])
    for rule, total, weight in (("sequence_mean", 1, 2), ("token_mean", 4, 6), ("fixed_length", 4, 20), ("batch_token_mean", 4 / 6 * 2, 2)):
        found = aggregate(losses, mask, rule, max_completion_length=10, keep=keep)
        assert (found.total.item(), found.weight.item()) == (pytest.approx(total), weight)


def test_gspo() -> None:
    old, mask = torch.full((1, 3), -1.0, dtype=torch.float64), torch.ones(1, 3)
    logps = old + torch.tensor([[0.1, -0.05, 0.2]], dtype=torch.float64)
    for name in ("gspo", "gspo_token"):
        found = policy_loss(logps, old, torch.tensor([1.0]), mask, loss_type=name, epsilon=1.0)
        assert found.loss.total.item() == pytest.approx(-1.086904050)


@settings(max_examples=20)
@given(st.integers(0, 50))
def test_gspo_by_token_has_the_same_value_and_gradient_as_gspo(seed) -> None:
    logps, old, advantages, mask = data(seed=seed)
    both = [policy_loss(logps, old, advantages, mask, loss_type=name, epsilon=0.2).loss.total for name in ("gspo", "gspo_token")]
    assert both[0].item() == pytest.approx(both[1].item(), abs=1e-12)
    gradients = [torch.autograd.grad(total, logps, retain_graph=True)[0] for total in both]
    assert torch.allclose(*gradients, atol=1e-12)


def test_vespo_weighs_by_the_whole_ratio() -> None:
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = vespo_phi(torch.full((2,), math.log(1.5), dtype=torch.float64), signs, positive=(2.0, 3.0), negative=(3.0, 2.0))
    assert found.tolist() == pytest.approx([0.502042860, 1.241593114], abs=1e-8)
    # The correction of the rollout is a part of the ratio, and no factor besides.
    corrected = one_token(1.0, 1.0, loss_type="vespo", weights=torch.tensor([[1.5]], dtype=torch.float64))
    assert corrected[1] == pytest.approx(-0.502042860, abs=1e-8)


def test_gmpo_cuts_on_the_side_that_profits() -> None:
    old, mask = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2)
    logps = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert policy_loss(logps, old, torch.tensor([1.0]), mask, loss_type="gmpo").loss.total.item() == pytest.approx(-math.exp((0.4 - 1) / 2))
    assert policy_loss(logps, old, torch.tensor([-1.0]), mask, loss_type="gmpo").loss.total.item() == pytest.approx(math.exp((1 - 0.4) / 2))


def test_fipo_listens_to_the_future() -> None:
    old, mask = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2)
    logps = torch.tensor([[0.05, 0.1], [math.log(5.0), -3.0]], dtype=torch.float64)
    decay = 2 ** (-1 / 32)
    found = policy_loss(logps, old, torch.tensor([1.0, -1.0]), mask, loss_type="fipo", fipo_clip_high_only=False).loss.total.item()
    first = -math.exp(0.05) * math.exp(0.05 + decay * 0.1) - math.exp(0.1) * math.exp(0.1)
    # A negative advantage with a ratio of 5 is not made stronger; e^-3 is below the range.
    second = 5.0 * 0.8 + 0.8 * 0.8 if math.log(5) - 3 * decay < math.log(0.8) else 0
    assert found == pytest.approx(first + second)


def test_real_by_hand() -> None:
    old, mask = torch.zeros(5, 1, dtype=torch.float64), torch.ones(5, 1)
    logps = torch.tensor([[0.1], [0.2], [-0.1], [0.5], [0.6]], dtype=torch.float64)
    groups, advantages = torch.tensor([7, 7, 7, 2, 2]), torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    found = policy_loss(logps, old, advantages, mask, loss_type="real", group_ids=groups).loss
    assert found.total.item() == pytest.approx(math.log(1 + math.exp(0.4) + math.exp(-0.2)) + math.log(1 + math.exp(-0.2)))
    assert found.weight.item() == 2


def test_dynamic_bounds_let_unlikely_tokens_move_further() -> None:
    old = torch.tensor([[math.log(0.9), math.log(0.01)]], dtype=torch.float64)
    logps = (old + math.log(3.0)).requires_grad_(True)
    found = policy_loss(logps, old, torch.tensor([1.0]), torch.ones(1, 2), epsilon=0.16, epsilon_high=0.2, dynamic_clip=True)
    (gradient,) = torch.autograd.grad(found.loss.total, logps)
    assert gradient[0, 0] == 0
    assert gradient[0, 1] == pytest.approx(-1.5)
    bound = 0.5 + 0.5 * math.sqrt(1 + 0.8 / 0.9)
    assert found.loss.total.item() == pytest.approx(-(bound + 3.0) / 2)


def test_kl_is_not_touched_by_corrections_and_masks() -> None:
    logps, old, advantages, mask = data()
    kl, weights = torch.full_like(old, 0.5), torch.zeros_like(old)
    found = policy_loss(logps, old, advantages, mask, loss_type="dapo", weights=weights, keep=weights.bool(), kl=kl, kl_coef=0.1)
    assert found.loss.total.item() == pytest.approx(0.05 * mask.sum().item())
    weighted = policy_loss(logps, old, advantages, mask, loss_type="dapo", weights=weights, kl=kl, kl_coef=0.1, kl_weighted=True)
    assert weighted.loss.total.item() == pytest.approx(0.05 * ((logps - old).exp() * mask).sum().item())


def test_clip_ratios_count_tokens_that_lost_their_gradient() -> None:
    logps = torch.log(torch.tensor([[1.5, 0.5, 1.0, 9.0]], dtype=torch.float64))
    mask, old = torch.tensor([[1, 1, 1, 0]]), torch.zeros(1, 4, dtype=torch.float64)
    up = policy_loss(logps, old, torch.tensor([1.0]), mask).metrics
    down = policy_loss(logps, old, torch.tensor([-1.0]), mask).metrics
    assert [up[f"clip_ratio/{name}"].mean().item() for name in ("low", "high", "region")] == pytest.approx([0, 1 / 3, 1 / 3])
    assert [down[f"clip_ratio/{name}"].mean().item() for name in ("low", "high", "region")] == pytest.approx([1 / 3, 0, 1 / 3])
    assert up["policy/ratio"].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "ppo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "real"},
        {"loss_type": "cispo", "cispo_cap": 0.2},
        {"loss_type": "cispo", "delta": 4.0},
        {"delta": 1.1},
        {"dual_clip": 0.5},
        {"epsilon": -0.1},
        {"importance_sampling_level": "word"},
        {"importance_sampling_level": "sequence", "dynamic_clip": True},
        {"loss_type": "gmpo", "importance_sampling_level": "sequence"},
        {"loss_type": "real", "group_ids": torch.tensor([0]), "kl": torch.zeros(1, 2)},
        {"aggregation": "median"},
        {"kl_weighted": True},
    ],
    ids=str,
)
def test_settings_that_cannot_be_obeyed_are_refused(settings) -> None:
    with pytest.raises(TrainingError) as caught:
        policy_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), **settings)
    assert caught.value.fix


def test_chord_rises_and_falls() -> None:
    shape = {"warmup_steps": 10, "decay_steps": 20, "peak": 0.9, "valley": 0.1}
    assert [chord_mu(step, **shape) for step in (0, 5, 10, 20, 30, 99)] == pytest.approx([0, 0.45, 0.9, 0.5, 0.1, 0.1])
    assert chord_phi(torch.log(torch.tensor([0.5, 1.0, 0.1]))).tolist() == pytest.approx([0.25, 0, 0.09], abs=1e-6)
    with pytest.raises(TrainingError):
        chord_mu(0, warmup_steps=1, decay_steps=1, peak=0.1, valley=0.2)
