"""Advantages within groups against values worked out by hand, and what holds for all inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.advantages import combine_rewards, decoupled_advantages, group_advantages, informative, rewards_less_kl, token_returns

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
SIGNS = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
ONE_GROUP = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 0.865875430),
        ({"scale_rewards": "none"}, 0.5),
        ({"estimator": "rloo", "scale_rewards": "none"}, 0.666666667),
        ({"estimator": "rloo"}, 0.666666667),
        ({"estimator": "reinforce_plus_plus"}, 0.865875430),
        ({"estimator": "reinforce_plus_plus_baseline"}, 0.865875430),
        ({"estimator": "reinforce_plus_plus", "scale_rewards": "none"}, 0.5),
        ({"scale_rewards": "batch"}, 0.865875430),
    ],
    ids=str,
)
def test_known_values(settings, size) -> None:
    assert torch.allclose(group_advantages(REWARDS, ONE_GROUP, **settings), SIGNS * size, atol=1e-8)


def test_rloo_compares_with_the_others() -> None:
    rewards = torch.tensor([3.0, 0.0, 6.0, 1.0])
    found = group_advantages(rewards, ONE_GROUP, estimator="rloo", scale_rewards="none")
    others = torch.tensor([(rewards.sum() - own) / 3 for own in rewards])
    assert torch.allclose(found, rewards - others, atol=1e-6)


def test_batch_scale_takes_the_deviation_of_all_rewards() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 10.0, 10.5]), torch.tensor([4, 4, 9, 9])
    found = group_advantages(rewards, groups, scale_rewards="batch")
    assert torch.allclose(found, torch.tensor([-0.5, 0.5, -0.25, 0.25]) / (rewards.std() + 1e-4))


def test_absent_rewards_and_lonely_answers_get_nothing() -> None:
    rewards, groups = torch.tensor([1.0, float("nan"), 0.0, 5.0, float("nan")]), torch.tensor([0, 0, 0, 1, 2])
    for settings in ({}, {"estimator": "rloo"}, {"scale_rewards": "none"}, {"scale_rewards": "batch"}):
        found = group_advantages(rewards, groups, **settings)
        assert torch.isfinite(found).all()
        assert found[[1, 3, 4]].tolist() == [0, 0, 0]
        assert found[0] == -found[2] > 0


rows = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 3)), min_size=1, max_size=24)
settings = st.fixed_dictionaries(
    {"estimator": st.sampled_from(["grpo", "rloo"]), "scale_rewards": st.sampled_from(["group", "batch", "none"])}
)


@given(rows, settings, st.randoms(use_true_random=False))
def test_sums_vanish_and_order_does_not_matter(rows, settings, random) -> None:
    rewards, groups = (torch.tensor(column) for column in zip(*rows, strict=True))
    rewards = rewards.double()
    found = group_advantages(rewards, groups, **settings)
    for group in groups.unique():
        assert found[groups == group].sum().item() == pytest.approx(0, abs=1e-6)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert torch.allclose(group_advantages(rewards[order], groups[order], **settings), found[order], atol=1e-9)


@given(st.floats(-10, 10), st.integers(2, 9), settings)
def test_equal_rewards_carry_no_signal(reward, count, settings) -> None:
    found = group_advantages(torch.full((count,), reward), torch.zeros(count, dtype=torch.long), **settings)
    assert found.abs().max().item() == 0


def test_shapes_and_names_are_checked() -> None:
    for rewards, groups, more in (
        (REWARDS, ONE_GROUP[:2], {}),
        (REWARDS[None], ONE_GROUP[None], {}),
        (REWARDS, ONE_GROUP, {"estimator": "ppo"}),
    ):
        with pytest.raises(TrainingError):
            group_advantages(rewards, groups, **more)


def test_reinforce_plus_plus_compares_with_the_batch_and_its_baseline_with_the_group_first() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1])
    found = group_advantages(rewards, groups, estimator="reinforce_plus_plus")
    assert torch.allclose(found, (rewards - rewards.mean()) / (rewards.std() + 1e-4))
    centred = torch.tensor([-0.5, 0.5, -1.0, 0.0, 1.0], dtype=torch.float64)
    found = group_advantages(rewards, groups, estimator="reinforce_plus_plus_baseline")
    assert torch.allclose(found, centred / (centred.std() + 1e-4))
    constant = torch.full((5,), 0.1)
    assert not group_advantages(constant, groups, estimator="reinforce_plus_plus").any()
    nothing = torch.full((5,), float("nan"))
    for estimator in ("grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        assert not group_advantages(nothing, groups, estimator=estimator).any()


def test_groups_without_difference_are_found() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.05, float("nan"), 1.0, 0.0, 1.0])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert informative(rewards, groups).tolist() == [False, False, True, True, False, False, True, True]
    assert informative(rewards, groups, threshold=0.1).tolist() == [False] * 6 + [True] * 2


def test_rewards_that_do_not_apply_are_left_out_of_the_sum() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan]])
    assert combine_rewards(rewards, torch.tensor([0.5, 2.0])).tolist()[:2] == [4.5, 4.0]
    assert combine_rewards(rewards)[2].isnan()
    with pytest.raises(TrainingError, match="3 reward_weights for 2"):
        combine_rewards(rewards, torch.ones(3))


def test_decoupled_rewards_count_whatever_their_scale() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [nan, nan]], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 0])
    plain = decoupled_advantages(rewards, groups)
    scaled = decoupled_advantages(rewards * torch.tensor([1.0, 1000.0]), groups)
    assert torch.allclose(plain, scaled, atol=1e-3)
    assert plain[0].item() == pytest.approx(0, abs=1e-9)
    assert plain[2].item() == pytest.approx(-plain[3].item())
    assert plain[4].item() == 0
    assert decoupled_advantages(rewards, groups, weights=torch.tensor([1.0, 0.1]))[0] > 0.5
    assert not decoupled_advantages(torch.ones(4, 2), groups[:4]).any()


def test_token_returns_price_the_kl_from_each_token_on() -> None:
    kl, mask = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 1, 0], [1, 0, 0]])
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    raw = torch.tensor([1 - 0.1 * 0.3, 1 - 0.1 * 0.2, -0.1 * 0.3], dtype=torch.float64)
    found = token_returns(rewards, kl, mask, kl_coef=0.1)
    assert torch.allclose(found[mask.bool()], (raw - raw.mean()) / raw.std(), atol=1e-6)
    assert rewards_less_kl(rewards, kl, mask, kl_coef=0.1).tolist() == pytest.approx([0.97, -0.03])
