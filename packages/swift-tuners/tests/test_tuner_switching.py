"""Several adapters on one model: by thread, by row, mixed; the Python API; a tuner of another package."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from swift_core.config.sections import OptimSection
from swift_core.errors import CheckpointError, ModelError
from swift_core.train.optim import parameter_groups
from swift_core.train.tuning import FollowsSteps, RunStart, SetsRates, SeveralAdapters, StartsWithData
from swift_tuners import LoraOptions, Swift
from swift_tuners.lora_options import AdaLoraOptions, LongLoraOptions
from swift_tuners.methods.adalora import AdaLoraTuner
from swift_tuners.methods.llamapro import new_positions
from swift_tuners.methods.longlora import LongLoraTuner, attend_in_groups, group_lengths
from swift_tuners.methods.lora import LoraTuner
from swift_tuners.options import BottleneckOptions, Ia3Options, LlamaProOptions, ReftOptions
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.arange(3, 51).reshape(2, 24)


def base() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.eval()(input_ids=ids).logits.float()


@pytest.fixture(scope="module")
def two() -> tuple[Any, dict[str | None, torch.Tensor]]:
    """A model with adapters `a` and `b` of different ranks, and what each answers."""
    config = {name: LoraOptions(lora_rank=rank, lora_alpha=rank, lora_dropout=0.0) for name, rank in (("a", 4), ("b", 2))}
    model = Swift.prepare_model(base(), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    expected: dict[str | None, torch.Tensor] = {None: logits(base())}
    for name in ("a", "b"):
        Swift.activate(model, name)
        expected[name] = logits(model)
    assert all((expected[x] - expected[y]).abs().max() > 0.1 for x, y in (("a", "b"), ("a", None), ("b", None)))
    return model, expected


def test_each_row_takes_its_adapter(two: Any) -> None:
    model, expected = two
    for rows in (["a", "b"], [None, "a"], ["b", None], ["b", "b"]):
        with Swift.using(model, rows):
            found = logits(model)
        for row, name in enumerate(rows):
            assert torch.allclose(found[row], expected[name][row], atol=1e-5), rows
    with Swift.using(model, ["a", "b"]), pytest.raises(ModelError, match="3 rows"):
        logits(model, torch.cat([IDS, IDS[:1]]))


def test_threads_do_not_disturb_one_another(two: Any) -> None:
    model, expected = two
    meeting, wrong = threading.Barrier(3), []

    def work(name: str | None) -> None:
        with Swift.using(model, name):
            for _ in range(5):
                meeting.wait(timeout=60)
                if not torch.allclose(logits(model), expected[name], atol=1e-5):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_mix_activate_deactivate_remove(two: Any) -> None:
    model, expected = two
    Swift.mix(model, {"a": 0.7, "b": 0.3}, "both", combination="cat")
    Swift.activate(model, ["a", "b"])
    total = logits(model)
    Swift.mix(model, {"a": 1.0, "b": 1.0}, "sum", combination="cat")
    assert torch.allclose(logits(model), total, atol=1e-4)
    Swift.deactivate(model)
    assert torch.allclose(logits(model), expected[None], atol=1e-6)
    Swift.activate(model, "a")
    assert torch.allclose(logits(model), expected["a"], atol=1e-6)
    for name in ("both", "sum"):
        Swift.remove_adapter(model, name)
    assert Swift.adapters(model) == ["a", "b"]
    with pytest.raises(ModelError, match="cat"):
        Swift.mix(model, {"a": 1.0, "b": 1.0}, "linear sum")
    with pytest.raises(ModelError, match="no adapter 'c'"):
        Swift.activate(model, "c")
    with pytest.raises(ModelError, match="already"):
        Swift.mix(model, {"a": 1.0}, "b")


def test_a_kind_that_cannot_differ_by_row_says_so() -> None:
    model = Swift.prepare_model(base(), {"one": Ia3Options(), "two": Ia3Options()})
    with pytest.raises(ModelError, match="row to row"), Swift.using(model, ["one", "two"]):
        logits(model)


def test_python_api_takes_options_of_any_tuner_and_configs_of_peft(tmp_path: Path) -> None:
    for config in (LoraConfig(r=4, target_modules=["q_proj"]), Ia3Options(), ReftOptions(), BottleneckOptions(adapter_length=4)):
        model = Swift.prepare_model(base(), config)
        assert 0 < sum(parameter.requires_grad for parameter in model.parameters()) < len(list(model.parameters()))
    with pytest.raises(ModelError, match="samples"):
        Swift.prepare_model(base(), LoraOptions(init_weights="lora-ga"))
    with pytest.raises(ModelError, match="several"):
        Swift.prepare_model(base(), {"one": ReftOptions()})
    Swift.prepare_model(base(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "old")
    assert Swift.save_to_peft_format(tmp_path / "old", tmp_path / "new")
    assert torch.equal(logits(Swift.from_pretrained(base(), tmp_path / "new")), logits(base()))
    with pytest.raises(CheckpointError, match="exists"):
        Swift.save_to_peft_format(tmp_path / "old", tmp_path / "new")


def test_tuners_fill_the_protocols_of_core() -> None:
    assert isinstance(LoraTuner(), SeveralAdapters) and isinstance(LoraTuner(), StartsWithData) and isinstance(LoraTuner(), SetsRates)
    assert isinstance(AdaLoraTuner(), FollowsSteps) and not isinstance(LoraTuner(), FollowsSteps)


def test_lora_plus_lets_the_output_matrices_learn_faster() -> None:
    tuner, options = LoraTuner(), LoraOptions(lorap_lr_ratio=16.0)
    model = tuner.prepare(base(), options)
    rates = tuner.learning_rates(model, 1e-3, options)
    groups = parameter_groups(model, OptimSection(learning_rate=1e-3), rates)
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert found[id(parameter)] == pytest.approx(1.6e-2 if "lora_B" in name else 1e-3), name
    assert tuner.learning_rates(model, 1e-3, LoraOptions()) == {}


def start_of(options: Any, tmp_path: Path) -> tuple[Any, Any, torch.Tensor]:
    """Return a tuner, a model that started from data, and what it answers after a change."""

    def batches(size: int, max_length: int | None) -> Any:
        return iter([IDS[:, :max_length], IDS.flip(1)[:, :max_length]])

    def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    tuner = LoraTuner()
    model = tuner.prepare(base(), options)
    tuner.start(model, RunStart(10, options, batches, loss, False))
    return tuner, model, logits(model)


def test_lora_ga_starts_along_the_gradient_and_is_saved_for_the_base_as_it_was(tmp_path: Path) -> None:
    options = LoraOptions(init_weights="lora_ga", lora_rank=4, lora_dropout=0.0, lora_ga_batch_size=2)
    tuner, model, start = start_of(options, tmp_path)
    assert torch.allclose(start, logits(base()), atol=1e-5), "the start is taken out of the base"
    assert all(parameter.abs().max() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    expected = logits(model)
    tuner.save(model, tmp_path)
    assert torch.allclose(logits(Swift.from_pretrained(base(), tmp_path)), expected, atol=1e-4)
    # A resumed run takes the start from its checkpoint, not from data.
    other = LoraTuner()
    resumed = other.prepare(base(), options)
    other.start(resumed, RunStart(10, options, lambda size, length: iter(()), lambda model, batch: batch, True))
    other.restore(resumed, tmp_path)
    assert torch.allclose(logits(resumed), expected, atol=1e-5)
    assert all(torch.equal(one, two) for one, two in zip(trainable(model), trainable(resumed), strict=True))


def test_eva_shares_out_the_ranks_and_refuses_too_few_tokens(tmp_path: Path) -> None:
    from swift_core.batching.collate import collate
    from swift_core.protocols import EncodedSample

    samples = [EncodedSample(row, row) for row in IDS.tolist()]
    options = LoraOptions(init_weights="eva", lora_rank=2, eva_rho=1.0)
    for count in (2, 0):
        tuner = LoraTuner()
        model = tuner.prepare(base(), options)
        run = RunStart(
            4, options, lambda size, length, count=count: iter([collate(samples, pad_token_id=0)] * count), lambda *_: IDS, False
        )
        if count:
            tuner.start(model, run)
            assert torch.allclose(logits(model), logits(base()), atol=1e-5)
            continue
        with pytest.raises(ModelError, match="eva"):
            tuner.start(model, run)


def trainable(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_adalora_takes_ranks_away_and_goes_on_where_it_was(tmp_path: Path) -> None:
    options = AdaLoraOptions(adalora_init_r=4, adalora_target_r=2, adalora_tinit=1, adalora_tfinal=2, lora_dropout=0.0)

    def run(tuner: AdaLoraTuner, model: Any, steps: range, state: Any = None) -> Any:
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))  # it keeps the tensors it is given
        for step in steps:
            model(input_ids=IDS).logits.square().mean().backward()
            tuner.before_step(model, step)
            optimizer.step()
            tuner.after_step(model, step)
            optimizer.zero_grad()
        return optimizer.state_dict()

    def fresh() -> tuple[AdaLoraTuner, Any]:
        torch.manual_seed(0)
        tuner = AdaLoraTuner()
        model = tuner.prepare(base(), options)
        tuner.start(model, RunStart(8, options, lambda size, length: iter(()), lambda model, batch: batch, False))
        return tuner, model

    tuner, model = fresh()
    state = run(tuner, model, range(1, 5))
    tuner.save(model, tmp_path)
    run(tuner, model, range(5, 9), state)
    again, resumed = fresh()
    again.restore(resumed, tmp_path)
    run(again, resumed, range(5, 9), state)
    assert all(torch.equal(one, two) for one, two in zip(trainable(model), trainable(resumed), strict=True))
    kept = sum(int((parameter != 0).sum()) for name, parameter in model.named_parameters() if "lora_E" in name)
    layers = sum("lora_E" in name for name, _ in model.named_parameters())
    assert kept <= 2 * layers < 4 * layers
    with pytest.raises(ModelError, match="3 steps"):
        tuner.start(model, RunStart(3, options, lambda size, length: iter(()), lambda model, batch: batch, False))


def test_groups_of_longlora_see_themselves_only() -> None:
    assert group_lengths(10, 4, 0) == [4, 4, 2] and group_lengths(10, 4, 2) == [2, 4, 4] and group_lengths(1, 4, 2) == [1]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 12, 8) for _ in range(3))
    found = attend_in_groups(query, key, value, ratio=1 / 3, scale=8**-0.5)
    for heads, starts in (((0, 2), (0, 4, 8, 12)), ((2, 4), (0, 2, 6, 10, 12))):
        for start, stop in pairwise(starts):
            parts = [tensor[:, slice(*heads), start:stop] for tensor in (query, key, value)]
            expected = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            assert torch.allclose(found[:, slice(*heads), start:stop], expected, atol=1e-5)


def test_longlora_attends_to_everything_outside_training() -> None:
    options = LongLoraOptions(lora_dropout=0.0, longlora_group_ratio=0.25)
    model: Any = LongLoraTuner().prepare(base(), options)
    assert torch.allclose(logits(model), logits(base()), atol=1e-5)
    model.train()
    with torch.no_grad():
        assert (model(input_ids=IDS).logits - logits(base())).abs().max() > 1e-3
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "modules_to_save" in name}
    assert any("embed_tokens" in name for name in names) and any("norm" in name for name in names)


def test_new_layers_share_the_config_of_the_model() -> None:
    model: Any = Swift.prepare_model(base(), LlamaProOptions(llamapro_num_new_blocks=2))
    assert len(model.model.layers) == 4 == model.config.num_hidden_layers
    assert all(layer.self_attn.config is model.config for layer in model.model.layers), "attention is exchanged in the config"
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


def test_new_layers_stand_behind_each_group() -> None:
    assert new_positions(4, 2, 2) == [2, 5]
    assert new_positions(4, 4, 2) == [2, 3, 6, 7]
    assert new_positions(5, 2, 2) == [2, 6] or new_positions(5, 2, 2) == [3, 6]


def test_a_package_of_its_own_brings_a_tuner(tmp_path: Path) -> None:
    (tmp_path / "far_tuner.py").write_text(
        """
from swift_core.config.fields import Section, option
from swift_core.specs import TunerSpec

class FarOptions(Section):
    \"\"\"Far options.\"\"\"
    far_rank: int = option(3, "a rank")

class FarTuner:
    name = "far"
    def prepare(self, model, options):
        model.requires_grad_(False)
        model.lm_head.weight.requires_grad_(True)
        return model
    def load(self, model, folder, *, trainable): return model
    def save(self, model, folder): pass
    def restore(self, model, folder): pass

SPECS = (TunerSpec(name="far", summary="from afar", target="far_tuner:FarTuner", options="far_tuner:FarOptions"),)
""",
        encoding="utf-8",
    )
    info = tmp_path / "far_tuner-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-tuner\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[swift.tuners]\nfar = far_tuner:SPECS\n", encoding="utf-8")
    code = """
from swift_core.config.training import SftConfig
from swift_core.registry import TUNERS
config = SftConfig(model="m", dataset=["self-cognition"], tuner_type="far", far_rank=7)
print(TUNERS.get("far").source, config.far_rank, TUNERS.load("far")().name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["7", "far"] and "far-tuner" in done.stdout
