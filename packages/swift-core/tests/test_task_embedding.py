"""Pooling, in-batch negatives over ranks, and texts that are never negatives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from swift_core.config.tasks import TaskSection
from swift_core.errors import ModelError
from swift_core.protocols import EncodedSample
from swift_core.tasks.embedding import Embedding
from swift_core.tasks.pooling import find_pooling, pool, write_sentence_transformer
from torch import nn
from transformers import BertConfig, LlamaConfig, PretrainedConfig


class Lookup(nn.Module):
    """A model whose vectors are a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 6, dtype=torch.float64)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def text(*ids: int) -> EncodedSample:
    return EncodedSample(list(ids), [])


def group(number: int, *, negatives: int = 0) -> EncodedSample:
    others = [text(30 + number, place + 1) for place in range(negatives)]
    return EncodedSample([number, number + 1], [], f"row {number}", positives=[text(20 + number, 3)], negatives=others)


def task(**options: Any) -> Embedding:
    return Embedding(TaskSection(task_type="embedding", **options), pooling="mean", dim=6)


def loss_of(samples: list[EncodedSample], **options: Any) -> float:
    made = task(**options)
    return made.loss(Lookup(), made.collate(samples, pad_token_id=0)).item()


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [9.0]], [[1.0], [2.0], [3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "cls").tolist() == [[1.0], [1.0]]
    assert pool(hidden, mask, "last").tolist() == [[2.0], [3.0]]
    assert pool(hidden, mask, "mean").tolist() == [[1.5], [2.0]]


@pytest.mark.parametrize(("config", "expected"), [(BertConfig(), "mean"), (LlamaConfig(), "last")])
def test_pooling_of_a_plain_folder_follows_the_architecture(tmp_path: Path, config: PretrainedConfig, expected: str) -> None:
    assert find_pooling(tmp_path, config) == expected


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_transformers_files_are_read_as_written(tmp_path: Path, pooling: Any) -> None:
    write_sentence_transformer(tmp_path, pooling=pooling, dim=6, max_length=128)
    assert find_pooling(tmp_path, LlamaConfig()) == pooling


def test_pooling_that_is_not_done_here_is_refused(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path, pooling="mean", dim=6, max_length=None)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="not done here"):
        find_pooling(tmp_path, BertConfig())
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]))
    with pytest.raises(ModelError, match="goes through Dense"):
        find_pooling(tmp_path, BertConfig())


def test_equal_texts_and_equal_queries_are_no_negatives() -> None:
    one, other = group(1), group(2)
    twin = EncodedSample(other.input_ids, [], positives=one.positives)
    assert loss_of([one, twin]) == pytest.approx(0.0)
    same_query = EncodedSample(one.input_ids, [], positives=other.positives)
    assert loss_of([one, same_query]) == pytest.approx(0.0)
    assert loss_of([one, other]) > 0.01


def test_own_negatives_alone_do_not_depend_on_the_batch() -> None:
    samples = [group(number, negatives=2) for number in range(1, 5)]
    together = loss_of(samples, infonce_use_batch=False)
    assert together == pytest.approx(sum(loss_of([sample], infonce_use_batch=False) for sample in samples))
    assert loss_of(samples) > together


def test_matryoshka_is_the_weighted_sum_of_its_sizes() -> None:
    samples = [group(1), group(2), group(3)]
    found = loss_of(samples, mrl_dims={6: 1.0, 2: 0.5})
    assert found == pytest.approx(loss_of(samples) + 0.5 * loss_of(samples, mrl_dims={2: 1.0}))


def test_a_batch_that_keeps_a_rank_in_step_adds_nothing_but_has_a_gradient() -> None:
    made, model = task(), Lookup()
    loss = made.loss(model, made.collate([group(1), group(2)], pad_token_id=0).masked())
    loss.backward()
    assert loss.item() == 0.0
    assert model.table.weight.grad is not None
    assert not model.table.weight.grad.any()


def test_evaluation_counts_every_document_once() -> None:
    made, model = task(), Lookup()
    samples = [group(number) for number in range(1, 6)]
    with torch.no_grad():
        parts = [made.measure(model, made.collate(part, pad_token_id=0)) for part in (samples[:2], samples[2:])]
        whole = [made.measure(model, made.collate(samples, pad_token_id=0))]
    assert made.metrics(parts) == pytest.approx(made.metrics(whole))
    assert made.metrics([*whole, *whole])["mrr"] == pytest.approx(made.metrics(whole)["mrr"])


RANKS = ([1, 2, 3], [4, 5])
OPTIONS: dict[str, Any] = {"infonce_include_qq": True, "infonce_include_dd": True, "mrl_dims": {6: 1.0, 3: 1.0}}


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for dead in (False, True):
        made, model = task(**OPTIONS), Lookup()
        batch = made.collate([group(number, negatives=number % 3) for number in RANKS[rank]], pad_token_id=0)
        loss = made.loss(model, batch.masked() if dead and rank == 1 else batch)
        loss.backward()
        assert model.table.weight.grad is not None
        summed = [loss.detach().clone(), model.table.weight.grad.clone()]
        for value in summed:
            dist.all_reduce(value)
        if rank == 0:
            torch.save(summed, f"{folder}/{dead}.pt")
    dist.destroy_process_group()


@pytest.mark.e2e
def test_two_ranks_give_the_loss_and_gradient_of_one_batch(tmp_path: Path) -> None:
    """Also when one of them has no samples left and only keeps step."""
    # Processes of their own: forking after a backward pass is not safe, and pytest's modules cannot be imported by name.
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for dead, numbers in ((False, [*RANKS[0], *RANKS[1]]), (True, RANKS[0])):
        loss, gradient = torch.load(tmp_path / f"{dead}.pt", weights_only=True)
        made, model = task(**OPTIONS), Lookup()
        expected = made.loss(model, made.collate([group(number, negatives=number % 3) for number in numbers], pad_token_id=0))
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, model.table.weight.grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2])
