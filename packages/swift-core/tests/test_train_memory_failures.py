"""Memory that runs out ends a run with a table and ways out; other errors stay what they are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from swift_core.cli.main import main
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import CheckpointError, LaunchError, OutOfMemory
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.exhausted import explained_failures, memory_table, ways_out
from torch import nn
from transformers import TrainerCallback


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1"), LaunchError),
        (CheckpointError("Broken pipe"), CheckpointError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_errors_from_outside_are_explained_and_others_are_not(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, explained_failures(TrainingConfig(use_cpu=True)):
        raise error
    assert type(caught.value) is kind


def test_the_table_counts_weights_gradients_and_optimizer() -> None:
    model = nn.Linear(1024, 1024, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    table = {line.split()[0]: float(line.split()[-2]) for line in memory_table(model, optimizer, torch.device("cpu"))}
    size = round(1024 * 1024 * 4 / 2**30, 2)
    assert table["weights"] == table["gradients"] == size
    assert table["optimizer"] == round(2 * 1024 * 1024 * 4 / 2**30, 2)
    assert table["in"] > 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"use_cpu": True, "tuner_type": "full", "max_length": 512}, ["--per_device_token_budget 512", "--gradient_checkpointing true", "--tuner_type lora"]),
        (
            {"padding_free": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "tuner_type": "full"},
            ["--per_device_train_batch_size 4 --gradient_accumulation_steps 4", "--tuner_type lora", "--max_length 1024"],
        ),
    ],
)  # fmt: skip
def test_ways_out_are_three_settings_that_the_run_does_not_have_yet(values: dict, expected: list[str]) -> None:
    assert ways_out(SftConfig(model="m", dataset=["d"], **values)) == expected


class Exhausting(TrainerCallback):
    def on_step_begin(self, *args: object, **context: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nlong story")


@pytest.mark.parametrize("debug", [False, True])
def test_a_run_without_memory_ends_with_code_3_and_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    module = ModuleType("exhausting_callback")
    module.Exhausting = Exhausting  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SWIFT_DEBUG", "")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "q", "response": "r"}\n')
    words = ["sft", "--model", str(make_tiny_model(tmp_path / "model")), "--dataset", str(rows), "--tuner_type", "full", "--use_cpu"]
    words += ["--callbacks", "exhausting_callback:Exhausting", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    assert main([*words, *(["--debug"] if debug else [])]) == 3
    shown = capsys.readouterr().err
    assert "error: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.\n" in shown
    assert "weights " in shown and "free of " in shown
    assert "(fix: --per_device_token_budget 512, or --gradient_checkpointing true, or --tuner_type lora)" in shown
    assert ("Traceback" in shown) is debug
    assert not list((tmp_path / "out").glob("**/run.lock"))
