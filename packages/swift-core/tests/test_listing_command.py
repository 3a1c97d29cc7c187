"""`swift list`, and the tables behind it."""

import json
import subprocess
import sys

import pytest
from swift_core.cards.models import find_model, read_models
from swift_core.cards.templates import read_templates
from swift_core.cli.listing import main
from swift_core.errors import ConfigError
from swift_core.registry import MODELS, REGISTRIES
from swift_core.specs import HubSpec


def run(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr()


def test_search_and_count(capsys):
    captured = run(capsys, "models", "--search", "qwen2.5-7b-instruct-awq")
    lines = captured.out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:2] == ["name", "kind"]
    assert lines[1].startswith("Qwen2.5-7B-Instruct-AWQ")
    assert captured.err.startswith("1 of 1,1")


def test_columns_are_aligned(capsys):
    lines = run(capsys, "models").out.splitlines()
    start = lines[0].index("kind")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)


@pytest.mark.parametrize("kind", [*REGISTRIES, "model", "Templates"])
def test_every_kind_can_be_listed(kind, capsys):
    captured = run(capsys, kind, "--format", "names")
    assert captured.err.strip().endswith(kind.lower() if kind in REGISTRIES else f"{kind.lower().rstrip('s')}s")


def test_names_are_what_the_registry_takes(capsys):
    names = run(capsys, "templates", "--format", "names").out.split()
    assert {"chatml", "llama3", "llama2", "mistral", "gemma", "zephyr", "phi3", "alpaca", "default", "qwen", "deepseek"} <= set(names)


def test_json_lines(capsys):
    rows = [json.loads(line) for line in run(capsys, "hubs", "--format", "json").out.splitlines()]
    assert {"pypi", "hf", "ms"} <= {row["name"] for row in rows}
    assert all(isinstance(row["installed"], bool) for row in rows)


def test_an_entry_whose_library_is_absent_says_what_to_install(capsys, monkeypatch):
    spec = HubSpec(name="far", summary="a hub", target="x:y", requires=("no_such_library_here",), install="swift-far")
    hubs = REGISTRIES["hubs"]
    hubs.names()
    monkeypatch.setitem(hubs._specs, "far", spec)
    assert "no: pip install 'swift-far'" in run(capsys, "hubs").out


def test_without_a_kind_the_kinds_are_listed(capsys):
    assert [line.split()[0] for line in run(capsys).out.splitlines()[1:]] == list(REGISTRIES)


def test_unknown_kind():
    with pytest.raises(ConfigError, match="did you mean models"):
        main(["modles"])


def test_listing_loads_nothing_heavy():
    code = (
        "import sys; from swift_core.cli.main import main; main(['list', 'models']); main(['list', 'templates']); "
        "sys.exit(str(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))) if {'torch', 'transformers', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_model_table():
    specs = list(read_models())
    assert len(specs) > 1150
    assert len({spec.name for spec in specs}) == len(specs)
    assert all(spec.hf_id or spec.ms_id for spec in specs)
    assert all("/" in repo for spec in specs for repo in (spec.hf_id, spec.ms_id) if repo)
    assert {spec.kind for spec in specs} == {"llm", "mllm", "embedding", "reranker", "reward"}


@pytest.mark.parametrize(
    ("name", "hf_id"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("modelscope/Llama-2-7b-ms", "meta-llama/Llama-2-7b-hf"),
        ("Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_models_are_found_by_any_name(name, hf_id):
    assert find_model(name).hf_id == hf_id


def test_unknown_model():
    assert find_model("nobody/nothing") is None
    assert find_model("") is None


def test_same_short_name_of_two_organisations():
    assert MODELS.get("Qwen3-32B-AWQ").ms_id == "Qwen/Qwen3-32B-AWQ"
    assert find_model("swift/Qwen3-32B-AWQ").ms_id == "swift/Qwen3-32B-AWQ"


def test_every_template_marks_what_the_assistant_writes():
    for spec in read_templates():
        assert spec.summary
        assert "generation" in spec.jinja.replace("add_generation_prompt", ""), spec.name
