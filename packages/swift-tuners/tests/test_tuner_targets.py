"""Which layers get an adapter, and what is said when a name is wrong."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from swift_core.config.training import SftConfig
from swift_core.errors import CheckpointError, ConfigError, ModelError, NotFoundError
from swift_tuners import LoraConfig, LoraOptions, Swift, find_all_linears
from swift_tuners.methods.lora import LoraTuner
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def llama(**more) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **more)).eval()


def adapted(model) -> set[str]:
    return {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in model.named_modules() if name.endswith(".lora_A")}


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    assert set(find_all_linears(llama())) == ALL
    names = adapted(LoraTuner().prepare(llama(), LoraOptions()))
    assert len(names) == 14
    assert not any("lm_head" in name for name in names)


def test_all_linear_knows_conv1d() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    assert set(find_all_linears(model)) == {"c_attn", "c_proj", "c_fc"}
    assert len(adapted(LoraTuner().prepare(model, LoraOptions()))) == 4


def test_classification_head_is_trained_in_full_not_adapted() -> None:
    model = LoraTuner().prepare(LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3, pad_token_id=0)), LoraOptions())
    assert len(adapted(model)) == 14
    assert any("score.modules_to_save" in name and parameter.requires_grad for name, parameter in model.named_parameters())


def test_experts_held_as_parameters(tmp_path) -> None:
    def moe() -> Qwen3MoeForCausalLM:
        torch.manual_seed(0)
        sizes = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8, "num_key_value_heads": 2}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).eval()

    options = LoraOptions(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], lora_dropout=0.0)
    model = LoraTuner().prepare(moe(), options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    assert not any("self_attn" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    ids = torch.arange(20)[None]
    expected = model(input_ids=ids).logits
    assert (expected - moe()(input_ids=ids).logits).abs().max() > 1e-3
    LoraTuner().save(model, tmp_path)
    again = LoraTuner().load(moe(), tmp_path, trainable=False)
    assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-6)
    assert torch.allclose(Swift.merge_and_unload(again)(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target_modules": ["q_prj"]}, ["--target_modules 'q_prj'", "did you mean q_proj", "gate_proj"]),
        ({"target_regex": "nothing"}, ["--target_regex 'nothing'", "q_proj"]),
        ({"target_modules": []}, ["nothing to train", "all-linear"]),
        ({"modules_to_save": ["embed_token"]}, ["--modules_to_save", "embed_tokens"]),
        ({"target_parameters": ["experts.gate_up"], "lora_dropout": 0.0}, ["--target_parameters"]),
        ({"lora_bias": "all"}, ["no biases"]),
        ({"target_modules": ["input_layernorm"]}, ["cannot take the adapter"]),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_model_are_refused(given, words) -> None:
    with pytest.raises(ModelError) as caught:
        LoraTuner().prepare(llama(), LoraOptions(**given))
    assert caught.value.fix
    for word in words:
        assert word in str(caught.value)


def test_an_adapter_on_a_shared_weight_is_refused_because_it_cannot_be_merged() -> None:
    for name in ("embed_tokens", "lm_head"):
        with pytest.raises(ModelError, match=f"modules_to_save {name}"):
            LoraTuner().prepare(llama(tie_word_embeddings=True), LoraOptions(target_modules=["q_proj", name]))
    assert len(adapted(LoraTuner().prepare(llama(), LoraOptions(target_modules=["lm_head"])))) == 1


def test_biases_of_a_half_precision_model_are_refused() -> None:
    with pytest.raises(ModelError, match="torch_dtype float32"):
        LoraTuner().prepare(llama(attention_bias=True).to(torch.bfloat16), LoraOptions(lora_bias="all"))


@pytest.mark.parametrize(
    "given",
    [
        {"target_regex": "a", "target_modules": ["q_proj"]},
        {"target_regex": "("},
        {"target_parameters": ["x"]},
        {"init_weights": "evan"},
        {"init_weights": "pissa_niter_x"},
        {"lora_rank": 0},
        {"lora_dropout": 1.0},
    ],
    ids=str,
)
def test_bad_options_are_refused_without_a_model(given) -> None:
    with pytest.raises(ValidationError):
        LoraOptions(**given)


def test_options_are_flat_flags_of_sft() -> None:
    config = SftConfig(model="m", dataset=["d"], lora_rank=4, init_weights=False)
    assert isinstance(config.tuner.options, LoraOptions)
    assert (config.lora_rank, config.flat()["lora_rank"], config.init_weights) == (4, 4, "false")
    with pytest.raises(ConfigError, match="target_regex"):
        SftConfig(model="m", dataset=["d"], target_regex="(")


# --- the Python entry ---


def test_prepare_model_takes_pefts_config_and_leaves_it_as_it_was() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = Swift.prepare_model(llama(), config)
    assert len(adapted(model)) == 4
    assert config.base_model_name_or_path is None
    assert len(adapted(Swift.prepare_model(llama(), LoraConfig(r=2, target_modules="all-linear")))) == 14
    with pytest.raises(ModelError, match="did you mean v_proj"):
        Swift.prepare_model(llama(), LoraConfig(r=2, target_modules=["vproj"]))


def test_several_adapters_act_together_and_are_saved_by_name(tmp_path) -> None:
    torch.manual_seed(0)
    weights = llama().state_dict()

    def fresh() -> LlamaForCausalLM:
        model = llama()
        model.load_state_dict(weights)
        return model

    configs = {"one": LoraOptions(lora_rank=2), "two": LoraConfig(r=4, target_modules=["q_proj"])}
    model = Swift.prepare_model(fresh(), configs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".two." in name}
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".one." in name}
    for parameter in trained:
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    model.eval()
    model.set_adapter("two")
    expected = model(input_ids=ids).logits
    again = Swift.from_pretrained(fresh(), {"one": tmp_path / "one", "two": tmp_path / "two"}).eval()
    assert torch.equal(again(input_ids=ids).logits, expected)
    with pytest.raises(ModelError, match="already"):
        Swift.from_pretrained(again, tmp_path / "two", "two")
    with pytest.raises(ModelError, match="adapters already"):
        Swift.prepare_model(again, LoraOptions())


def test_merge_and_unload_gives_the_plain_model_back() -> None:
    model = Swift.prepare_model(llama(), LoraOptions(init_weights=False))
    ids = torch.arange(20)[None]
    expected = model.eval()(input_ids=ids).logits
    merged = Swift.merge_and_unload(model)
    assert type(merged) is LlamaForCausalLM
    assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)
    assert not merged.get_input_embeddings()._forward_hooks
    with pytest.raises(ModelError, match="no adapter"):
        Swift.merge_and_unload(merged)


# --- bad folders ---


def test_an_adapter_of_another_model_is_refused(tmp_path) -> None:
    LoraTuner().save(LoraTuner().prepare(llama(), LoraOptions()), tmp_path)
    for other in ({"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **other}))
        with pytest.raises(CheckpointError, match="does not fit") as caught:
            LoraTuner().load(model, tmp_path, trainable=False)
        assert "trained from" in str(caught.value)
        assert len(str(caught.value)) < 600


def test_pickled_weights_are_refused_with_the_way_out(tmp_path) -> None:
    LoraTuner().save(LoraTuner().prepare(llama(), LoraOptions()), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle") as caught:
        LoraTuner().load(llama(), tmp_path, trainable=False)
    assert "save_file" in str(caught.value)


def test_damaged_weights_are_refused(tmp_path) -> None:
    LoraTuner().save(LoraTuner().prepare(llama(), LoraOptions()), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        LoraTuner().load(llama(), tmp_path, trainable=False)


def test_a_run_folder_names_its_checkpoints(tmp_path) -> None:
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        LoraTuner().save(LoraTuner().prepare(llama(), LoraOptions()), folder)
    with pytest.raises(NotFoundError, match="checkpoint-10"):
        LoraTuner().load(llama(), tmp_path, trainable=False)
    with pytest.raises(NotFoundError, match="no adapter folder"):
        LoraTuner().load(llama(), tmp_path / "absent", trainable=False)
