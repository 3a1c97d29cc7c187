"""Folders without a chat template, media in the model's number type, tasks that are trained elsewhere."""

import json

import pytest
import torch
from swift_core.batching.collate import Batch
from swift_core.config.sections import TemplateSection
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, TemplateError
from swift_core.models.loading import load_tokenizer
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.task import with_dtype


def without_template(folder, architecture):
    make_tiny_model(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    values.pop("chat_template", None)
    file.write_text(json.dumps(values), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}), encoding="utf-8")
    return load_tokenizer(folder, trust_remote_code=False)


def test_a_family_with_one_prompt_format_lends_it_to_its_base_models(tmp_path, caplog):
    tokenizer = without_template(tmp_path / "m", "Phi3ForCausalLM")
    made = build_template(tokenizer, TemplateSection())
    asked = made.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert asked == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert "has no chat template: prompts are written as" in caplog.text
    assert tokenizer.chat_template


def test_a_family_with_several_formats_stays_an_error(tmp_path):
    with pytest.raises(TemplateError):
        build_template(without_template(tmp_path / "m", "LlamaForCausalLM"), TemplateSection())


def test_media_have_the_number_type_of_the_model():
    ids = torch.ones(1, 2, dtype=torch.long)
    inputs = {"pixel_values": torch.ones(1, 3), "second_per_grid": torch.ones(1), "grid": torch.ones(1, 3, dtype=torch.long)}
    batch = with_dtype(Batch(ids, ids, ids, [], model_inputs=inputs), torch.nn.Linear(1, 1).to(torch.bfloat16))
    assert batch.model_inputs is not None
    assert {name: value.dtype for name, value in batch.model_inputs.items()} == {
        "pixel_values": torch.bfloat16,
        "second_per_grid": torch.float32,
        "grid": torch.long,
    }


@pytest.mark.parametrize("task", ["reward", "prm"])
def test_reward_models_are_trained_by_another_command(task):
    with pytest.raises(ConfigError, match="swift rlhf --rlhf_type rm"):
        SftConfig(model="m", dataset=["d"], task_type=task, tuner_type="full")
    with pytest.raises(ConfigError, match="allowed: causal_lm"):
        SftConfig(model="m", dataset=["d"], task_type="seq_clss", tuner_type="full")
