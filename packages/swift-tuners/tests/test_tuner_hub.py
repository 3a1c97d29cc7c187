"""Adapters that a hub has: trained on, merged, and refused by name, against a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.config.sections import ModelSection
from swift_core.config.training import SftConfig
from swift_core.errors import NotFoundError, OfflineError
from swift_core.hub.adapters import adapter_folder, is_hub_id
from swift_core.tasks.sft import build_model
from swift_core.testing.fake_hub import FakeHub, serve
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.tuning import load_tuner
from swift_tuners.config import MergeConfig
from swift_tuners.lora_options import LoraOptions
from swift_tuners.merge.merging import merge
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model and an adapter that changes its answers."""
    root = tmp_path_factory.mktemp("places")
    base = make_tiny_model(root / "base", layers=1)
    tuner = load_tuner("lora")
    torch.manual_seed(0)
    model: Any = tuner.prepare(AutoModelForCausalLM.from_pretrained(base), LoraOptions(lora_rank=2, init_weights="false"))
    (root / "adapter").mkdir()
    tuner.save(model, root / "adapter")
    return {"base": base, "adapter": root / "adapter"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: dict[str, Path]) -> Iterator[FakeHub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "USE_HF"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("HF_HUB_CACHE", "hf"), ("MODELSCOPE_CACHE", "ms"), ("MODELSCOPE_HOME", "home")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    with serve() as running:
        running.repos["model", "org/polite"] = {file.name: file.read_bytes() for file in places["adapter"].iterdir()}
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize("name", ["hf::org/polite", "ms::org/polite", "org/polite"])
def test_training_goes_on_with_an_adapter_of_a_hub(hub: FakeHub, places: dict[str, Path], name: str) -> None:
    pytest.importorskip("modelscope")
    folders = [name, str(places["adapter"])]
    found = [
        build_model(SftConfig(model=str(places["base"]), dataset=["d"], adapters=[folder], use_cpu=True), places["base"])[0].state_dict()
        for folder in folders
    ]
    assert any("lora_A" in key for key in found[0])
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert any("org/polite" in line for line in hub.log)


def test_what_a_hub_sent_is_merged_into_a_folder_here(
    hub: FakeHub, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = merge(MergeConfig(model=str(places["base"]), adapters=["hf::org/polite"]))
    assert report.folder.resolve() == tmp_path / "polite-merged" and (tmp_path / "polite-merged" / "model.safetensors").is_file()
    assert report.adapter.is_relative_to(tmp_path / "hf")


def test_an_absent_adapter_says_what_to_do(hub: FakeHub, places: dict[str, Path]) -> None:
    section = ModelSection(model=str(places["base"]))
    with pytest.raises(NotFoundError, match="no model 'org/absent'"):
        adapter_folder("hf::org/absent", section)
    hub.repos["model", "org/pickled"] = {"adapter_config.json": b"{}", "adapter_model.bin": b"x"}
    with pytest.raises(NotFoundError, match=r"adapter_model\.bin"):
        adapter_folder("hf::org/pickled", section)
    asked = len(hub.log)
    with pytest.raises(OfflineError, match="swift hub path hf::org/other"):
        adapter_folder("hf::org/other", ModelSection(model="m", offline=True))
    with pytest.raises(NotFoundError, match="there is no adapter folder 'run/checkpoint-3'"):
        build_model(SftConfig(model=str(places["base"]), dataset=["d"], adapters=["run/checkpoint-3"], use_cpu=True), places["base"])
    assert len(hub.log) == asked, "a path that was mistyped is not looked for on a hub"


@pytest.mark.parametrize(
    ("name", "asks"),
    [("hf::org/a", True), ("org/a", True), ("run/checkpoint-3", False), ("out/run/checkpoint-3", False), ("./a", False), ("a", False)],
)
def test_which_names_ask_a_hub(name: str, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is asks
