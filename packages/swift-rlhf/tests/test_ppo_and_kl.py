"""KL estimates, advantages over tokens, whitening and the losses of PPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses import adapted_kl_coef, gae, kl_estimate, moments, padded, ppo_policy_loss, ppo_value_loss, token_rewards, whiten
from swift_rlhf.losses.tokens import discounted_sums


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.2, (0.2, 0.02, 0.018730753)), (-0.2, (-0.2, 0.02, 0.021402758)), (1.0, (1.0, 0.5, 0.367879441))],
)
def test_estimators(difference, expected) -> None:
    logps, reference = torch.tensor([difference - 3], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    found = [kl_estimate(logps, reference, estimator=name).item() for name in ("k1", "k2", "k3")]
    assert found == pytest.approx(expected, abs=1e-8)


def test_value_of_one_estimator_and_gradient_of_another() -> None:
    logps = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    found = kl_estimate(logps, torch.tensor([-2.5], dtype=torch.float64), estimator="k3", gradient="k2")
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(-0.5) + 0.5 - 1)
    assert logps.grad.item() == pytest.approx(0.5)


@given(st.floats(-500, 500))
def test_k3_is_never_negative_and_never_loses_its_gradient(difference) -> None:
    logps = torch.tensor([difference], requires_grad=True)
    found = kl_estimate(logps, torch.zeros(1), estimator="k3")
    found.sum().backward()
    assert found.item() >= 0
    assert torch.isfinite(found).all()
    assert torch.isfinite(logps.grad).all()
    if abs(difference) > 1e-3:
        assert logps.grad.item() * difference > 0


def test_gae() -> None:
    rewards, values = (torch.tensor([row], dtype=torch.float64) for row in ([0, 0, 1], [0.1, 0.2, 0.3]))
    advantages, returns = gae(rewards, values, torch.ones(1, 3))
    assert advantages[0].tolist() == pytest.approx([0.82675, 0.765, 0.7])
    assert returns[0].tolist() == pytest.approx([0.92675, 0.965, 1.0])


def plain_gae(rewards, values, gamma, lam):
    carried, after, out = 0.0, 0.0, []
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        carried = reward + gamma * after - value + gamma * lam * carried
        after = value
        out.append(carried)
    return out[::-1]


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.booleans()), min_size=1, max_size=19), st.floats(0, 1), st.floats(0, 1))
def test_observations_between_turns_are_stepped_over(rows, gamma, lam) -> None:
    rewards, values, mask = (torch.tensor([column]) for column in zip(*rows, strict=True))
    advantages, returns = gae(rewards.double(), values.double(), mask, gamma=gamma, lam=lam)
    kept = [row for row in rows if row[2]]
    expected = plain_gae([row[0] for row in kept], [row[1] for row in kept], gamma, lam)
    assert advantages[mask].tolist() == pytest.approx(expected, abs=1e-5)
    assert returns[mask].tolist() == pytest.approx([a + row[1] for a, row in zip(expected, kept, strict=True)], abs=1e-5)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_discounted_sums_by_hand() -> None:
    values = torch.tensor([[1.0, 99.0, 1.0, 1.0], [0.0, 0.0, 0.0, 4.0]])
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])
    assert discounted_sums(values, mask, 0.5).tolist() == [[1.75, 0, 1.5, 1.0], [0.5, 1.0, 2.0, 4.0]]


def test_the_score_comes_at_the_last_token_the_policy_wrote() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = token_rewards(torch.tensor([2.0, 3.0, 4.0]), torch.full((3, 5), 0.5), mask, kl_coef=0.1)
    expected = torch.tensor([[-0.05, -0.05, 0, 1.95, 0], [2.95, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.allclose(found, expected)


def test_whitening_over_the_step_does_not_depend_on_ranks() -> None:
    values, mask = torch.randn(4, 6, dtype=torch.float64) * 3 + 5, torch.rand(4, 6) < 0.7
    whole = whiten(values, mask)
    assert float(whole[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(whole[mask].std()) == pytest.approx(1, abs=1e-6)
    totals = moments(values[:1], mask[:1]) + moments(values[1:], mask[1:])
    parts = torch.cat([whiten(values[:1], mask[:1], totals=totals), whiten(values[1:], mask[1:], totals=totals)])
    assert torch.allclose(parts, whole, atol=1e-12)
    assert torch.allclose(whiten(values, mask, shift_mean=False)[mask].std(), torch.ones((), dtype=torch.float64), atol=1e-6)


def test_losses_are_sums_with_token_counts() -> None:
    logps = torch.log(torch.tensor([[1.5, 0.5, 7.0]], dtype=torch.float64)).requires_grad_(True)
    advantages, mask = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1, 1, 0]])
    found = ppo_policy_loss(logps, torch.zeros(1, 3, dtype=torch.float64), advantages, mask)
    assert found.loss.total.item() == pytest.approx(-1.2 + 0.8)
    assert found.loss.weight.item() == 2
    values = torch.tensor([[1.0, 5.0, 9.0]], requires_grad=True)
    value_loss = ppo_value_loss(values, torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]]), mask)
    # max((1 - 0)^2, (0.7 - 0)^2) and max((5 - 4)^2, (0.2 - 4)^2)
    assert value_loss.total.item() == pytest.approx((1 + 3.8**2) / 2)
    assert value_loss.weight.item() == 2
    assert ppo_value_loss(values, values, torch.zeros(1, 3), mask, epsilon=None).total.item() == pytest.approx(13)
    with pytest.raises(TrainingError):
        ppo_value_loss(values, values, values, mask, epsilon=0)


def test_the_price_of_kl_follows_its_target() -> None:
    assert adapted_kl_coef(0.1, 12, target=6, answers=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapted_kl_coef(0.1, 6.3, target=6, answers=100, horizon=1000) == pytest.approx(0.1 * 1.005)


def test_packed_values_become_rows() -> None:
    rows, mask = padded(torch.arange(5.0), [2, 0, 3])
    assert rows.tolist() == [[0, 1, 0], [0, 0, 0], [2, 3, 4]]
    assert mask.sum(-1).tolist() == [2, 0, 3]
    with pytest.raises(TrainingError, match="5"):
        padded(torch.arange(5.0), [2, 2])
