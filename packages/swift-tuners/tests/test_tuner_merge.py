"""`swift merge-lora`: what it writes, how it agrees, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from swift_core.config.training import SftConfig
from swift_core.errors import CheckpointError, ConfigError, ModelError, NotFoundError
from swift_core.models.loading import load_model
from swift_core.scoring.agreement import compare, logits_of, prompt_ids
from swift_core.testing.tiny import make_tiny_model
from swift_tuners import LoraOptions, Swift
from swift_tuners.adapters import load
from swift_tuners.config import MergeConfig
from swift_tuners.merge.merging import merge
from swift_tuners.methods.lora import LoraTuner
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "base", tie_word_embeddings=True)


@pytest.fixture
def checkpoint(tmp_path: Path, base: Path) -> Path:
    return make_checkpoint(tmp_path / "run" / "checkpoint-3", base)


def make_checkpoint(folder: Path, base: Path, dtype: torch.dtype = torch.float32, **options) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = LoraTuner().prepare(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), LoraOptions(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    LoraTuner().save(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer.chat_template + "{# as trained #}"
    tokenizer.save_pretrained(folder)
    args = SftConfig(model=str(base), dataset=["d"], system="Be brief.").flat()
    (folder / "args.json").write_text(json.dumps({"command": "sft", **args}))
    return folder


def left_overs(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_merged_folder_is_a_normal_model_that_answers_alike(base: Path, checkpoint: Path) -> None:
    report = merge(MergeConfig(adapters=[str(checkpoint)]))
    folder = checkpoint.parent / "checkpoint-3-merged"
    assert report.folder == folder
    assert report.merged.max_difference < 1e-5 < 1e-2 < report.effect.max_difference
    assert report.reloaded.max_difference == 0
    assert report.merged.top1 == 1.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template.endswith("{# as trained #}")
    inputs = prompt_ids(tokenizer)
    adapted = load(AutoModelForCausalLM.from_pretrained(base), checkpoint, trainable=False)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert compare(logits_of(adapted, inputs), logits_of(merged, inputs)).max_difference < 1e-5
    assert not list(folder.glob("*.bin"))
    assert (folder / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    assert left_overs(folder.parent) == []


def test_args_of_the_merged_model_are_a_config_of_a_model_without_adapters(checkpoint: Path) -> None:
    folder = merge(MergeConfig(adapters=[str(checkpoint)])).folder
    args = json.loads((folder / "args.json").read_text())
    assert (args["tuner_type"], args["adapters"], args["model"], args["system"]) == ("full", [], str(folder), "Be brief.")
    assert "lora_rank" not in args
    args.pop("command")
    SftConfig(**args)


@pytest.mark.parametrize("options", [{"init_weights": "pissa"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_variants_merge_too(tmp_path: Path, base: Path, options) -> None:
    report = merge(MergeConfig(adapters=[str(make_checkpoint(tmp_path / "a", base, **options))]))
    assert report.merged.max_difference < 1e-5
    assert report.reloaded.max_difference == 0


def test_number_type_is_the_runs_the_models_or_the_one_given(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "half", dtype=torch.bfloat16)
    checkpoint = make_checkpoint(tmp_path / "a", base, torch.bfloat16)
    assert merge(MergeConfig(adapters=[str(checkpoint)])).dtype == "bfloat16"
    wide = merge(MergeConfig(adapters=[str(checkpoint)], output_dir=str(tmp_path / "wide"), torch_dtype="float32"))
    assert {tensor.dtype for tensor in load_file(wide.folder / "model.safetensors").values()} == {torch.float32}


def test_large_models_are_written_in_shards(checkpoint: Path) -> None:
    folder = merge(MergeConfig(adapters=[str(checkpoint)], max_shard_size="50KB")).folder
    assert len(list(folder.glob("*.safetensors"))) > 1
    AutoModelForCausalLM.from_pretrained(folder)


def test_an_existing_folder_is_replaced_only_when_told(checkpoint: Path) -> None:
    folder = merge(MergeConfig(adapters=[str(checkpoint)])).folder
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="--exist_ok"):
        merge(MergeConfig(adapters=[str(checkpoint)]))
    assert (folder / "mine.txt").exists()
    merge(MergeConfig(adapters=[str(checkpoint)], exist_ok=True))
    assert not (folder / "mine.txt").exists()
    assert left_overs(folder.parent) == []


def test_folders_that_are_no_merged_model_are_never_replaced(tmp_path: Path, base: Path, checkpoint: Path) -> None:
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for target, words in ((other, "no model folder"), (base, "being merged"), (checkpoint, "being merged"), (tmp_path, "being merged")):
        with pytest.raises(CheckpointError, match=words):
            merge(MergeConfig(adapters=[str(checkpoint)], output_dir=str(target), exist_ok=True))
    assert (other / "thesis.txt").exists()
    assert (base / "model.safetensors").exists()


@pytest.mark.parametrize("stage", ["merging", "writing"])
def test_answers_that_differ_leave_nothing_behind(monkeypatch, checkpoint: Path, stage: str) -> None:
    place = "swift_tuners.merge.merging.load_model" if stage == "writing" else "swift_tuners.api.Swift.merge_and_unload"
    plain = load_model if stage == "writing" else Swift.merge_and_unload
    calls = []

    def spoiled(*args, **more):
        model = plain(*args, **more)
        calls.append(model)
        if stage == "merging" or len(calls) == 2:
            model.get_parameter("model.layers.0.mlp.down_proj.weight").data.add_(0.05)
        return model

    monkeypatch.setattr(place, spoiled if stage == "writing" else staticmethod(spoiled))
    with pytest.raises(CheckpointError, match=r"answers differently.*max difference"):
        merge(MergeConfig(adapters=[str(checkpoint)]))
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-3"]


def test_a_logit_that_is_not_finite_never_agrees() -> None:
    good, bad = torch.zeros(2, 4) + 1, torch.full((2, 4), float("nan"))
    assert not compare([good], [bad]).within(torch.bfloat16)
    assert compare([good], [good]).within(torch.float32)


def test_the_base_is_named_by_flag_args_or_adapter(tmp_path: Path, base: Path, checkpoint: Path) -> None:
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError, match="base"):
        merge(MergeConfig(adapters=[str(checkpoint)]))
    assert merge(MergeConfig(adapters=[str(checkpoint)], model=str(moved))).base == moved
    (checkpoint / "args.json").unlink()
    file = checkpoint / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(moved)}))
    report = merge(MergeConfig(adapters=[str(checkpoint)], exist_ok=True))
    assert report.base == moved
    assert not (report.folder / "args.json").exists()
    file.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(NotFoundError, match="--model"):
        merge(MergeConfig(adapters=[str(checkpoint)], exist_ok=True))


def test_a_checkpoint_cannot_switch_on_its_own_code(base: Path, checkpoint: Path) -> None:
    args = json.loads((checkpoint / "args.json").read_text())
    (checkpoint / "args.json").write_text(json.dumps({**args, "trust_remote_code": True}))
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text("import pathlib; pathlib.Path('never-written').touch(); raise SystemExit(3)")
    with pytest.raises(ModelError, match="its own Python code"):
        merge(MergeConfig(adapters=[str(checkpoint)]))


def test_pickled_adapters_are_refused(checkpoint: Path) -> None:
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        merge(MergeConfig(adapters=[str(checkpoint)]))


def test_an_adapter_that_lacks_weights_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        merge(MergeConfig(adapters=[str(checkpoint)]))


@pytest.mark.parametrize("given", [{}, {"adapters": ["a", "b"]}, {"adapters": ["a"], "max_shard_size": "much"}], ids=str)
def test_bad_settings_are_refused_before_anything_is_loaded(given) -> None:
    with pytest.raises(ConfigError):
        MergeConfig(**given)


def test_light_files_do_not_load_torch() -> None:
    code = "import swift_tuners, swift_tuners.specs, swift_tuners.config, swift_tuners.cli, sys; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
