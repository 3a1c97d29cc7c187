"""What is refused before anything loads, and what each kind of device would use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.cli.main import main
from swift_core.config.combinations import FEATURES, MODES, check_processes, table
from swift_core.config.parallel import DEEPSPEED_PRESETS, ParallelSection, deepspeed_settings, deepspeed_stage, mode_of
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, LaunchError
from swift_core.launch import launcher
from swift_core.train.parallel import backend_of, training_device


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
        ({"sequence_parallel_size": 2}, ["--sequence_parallel_size", "does not offer it yet", "--fsdp full_shard"]),
        ({"pipeline_parallel_size": 2}, ["--pipeline_parallel_size", "does not offer it yet"]),
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
    ],
)
def test_a_mode_needs_its_processes_when_the_run_starts(settings: dict[str, Any], processes: int, part: str) -> None:
    made = config(**settings)
    with pytest.raises(ConfigError, match=part):
        check_processes(made, processes)
    check_processes(made, made.parallel.tensor_parallel_size if "4" in part else 2)
    check_processes(config(), 1)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "ddp"),
        ({"fsdp": ["full_shard auto_wrap"]}, "fsdp"),
        ({"fsdp": "shard_grad_op offload"}, "fsdp"),
        ({"deepspeed": "zero1", "packing": True, "max_length": 64}, "deepspeed"),
        ({"tensor_parallel_size": 2}, "tensor"),
    ],
)
def test_what_goes_together(settings: dict[str, Any], mode: str) -> None:
    assert mode_of(config(**settings)) == mode


def test_the_table_says_a_reason_for_every_no(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table()
    assert [row["with"] for row in rows] == list(FEATURES)
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
