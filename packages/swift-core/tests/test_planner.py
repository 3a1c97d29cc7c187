"""What a run is said to need: traced without numbers, dealt to processes, continued to the whole depth, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.layout import Layout
from swift_core.batching.plan import PlanShape
from swift_core.cli.estimate import main
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError
from swift_core.planner.batches import fullest
from swift_core.planner.capacity import container_limit
from swift_core.planner.command import estimated
from swift_core.planner.estimate import examine, plan_run
from swift_core.planner.packing import packed_bytes
from swift_core.planner.record import GIB, Capacity, MemoryEstimate
from swift_core.planner.simulate import Pass, trace
from swift_core.planner.spread import Sizes, share
from swift_core.planner.stand_in import Stack, build, find_stack, fuse
from swift_core.planner.tracing import MemoryTrace
from swift_core.registry import FUSIONS
from swift_core.scoring.attention import NAME, packed, set_text_attention
from swift_core.scoring.linear_head import linear_cross_entropy
from swift_core.testing.tiny import make_tiny_model
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("planned") / "model", layers=7)


def config_of(folder: Path, **values: Any) -> SftConfig:
    given = {"model": str(folder), "dataset": ["x"], "tuner_type": "full", "use_cpu": True, "max_length": 32, "output_dir": "out"}
    return SftConfig(**{**given, "gradient_accumulation_steps": 1, **values})


def test_tensors_without_numbers_are_counted_as_those_with_numbers(folder: Path) -> None:
    run = Pass((24, 8, 16), 40, "cpu")
    found = trace(build(config_of(folder), folder, torch.float32), run).moments
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    fuse(model, {name: FUSIONS.load(name)() for name in FUSIONS.names()})
    set_text_attention(model, NAME)
    watch = MemoryTrace([*model.parameters(), *model.buffers()], numbers=True)
    with watch, packed(Layout(run.lengths)):
        watch.part("forward pass")
        ids = torch.zeros(1, run.tokens, dtype=torch.long)
        hidden = model.base_model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False).last_hidden_state[0][torch.arange(40)]
        watch.part("head")
        loss = linear_cross_entropy(hidden, torch.zeros(40, dtype=torch.long), model.lm_head.weight)
        watch.part("backward pass")
        loss.backward()
    real = watch.moments([p.grad for p in model.parameters() if p.grad is not None], halved="backward pass")
    assert set(real) == set(found)
    for part, moment in real.items():
        assert found[part].total == pytest.approx(moment.total, rel=0.02), part
        assert found[part].kinds["gradients"] == pytest.approx(moment.kinds["gradients"], rel=0.02), part


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"gradient_accumulation_steps": 8, "max_length": 256}])
def test_few_layers_stand_for_all(folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_run(config_of(folder, optim="sgd", **settings), folder)
    stack = find_stack(build(plan.config, folder, torch.float32))
    assert stack is not None
    assert (stack.first, stack.period, stack.depths()) == (0, 1, (3, 6))
    few, costs = examine(plan)
    monkeypatch.setattr(Stack, "depths", lambda stack: None)
    whole, all_costs = examine(plan)
    assert few.memory.total == pytest.approx(whole.memory.total, rel=0.01)
    assert few.memory.moment == whole.memory.moment
    counts = [sum(key[1] * count for key, count in found.costs.items()) for found in (costs, all_costs)]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_longer_batches_need_more_and_recomputation_needs_less(folder: Path) -> None:
    common = {"per_device_train_batch_size": 2, "per_device_token_budget": 4096}
    short, long, recomputed = (
        examine(plan_run(config_of(folder, **common, **more), folder))[0].memory.activations
        for more in ({"max_length": 64}, {"max_length": 128}, {"max_length": 128, "gradient_checkpointing": True})
    )
    assert 1.8 * short < long < 3.2 * short
    assert recomputed < long / 3


def test_code_that_asks_for_numbers_is_estimated_by_a_formula(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(model: Any, run: Pass) -> None:
        raise RuntimeError("tolist of a tensor without numbers")

    monkeypatch.setattr("swift_core.planner.estimate.trace", refuses)
    estimate, traced = examine(plan_run(config_of(folder), folder))
    assert not estimate.traced
    assert not traced.costs
    assert estimate.memory.activations > 0
    assert "tolist of a tensor" in caplog.text
    assert any("formula" in line for line in estimate.lines())


def test_packed_weights_keep_embedding_and_scales(folder: Path) -> None:
    model = build(config_of(folder), folder, torch.float32)
    model.requires_grad_(False)
    plain = packed_bytes(model, config_of(folder)).weights
    config = config_of(folder, tuner_type="full")
    config.quantization.quant_method, config.quantization.quant_bits = "bnb", "4"
    matrices = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    found = packed_bytes(model, config)
    assert found.weights == plain - 4 * matrices + matrices // 2 + int(1.02 * matrices / 64)
    assert found.unpacked == 4 * max(p.numel() for name, p in model.named_parameters() if "proj" in name)


def test_processes_share_what_their_mode_shares(folder: Path) -> None:
    sizes = Sizes(weights=4000, trained=4000, numbers=1000, largest=400, layer=500, state=2.0)
    alone = share(config_of(folder), sizes, size=1, device="cpu")
    assert (alone.weights, alone.optimizer, alone.step) == (4000, 8000, 800)
    zero2 = share(config_of(folder, deepspeed="zero2"), sizes, size=2, device="cpu")
    assert (zero2.weights, zero2.optimizer, zero2.received) == (4000, 6000, 2000)
    zero3 = share(config_of(folder, deepspeed="zero3"), sizes, size=2, device="cpu")
    assert (zero3.weights, zero3.gathered, zero3.optimizer) == (2000, 2000, 6000)
    fsdp = share(config_of(folder, fsdp=["full_shard"]), sizes, size=4, device="cuda")
    assert (fsdp.weights, fsdp.gathered, fsdp.optimizer) == (1000, 1500, 2000)
    halves = share(config_of(folder, tensor_parallel_size=2), sizes, size=2, device="cuda")
    assert (halves.weights, halves.optimizer) == (2000, 4000)


def test_the_fullest_micro_batch_is_found() -> None:
    lengths = [10, 200, 30, 180, 50, 60, 70, 5]
    shape = PlanShape(num_samples=8, batch_size=2, accumulation=2, shuffle=False, token_budget=250)
    found = fullest(shape, lengths, packed=True)
    assert (found.lengths, found.micros, found.tokens_per_step) == ((200, 10), 2, 302.5)
    padded = fullest(PlanShape(num_samples=8, batch_size=2, accumulation=1, shuffle=False), lengths, packed=False)
    assert padded.lengths == (200, 200)


def test_the_verdict_leaves_room() -> None:
    device = Capacity("some GPU", total=20 * GIB, free=10 * GIB)
    assert [device.verdict(int(size * GIB)) for size in (8.4, 9, 11)] == ["fits", "tight", "does not fit"]


def test_a_container_limits_main_memory(tmp_path: Path) -> None:
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 100\n")
    assert container_limit(tmp_path) == (1000, 500)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limit(tmp_path) is None


def test_parts_add_up_to_the_total() -> None:
    memory = MemoryEstimate(weights=GIB, activations=3 * GIB, cache=GIB // 2, moment="forward pass")
    assert memory.total == 4.5 * GIB
    assert memory.lines()[-1].split() == ["total", "4.50", "GiB", "in", "the", "forward", "pass"]


def test_the_command_answers_people_and_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sft", "--model", str(folder), "--tuner_type", "full", "--max_length", "64", "--use_cpu", "true", "--optim", "sgd"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["total"] == sum(value for name, value in found["memory"].items() if name not in ("total", "moment"))
    assert (found["verdict"], found["memory"]["optimizer"], found["suggestions"]) == ("fits", 0, [])


def test_what_needs_less_is_told_with_how_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_run(config_of(folder, max_length=256), folder)
    monkeypatch.setattr("swift_core.planner.advice._changes", lambda plan: iter([{"gradient_checkpointing": True}, {"optim": "nonsense"}]))
    _, estimate = estimated(plan, suggest=True)
    (one,) = estimate.suggestions
    assert (one.flags, one.total + one.saved) == ("--gradient_checkpointing true", estimate.memory.total)
    assert 0 < one.saved < estimate.memory.activations
    assert "needs less:" in estimate.lines()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["sfft", "--model", "m"], "no training command"),
        (["sft", "--measure", "x"], "number of steps"),
        (["--modle", "x"], "unknown setting"),
    ],
)
def test_bad_words_are_refused(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        main(words)
