"""What watches over a run: trouble said once, stopping early, utilisation, waiting, and starting a run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.cli.main import main
from swift_core.cli.rerun import read_run
from swift_core.errors import NotFoundError
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.early_stopping import EarlyStopping
from swift_core.train.health import HealthWatch, complaint
from swift_core.train.progress import Progress
from swift_core.train.report import read_log
from swift_core.train.utilisation import Utilisation, flops_per_token, occupancy
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState


@pytest.mark.parametrize(
    ("values", "usual", "kind"),
    [
        ({"loss": 0.0, "grad_norm": 0.0}, None, "nothing is learned"),
        ({"loss": 1.5, "grad_norm": 0.0}, None, "no gradient"),
        ({"loss": 1.5, "grad_norm": 50.0}, 1.0, "exploding gradient"),
        ({"loss": 1.5, "grad_norm": 5.0}, 1.0, None),
        ({"loss": 1.5, "grad_norm": 50.0}, None, None),
    ],
)
def test_trouble_is_recognised_with_its_remedy(values: dict[str, Any], usual: float | None, kind: str | None) -> None:
    found = complaint(values, usual)
    assert (found and found[0]) == kind
    assert found is None or "--" in found[1]


def test_each_kind_of_trouble_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch, state = HealthWatch(), TrainerState()
    state.is_world_process_zero = True
    for step in range(6):
        state.global_step = step
        watch.on_log(None, state, TrainerControl(), logs={"loss": 1.0, "grad_norm": 1.0})
    for step in (6, 7):
        state.global_step = step
        watch.on_log(None, state, TrainerControl(), logs={"loss": 1.0, "grad_norm": 99.0})
    assert caplog.text.count("exploding gradient") == 1
    assert "step 6" in caplog.text


@pytest.mark.parametrize(
    ("values", "greater", "stops"),
    [([3, 2, 1], False, False), ([1, 2, 3], False, True), ([1, 2, 0.5], False, False), ([1, 2, 3], True, False), ([3, 2, 1], True, True)],
)
def test_a_run_stops_when_evaluations_get_no_better(values: list[float], greater: bool, stops: bool) -> None:
    state, control = TrainerState(), TrainerControl()
    callback = EarlyStopping(2, "loss", greater_is_better=greater)
    for step, value in enumerate(values):
        state.log_history.append({"step": step, "eval_loss": value})
        callback.on_evaluate(None, state, control, metrics={})
    assert control.should_training_stop is stops


def test_operations_of_a_token_count_matrices_by_what_they_need() -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=32, head_dim=4
    )
    model = LlamaForCausalLM(config)
    matrices = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16 + 32 * 8  # queries and output, keys and values, MLP, head
    assert flops_per_token(model) == 6 * matrices
    model.requires_grad_(False)
    assert flops_per_token(model) == 4 * matrices
    model.lm_head.weight = model.model.embed_tokens.weight  # shared: a product all the same
    assert flops_per_token(model) == 4 * matrices


def test_utilisation_is_a_share_of_what_this_cpu_multiplies() -> None:
    line = Utilisation(nn.Linear(64, 64), torch.device("cpu"), processes=1).line(1000.0)
    assert 0 < line["mfu"] < 1 or line["mfu"] == 0.0


def test_padding_and_waiting_are_shares() -> None:
    from swift_core.batching.collate import collate
    from swift_core.protocols import EncodedSample

    batch = collate([EncodedSample([1, 2, 3, 4], [1, 2, 3, 4]), EncodedSample([5, 6], [5, 6])], pad_token_id=0)
    progress = Progress()
    progress.slots(*occupancy(batch))
    assert list(progress.timed([1, 2])) == [1, 2]
    values = progress.window()
    assert values["padding"] == 0.25
    assert 0 <= values["data_wait"] <= 1
    assert "padding" not in progress.window()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerun")
    make_tiny_model(folder / "model")
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--model", str(folder / "model"), "--dataset", str(folder / "rows.jsonl"), "--output_dir", str(folder / "out")]
    words += ["--tuner_type", "full", "--max_steps", "4", "--learning_rate", "1e-30", "--split_dataset_ratio", "0.34", "--use_cpu"]
    words += [
        "--eval_steps",
        "1",
        "--eval_strategy",
        "steps",
        "--early_stop_interval",
        "2",
        "--hub_token",
        "secret",
        "--logging_steps",
        "1",
    ]
    assert main(["sft", *words]) == 0
    return next((folder / "out").iterdir())


def test_a_run_that_learns_nothing_stops_early_and_logs_its_shares(run_dir: Path) -> None:
    lines = read_log(run_dir)
    assert max(line["step"] for line in lines) == 3  # the first evaluation is the best, two more are waited for
    trained = next(line for line in lines if "loss" in line)
    assert {"mfu", "data_wait", "padding", "tokens_per_second"} <= set(trained)


def test_a_run_starts_again_beside_the_old_one_with_one_setting_changed(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", str(run_dir), "--max_steps", "1"]) == 0
    assert "--hub_token is a secret" in capfd.readouterr().err
    (other,) = (folder for folder in run_dir.parent.iterdir() if folder != run_dir)
    before, after = (json.loads((folder / "args.json").read_text("utf-8")) for folder in (run_dir, other))
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"max_steps", "output_dir", "hub_token"}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"args\.json"):
        read_run(tmp_path)
    assert main(["rerun", "--max_steps", "1"]) == 2
