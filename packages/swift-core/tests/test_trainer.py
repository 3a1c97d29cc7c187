"""The loop: invariance, exact resume, refusal of bad steps, logs, checkpoints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from swift_core.protocols import EncodedSample
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.report import read_log
from transformers import TrainerCallback, TrainingArguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def samples(count: int = 20) -> list[EncodedSample]:
    made = []
    for index in range(count):
        ids = [(index * 31 + place * 7) % 200 + 10 for place in range(5 + index % 7)]
        made.append(EncodedSample(ids, [-100, *ids[1:]], f"made:{index}"))
    return made


def trainer(
    folder: Path, out: Path, *, dropout: float = 0.0, data: Sequence[EncodedSample] | None = None, **settings: Any
) -> Seq2SeqTrainer:
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    model.config.attention_dropout = dropout
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    callbacks = settings.pop("callback_objects", ())
    eval_dataset = settings.pop("eval_dataset", None)
    values = {
        "output_dir": str(out), "add_version": False, "learning_rate": 1e-2, "max_steps": 6, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "logging_steps": 1, "report_to": ["none"], "save_strategy": "no", "use_cpu": True, **settings,
    }  # fmt: skip
    return Seq2SeqTrainer(
        model, Seq2SeqTrainingArguments(**values), data or samples(), eval_dataset, tokenizer=tokenizer, callbacks=callbacks
    )


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_log(run_dir) if "loss" in line]


@pytest.fixture(scope="module")
def in_one_batch(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("one_batch")
    trainer(folder, out, per_device_train_batch_size=8, gradient_accumulation_steps=1).train()
    return losses(out)


PADDED, FREE, BUDGET = {"padding_free": False}, {"padding_free": True}, {"per_device_token_budget": 20}


@pytest.mark.parametrize(("batch", "layout"), [(1, PADDED), (4, PADDED), (8, PADDED), (1, FREE), (2, FREE), (2, BUDGET), (8, BUDGET)])
def test_the_split_of_a_step_does_not_matter(
    folder: Path, tmp_path: Path, batch: int, layout: dict[str, Any], in_one_batch: list[float]
) -> None:
    """20 samples in steps of 8 leave a last step of 4: it must count as 4, not as 8."""
    trainer(folder, tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, **layout).train()
    assert losses(tmp_path) == pytest.approx(in_one_batch, abs=2e-5)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"packing": True}, "the packs have no length"),
        ({"packing_length": 8}, "does nothing without packing"),
        ({"packing": True, "packing_length": 8, "padding_free": False}, "lays samples out one by one"),
        ({"per_device_token_budget": 8, "padding_free": False}, "pads its batches"),
    ],
)
def test_layouts_that_do_not_go_together(folder: Path, tmp_path: Path, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        trainer(folder, tmp_path, **settings)


def test_packs_take_the_place_of_samples(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, packing=True, packing_length=32, max_steps=-1, num_train_epochs=1)
    assert run.packs is not None and len(run.packs) < 10
    assert run.total_steps == -(-len(run.packs) // 4)
    assert run.train().metrics["tokens_per_second"] > 0
    assert sum(line["loss"] for line in read_log(tmp_path)) > 0


def test_loss_is_the_mean_over_trained_tokens(folder: Path, tmp_path: Path) -> None:
    data = samples(4)
    run = trainer(folder, tmp_path, data=data, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1)
    model = run.model
    total, tokens = 0.0, 0
    for sample in data:
        logits = model(input_ids=torch.tensor([sample.input_ids])).logits[0, :-1].detach()
        picked = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(sample.labels[1:])[:, None])
        total -= float(picked.sum())
        tokens += len(sample) - 1
    run.train()
    assert losses(tmp_path)[0] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"group_by_length": True, "gradient_checkpointing": True},
        {"packing": True, "packing_length": 24},
        {"padding_free": False, "dataloader_num_workers": 1},
    ],
)
def test_resumed_equals_uninterrupted(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    common = {"save_strategy": "steps", "save_steps": 4, "max_steps": 9, "dropout": 0.2, "logging_steps": 3, **settings}
    whole = trainer(folder, tmp_path / "whole", **common).train()
    trainer(folder, tmp_path / "cut", **common, callback_objects=[StopAt(5)]).train()
    assert not (tmp_path / "cut" / "checkpoint-9").exists()
    resumed = trainer(folder, tmp_path / "cut", **common).train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert resumed.global_step == whole.global_step == 9
    one, other = (load_file(path / "checkpoint-9" / "model.safetensors") for path in (tmp_path / "whole", tmp_path / "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


class Poison(TrainerCallback):
    """Makes one weight not a number before step 3."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        if state.global_step == 2:
            self.before = {name: value.clone() for name, value in context["model"].state_dict().items()}
            with torch.no_grad():
                next(context["model"].parameters())[40] = float("nan")


