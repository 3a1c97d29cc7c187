"""What `swift export` does with adapters: merge, and checkpoints of ms-swift as plain PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from swift_core.cli.main import main
from swift_core.config.export import ExportConfig
from swift_core.errors import CheckpointError, ConfigError, NotFoundError
from swift_core.scoring.agreement import compare, logits_of, prompt_ids
from swift_core.tasks.exporting import export
from swift_core.testing.tiny import make_tiny_model
from swift_tuners import LoraOptions
from swift_tuners.adapters import load
from swift_tuners.merge.peft_format import write_peft_format
from swift_tuners.methods.lora import LoraTuner
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "base", layers=1)


@pytest.fixture
def checkpoint(tmp_path: Path, base: Path) -> Path:
    folder = tmp_path / "run" / "checkpoint-3"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = LoraTuner().prepare(AutoModelForCausalLM.from_pretrained(base), LoraOptions())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    LoraTuner().save(model, folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "args.json").write_text(json.dumps({"model": str(base), "tuner_type": "lora", "lora_rank": 8, "dataset": ["org/chats"]}))
    return folder


def answers(model, base: Path) -> list[torch.Tensor]:
    return logits_of(model, prompt_ids(AutoTokenizer.from_pretrained(base)))


def test_merge_says_how_the_answers_agree_and_writes_a_card(base, checkpoint, capsys):
    assert main(["export", "--adapters", str(checkpoint), "--merge_lora", "true"]) == 0
    folder = checkpoint.with_name("checkpoint-3-merged")
    shown = capsys.readouterr().err
    assert "merged / unmerged     max difference" in shown and f"written: {folder}" in shown
    adapted = answers(load(AutoModelForCausalLM.from_pretrained(base), checkpoint, trainable=False), base)
    assert compare(adapted, answers(AutoModelForCausalLM.from_pretrained(folder), base)).max_difference < 1e-5
    card = (folder / "README.md").read_text()
    assert "trained on org/chats (tuner_type lora, lora_rank 8)" in card and "merged against adapter on its base" in card
    assert "library_name: transformers" in card and "\nswift infer --model checkpoint-3-merged\n" in card
    assert main(["export", "--adapters", str(checkpoint), "--merge_lora", "true"]) == 1
    assert "--exist_ok" in capsys.readouterr().err
    assert main(["export", "--adapters", str(checkpoint), "--merge_lora", "true", "--exist_ok", "true"]) == 0


def as_ms_swift(checkpoint: Path, folder: Path, name: str = "default", **more) -> Path:
    """Lay an adapter out as ms-swift's own tuners do: a folder for each, its name in the weights, settings of its own."""
    place = folder / name
    place.mkdir(parents=True)
    weights = load_file(checkpoint / "adapter_model.safetensors")
    renamed = {
        key.removeprefix("base_model.model.").replace(".lora_A.", f".lora_A.{name}.").replace(".lora_B.", f".lora_B.{name}."): value
        for key, value in weights.items()
    }
    save_file(renamed, place / "adapter_model.safetensors")
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config.pop("peft_type")
    (place / "adapter_config.json").write_text(json.dumps({**config, "swift_type": "LORA", "model_key_mapping": None, **more}))
    return folder


def test_checkpoints_of_ms_swift_load_with_peft_and_answer_alike(base, checkpoint, tmp_path):
    source = as_ms_swift(checkpoint, as_ms_swift(checkpoint, tmp_path / "old"), "second")
    context = export(ExportConfig(adapters=[str(source)], to_peft_format=True))
    folder = context.folders["peft"]
    assert folder == tmp_path / "old-peft"
    expected = answers(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint), base)
    for place in (folder, folder / "second"):
        found = answers(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place), base)
        assert compare(expected, found).max_difference == 0


def test_conversion_and_merge_in_one_plan(base, checkpoint, tmp_path):
    source = as_ms_swift(checkpoint, tmp_path / "old")
    config = ExportConfig(model=str(base), adapters=[str(source)], to_peft_format=True, merge_lora=True, output_dir=str(tmp_path / "out"))
    context = export(config)
    adapted = answers(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint), base)
    merged = answers(AutoModelForCausalLM.from_pretrained(context.folders["merge"]), base)
    assert compare(adapted, merged).max_difference < 1e-5


@pytest.mark.parametrize(
    ("change", "words"), [({"enable_lora": [True]}, "enable_lora changes the weights"), ({"swift_type": "SCETUNING"}, "no PEFT format")]
)
def test_adapters_that_peft_does_not_know_are_refused(checkpoint, tmp_path, change, words):
    source = as_ms_swift(checkpoint, tmp_path / "old", **change)
    with pytest.raises(CheckpointError, match=words):
        write_peft_format(source, tmp_path)


def test_folders_without_an_adapter_are_refused(tmp_path, base):
    with pytest.raises(NotFoundError, match="no adapter"):
        write_peft_format(base, tmp_path)
    with pytest.raises(ConfigError, match="nothing to merge"):
        export(ExportConfig(adapters=[str(base)], merge_lora=True, output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"merge_lora": True, "model": "m"}, "--adapters: is missing"),
        ({"to_peft_format": True, "model": "m"}, "--adapters: is missing"),
        ({"merge_lora": True, "adapters": ["a"], "safe_serialization": False}, "pickles"),
        ({"merge_lora": True, "adapters": ["a"], "max_shard_size": "much"}, "such as 5GB"),
        ({"max_shard_size": "1GB", "model": "m"}, "only acts on a merge"),
    ],
)
def test_bad_settings_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        ExportConfig(**given)
