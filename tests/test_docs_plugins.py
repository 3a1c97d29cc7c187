"""The plugins that the documentation walks through do what their pages say, through the doors that users take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from swift_core import SftConfig, sft_main
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.sources import load_datasets
from swift_core.models.loading import get_model_tokenizer
from swift_core.plugins import load_plugin_files
from swift_core.protocols import Engine, InferRequest, RequestConfig
from swift_core.registry import DATASETS, ENGINES, REWARDS, TUNERS
from swift_core.testing.tiny import make_tiny_model
from swift_infer.config import InferConfig
from swift_infer.testing.conformance import check
from swift_rlhf.rewards.functions import make_rewards

PLUGINS = Path(__file__).resolve().parent.parent / "examples" / "plugins"
LONGEST = 60


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Load a plugin file; what it registered is gone after the test."""
    for registry in (DATASETS, ENGINES, REWARDS, TUNERS):
        registry.names()
        monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    loaded: list[str] = []

    def load(name: str) -> None:
        loaded.extend(load_plugin_files([str(PLUGINS / name)]))

    yield load
    for module in loaded:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("file", sorted(PLUGINS.glob("*.py")), ids=lambda path: path.name)
def test_plugin_is_short(file: Path):
    code = [line for line in file.read_text(encoding="utf-8").split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) < LONGEST


def test_reward_by_name_and_by_file(plugin):
    plugin("reward.py")
    answers = ["The answer is 42.", "42 " + "word " * 30, "No idea."]
    by_file = make_rewards([f"{PLUGINS / 'reward.py'}:short_and_right"])[0].function
    for function in (REWARDS.load("short_and_right"), by_file):
        assert function(answers, solution=["42"] * 3) == [1.0, 0.7, 0.0]
        assert function(["x"], solution=[None]) == [None]


def test_tuner_trains_saves_and_loads(plugin, tmp_path: Path):
    plugin("tuner.py")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "Who are you?", "response": "A small model."}\n' * 4, encoding="utf-8")
    folder = make_tiny_model(tmp_path / "model")
    config = SftConfig(
        model=str(folder), dataset=[str(rows)], tuner_type="norms", norm_parts=["layernorm"], learning_rate=0.1, max_steps=2, use_cpu=True,
        gradient_accumulation_steps=1, output_dir=str(tmp_path / "out"), report_to=["none"], load_from_cache_file=False,
    )  # fmt: skip
    checkpoint = Path(sft_main(config).last_checkpoint)
    base, _ = get_model_tokenizer(str(folder))
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    loaded = TUNERS.load("norms")().load(base, checkpoint, trainable=False)
    changed = {name for name, weight in loaded.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "layernorm" in name}


def test_engine_keeps_the_protocol(plugin):
    plugin("engine.py")
    engine = ENGINES.load("echo")(InferConfig(model="any", infer_backend="echo"))
    assert isinstance(engine, Engine)
    answer = engine.infer([InferRequest([{"role": "user", "content": "one two three"}])], RequestConfig(max_tokens=2))[0].choices[0]
    assert (answer.message.content, answer.finish_reason) == ("one two", "length")
    for name in ("generate", "length", "stream", "async"):
        assert check(name, engine) == "passed"


def test_data_set_by_its_name(plugin):
    plugin("rows.py")
    samples = load_datasets(DataSection(dataset=["cards"], dataset_shuffle=False), ModelSection()).train
    assert [message["content"] for message in samples[0].messages] == ["Please tell me: What is the capital of France?", "Paris."]
    assert len(samples) == 3
