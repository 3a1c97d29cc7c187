"""Settings of infer and deploy, and what a checkpoint adds to them."""

import json
import subprocess
import sys

import pytest
from swift_core.config.load import load_config
from swift_core.errors import CheckpointError, ConfigError, NotFoundError
from swift_infer.checkpoint import adopt_checkpoint
from swift_infer.config import DeployConfig, InferConfig


def test_quick_start_lines_parse_without_the_folder():
    words = ["--model_id_or_path", "output/checkpoint-xxx"]
    assert load_config(InferConfig, words).loading.model == "output/checkpoint-xxx"
    assert load_config(DeployConfig, words).server.host == "127.0.0.1"
    assert load_config(InferConfig, ["--ckpt_dir", "output/checkpoint-xxx"]).loading.adapters == ["output/checkpoint-xxx"]


def test_light_modules_do_not_import_torch():
    code = "import sys, swift_infer, swift_infer.specs, swift_infer.config, swift_infer.cli; print([m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_pt_is_another_name_of_the_transformers_engine():
    assert InferConfig(model="m", infer_backend="pt").inference.infer_backend == "transformers"


@pytest.mark.parametrize(
    ("kind", "values", "flag"),
    [
        (InferConfig, {}, "--model"),
        (InferConfig, {"model": "m", "adapters": ["a", "b"]}, "--adapters"),
        (InferConfig, {"model": "m", "infer_backend": "transformer"}, "--infer_backend"),
        (InferConfig, {"model": "m", "result_path": "r.jsonl"}, "--result_path"),
        (InferConfig, {"model": "m", "max_batch_size": 2}, "--max_batch_size"),
        (InferConfig, {"model": "m", "val_dataset": ["d"], "stream": True}, "--stream"),
        (InferConfig, {"model": "m", "val_dataset": ["d"], "load_data_args": True}, "--load_data_args"),
        (InferConfig, {"model": "m", "load_args": False, "load_data_args": True}, "--load_data_args"),
        (DeployConfig, {"model": "m", "host": "0.0.0.0"}, "--host 0.0.0.0"),
        (DeployConfig, {"model": "m", "api_key": " "}, "--api_key"),
    ],
)
def test_combinations_that_cannot_work_are_refused_with_a_fix(kind, values, flag):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert [problem.where.startswith(flag.split()[0]) and bool(problem.fix) for problem in caught.value.problems] == [True]


@pytest.mark.parametrize("values", [{"api_key": "k"}, {"allow_unauthenticated": True}])
def test_other_hosts_are_served_with_a_key_or_on_request(values):
    assert DeployConfig(model="m", host="0.0.0.0", **values).server.host == "0.0.0.0"


def test_the_key_is_masked_wherever_settings_are_shown():
    assert "s3cret" not in json.dumps(DeployConfig(model="m", api_key="s3cret").flat())


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "run" / "checkpoint-5"
    folder.mkdir(parents=True)
    args = {
        "model": "base",
        "tuner_type": "lora",
        "system": "Be brief.",
        "torch_dtype": "bfloat16",
        "trust_remote_code": True,
        "use_hf": True,
        "max_length": 64,
    }
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "other-base"}))
    return folder


@pytest.mark.parametrize("name", ["adapters", "model"])
def test_a_checkpoint_fills_what_was_not_given(adapter, name):
    config = InferConfig(**{name: [str(adapter)] if name == "adapters" else str(adapter), "torch_dtype": "float32"})
    found, notes = adopt_checkpoint(config)
    assert found is not None and found.tuner == "lora"
    assert (config.loading.model, config.loading.adapters, config.chat.system) == ("base", [str(adapter)], "Be brief.")
    assert (config.loading.torch_dtype, config.loading.use_hf) == ("float32", True)
    assert config.chat.max_length is None
    assert any("--model base" in note for note in notes)


def test_a_file_never_switches_the_models_own_code_on(adapter):
    config = InferConfig(adapters=[str(adapter)])
    _, notes = adopt_checkpoint(config)
    assert config.loading.trust_remote_code is False
    assert any("trust_remote_code" in note for note in notes)


def test_load_args_false_takes_only_the_base_model_of_the_adapter(adapter):
    config = InferConfig(adapters=[str(adapter)], load_args=False)
    adopt_checkpoint(config)
    assert (config.loading.model, config.chat.system) == ("other-base", None)


def test_a_given_model_stays(adapter):
    config = InferConfig(adapters=[str(adapter)], model="mine")
    adopt_checkpoint(config)
    assert (config.loading.model, config.loading.use_hf) == ("mine", False)


def test_a_whole_model_given_as_adapters_is_used_as_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "args.json").write_text(json.dumps({"model": "base", "tuner_type": "full", "system": "s"}))
    config = InferConfig(adapters=[str(tmp_path)])
    adopt_checkpoint(config)
    assert (config.loading.model, config.loading.adapters, config.chat.system) == (str(tmp_path), [], "s")


@pytest.mark.parametrize("content", ["{cut", "[]", '{"tuner_type": "lora", "torch_dtype": "int3"}'])
def test_damaged_args_are_reported(adapter, content):
    (adapter / "args.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"args\.json"):
        adopt_checkpoint(InferConfig(adapters=[str(adapter)]))


def test_a_run_folder_names_its_checkpoints(adapter):
    with pytest.raises(NotFoundError) as caught:
        adopt_checkpoint(InferConfig(adapters=[str(adapter.parent)]))
    assert "checkpoint-5" in (caught.value.fix or "")


@pytest.mark.parametrize("values", [{"adapters": ["nowhere/checkpoint-3"]}, {"model": "nowhere/checkpoint-3"}])
def test_an_absent_checkpoint_is_not_looked_for_on_a_hub(values):
    with pytest.raises(NotFoundError, match="nowhere"):
        adopt_checkpoint(InferConfig(**values))
