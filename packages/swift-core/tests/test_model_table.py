"""The table of known models: every id under every name, families, requirements, registration."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from swift_core import register_model
from swift_core.cards.models import families, find_model, read_module_paths
from swift_core.errors import ModelError, RegistryError
from swift_core.hub.resolve import _split
from swift_core.models.detection import TASK_TYPES, detect
from swift_core.models.requirements import pip_line, unmet
from swift_core.registry import MODELS


def table() -> list[dict[str, str]]:
    lines = files("swift_core.cards").joinpath("models.tsv").read_text("utf-8").splitlines()
    return list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture
def clean_registry() -> Iterator[None]:
    MODELS.names()
    before = dict(MODELS._specs)
    yield
    MODELS._specs.clear()
    MODELS._specs.update(before)


def test_every_id_of_the_table_resolves_by_every_name() -> None:
    """1,163 checkpoints of 224 types; the upstream list has 1,164, with glm-edge-4b-chat twice."""
    rows = table()
    assert len(rows) == 1163
    failures: list[str] = []
    tried = 0
    for row in rows:
        ids = {row["hf_id"], row["hf_id"] if row["ms_id"] == "=" else row["ms_id"]} - {""}
        names = {row["name"], *ids} if "/" in row["name"] else {row["name"], *ids, *(name.rpartition("/")[2] for name in ids)}
        for name in names | {name.lower() for name in names} | {name.upper() for name in names}:
            tried += 1
            spec = find_model(name)
            if (
                spec is None
                or (spec.model_type, spec.template) != (row["model_type"], row["template"])
                or not ids & {spec.hf_id, spec.ms_id}
            ):
                failures.append(f"{name}: {spec and spec.name}")
    assert tried > 5000
    assert failures == []


def test_what_every_entry_says_is_usable() -> None:
    specs, known, paths = list(MODELS), families(), read_module_paths()
    for spec in specs:
        assert spec.task_type in TASK_TYPES, spec.name
        assert spec.multimodal == known[spec.model_type].multimodal
        assert not spec.model_arch or spec.model_arch in paths, spec.name
        assert all(Requirement(text) for text in spec.needs)
    assert len(known) == 224
    assert sum(spec.multimodal for spec in specs) == 450
    tasks = {family.model_type: family.task_type for family in known.values() if family.task_type != "causal_lm"}
    assert tasks["qwen3_emb"] == "embedding"
    assert tasks["qwen3_reranker"] == "generative_reranker"
    assert tasks["bge_reranker"] == "reranker"
    assert tasks["qwen2_5_prm"] == "prm"


@pytest.mark.parametrize(
    ("name", "use_hf", "expected"),
    [
        ("qwen2.5-7b-instruct", False, ("ms", "Qwen/Qwen2.5-7B-Instruct")),
        ("meta-llama/Llama-2-7b-hf", False, ("ms", "modelscope/Llama-2-7b-ms")),
        ("modelscope/llama-2-7b-ms", True, ("hf", "meta-llama/Llama-2-7b-hf")),
        ("iic/gte_Qwen2-1.5B-instruct", True, ("hf", "Alibaba-NLP/gte-Qwen2-1.5B-instruct")),
        ("somebody/Llama-2-7b-hf", True, ("hf", "somebody/Llama-2-7b-hf")),
    ],
)
def test_known_models_are_taken_from_the_hub_in_use(name: str, use_hf: bool, expected: tuple[str, str]) -> None:
    assert _split(name, kind="model", use_hf=use_hf)[:2] == expected


def test_searching_the_list_is_fast_and_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); from swift_core.cli.main import main; main(['list', 'models', '--search', 'qwen3']);"
        "sys.exit(f'{time.process_time() - start:.2f} s' if time.process_time() - start > 2 or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 100


def test_unmet_requirements_name_what_is_installed() -> None:
    import transformers

    found = unmet(("transformers<4.42", "transformers>=4.37", "no-such-library>=2"))
    assert found == [f"transformers<4.42 ({transformers.__version__} is installed)", "no-such-library>=2 (not installed)"]
    assert pip_line(("transformers<4.42", "timm")) == "pip install 'transformers<4.42' 'timm'"


def test_registered_family_is_found_detected_and_mapped(clean_registry: None) -> None:
    register_model(
        "robin",
        models=["birds/Robin-1B", ("birds/Wren-2B", "ms-birds/Wren")],
        template="chatml",
        architectures=["RobinForCausalLM"],
        modules={"language_model": ["song"], "vision_tower": ["eyes"]},
        multimodal=True,
    )
    found = find_model("ms-birds/wren")
    assert found is not None
    assert (found.name, found.model_type, found.kind) == ("Wren-2B", "robin", "mllm")
    detected = detect({"architectures": ["RobinForCausalLM"], "model_type": "robin"})
    assert (detected.model_type, detected.template, detected.known) == ("robin", "chatml", True)
    assert families()["robin"].module_paths[0].vision_tower == ("eyes",)
    with pytest.raises(RegistryError, match="registered twice"):
        register_model("robin", models=["birds/Robin-1B"])
    with pytest.raises(RegistryError, match=r"Qwen2\.5-7B-Instruct"):
        register_model("robin", models=["birds/Qwen2.5-7B-Instruct"])
    assert register_model("robin", models=["birds/Robin-1B"], template="qwen", exist_ok=True)[0].template == "qwen"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": {"tower": ["a"]}}, "no 'tower'"),
        ({"task_type": "sing"}, "unknown task_type 'sing'"),
        ({"loader": lambda folder, section, dtype: None}, "function of a module"),
    ],
)
def test_wrong_registrations_are_refused(clean_registry: None, arguments: dict, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        register_model("robin", **arguments)


def test_plugin_file_registers_a_model_with_its_own_loader(clean_registry: None, tmp_path: Path) -> None:
    import torch
    from swift_core.config.sections import ModelSection
    from swift_core.models.loading import load_model
    from swift_core.plugins import load_plugin_files
    from swift_core.testing.tiny import make_tiny_model

    plugin = tmp_path / "robin_plugin.py"
    plugin.write_text(
        "from swift_core import register_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "def load(folder, section, dtype):\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)\n"
        "    model.sung = True\n"
        "    return model\n"
        "register_model('robin', architectures=['LlamaForCausalLM'], loader=load)\n"
    )
    load_plugin_files([str(plugin)])
    folder = make_tiny_model(tmp_path / "tiny")
    assert not hasattr(load_model(ModelSection(), folder, dtype=torch.float32), "sung")
    assert load_model(ModelSection(model_type="robin"), folder, dtype=torch.bfloat16).sung
    with pytest.raises(ModelError, match="did you mean robin"):
        load_model(ModelSection(model_type="robbin"), folder, dtype=torch.float32)
