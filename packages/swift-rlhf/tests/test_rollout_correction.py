"""Corrections for how answers were sampled, and masks over tokens and answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses import (
    entropy_mask,
    entropy_threshold,
    named_diagnostics,
    off_policy_sequence_mask,
    rollout_diagnostics,
    rollout_weights,
    without_truncated,
)

OLD = torch.log(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], dtype=torch.float64))
SAMPLER = torch.log(torch.tensor([[0.125, 1.0, 0.5], [0.25, 0.25, 0.5]], dtype=torch.float64))
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
# Ratios: 4, 1/2, 1 and 2, 2.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"level": "token", "mode": "truncate", "upper": 3.0}, [[3, 0.5, 1], [2, 2, 1]]),
        ({"level": "token", "mode": "mask", "upper": 3.0}, [[0, 0.5, 1], [2, 2, 1]]),
        ({"level": "token", "mode": "mask", "upper": 3.0, "lower": 0.6}, [[0, 0, 1], [2, 2, 1]]),
        ({"level": "sequence", "mode": "truncate", "upper": 3.0}, [[2], [3]]),
        ({"level": "sequence", "mode": "mask", "upper": 3.0}, [[2], [0]]),
        ({"level": "geometric", "mode": "truncate", "upper": 1.5}, [[2 ** (1 / 3)], [1.5]]),
        ({"level": "geometric", "mode": "mask", "upper": 1.5}, [[2 ** (1 / 3)], [0]]),
    ],
    ids=str,
)
def test_weights(settings, expected) -> None:
    assert torch.allclose(rollout_weights(OLD, SAMPLER, MASK, **settings), torch.tensor(expected, dtype=torch.float64))


def test_tokens_that_the_engine_could_not_score_count_as_one() -> None:
    sampler = SAMPLER.clone()
    sampler[0, 0] = torch.nan
    assert rollout_weights(OLD, sampler, MASK, upper=3.0)[0].tolist() == pytest.approx([1, 0.5, 1])
    assert rollout_weights(OLD, sampler, MASK, level="sequence", upper=3.0)[0].item() == pytest.approx(0.5)
    found = rollout_diagnostics(OLD, sampler, MASK)
    assert found["kl"].weight.item() == 4
    assert all(torch.isfinite(each.total) for each in found.values())


def test_diagnostics() -> None:
    sums = rollout_diagnostics(OLD, SAMPLER, MASK, rollout_weights(OLD, SAMPLER, MASK, upper=3.0))
    parts = [rollout_diagnostics(OLD[i : i + 1], SAMPLER[i : i + 1], MASK[i : i + 1]) for i in (0, 1)]
    assert sums["kl"].total.item() == pytest.approx(sum(part["kl"].total.item() for part in parts))
    named = named_diagnostics({name: float(each.mean()) for name, each in sums.items()})
    assert named["rollout_correction/kl"] == pytest.approx(-(math.log(4) - math.log(2) + 2 * math.log(2)) / 5)
    assert named["rollout_correction/chi2_token"] == pytest.approx((16 + 0.25 + 1 + 4 + 4) / 5 - 1)
    assert named["rollout_correction/chi2_sequence"] == pytest.approx((4 + 16) / 2 - 1)
    assert named["rollout_correction/ess_sequence"] == pytest.approx(9 / 10)
    assert named["rollout_correction/training_ppl"] == pytest.approx(2.0)
    assert named["rollout_correction/bounded_frac"] == pytest.approx(1 / 5)
    same = rollout_diagnostics(OLD, OLD, MASK)
    quiet = named_diagnostics({name: float(each.mean()) for name, each in same.items()})
    assert quiet["rollout_correction/kl"] == quiet["rollout_correction/k3_kl"] == quiet["rollout_correction/chi2_token"] == 0
    assert quiet["rollout_correction/ess_token"] == quiet["rollout_correction/ppl_ratio"] == 1


def test_bounds_that_leave_nothing_are_refused() -> None:
    for settings in ({"upper": 0.5}, {"lower": 1.5}, {"level": "turn"}, {"mode": "drop"}):
        with pytest.raises(TrainingError):
            rollout_weights(OLD, SAMPLER, MASK, **settings)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.05, 1))
def test_the_entropy_threshold_is_a_quantile(values, top) -> None:
    entropies = torch.tensor([values])
    mask = torch.ones_like(entropies)
    found = entropy_threshold(entropies, mask, top=top)
    assert float(found) == pytest.approx(float(torch.quantile(entropies, 1 - top)), abs=1e-5)
    assert entropy_mask(entropies, mask, found - 1e-5).sum() >= math.floor(top * (len(values) - 1))


def test_entropy_outside_the_mask_is_not_asked() -> None:
    entropies, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[1, 1, 1, 0]])
    assert entropy_mask(entropies, mask, entropy_threshold(entropies, mask, top=0.5)).tolist() == [[False, True, True, False]]
    assert entropy_mask(entropies, mask, entropy_threshold(entropies, mask, top=1.0)).tolist() == [[True, True, True, False]]
    assert not entropy_mask(entropies, 0 * mask, entropy_threshold(entropies, 0 * mask, top=1.0)).any()
    with pytest.raises(TrainingError):
        entropy_threshold(entropies, mask, top=0.0)


def test_bad_answers_that_drifted_are_dropped() -> None:
    logps = torch.tensor([[-2.0, -2.0], [-2.0, -2.0], [-1.2, -1.2], [-9.0, -9.0]])
    sampler = torch.full((4, 2), -1.0)
    sampler[3] = torch.nan
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    found = off_policy_sequence_mask(logps, sampler, advantages, torch.ones(4, 2), delta=0.5)
    assert found[:, 0].tolist() == [False, True, True, True]
    assert without_truncated(torch.ones(2, 2), torch.tensor([True, False])).tolist() == [[False, False], [True, True]]
