"""Every variant of LoRA that its flags offer: trains, saves, loads, resumes, merges."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from swift_core.config.command import tuner_options_class
from swift_core.registry import TUNERS
from transformers import LlamaConfig, LlamaForCausalLM

VARIANTS: dict[str, list[dict[str, object]]] = {
    "lora": [
        {},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_regex": r".*layers\.1\..*_proj"},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": "all"},
        {"lora_bias": "lora_only"},
        {"use_rslora": True},
        {"use_dora": True},
        *({"init_weights": word} for word in ("false", "gaussian", "orthogonal", "pissa", "olora")),
        {"init_weights": "pissa_niter_4", "use_rslora": True},
        {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"q_proj": 8}, "init_weights": "pissa"},
        {"layers_to_transform": [1]},
        {"trainable_token_indices": [5, 6]},
        {"init_weights": "pissa", "use_dora": True},
    ],
}
TIED = [{}, {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5, 6]}]
CASES = [
    (name, options, tied)
    for name, variants in VARIANTS.items()
    for options in variants
    for tied in (False, True)
    if not tied or options in TIED
]
IDS = torch.arange(3, 51).reshape(2, 24)


def base(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize(("name", "given", "tied"), CASES, ids=lambda value: str(value))
def test_trains_saves_reloads_and_merges(name, given, tied, tmp_path) -> None:
    torch.manual_seed(0)
    options_class = tuner_options_class(name)
    assert options_class is not None
    tuner = TUNERS.load(name)()
    start = logits(base(tied=tied))
    model = tuner.prepare(base(tied=tied), options_class(**given))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert 0 < sum(parameter.numel() for parameter in trained) < total / 2
    if given.get("init_weights") != "false":
        assert torch.allclose(logits(model), start, atol=1e-4), "a fresh adapter changes the answers"

    model.train()
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    expected = logits(model)
    assert (expected - start).abs().max() > 0.05

    tuner.save(model, tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.name for file in tmp_path.iterdir()}
    again = tuner.load(base(tied=tied), tmp_path, trainable=False)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    # An adapter that shifts the base is saved as one of twice the rank for the base as it was, which rounds otherwise.
    exact = 1e-5 if str(given.get("init_weights")).startswith(("pissa", "olora")) else 0.0
    assert torch.allclose(logits(again), expected, rtol=0, atol=exact)
    assert torch.allclose(logits(PeftModel.from_pretrained(base(tied=tied), tmp_path)), expected, rtol=0, atol=exact)

    restored = tuner.prepare(base(tied=tied), options_class(**given))
    tuner.restore(restored, tmp_path)
    # An approximate start is drawn at random: restoring puts the saved one into the base, which rounds.
    drawn = 1e-5 if "niter" in str(given.get("init_weights")) else 0.0
    assert torch.allclose(logits(restored), expected, rtol=0, atol=drawn)
    assert [p.requires_grad for p in restored.parameters()] == [p.requires_grad for p in model.parameters()]

    if TUNERS.get(name).mergeable:
        merged = again.merge_and_unload()
        assert torch.allclose(logits(merged), expected, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        assert torch.allclose(logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-5)


@pytest.mark.parametrize(
    "given", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"use_dora": True}, {"init_weights": "pissa"}], ids=str
)
def test_weights_over_a_half_precision_model_are_float32_through_a_round_trip(given, tmp_path) -> None:
    tuner = TUNERS.load("lora")()
    model = tuner.prepare(base(torch.bfloat16), tuner_options_class("lora")(**given))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    for parameter in trained.values():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    tuner.save(model, tmp_path)
    again = tuner.prepare(base(torch.bfloat16), tuner_options_class("lora")(**given))
    tuner.restore(again, tmp_path)
    found = dict(again.named_parameters())
    assert all(torch.equal(found[name], parameter) for name, parameter in trained.items())
    assert torch.equal(logits(again), logits(model))
    loaded = tuner.load(base(torch.bfloat16), tmp_path, trainable=True)
    assert {parameter.dtype for parameter in loaded.parameters() if parameter.requires_grad} == {torch.float32}
    # An adapter that shifted the base is read as one of twice the rank over the base as it was, in eight bits of mantissa.
    shifted = given.get("init_weights") == "pissa"
    assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=0.05 if shifted else 0.0)


def test_lora_dtype_is_obeyed(tmp_path) -> None:
    tuner = TUNERS.load("lora")()
    model = tuner.prepare(base(torch.bfloat16), tuner_options_class("lora")(lora_dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    tuner.save(model, tmp_path)
    again = tuner.load(base(torch.bfloat16), tmp_path, trainable=True)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, when) -> None:
    torch.manual_seed(0)
    tuner = TUNERS.load("lora")()
    plain = tuner.prepare(base(), tuner_options_class("lora")(lora_dropout=0.0, init_weights="gaussian"))
    state = copy.deepcopy(plain.state_dict())
    model = base()
    if when == "before":
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    other = tuner.prepare(model, tuner_options_class("lora")(lora_dropout=0.0, init_weights="gaussian"))
    if when == "after":
        other.gradient_checkpointing_enable({"use_reentrant": reentrant})
    other.load_state_dict(state)
    for each in (plain, other):
        each.train()
        each(input_ids=IDS, labels=IDS).loss.backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert any(bool(grad.abs().max() > 0) for grad in expected.values())
    for name, parameter in other.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-7), name
