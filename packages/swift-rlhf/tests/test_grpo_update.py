"""The update computes a prompt once for all its answers, with the gradients of plain padded rows, whatever the objective."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.config.training import TrainingConfig
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.parallel import make_world
from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.grpo.task import GrpoTask, Objective
from swift_rlhf.losses import OBJECTIVES
from transformers import AutoModelForCausalLM

SETTINGS: dict[str, tuple[str, dict[str, Any], float]] = {
    **{name: (name, {}, 0.0) for name in OBJECTIVES},
    "grpo with reference": ("grpo", {}, 0.1),
    "token correction": ("dapo", {"rollout_importance_sampling_mode": "token_truncate"}, 0.0),
    "sequence mask": ("grpo", {"rollout_importance_sampling_mode": "sequence_mask"}, 0.0),
    "off-policy mask": ("grpo", {"off_policy_sequence_mask_delta": 0.1}, 0.0),
    "entropy": ("grpo", {"log_entropy": True}, 0.0),
}

# The model's norms compute in float32 whatever the weights are.
TOLERANCE = 1e-6


def distance(found: list[torch.Tensor], expected: list[Any]) -> float:
    """Return the largest difference as a share of the largest gradient."""
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-4
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) / largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


def task(name: str, *, shared: bool) -> GrpoTask:
    loss_type, settings, beta = SETTINGS[name]
    world = make_world(TrainingConfig(use_cpu=True, report_to=["none"]))
    objective = Objective(GrpoSection(**settings), loss_type, beta, temperature=0.8, max_completion_length=16)
    return GrpoTask(objective, Meter(world), answers=4, shared=shared)


def groups(*, off_policy: bool) -> list[AnswerGroup]:
    """Return two groups; the second has a tool's reply in an answer, an answer that teaches nothing, and one without tokens."""
    generator = torch.Generator().manual_seed(0)

    def answer(length: int, advantage: float, shown: tuple[int, ...] = ()) -> Answer:
        mask = [0 if place in shown else 1 for place in range(length)]
        ids = torch.randint(3, 500, (length,), generator=generator).tolist()
        logps = (-6.2 + 0.3 * torch.randn(3, sum(mask), generator=generator)).tolist()
        return Answer(ids, mask, logps[0], logps[1] if off_policy else None, logps[2], advantage=advantage)

    first = [answer(5, 1.0), answer(9, -0.5), answer(1, -0.5), answer(7, 0.7)]
    second = [answer(8, 0.9, shown=(3, 4)), answer(6, 0.0), answer(0, -0.2), answer(4, -0.9)]
    return [
        AnswerGroup.of([5, 6, 7, 8, 9, 10], first, group=0, version=0, origin="a"),
        AnswerGroup.of([11, 12, 13], second, group=1, version=0, origin="b"),
    ]


def gradients(model: Any, made: GrpoTask, micros: list[list[AnswerGroup]]) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    weight = sum(made.weight(group) for micro in micros for group in micro)
    for micro in micros:
        loss = made.loss(model, made.collate(micro, pad_token_id=0))
        (loss / weight).backward()
        total += float(loss.detach()) / weight
    return total, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_shared_prompt_gives_the_gradients_of_padded_rows(folder: Path, name: str, off_policy: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    given = groups(off_policy=off_policy)
    whole, parts = [given], [[given[0]], [given[1]]]
    loss, found = gradients(model, task(name, shared=True), whole)
    if name != "bnpo":  # its mean is that of a micro-batch
        again, split = gradients(model, task(name, shared=True), parts)
        assert again == pytest.approx(loss, abs=1e-6)
        assert distance(found, split) < TOLERANCE
    expected_loss, expected = gradients(model, task(name, shared=False), whole)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert distance(found, expected) < TOLERANCE


def test_the_gradient_is_that_of_the_formula(folder: Path) -> None:
    """Dr. GRPO on policy is `-A / (answers * max length) * sum of the gradients of log p`: from plain logits, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    given = groups(off_policy=False)
    _, found = gradients(model, task("dr_grpo", shared=True), [given])
    model.zero_grad()
    # The answer without tokens has no weight.
    for group in given:
        for answer in group.answers:
            ids = torch.tensor([group.input_ids + answer.ids])
            logps = (model(ids).logits[0, :-1] / 0.8).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0][len(group.input_ids) - 1 :]
            ((logps * torch.tensor(answer.mask)).sum() * -answer.advantage / (7 * 16)).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert distance(found, expected) < TOLERANCE


def test_a_batch_without_anything_to_learn_has_a_gradient_of_zero(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = groups(off_policy=False)
    for group in given:
        for answer in group.answers:
            answer.advantage = 0.0
    made = task("grpo", shared=True)
    assert sum(made.weight(group) for group in given) == 7
    assert [made.length(group) for group in given] == [0, 0]
    loss, found = gradients(model, made, [given])
    assert loss == 0 and all(float(gradient.abs().max()) == 0 for gradient in found)


def test_only_what_teaches_goes_through_the_model() -> None:
    given = groups(off_policy=False)
    made, priced = task("grpo", shared=True), task("grpo with reference", shared=True)
    batch, whole = (each.collate(given, pad_token_id=0) for each in (made, priced))
    assert batch.rows.segments == (6, 5, 9, 1, 7, 3, 8, 4) and batch.lengths == (5, 9, 1, 7, 6, 4)
    assert batch.rows.parents == (-1, 0, 0, 0, 0, -1, 5, 5)
    # The distance from the reference is that of all answers.
    assert whole.lengths == (5, 9, 1, 7, 6, 6, 4)


def test_a_saved_group_comes_back(folder: Path) -> None:
    import json

    group = groups(off_policy=True)[1]
    group.answers[0].sampler_logps[0] = math.nan
    again = AnswerGroup.restored(json.loads(json.dumps(group.saved())))
    assert json.dumps(again.saved()) == json.dumps(group.saved()) and again.labels == group.labels
