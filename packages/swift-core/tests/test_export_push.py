"""`swift export --push_to_hub` against a hub on this machine, with a model card."""

import json

import pytest
import yaml
from swift_core.config.export import ExportConfig
from swift_core.errors import ConfigError, HubError, NotFoundError
from swift_core.tasks.export_context import ExportResult, begin
from swift_core.tasks.exporting import export
from swift_core.tasks.model_card import render_card
from swift_core.testing.fake_hub import FakeHub, serve
from swift_core.testing.tiny import make_tiny_model


@pytest.fixture
def hub(monkeypatch):
    with serve() as running:
        running.token = "secret-token"
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


@pytest.fixture
def model(tmp_path):
    folder = make_tiny_model(tmp_path / "model", layers=1)
    (folder / "args.json").write_text(
        json.dumps({"model": "hf::org/base", "dataset": ["org/chats#10", str(tmp_path)], "tuner_type": "lora"})
    )
    (folder / "optimizer.pt").write_bytes(b"x")
    return folder


def push(model, hub_id, **more):
    given = {"model": str(model), "push_to_hub": True, "hub_model_id": hub_id, "hub_token": "secret-token", **more}
    return export(ExportConfig(**given))


def uploaded(hub: FakeHub, name: str) -> dict[str, bytes]:
    return hub.repos[("model", name)]


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_what_makes_a_model_is_uploaded_in_one_commit_with_a_card(hub, model, prefix, tmp_path, capsys):
    if prefix == "ms":
        pytest.importorskip("modelscope")
    push(model, f"{prefix}::me/mine", hub_private_repo=True, commit_message="first")
    files = uploaded(hub, "me/mine")
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "README.md", "chat_template.jinja"} <= set(files)
    assert not {"args.json", "optimizer.pt", "manifest.json"} & set(files)
    assert ("model", "me/mine") in hub.private
    assert len(hub.commits) == 1 and hub.commits[0].startswith("first")
    assert f"uploaded: {hub.url}" in capsys.readouterr().err
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["datasets"], front["library_name"]) == ("org/base", ["org/chats"], "transformers")
    assert str(tmp_path) not in card and "secret-token" not in card
    assert f"\nswift infer --model {prefix}::me/mine\n" in card and card.count("\n# mine\n") == 1


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        (None, ["swift infer --model folder", "vllm serve folder", "swift infer --model w.gguf"]),
        ("hf", ["swift infer --model hf::me/folder", "vllm serve me/folder", "hf download me/folder --local-dir folder && cd folder"]),
        (
            "ms",
            [
                "swift infer --model ms::me/folder",
                "VLLM_USE_MODELSCOPE=True vllm serve me/folder",
                "modelscope download --model me/folder --local_dir folder && cd folder",
            ],
        ),
    ],
)
def test_a_card_says_how_to_load_what_lies_beside_it(hub, expected):
    made = {
        "merge": ExportResult(method="merged", usage=["swift infer --model {model}"]),
        "quantize": ExportResult(method="packed", usage=["swift infer --model {model}", "vllm serve {name}"]),
        "gguf": ExportResult(method="written", usage=["{download}", "swift infer --model w.gguf"]),
        "ollama": ExportResult(method="a Modelfile", usage=["ollama create it -f Modelfile"]),
    }
    context = begin(ExportConfig(model="hf::org/base", push_to_hub=True, hub_model_id="me/folder"))
    card = render_card(made, context, name="me/folder" if hub else "folder", loaded=["merge", "quantize", "gguf"], hub=hub)
    lines = card.split("## How to load it\n\n```\n")[1].split("\n```")[0].splitlines()
    assert lines == [*expected, *(["swift infer --model w.gguf"] if hub else [])]
    assert all(f"- {result.method}" in card for result in made.values())


@pytest.mark.parametrize(
    ("loaded", "library"),
    [
        (["merge"], "transformers"),
        (["gguf"], "gguf"),
        (["gguf", "ollama"], "gguf"),
        (["merge", "gguf"], "transformers"),
        (["peft"], "peft"),
    ],
)
def test_a_card_names_the_library_of_the_files_beside_it(tmp_path, loaded, library):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    context = begin(ExportConfig(model="hf::org/base", adapters=[str(adapter)], push_to_hub=True, hub_model_id="me/mine"))
    made = {name: ExportResult(method=name) for name in ("peft", "merge", "gguf", "ollama")}
    card = render_card(made, context, name="folder", loaded=loaded)
    assert yaml.safe_load(card.split("---")[1])["library_name"] == library


def test_a_card_names_the_licence_of_the_base_model_where_it_is_known(hub, model, tmp_path):
    base = make_tiny_model(tmp_path / "base", layers=1)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    (model / "args.json").write_text(json.dumps({"model": str(base), "tuner_type": "lora"}))
    push(model, "hf::me/mine")
    card = uploaded(hub, "me/mine")["README.md"].decode()
    assert "license: apache-2.0" in card and "Licence: apache-2.0" in card and str(tmp_path) not in card


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_token_that_may_not_write_says_what_to_set(hub, model, prefix):
    if prefix == "ms":
        pytest.importorskip("modelscope")
    with pytest.raises(HubError, match=r"may not write there.*--hub_token"):
        push(model, f"{prefix}::me/mine", hub_token="wrong")


def test_paths_of_this_machine_stay_here(hub, model, tmp_path):
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}))
    export(ExportConfig(adapters=[str(model)], push_to_hub=True, hub_model_id="me/mine", hub_token="secret-token", use_hf=True))
    sent = json.loads(uploaded(hub, "me/mine")["adapter_config.json"])
    assert sent["base_model_name_or_path"] == tmp_path.name
    lines = uploaded(hub, "me/mine")["README.md"].decode().split("```")[1].splitlines()
    assert lines[1:] == ["hf download me/mine --local-dir mine && cd mine", "swift infer --model hf::org/base --adapters ."]
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path)


def test_what_is_on_a_hub_already_or_has_no_weights_is_refused(hub, tmp_path):
    with pytest.raises(ConfigError, match="on a hub already"):
        push("hf::org/base", "hf::me/mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no weights to upload"):
        push(tmp_path / "empty", "hf::me/mine")
    assert hub.repos == {}
