"""Every cell of the table that `swift list tuners` prints: a yes works with right numbers, a no is refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.cli.listing import main as list_command
from swift_core.config.command import tuner_options_class
from swift_core.config.sections import TunerSection
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, ModelError
from swift_core.registry import TUNERS
from swift_core.train.tuning import FollowsSteps, check_checkpointing
from swift_tuners import Swift
from swift_tuners.specs import TUNERS as OWN
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

NAMES = [spec.name for spec in OWN]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4},
    "longlora": {"lora_rank": 4},
    "lora_llm": {"lora_rank": 4},
    "vera": {"vera_rank": 8, "vera_d_initial": 0.5},
    "oft": {"oft_block_size": 8},
    "fourierft": {"fourier_n_frequency": 50},
    "miss": {"miss_rank": 8},
    "llamapro": {"llamapro_num_new_blocks": 2},
    "adapter": {"adapter_length": 8},
    "reft": {"reft_positions": "all"},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4, "prefix_projection": True},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
}
IDS = torch.arange(3, 51).reshape(2, 24)
STARTS_ELSEWHERE = ("prompt_tuning", "prefix_tuning", "p_tuning")


def base(name: str = "", *, width: int = 32) -> Any:
    """A model for a tuner; text alone but for the one that is about towers."""
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if name != "lora_llm":
            return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=16
        )
        config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**sizes), image_token_id=63, vision_feature_layer=-1)
        return LlavaForConditionalGeneration(config).eval()


def options_of(name: str) -> Any:
    kind = tuner_options_class(name)
    assert kind is not None
    return kind(**OPTIONS.get(name, {}))


def prepared(name: str, model: Any = None) -> tuple[Any, Any]:
    tuner = TUNERS.load(name)()
    torch.manual_seed(0)
    return tuner, tuner.prepare(base(name) if model is None else model, options_of(name))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits[:, -IDS.shape[1] :].float()


def train(tuner: Any, model: Any, *, steps: int = 4, rate: float = 2e-2, ids: torch.Tensor = IDS) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    losses: list[float] = []
    for step in range(1, steps + 1):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if isinstance(tuner, FollowsSteps):
            tuner.before_step(model, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class Run:
    """A short run of a tuner: where its adapter lies, what it answers, and how it went."""

    folder: Path
    logits: torch.Tensor
    start: torch.Tensor
    losses: list[float]
    shares: tuple[int, int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.folder, self.logits))

    def __getitem__(self, number: int) -> Any:
        return (self.folder, self.logits)[number]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return name -> two runs whose adapters differ, made once for each tuner."""
    made: dict[str, list[Run]] = {}

    def make(name: str) -> list[Run]:
        if name not in made:
            made[name] = []
            for number, ids in enumerate((IDS, IDS.flip(1))):
                tuner, model = prepared(name)
                start = logits(model)
                flags = [parameter.requires_grad for parameter in model.parameters()]
                losses = train(tuner, model, steps=5, rate=2e-2 if number == 0 else 1e-2, ids=ids)
                found = logits(model)
                assert (found - start).abs().max() > 1e-3
                folder = tmp_path_factory.mktemp(f"{name}-{number}")
                tuner.save(model, folder)
                made[name].append(Run(folder, found, start, losses, (sum(flags), len(flags))))
        return made[name]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_base_and_learns(name: str, trained: Any) -> None:
    run = trained(name)[0]
    if name not in STARTS_ELSEWHERE:
        assert torch.allclose(run.start, logits(base(name)), atol=1e-5)
    assert 0 < run.shares[0] < run.shares[1]
    assert run.losses[-1] < run.losses[0] - 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_resumes_what_it_saved(name: str, trained: Any) -> None:
    folder, expected = trained(name)[0]
    tuner = TUNERS.load(name)()
    again = tuner.load(base(name), folder, trainable=False)
    assert torch.equal(logits(again), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    tuner, model = prepared(name)
    before = dict(model.named_parameters())
    tuner.restore(model, folder)
    assert torch.equal(logits(model), expected)
    # The optimizer holds these very tensors.
    assert all(before[parameter_name] is parameter for parameter_name, parameter in model.named_parameters())
    assert train(tuner, tuner.load(base(name), folder, trainable=True), steps=1)


@pytest.mark.parametrize("name", NAMES)
def test_merge(name: str, trained: Any, tmp_path: Path) -> None:
    folder, expected = trained(name)[0]
    adapted = TUNERS.load(name)().load(base(name), folder, trainable=False)
    if not TUNERS.get(name).mergeable:
        with pytest.raises(ModelError, match="folded"):
            Swift.merge_and_unload(adapted)
        return
    merged: Any = Swift.merge_and_unload(adapted)
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert torch.allclose(logits(type(merged).from_pretrained(tmp_path)), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_several_adapters(name: str, trained: Any) -> None:
    first, second = trained(name)
    tuner = TUNERS.load(name)()
    if not TUNERS.get(name).several:
        model = Swift.from_pretrained(base(name), first[0])
        with pytest.raises(ModelError):
            Swift.from_pretrained(model, {"other": second[0]})
        return
    plain = logits(base(name))
    model = Swift.from_pretrained(base(name), {"one": first[0], "two": second[0]})
    assert Swift.adapters(model) == ["one", "two"]
    for chosen, expected in (("one", first[1]), ("two", second[1]), (None, plain), ("one", first[1])):
        with Swift.using(model, chosen):
            assert torch.allclose(logits(model), expected, atol=1e-6), chosen
    Swift.activate(model, "two")
    assert torch.allclose(logits(model), second[1], atol=1e-6)
    model = tuner.add(model, first[0], "three")
    tuner.remove(model, "one")
    assert Swift.adapters(model) == ["two", "three"]
    with tuner.using(model, "three"):
        assert torch.allclose(logits(model), first[1], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(name: str) -> None:
    tuner, plain = prepared(name)
    if not TUNERS.get(name).checkpointing:
        with pytest.raises(ModelError, match="gradient checkpointing"):
            check_checkpointing(tuner, asked=True, default=True)
        assert check_checkpointing(tuner, asked=None, default=True) is False
        return
    assert check_checkpointing(tuner, asked=None, default=True) is True
    other = copy.deepcopy(plain) if name not in ("adapter", "reft") else prepared(name)[1]
    other.load_state_dict(plain.state_dict())
    other.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, other):
        model.train()
        torch.manual_seed(3)
        model(input_ids=IDS, labels=IDS).loss.backward()
    expected = {key: parameter.grad for key, parameter in plain.named_parameters() if parameter.grad is not None}
    assert any(bool(gradient.abs().max() > 0) for gradient in expected.values())
    for key, parameter in other.named_parameters():
        if key in expected:
            assert torch.allclose(parameter.grad, expected[key], atol=1e-6), key


@pytest.mark.parametrize("name", [*NAMES, "full"])
def test_quantised_base_is_refused_where_the_table_says_so(name: str) -> None:
    model = base(name)
    model.is_quantized = True
    if not TUNERS.get(name).quantised:
        with pytest.raises(ModelError, match=r"quantised|packed"):
            TUNERS.load(name)().prepare(model, TunerSection() if name == "full" else options_of(name))


@pytest.mark.parametrize("name", [spec.name for spec in OWN if spec.quantised])
def test_trains_over_a_4_bit_base(name: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base(width=64).save_pretrained(tmp_path / "base")

    def quantised() -> Any:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map="cpu")

    tuner, model = prepared(name, quantised())
    losses = train(tuner, model, steps=6)
    assert losses[-1] < losses[0]
    expected = logits(model)
    (tmp_path / "adapter").mkdir()
    tuner.save(model, tmp_path / "adapter")
    assert torch.allclose(logits(tuner.load(quantised(), tmp_path / "adapter", trainable=False)), expected, atol=1e-5)
    if TUNERS.get(name).mergeable:
        with pytest.raises(ModelError, match="unquantised"):
            Swift.merge_and_unload(model)


def test_loftq_makes_up_for_the_error_of_packed_weights_on_any_device(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base(width=64).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    tuner, kind = TUNERS.load("lora")(), tuner_options_class("lora")
    assert kind is not None
    exact, distance = logits(base(width=64)), {}
    for start in ("true", "loftq"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
        distance[start] = float((logits(tuner.prepare(model, kind(lora_rank=16, init_weights=start))) - exact).abs().mean())
    assert 0 < distance["loftq"] < 0.8 * distance["true"]
    with pytest.raises(ModelError, match="loftq_iter"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
        tuner.prepare(model, kind(init_weights="loftq", loftq_iter=2))


@pytest.mark.parametrize("name", NAMES)
def test_target_parameters(name: str, tmp_path: Path) -> None:
    if not TUNERS.get(name).parameters:
        with pytest.raises(ConfigError, match="target_parameters"):
            SftConfig(model="m", dataset=["self-cognition"], tuner_type=name, target_parameters=["mlp.experts.down_proj"])
        return
    if name == "lora_llm":
        pytest.skip("a mixture of experts with towers is what lora covers")
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )

    def experts() -> Any:
        torch.manual_seed(1)
        return MixtralForCausalLM(config).eval()

    kind: Any = tuner_options_class(name)
    wanted = kind(lora_rank=4, lora_dropout=0.0, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    tuner = TUNERS.load(name)()
    start = logits(experts())
    model = tuner.prepare(experts(), wanted)
    assert torch.allclose(logits(model), start, atol=1e-5)
    names = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("experts" in key and "lora_" in key for key in names)
    losses = train(tuner, model, steps=6)
    assert losses[-1] < losses[0] - 1e-3
    expected = logits(model)
    tuner.save(model, tmp_path)
    again = tuner.load(experts(), tmp_path, trainable=False)
    assert torch.allclose(logits(again), expected, atol=1e-6)
    assert torch.allclose(logits(Swift.merge_and_unload(again)), expected, atol=1e-5)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_command(["tuners"]) == 0
    lines = capsys.readouterr().out.splitlines()
    columns = ("merge", "quantised base", "several adapters", "gradient checkpointing", "target_parameters")
    starts = [lines[0].index(column) for column in columns]
    for spec in TUNERS:
        line = next(line for line in lines if line.split()[0].rstrip(",") == spec.name)
        said = [line[start:].split()[0] == "yes" for start in starts]
        assert said == [spec.mergeable, spec.quantised, spec.several, spec.checkpointing, spec.parameters], spec.name


def test_core_knows_every_tuner_of_this_package() -> None:
    names = {name for spec in OWN for name in (spec.name, *spec.aliases)}
    assert set(TUNERS._packages) == names, "what to install is said for these names where this package is absent"


def test_options_that_shape_an_adapter_are_refused_beside_a_saved_one() -> None:
    values: dict[str, Any] = {"model": "m", "dataset": ["self-cognition"], "adapters": ["run/checkpoint-1"]}
    for name, value in (("lora_rank", 4), ("init_weights", "pissa"), ("target_modules", ["q_proj"])):
        with pytest.raises(ConfigError, match=f"--{name}"):
            SftConfig(**values, **{name: value})
    assert SftConfig(**values, lorap_lr_ratio=16.0).lorap_lr_ratio == 16.0
