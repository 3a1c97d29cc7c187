"""Divergences between student and teacher."""

from __future__ import annotations

import pytest
import torch
from swift_core.errors import TrainingError
from swift_rlhf.losses import chunked_sum, generalized_jsd, generalized_jsd_topk

STUDENT, TEACHER = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))
GOLDEN = {0.0: 0.092032850, 1.0: 0.085122826, 0.1: 0.008184756, 0.5: 0.021901179, 0.9: 0.007694688}


@pytest.mark.parametrize(("beta", "expected"), GOLDEN.items())
def test_golden_values(beta, expected) -> None:
    assert generalized_jsd(STUDENT, TEACHER, beta=beta).item() == pytest.approx(expected, abs=1e-8)
    everything = generalized_jsd_topk(STUDENT, TEACHER, torch.tensor([[0, 1, 2]]), beta=beta, tail=False)
    assert everything.item() == pytest.approx(expected, abs=1e-8)


def test_a_longer_vocabulary_on_one_side_is_cut() -> None:
    longer = torch.cat([STUDENT, torch.full((1, 5), 3.0, dtype=torch.float64)], dim=-1)
    assert generalized_jsd(longer, TEACHER).item() == pytest.approx(generalized_jsd(STUDENT, TEACHER).item())
    assert generalized_jsd(TEACHER, longer, beta=0).item() == pytest.approx(generalized_jsd(TEACHER, STUDENT, beta=0).item())


def test_temperature_divides_both() -> None:
    assert torch.allclose(generalized_jsd(2 * STUDENT, 2 * TEACHER, temperature=2.0), generalized_jsd(STUDENT, TEACHER))


@pytest.mark.parametrize("beta", GOLDEN)
def test_known_tokens_and_the_rest_bound_the_divergence_from_below(beta) -> None:
    student, teacher = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    exact = generalized_jsd(student, teacher, beta=beta)
    previous = torch.zeros_like(exact)
    for count in (1, 3, 8):
        logps, ids = teacher.log_softmax(-1).topk(count)
        found = generalized_jsd_topk(student, logps, ids, beta=beta)
        assert (found >= previous - 1e-12).all()
        previous = found
    assert torch.allclose(previous, exact)
    logps, ids = teacher.log_softmax(-1).topk(3)
    assert generalized_jsd_topk(teacher, logps, ids, beta=beta).abs().max() < 1e-12


def test_places_the_teacher_left_empty_say_nothing() -> None:
    logps, ids = TEACHER[:, :2], torch.tensor([[0, 1]])
    padded = torch.cat([logps, torch.full((1, 2), -torch.inf, dtype=torch.float64)], dim=-1)
    for tail in (True, False):
        student = STUDENT.clone().requires_grad_(True)
        found = generalized_jsd_topk(student, padded, torch.tensor([[0, 1, -1, -1]]), tail=tail)
        assert found.item() == pytest.approx(generalized_jsd_topk(STUDENT, logps, ids, tail=tail).item())
        assert torch.isfinite(torch.autograd.grad(found.sum(), student)[0]).all()


def test_chunks_give_the_same_values_and_gradients() -> None:
    hidden, head = torch.randn(7, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, 5, dtype=torch.float64)
    weights = torch.rand(7, dtype=torch.float64)

    def losses(rows, target, weight):
        return generalized_jsd(rows @ head.T, target) * weight

    whole = losses(hidden, teacher, weights).sum()
    pieces = chunked_sum(losses, hidden, teacher, weights, parameters=[head], size=3)
    assert torch.allclose(whole, pieces)
    for one, other in zip(*(torch.autograd.grad(each / 7, (hidden, head)) for each in (whole, pieces)), strict=True):
        assert torch.allclose(one, other)
    with torch.no_grad():
        assert torch.allclose(chunked_sum(losses, hidden, teacher, weights, size=3), whole)


def test_betas_and_temperatures_are_checked() -> None:
    for settings in ({"beta": 1.5}, {"temperature": 0.0}):
        with pytest.raises(TrainingError):
            generalized_jsd(STUDENT, TEACHER, **settings)