def test_a_loss_that_is_not_finite_stops_before_the_update(folder: Path, tmp_path: Path) -> None:
    poison = Poison()
    run = trainer(folder, tmp_path, callback_objects=[poison], data=[EncodedSample([40, 41, 42], [-100, 41, 42], "file.jsonl:7")] * 8)
    with pytest.raises(TrainingError, match=r"loss of step 3 is not finite.*file\.jsonl:7"):
        run.train()
    after = run.model.state_dict()
    changed = [name for name, value in poison.before.items() if not torch.equal(value, after[name])]
    assert all("embed" in name or "lm_head" in name for name in changed)
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_leave(folder: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        trainer(folder, tmp_path, callback_objects=[Kill()], save_strategy="steps", save_steps=100).train()
    assert caught.value.exit_code == code
    assert (tmp_path / "checkpoint-3" / "manifest.json").is_file()
    assert not (tmp_path / "run.lock").exists()
    if number is signal.SIGINT:
        return  # what a resumed run makes of the checkpoint does not depend on the signal
    trainer(folder, tmp_path, save_strategy="steps").train(resume_from_checkpoint=True)
    whole = trainer(folder, tmp_path / "whole", save_strategy="steps").train()
    assert whole.last_checkpoint is not None
    one, other = load_file(tmp_path / "checkpoint-6" / "model.safetensors"), load_file(whole.last_checkpoint / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_best_checkpoint_and_rotation(folder: Path, tmp_path: Path) -> None:
    output = trainer(
        folder, tmp_path, eval_dataset=samples(5), eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, max_steps=8,
        save_total_limit=1, learning_rate=5.0, lr_scheduler_type="constant", load_best_model_at_end=True,
    )  # fmt: skip
    result = output.train()
    scores = {line["step"]: line["eval_loss"] for line in read_log(tmp_path) if "eval_loss" in line}
    best = min(scores, key=lambda step: scores[step])
    assert result.best_checkpoint == tmp_path / f"checkpoint-{best}"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted({f"checkpoint-{best}", "checkpoint-8"})
    assert output.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-5)
    assert (tmp_path / "images" / "loss.png").stat().st_size > 5000


def test_log_lines_and_settings_are_written(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, save_strategy="epoch", report_to=["tensorboard"], max_steps=5).train()
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib", "eta_seconds", "epoch"} <= lines[0].keys()
    assert json.loads((tmp_path / "args.json").read_text())["learning_rate"] == 1e-2
    assert list((tmp_path / "runs").glob("events*"))
    assert (tmp_path / "checkpoint-5" / "tokenizer.json").is_file()


def test_a_run_that_is_over_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, save_strategy="steps", save_steps=3).train()
    with pytest.raises(TrainingError, match="raise --num_train_epochs or --max_steps"):
        trainer(folder, tmp_path, save_strategy="steps").train(resume_from_checkpoint=str(tmp_path))


def test_weights_alone_cannot_be_resumed(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, save_strategy="steps", save_steps=3, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="save_only_model"):
        trainer(folder, tmp_path, max_steps=9).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_damaged_checkpoint_is_passed_over(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(folder, tmp_path, save_strategy="steps", save_steps=2, max_steps=4).train()
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"x")
    trainer(folder, tmp_path, save_strategy="steps", max_steps=6).train(resume_from_checkpoint=str(tmp_path))
    assert "checkpoint-4 is passed over: optimizer.pt has 1 bytes" in capsys.readouterr().err
    assert (tmp_path / "checkpoint-6").is_dir()


def test_rows_of_text_are_encoded(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    rows = [{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}] * 3
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to=["none"], save_strategy="no", use_cpu=True)
    assert Seq2SeqTrainer(model, args, rows, tokenizer=tokenizer).train().global_step == 1
    with pytest.raises(DataError, match="no tokenizer"):
        Seq2SeqTrainer(model, args, rows)
    with pytest.raises(DataError, match="no samples"):
        Seq2SeqTrainer(model, args, [])


def test_transformers_arguments_are_taken_or_refused(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=2, learning_rate=3e-4, logging_steps=1, save_strategy="no", use_cpu=True)
    run = Seq2SeqTrainer(model, args, samples(8), processing_class=tokenizer)
    assert run.args.optimization.learning_rate == 3e-4
    assert run.train().run_dir == tmp_path
    odd = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.3, use_cpu=True)
    with pytest.raises(ConfigError, match=r"label_smoothing_factor: 0\.3 has no counterpart"):
        Seq2SeqTrainer(model, odd, samples(8), tokenizer=tokenizer)
