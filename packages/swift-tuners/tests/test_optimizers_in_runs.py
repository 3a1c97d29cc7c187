"""Runs with memory-saving methods: a resumed run ends with the same weights, and layers rest when they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.errors import ConfigError, ModelError
from swift_core.protocols import EncodedSample
from swift_core.registry import CALLBACKS, OPTIMIZERS
from swift_core.testing.tiny import make_tiny_model
from swift_tuners.optimizers.lisa import drawn_layers, find_layers
from swift_tuners.specs import OPTIMIZERS as SPECS
from transformers import TrainerCallback

pytestmark = pytest.mark.skipif("galore_adamw" not in OPTIMIZERS or "lisa" not in CALLBACKS, reason="entry points are not installed")

CASES: dict[str, dict[str, Any]] = {
    "q-galore in the backward pass": {
        **{"use_galore": True, "galore_rank": 4, "galore_update_proj_gap": 2, "galore_quantization": True},
        **{"galore_optim_per_parameter": True, "galore_queue_size": 1, "galore_proj_group_size": 16},
    },
    "lisa": {"lisa_activated_layers": 1, "lisa_step_interval": 3},
    "neftune": {"neftune_noise_alpha": 5.0},
    "schedule-free": {"optim": "schedule_free_adamw", "warmup_steps": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def trainer(folder: Path, out: Path, callbacks: tuple[TrainerCallback, ...] = (), **settings: Any) -> Seq2SeqTrainer:
    needed = next((spec.requires for spec in SPECS if spec.name == settings.get("optim")), ())
    for library in needed:
        pytest.importorskip(library)
    model, tokenizer = get_model_tokenizer(folder)
    samples = [
        EncodedSample([(one * 31 + place * 7) % 200 + 10 for place in range(6)], [-100, *[one + 20] * 5], "made") for one in range(12)
    ]
    values = {
        "output_dir": str(out), "add_version": False, "learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "logging_steps": 1, "report_to": ["none"], "save_steps": 2, "use_cpu": True, **settings,
    }  # fmt: skip
    assert model is not None
    return Seq2SeqTrainer(model, Seq2SeqTrainingArguments(**values), samples, tokenizer=tokenizer, callbacks=callbacks)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_same_weights(name: str, folder: Path, tmp_path: Path) -> None:
    whole = trainer(folder, tmp_path / "run", **CASES[name])
    whole.train()
    expected = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    again = trainer(folder, tmp_path / "run", **CASES[name])
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    found = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    start = load_file(folder / "model.safetensors")
    assert any(not torch.equal(expected[key], start[key]) for key in start)


def test_drawn_layers_train_and_the_others_rest(folder: Path, tmp_path: Path) -> None:
    seen: list[set[int]] = []
    states: list[set[int]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            layers = find_layers(context["model"])
            seen.append({place for place, layer in enumerate(layers) if next(layer.parameters()).requires_grad})
            states.append(
                {place for place, layer in enumerate(layers) if any(one in context["optimizer"].state for one in layer.parameters())}
            )

    run = trainer(
        folder, tmp_path / "run", (Watch(),), lisa_activated_layers=1, lisa_step_interval=2, max_steps=6, seed=7, save_strategy="no"
    )
    run.train()
    layers = len(find_layers(run.model))
    assert seen == [drawn_layers(7, step // 2, 1, layers) for step in range(6)]
    assert states == seen
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert len({tuple(drawn_layers(7, number, 1, layers)) for number in range(20)}) == layers


def test_more_layers_than_there_are_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="layers of this model are trained"):
        trainer(folder, tmp_path / "run", lisa_activated_layers=99).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "galore_adamw"}, "needs whole weights"),
        ({"lisa_activated_layers": 2}, "draws whole layers"),
        ({"lisa_activated_layers": 2, "tuner_type": "full", "optim": "schedule_free_adamw"}, "drops the state of resting layers"),
        ({"optim": "schedule_free_adamw", "lr_scheduler_type": "linear"}, "one of constant"),
        ({"optim": "galore_adamw", "tuner_type": "full", "galore_gamma_proj": 3}, "--galore_quantization true"),
        ({"optim": "galore_adamw", "tuner_type": "full", "apollo_rank": 3}, "--optim apollo_adamw"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    from swift_core.config.training import SftConfig

    with pytest.raises(ConfigError) as caught:
        SftConfig(model="m", dataset=["d"], **settings)
    assert message in str(caught.value)


def test_use_galore_chooses_the_optimizer_and_schedule_free_the_schedule() -> None:
    from swift_core.config.training import TrainingConfig

    assert TrainingConfig(use_galore=True).optim == "galore_adamw"
    assert TrainingConfig(use_galore=True, optim="adafactor").optim == "galore_adafactor"
    assert TrainingConfig(optim="schedule_free_sgd").lr_scheduler_type == "constant"
