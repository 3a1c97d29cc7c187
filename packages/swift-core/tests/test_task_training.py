"""`swift sft --task_type ...` from rows to checkpoints, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core.config.training import SftConfig
from swift_core.errors import DataError, ModelError
from swift_core.tasks.headed import prepare, show, train
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.output import TrainOutput
from swift_core.train.report import read_log
from transformers import AutoModelForSequenceClassification

THINGS = ("film", "book", "meal", "hotel", "game", "song")


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def classes() -> list[dict[str, Any]]:
    words = ("awful", "great")
    return [{"messages": said("user", f"The {THINGS[i % 6]} was {words[i % 2]}."), "label": i % 2} for i in range(48)]


def several() -> list[dict[str, Any]]:
    return [
        {"messages": said("user", f"{one} {other}"), "label": sorted({i, j})}
        for i, one in enumerate(THINGS)
        for j, other in enumerate(THINGS)
    ]


def sizes() -> list[dict[str, Any]]:
    return [{"messages": said("user", "x" * count), "label": count / 10} for count in range(1, 30)]


def groups() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(24):
        thing = THINGS[number % 6]
        others = [said("assistant", f"The {other} is here.") for other in THINGS if other != thing]
        rows.append(
            {"messages": said("user", f"Where is the {thing}?"), "positive_messages": [said("assistant", f"The {thing} is here.")],
             "negative_messages": others[number % 3 : number % 3 + 2]}
        )  # fmt: skip
    return rows


def pairs() -> list[dict[str, Any]]:
    return [
        {"messages": said("user", f"I want a {one}"), "positive_messages": [said("user", f"a {other}")], "label": float(one == other)}
        for one in THINGS
        for other in THINGS
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def config(folder: Path, tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> SftConfig:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": str(folder), "dataset": [str(data)], "output_dir": str(tmp_path / "out"), "add_version": False, "learning_rate": 1e-2,
        "num_train_epochs": 3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 5, "gradient_accumulation_steps": 1,
        "split_dataset_ratio": 0.2, "tuner_type": "full", "use_cpu": True, "report_to": ["none"], "logging_steps": 1,
        "save_strategy": "epoch", "weight_decay": 0.0, **settings,
    }  # fmt: skip
    return SftConfig(**values)


def evaluations(output: TrainOutput) -> list[dict[str, Any]]:
    return [line for line in read_log(output.run_dir) if "eval_loss" in line]


def losses(output: TrainOutput) -> list[float]:
    return [line["loss"] for line in read_log(output.run_dir) if "loss" in line]


CASES: list[tuple[str, Any, dict[str, Any], set[str]]] = [
    ("one class", classes, {"task_type": "seq_cls"}, {"acc", "f1", "mcc"}),
    ("several classes", several, {"task_type": "seq_cls"}, {"acc", "f1", "f1_micro"}),
    ("numbers", sizes, {"task_type": "seq_cls"}, {"mse", "pearson", "spearman"}),
    ("infonce", groups, {"task_type": "embedding"}, {"mrr", "ndcg", "hit", "pearson", "spearman"}),
    (
        "all of infonce", groups,
        {"task_type": "embedding", "infonce_include_qq": True, "infonce_include_dd": True, "infonce_mask_fake_negative": True,
         "infonce_hard_negatives": 1, "mrl_dims": {32: 1.0, 8: 0.5}},
        {"mrr", "mrr_8"},
    ),
    ("own negatives", groups, {"task_type": "embedding", "infonce_use_batch": False, "per_device_train_batch_size": 1}, {"mrr"}),
    ("cosine", pairs, {"task_type": "embedding", "loss_type": "cosine_similarity"}, {"pearson", "spearman"}),
    ("contrastive", pairs, {"task_type": "embedding", "loss_type": "contrastive"}, {"pearson", "spearman"}),
    ("online contrastive", pairs, {"task_type": "embedding", "loss_type": "online_contrastive"}, {"spearman"}),
    ("pointwise", groups, {"task_type": "reranker"}, {"mrr", "ndcg", "map", "hit"}),
    ("listwise", groups, {"task_type": "reranker", "loss_type": "listwise_reranker"}, {"mrr", "ndcg"}),
    ("generative", groups, {"task_type": "generative_reranker", "positive_token": "A", "negative_token": "B"}, {"mrr", "ndcg"}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "settings", "metrics"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_losses_fall_and_metrics_are_logged(folder: Path, tmp_path: Path, rows: Any, settings: dict[str, Any], metrics: set[str]) -> None:
    output = train(config(folder, tmp_path, rows(), save_strategy="no", eval_strategy="epoch", **settings))
    found = losses(output)
    third = len(found) // 3
    assert sum(found[-third:]) < sum(found[:third])
    last = evaluations(output)[-1]
    assert {f"eval_{name}" for name in metrics} <= last.keys()
    assert all(-1 <= last[f"eval_{name}"] <= 1 for name in metrics - {"mse"})


def test_the_head_of_a_checkpoint_predicts_what_was_measured(folder: Path, tmp_path: Path) -> None:
    """The metric of the last evaluation comes out again from the saved folder, through transformers alone."""
    wanted = config(folder, tmp_path, classes(), task_type="seq_cls", metric_for_best_model="eval_acc", load_best_model_at_end=True)
    prepared = prepare(wanted)
    output = train(wanted)
    assert output.last_checkpoint is not None
    assert json.loads((output.last_checkpoint / "args.json").read_text())["num_labels"] == 2
    model = AutoModelForSequenceClassification.from_pretrained(output.last_checkpoint)
    assert model.config.num_labels == 2
    assert model.config.problem_type == "single_label_classification"
    right = 0
    for sample in prepared.val:
        with torch.no_grad():
            right += int(model(input_ids=torch.tensor([sample.input_ids])).logits.argmax()) == sample.label
    assert evaluations(output)[-1]["eval_acc"] == pytest.approx(right / len(prepared.val))
    best = max(evaluations(output), key=lambda line: line["eval_acc"])
    assert output.best_checkpoint == output.run_dir / f"checkpoint-{best['step']}"


def test_loss_is_a_mean_over_samples_whatever_the_split(folder: Path, tmp_path: Path) -> None:
    found = []
    for batch, accumulation in ((8, 1), (2, 4), (3, 3)):
        name = tmp_path / str(batch)
        name.mkdir()
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "save_strategy": "no"}
        found.append(losses(train(config(folder, name, classes()[:8], task_type="seq_cls", split_dataset_ratio=0.0, **settings))))
    assert found[1] == pytest.approx(found[0], abs=2e-5)
    assert found[2] == pytest.approx(found[0], abs=2e-5)


def test_resumed_equals_uninterrupted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    settings = {"task_type": "embedding", "save_strategy": "steps", "save_steps": 2, "split_dataset_ratio": 0.0, "max_steps": 6}
    whole = train(config(folder, tmp_path / "a", groups(), **settings))
    resumed = train(config(folder, tmp_path / "b", groups(), **settings, resume_from_checkpoint=str(whole.run_dir / "checkpoint-2")))
    assert whole.last_checkpoint is not None
    assert resumed.last_checkpoint is not None
    one, other = (load_file(out.last_checkpoint / "model.safetensors") for out in (whole, resumed) if out.last_checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_embedding_checkpoint_says_how_it_pools(folder: Path, tmp_path: Path) -> None:
    output = train(config(folder, tmp_path, groups(), task_type="embedding", pooling="mean", max_steps=1, split_dataset_ratio=0.0))
    assert output.last_checkpoint is not None
    saved = json.loads((output.last_checkpoint / "1_Pooling" / "config.json").read_text())
    assert saved == {
        "word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False
    }  # fmt: skip
    kinds = [module["type"].rsplit(".", 1)[-1] for module in json.loads((output.last_checkpoint / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    (tmp_path / "again").mkdir()
    again = config(output.last_checkpoint, tmp_path / "again", groups(), task_type="embedding", max_steps=1, split_dataset_ratio=0.0)
    assert "mean pooling" in _said(again)


def _said(wanted: SftConfig) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text:
        show(wanted)
    return text.getvalue()


def test_dry_run_shows_texts_and_trains_nothing(folder: Path, tmp_path: Path) -> None:
    text = _said(config(folder, tmp_path, groups(), task_type="reranker"))
    assert "<Query>: Where is the " in text
    assert "positive: " in text
    assert "task: reranker, pointwise_reranker" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (classes, {"num_labels": 1, "task_type": "seq_cls", "problem_type": "single_label_classification"}, "classes go from 0 to 0"),
        (sizes, {"task_type": "seq_cls", "problem_type": "single_label_classification", "num_labels": 3}, "classes go from 0 to 2"),
        (several, {"task_type": "seq_cls", "problem_type": "single_label_classification"}, "one class is wanted"),
        (pairs, {"task_type": "embedding"}, "infonce takes every positive as a match"),
        (groups, {"task_type": "embedding", "max_length": 2}, "no sample is left"),
    ],
)
def test_data_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, rows: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        train(config(folder, tmp_path, rows(), **settings))
    assert caught.value.fix


def test_infonce_in_a_batch_of_one_is_refused(folder: Path, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "negative_messages"} for row in groups()]
    with pytest.raises(DataError, match="a batch of one text has none"):
        train(config(folder, tmp_path, rows, task_type="embedding", per_device_train_batch_size=1))


def test_answers_of_several_tokens_and_sizes_beyond_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be one"):
        train(config(folder, tmp_path, groups(), task_type="generative_reranker", positive_token="certainly"))
    with pytest.raises(ModelError, match="vectors of this model have 32 numbers"):
        train(config(folder, tmp_path, groups(), task_type="embedding", mrl_dims={64: 1.0}))
