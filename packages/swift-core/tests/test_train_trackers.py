"""Trackers that are libraries of their own: what they are told, and what is said when they are absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from swift_core.errors import MissingDependencyError
from swift_core.train.trackers import SwanLabSink, WandbSink, scalars


def test_numbers_go_under_train_and_eval() -> None:
    values = {"step": 3, "total_steps": 9, "loss": 1.5, "eval_loss": 2.0, "note": "text"}
    assert scalars(values) == {"train/loss": 1.5, "eval/loss": 2.0}


@pytest.mark.parametrize(("sink", "library"), [(WandbSink, "wandb"), (SwanLabSink, "swanlab")])
def test_an_absent_library_is_named_with_its_pip_line(sink: Any, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"swift-core\[{library}\]"):
        sink(tmp_path, name=None, project=None)


def test_a_run_resumes_as_the_same_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "args.json").write_text(json.dumps({"learning_rate": 1e-4}), encoding="utf-8")
    ids = []
    for step in (1, 2):
        sink = WandbSink(tmp_path, name=None, project=None)
        ids.append(wandb.run.id)
        assert wandb.run.config["learning_rate"] == 1e-4
        sink.log({"step": step, "loss": 1.0})
        sink.close()
    assert ids[0] == ids[1]
