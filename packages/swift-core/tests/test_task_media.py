"""Classes, embeddings and rerankers from rows with pictures."""

import json

import pytest
import torch
from swift_core.config.training import SftConfig
from swift_core.errors import SwiftError
from swift_core.tasks.headed import prepare, train
from swift_core.tasks.texts import pad_texts
from swift_core.testing.tiny import make_tiny_model
from swift_core.testing.tiny_multimodal import make_picture, make_tiny_multimodal


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_multimodal("llava", tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture
def rows(tmp_path):
    red, blue = (str(make_picture(tmp_path, f"{name}.png", color=color)) for name, color in (("r", (200, 0, 0)), ("b", (0, 0, 200))))
    return [
        {"messages": user("<image>Which?"), "images": [red], "label": 1, "positive_messages": [user("red")]},
        {"messages": user("Which?"), "label": 0, "positive_messages": [user("none")]},
        {
            "messages": user("<image>Which?"),
            "images": [blue],
            "label": 0,
            "positive_messages": [user("blue")],
            "negative_messages": [user("<image>other")],
            "negative_images": [[red]],
        },
    ]


def config(model, rows, tmp_path, task, **more):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SftConfig(
        model=model,
        dataset=[str(file)],
        task_type=task,
        tuner_type="full",
        dataset_shuffle=False,
        max_steps=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=1,
        save_strategy="no",
        report_to=["none"],
        use_cpu=True,
        output_dir=str(tmp_path / "run"),
        **more,
    )


def test_a_classifier_trains_on_pictures_and_texts(model, rows, tmp_path):
    for row in rows:
        del row["positive_messages"]
        row.pop("negative_messages", None)
        row.pop("negative_images", None)
    output = train(config(model, rows, tmp_path, "seq_cls"))
    assert output.global_step == 2
    assert output.metrics["train_loss"] > 0


def test_pictures_of_queries_and_documents_are_put_together(model, rows, tmp_path):
    for row in rows:
        del row["label"]
    prepared = prepare(config(model, rows, tmp_path, "embedding"))
    first, second, third = prepared.train
    assert first.model_inputs["pixel_values"].shape[0] == 1
    assert not (second.model_inputs or {}).get("pixel_values")
    assert first.input_ids == third.input_ids  # the same words around another picture
    texts = pad_texts([first, second, third, *third.negatives], pad_token_id=0)
    assert texts.further["pixel_values"].shape[0] == 3
    parts = texts.split(2)
    assert [part.further["pixel_values"].shape[0] for part in parts] == [1, 2]
    half = torch.nn.Linear(1, 1).to(torch.bfloat16)
    assert texts.inputs(half)["pixel_values"].dtype == torch.bfloat16
    pairs = prepare(config(model, rows[2:], tmp_path, "reranker")).train[0]
    assert [pair.model_inputs["pixel_values"].shape[0] for pair in (*pairs.positives, *pairs.negatives)] == [1, 2]


def test_a_text_model_says_that_it_takes_no_pictures(rows, tmp_path):
    text_model = str(make_tiny_model(tmp_path / "text"))
    with pytest.raises(SwiftError, match="this model takes text only"):
        prepare(config(text_model, rows, tmp_path, "embedding"))
