"""DPO losses against values worked out by hand, and what holds for all inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from swift_core.errors import TrainingError
from swift_rlhf.losses.divergence import divergence_scores
from swift_rlhf.losses.preference import dpo_loss, preference_metrics
from swift_rlhf.losses.tokens import desensitized_logps, sequence_logps, wpo_weights

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
        ({"loss_type": "robust", "label_smoothing": 0.1}, 0.516855244),
        ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, 2.258199192),
        ({"loss_type": "nca_pair"}, 1.319406634),
        ({"loss_type": "bco_pair"}, 1.242535529),
        ({"loss_type": "sppo_hard"}, 25.0),
        ({"loss_type": "apo_zero"}, 0.925186815),
        ({"loss_type": "apo_down"}, 0.975391481),
        ({"loss_type": "discopop"}, 0.740357168),
        ({"loss_type": "sigmoid_norm", **LENGTHS}, 0.661175213),
        ({"loss_type": "aot"}, 0.554355244),
        ({"loss_type": "aot_unpaired"}, 0.554355244),
        ({"f_divergence": "forward_kl"}, 0.572316289),
        ({"f_divergence": "js_divergence"}, 0.635588701),
        ({"f_divergence": "alpha_divergence", "f_alpha": 0.5}, 0.573243446),
        ({"f_divergence": "alpha_divergence", "f_alpha": 1.0}, 0.554355244),
        ({"f_divergence": "alpha_divergence", "f_alpha": 0.0}, 0.572316289),
        ({"loss_type": "sft", **LENGTHS}, 2.0),
        ({"rpo_alpha": 0.5, **LENGTHS}, 0.554355244 + 1.0),
        (
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], **LENGTHS},
            0.8 * 0.554355244 + 0.2 * 1.242535529 + 2,
        ),
        ({"pair_weights": torch.tensor([0.25])}, 0.25 * 0.554355244),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
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


@given(logps, logps, logps, logps, st.floats(-50, 50), st.sampled_from(["sigmoid", "hinge", "robust", "exo_pair", "discopop"]))
def test_a_constant_added_to_both_answers_changes_nothing(chosen, rejected, ref_chosen, ref_rejected, constant, kind) -> None:
    smoothing = 0.1 if kind in ("robust", "exo_pair") else 0.0
    plain = dpo_loss(*tensors(chosen, rejected, ref_chosen, ref_rejected), loss_type=kind, label_smoothing=smoothing)
    moved = dpo_loss(*tensors(chosen + constant, rejected + constant, ref_chosen, ref_rejected), loss_type=kind, label_smoothing=smoothing)
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
        {"loss_type": "sft"},
        {"loss_type": "exo_pair"},
        {"loss_type": "nca_pair", "f_divergence": "forward_kl"},
        {"f_divergence": "reverse"},
        {"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]},
        {"loss_type": []},
        {"loss_type": "aot", "pair_weights": torch.ones(1)},
        {"loss_type": "sigmoid", "population": (torch.ones(1), torch.ones(1))},
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


def many(count: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [-20 * torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(4)]


ALL = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired")
ALL += ("apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft")


@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_those_of_the_formula(kind) -> None:
    smoothing = 0.1 if kind in ("robust", "exo_pair") else 0.0
    lengths = {"chosen_lengths": torch.arange(3, 10), "rejected_lengths": torch.arange(9, 2, -1)}
    pairs = many()
    chosen = pairs[0].clone().requires_grad_(True)
    rejected = pairs[1].clone().requires_grad_(True)

    def total(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return dpo_loss(chosen, rejected, *pairs[2:], loss_type=kind, label_smoothing=smoothing, **lengths).sum()

    slopes = torch.autograd.grad(total(chosen, rejected), (chosen, rejected), allow_unused=True)
    with torch.no_grad():
        for place in range(len(chosen)):
            step = torch.zeros_like(pairs[0]).index_fill_(0, torch.tensor(place), 1e-6)
            for slope, (one, other) in zip(slopes, ((step, 0 * step), (0 * step, step)), strict=True):
                difference = total(chosen + one, rejected + other) - total(chosen - one, rejected - other)
                assert float(0 if slope is None else slope[place]) == pytest.approx(float(difference) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired"])
def test_sorting_over_the_step_does_not_depend_on_micro_batches(kind) -> None:
    whole, cut = ([each.clone().requires_grad_(index < 2) for index, each in enumerate(many())] for _ in range(2))
    dpo_loss(*whole, loss_type=kind).sum().backward()
    chosen, rejected, ref_chosen, ref_rejected = (each.detach() for each in cut)
    step = (chosen - rejected, ref_chosen - ref_rejected) if kind == "aot" else (chosen - ref_chosen, rejected - ref_rejected)
    value = 0.0
    for part in (slice(0, 3), slice(3, 7)):
        losses = dpo_loss(*(each[part] for each in cut), loss_type=kind, population=step)
        losses.sum().backward()
        value += float(losses.detach().sum())
    assert value == pytest.approx(float(dpo_loss(*whole, loss_type=kind).detach().sum()), abs=1e-9)
    for one, other in zip(whole[:2], cut[:2], strict=True):
        assert one.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in ("aot", "aot_unpaired", "sppo_hard", "ipo")])
def test_far_away_pairs_stay_finite(kind) -> None:
    pair = [torch.tensor([value, -value], requires_grad=True) for value in (-900.0, 900.0, 0.0, 0.0)]
    lengths = {"chosen_lengths": torch.tensor([5, 5]), "rejected_lengths": torch.tensor([4, 4])}
    losses = dpo_loss(*pair, loss_type=kind, label_smoothing=0.1 if kind == "exo_pair" else 0.0, **lengths)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(each.grad is None or torch.isfinite(each.grad).all() for each in pair)


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_scores_of_divergences_vanish_and_rise_at_the_reference(kind) -> None:
    ratios = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    score = divergence_scores(ratios, kind, alpha=0.3)
    score.sum().backward()
    assert score.item() == pytest.approx(0, abs=1e-12)
    assert ratios.grad.item() == pytest.approx(0.5 if kind == "js_divergence" else 1)
    assert torch.isfinite(divergence_scores(torch.tensor([-1e4, 1e4]), kind, alpha=0.3)).all()


def test_weights_of_long_tails_and_of_likely_answers() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0, float("nan")], [-1.0, -1.0, float("nan"), float("nan")]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    shared = torch.tensor([2, 2])
    assert desensitized_logps(logps, mask, shared, alpha=0.5).tolist() == [-4.5, -2.0]
    assert torch.equal(desensitized_logps(logps, mask, shared, alpha=1.0), sequence_logps(logps, mask))
    # A token that is certain has log p = 0 and log sum p^2 = 0: weight 1; one of two equal tokens likewise.
    assert wpo_weights(torch.tensor([[0.0], [math.log(0.5)]]), torch.tensor([[0.0], [math.log(0.5)]]), torch.ones(2, 1)).tolist() == [1, 1]
    assert wpo_weights(logps, torch.full_like(logps, -0.5), mask)[0].item() == pytest.approx(math.exp(-2 + 0.5))


def test_metrics_are_sums_over_pairs() -> None:
    two = [torch.cat([each, each + (1 if index == 1 else 0) * 9]) for index, each in enumerate(PAIR)]
    found = preference_metrics(*two, beta=0.1)
    assert found["rewards/chosen"].item() == pytest.approx(0.4)
    assert found["rewards/rejected"].item() == pytest.approx(-0.1 + 0.8)
    assert found["rewards/accuracies"].item() == 1
    assert found["rewards/margins"].item() == pytest.approx(0.3 - 0.6)
