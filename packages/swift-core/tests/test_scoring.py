"""Losses and gradients equal those of the plain path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from swift_core.batching.collate import Batch, collate
from swift_core.models.loading import get_model_tokenizer
from swift_core.protocols import EncodedSample
from swift_core.scoring.head import chunked_cross_entropy, count_correct
from swift_core.scoring.scorer import Scorer
from swift_core.testing.tiny import make_tiny_model
from torch import nn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def batch() -> Batch:
    samples = [
        EncodedSample([5, 6, 7, 8, 9, 10], [-100, -100, 7, 8, -100, 10]),
        EncodedSample([11, 12, 13], [11, 12, 13]),
    ]
    return collate(samples, pad_token_id=0)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("frozen_head", [True, False])
def test_chunks_give_the_loss_and_gradient_of_the_whole(chunk_rows: int, frozen_head: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 17, bias=True).double()
    head.requires_grad_(not frozen_head)
    targets = torch.tensor([1, 5, 16, 0, 3, 3, 2])
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    parameters = list(head.parameters())
    wanted = [hidden, *([] if frozen_head else parameters)]
    expected = F.cross_entropy(head(hidden), targets, reduction="sum")
    reference = torch.autograd.grad(expected * 0.5, wanted)
    found = chunked_cross_entropy(hidden, targets, head, parameters, chunk_rows=chunk_rows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(found * 0.5, wanted), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_no_rows_give_zero_loss_and_zero_gradient() -> None:
    head = nn.Linear(4, 5)
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.zeros(0, dtype=torch.long), head, list(head.parameters()))
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None and head.weight.grad.abs().sum() == 0


def test_correct_predictions_are_counted() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert count_correct(logits, torch.tensor([1, 1, 1]), lambda rows: rows, chunk_rows=2).item() == 2


def reference_loss(model: nn.Module, data: Batch) -> torch.Tensor:
    logits = model(input_ids=data.input_ids, attention_mask=data.attention_mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), data.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def test_scorer_equals_the_plain_path(folder: Path) -> None:
    model, _ = get_model_tokenizer(folder)
    assert model is not None
    data = batch()
    scores = Scorer(model)(data, with_correct=True)
    expected = reference_loss(model, data)
    assert scores.trained_tokens == data.trained_tokens == 5
    torch.testing.assert_close(scores.loss_sum, expected)
    ours = torch.autograd.grad(scores.loss_sum, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_padding_does_not_change_the_loss(folder: Path) -> None:
    model, _ = get_model_tokenizer(folder)
    assert model is not None
    scorer = Scorer(model)
    long, short = batch(), collate([EncodedSample([11, 12, 13], [11, 12, 13])], pad_token_id=0)
    alone = collate([EncodedSample([5, 6, 7, 8, 9, 10], [-100, -100, 7, 8, -100, 10])], pad_token_id=0)
    torch.testing.assert_close(scorer(long).loss_sum, scorer(short).loss_sum + scorer(alone).loss_sum)


class HiddenScale(nn.Module):
    """A model whose forward pass hides a step between backbone and logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config
        self.base_model = inner.base_model  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()  # type: ignore[operator]

    def forward(self, **inputs: torch.Tensor) -> object:
        output = self.inner(**inputs)
        output.logits = output.logits * 3
        return output


def test_a_hidden_step_is_found_and_the_models_own_logits_are_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = get_model_tokenizer(folder)
    assert model is not None
    odd = HiddenScale(model)
    scores = Scorer(odd)(batch())
    torch.testing.assert_close(scores.loss_sum, reference_loss(odd, batch()))
    assert "the results differ" in caplog.text


def test_a_batch_without_trained_tokens_reaches_every_parameter(folder: Path) -> None:
    model, _ = get_model_tokenizer(folder)
    assert model is not None
    scores = Scorer(model)(batch().masked())
    scores.loss_sum.backward()
    assert scores.trained_tokens == 0
    assert all(parameter.grad is not None and parameter.grad.abs().sum() == 0 for parameter in model.parameters())
