"""What is refused before anything loads, and what each kind of device would use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.layout import Layout
from swift_core.cli.main import main
from swift_core.config.combinations import FEATURES, MODES, check_processes, table
from swift_core.config.parallel import (
    DEEPSPEED_PRESETS,
    ParallelSection,
    deepspeed_settings,
    deepspeed_stage,
    mode_of,
    processes_for_a_sample,
)
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, LaunchError, ModelError
from swift_core.launch import launcher
from swift_core.scoring import ring
from swift_core.scoring.sequence import places
from swift_core.train.parallel import backend_of, layers_over_devices, training_device
from swift_core.train.sharding.engine import Engine
from swift_core.train.sharding.sequence import mode_for


def config(**settings: Any) -> SftConfig:
    return SftConfig(model="m", dataset=["d"], **{"tuner_type": "full", **settings})


FSDP: dict[str, Any] = {"fsdp": ["full_shard"]}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({**FSDP, "deepspeed": "zero2"}, ["--deepspeed", "does not go with --fsdp", "keep one of them"]),
        ({**FSDP, "optim": "adafactor"}, ["--optim", "does not go with --fsdp", "whole ones", "adamw_torch"]),
        ({"deepspeed": "zero3", "fuse_layers": True}, ["--fuse_layers", "does not go with --deepspeed"]),
        ({**FSDP, "quant_method": "bnb", "quant_bits": 4}, ["--quant_method", "packed weights cannot be cut"]),
        ({"tensor_parallel_size": 2, "bf16": True}, ["--bf16", "autocast", "--torch_dtype bfloat16"]),
        ({"sequence_parallel_size": 2, "padding_free": False}, ["--padding_free false", "--sequence_parallel_size", "side by side"]),
        ({"sequence_parallel_size": 2, "task_type": "embedding"}, ["--task_type", "made for next-token prediction", "--fsdp full_shard"]),
        ({"sequence_parallel_size": 2, "tensor_parallel_size": 2}, ["--sequence_parallel_size", "does not go with --tensor_parallel_size"]),
        ({"sequence_parallel_size": 2, "fuse_layers": True}, ["--fuse_layers", "the model's own layers"]),
        ({"sequence_parallel_mode": "ring"}, ["--sequence_parallel_mode", "rows of its own", "--sequence_parallel_size 2"]),
        ({"pipeline_parallel_size": 2, **FSDP}, ["--pipeline_parallel_size", "does not go with --fsdp"]),
        ({"pipeline_parallel_size": 2, "bf16": True}, ["--bf16", "--pipeline_parallel_size", "--torch_dtype bfloat16"]),
        ({"pipeline_parallel_schedule": "gpipe"}, ["--pipeline_parallel_schedule", "holds all layers"]),
        ({"fsdp": ["offload"]}, ["--fsdp offload", "does not say what is spread"]),
        ({"fsdp": ["full_shard", "shard_grad_op"]}, ["--fsdp shard_grad_op", "does not go with full_shard"]),
        ({"fsdp_config": {"reshard_after_forward": True}}, ["--fsdp_config", "does nothing without --fsdp"]),
        ({**FSDP, "fsdp_config": {"backward_prefetch": "x"}}, ["--fsdp_config", "'backward_prefetch' is not known"]),
        ({"deepspeed": "zero2", "zero_hpz_partition_size": 2}, ["--zero_hpz_partition_size", "only acts in ZeRO 3"]),
        ({"deepspeed": "zero9"}, ["'zero9' is refused", "zero2_offload"]),
        ({"fsdp": ["hybrid"]}, ["fsdp", "allowed: full_shard"]),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "processes", "part"),
    [
        (FSDP, 1, "--fsdp: needs more than one process"),
        ({"deepspeed": "zero2"}, 1, "--deepspeed: needs more than one process"),
        ({"tensor_parallel_size": 4}, 2, "--tensor_parallel_size 4: there are 2 processes"),
        ({"tensor_parallel_size": 4}, 8, "--tensor_parallel_size 4: there are 8 processes"),
        ({"sequence_parallel_size": 4}, 6, "--sequence_parallel_size 4: there are 6 processes"),
        ({"pipeline_parallel_size": 4}, 2, "--pipeline_parallel_size 4: there are 2 processes"),
        ({"pipeline_parallel_size": 4}, 1, "NPROC_PER_NODE=4"),
        ({"device_map": "auto"}, 2, "--device_map: is for one process, and there are 2"),
    ],
)
def test_a_mode_needs_its_processes_when_the_run_starts(settings: dict[str, Any], processes: int, part: str) -> None:
    made = config(**settings)
    with pytest.raises(ConfigError, match=part):
        check_processes(made, processes)
    check_processes(made, 1 if "device_map" in settings else max(2, processes_for_a_sample(made.parallel)))
    check_processes(config(), 1)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "ddp"),
        ({"fsdp": ["full_shard auto_wrap"]}, "fsdp"),
        ({"fsdp": "shard_grad_op offload"}, "fsdp"),
        ({"deepspeed": "zero1", "packing": True, "max_length": 64}, "deepspeed"),
        ({"tensor_parallel_size": 2}, "tensor"),
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"device_map": "auto"}, "device_map"),
        ({"sequence_parallel_size": 2}, "ddp"),
        ({"sequence_parallel_size": 2, "deepspeed": "zero3"}, "deepspeed"),
        ({"sequence_parallel_size": 2, "fsdp": ["full_shard"]}, "fsdp"),
    ],
)
def test_what_goes_together(settings: dict[str, Any], mode: str) -> None:
    assert mode_of(config(**settings)) == mode


def test_processes_that_share_samples_count_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert config(per_device_train_batch_size=1).training.gradient_accumulation_steps == 2
    assert config(per_device_train_batch_size=1, sequence_parallel_size=4).training.gradient_accumulation_steps == 8
    assert config(per_device_train_batch_size=1, pipeline_parallel_size=8).training.gradient_accumulation_steps == 16


def test_the_table_says_a_reason_for_every_no(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table()
    assert [row["with"] for row in rows] == [*MODES, *FEATURES]
    pairs = {row["with"]: row for row in rows[: len(MODES)]}
    assert all(pairs[one][other] == pairs[other][one] for one in MODES for other in MODES)
    assert pairs["sequence"]["fsdp"] == "yes" and pairs["pipeline"]["fsdp"].startswith("no: ")
    assert all(row[mode] == "yes" or len(row[mode]) > len("no: ") for row in rows for mode in MODES)
    assert all(mode in MODES for feature in FEATURES.values() for mode in feature.refused)
    assert all(feature.fix for feature in FEATURES.values() if feature.refused)
    assert main(["list", "parallel"]) == 0
    assert "whole_matrix_optimizer" in capsys.readouterr().out
    assert main(["list", "parallel", "--format", "json", "--search", "quant"]) == 0
    assert json.loads(capsys.readouterr().out)["fsdp"] == "no: packed weights cannot be cut into parts"


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
def test_presets_take_batches_and_clipping_from_the_run(name: str) -> None:
    section = ParallelSection(deepspeed=name)
    settings = deepspeed_settings(section, micro_batch=3, clipping=0.5, bf16=True)
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_clipping"] == 0.5 and settings["bf16"] == {"enabled": True}
    assert settings["zero_optimization"]["stage"] == deepspeed_stage(section) == int(name[4])
    assert ("offload_optimizer" in settings["zero_optimization"]) == name.endswith("offload")
    settings["zero_optimization"]["stage"] = 9
    assert deepspeed_stage(section) == int(name[4])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"optimizer": {}}', "'optimizer'"),
        ('{"fp16": {"enabled": true}, "zero_optimization": {"stage": 2}}', "fp16 is not offered"),
    ],
)
def test_own_settings_of_deepspeed_are_looked_at(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part):
        deepspeed_settings(ParallelSection(deepspeed=str(file)), micro_batch=1, clipping=1.0, bf16=False)


def test_auto_in_own_settings_means_the_run(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(
        '{"train_batch_size": "auto", "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, "bf16": {"enabled": "auto"}}'
    )
    settings = deepspeed_settings(ParallelSection(deepspeed=str(file)), micro_batch=2, clipping=1.0, bf16=False)
    assert settings["zero_optimization"] == {"stage": 3}
    assert settings["bf16"] == {"enabled": False} and "train_batch_size" not in settings


@pytest.mark.parametrize(
    ("device", "backend"), [("cuda", "nccl"), ("npu", "hccl"), ("xpu", "xccl"), ("cpu", "gloo"), ("some_new_chip", "gloo")]
)
def test_each_device_has_its_backend(monkeypatch: pytest.MonkeyPatch, device: str, backend: str) -> None:
    if device != "cpu":
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: type("Device", (), {"type": device}))
    else:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert training_device(use_cpu=False) == device
    assert training_device(use_cpu=True) == "cpu"
    assert backend_of(device) == backend
    assert backend_of(device, "gloo") == "gloo"


def test_backends_that_do_not_fit_the_device_are_refused() -> None:
    with pytest.raises(LaunchError, match="--ddp_backend nccl does not move data of the device cpu"):
        backend_of("cpu", "nccl")
    with pytest.raises(LaunchError, match="cannot share an Apple GPU"):
        backend_of("mps")


@pytest.mark.parametrize(
    ("mode", "size", "found"), [(None, 2, "ulysses"), (None, 3, "ring"), ("ring", 2, "ring"), ("ulysses", 4, "ulysses")]
)
def test_heads_are_dealt_out_where_they_can_be(mode: str | None, size: int, found: str) -> None:
    assert mode_for(ParallelSection(sequence_parallel_size=size, sequence_parallel_mode=mode), heads=4) == found


def test_heads_that_cannot_be_dealt_out_are_named() -> None:
    with pytest.raises(ModelError, match="has 4 heads, which cannot be dealt to 3 processes"):
        mode_for(ParallelSection(sequence_parallel_size=3, sequence_parallel_mode="ulysses"), heads=4)


@pytest.mark.parametrize("balanced", [True, False])
def test_every_token_of_a_row_has_one_owner(balanced: bool) -> None:
    dealt = places(24, 3, balanced=balanced)
    assert sorted(torch.cat(dealt).tolist()) == list(range(24))
    # Causal attention costs a token as much as there is before it.
    costs = [int(part.sum()) for part in dealt]
    assert (max(costs) == min(costs)) == balanced


@pytest.mark.parametrize("window", [None, 4])
def test_the_rounds_of_a_ring_see_what_a_row_sees(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    monkeypatch.setattr(ring, "TILE", 3)
    # A prompt, two answers that continue it, and a sample of its own.
    layout = Layout((5, 4, 3, 4), (-1, 0, 0, -1))
    expected = torch.zeros(16, 16, dtype=torch.bool)
    for number in range(4):
        start, stop = layout.span(number)
        reach = [place for span in layout.before(number) for place in range(*span)]
        for query in range(start, stop):
            keys = [*reach, *range(start, query + 1)]
            expected[query, keys if window is None else keys[-window:]] = True
    found = torch.zeros_like(expected)
    for rank in range(2):
        for other in range(2):
            mine, theirs = places(16, 2, balanced=True)[rank], places(16, 2, balanced=True)[other]
            for tile in ring.tiles(layout, 2, rank, other, window):
                queries, keys = mine[tile.queries], theirs[tile.keys]
                found[queries[:, None], keys[None]] |= torch.ones(len(queries), len(keys)).bool() if tile.seen is None else tile.seen
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("devices", "found"), [(2, "auto"), (1, "there is one accelerator here"), (0, "there is no accelerator here")])
def test_layers_go_over_the_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, devices: int, found: str) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    section = ParallelSection(device_map="auto")
    if devices > 1:
        assert layers_over_devices(section) == found
    else:
        with pytest.raises(LaunchError, match=found):
            layers_over_devices(section)
    assert layers_over_devices(ParallelSection()) is None


def test_a_model_over_several_devices_stays_there() -> None:
    moved: list[object] = []

    class Model(torch.nn.Linear):
        def to(self, *args: object, **kwargs: object) -> Model:
            moved.extend(args)
            return self

    world: Any = type("World", (), {"device": torch.device("cpu")})
    model = Model(1, 1)
    Engine(world).place(model)
    assert moved == [torch.device("cpu")]
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    Engine(world).place(model)
    assert len(moved) == 1


def test_two_machines_meet_where_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(launcher, "_run", lambda command, env: started.append((command, env)) or 0)
    there = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1234", "NPROC_PER_NODE": "8"}
    assert launcher.relaunch_if_distributed(["sft", "--model", "m"], there) == 0
    command, env = started[0]
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=node0", "--master_port=1234", "--nproc_per_node=8"} < set(command)
    assert command[-3:] == ["sft", "--model", "m"]
    assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 60
    with pytest.raises(LaunchError, match="NNODES=2 needs NODE_RANK and MASTER_ADDR"):
        launcher.relaunch_if_distributed(["sft"], {"NNODES": "2"})
