"""Loading models and tokenizers: what comes back, and what is said about bad folders."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError, NotFoundError
from swift_core.models import dtype as dtypes
from swift_core.models.loading import (
    get_model_tokenizer,
    load_model,
    load_tokenizer,
    max_model_length,
    resolve_dtype,
    resolve_model_folder,
)
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text("utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_model_and_tokenizer_from_a_folder_without_connections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    loaded: Any = get_model_tokenizer(folder)
    model, tokenizer = loaded
    assert not model.training
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}], add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert output.shape[1] == prompt["input_ids"].shape[1] + 3


def test_tokenizer_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model, tokenizer = get_model_tokenizer(folder, load_model=False)
    assert model is None
    assert tokenizer.decode(tokenizer("ab 你好")["input_ids"]) == "ab 你好"


def test_unknown_argument_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="torch_dtyp"):
        get_model_tokenizer(folder, torch_dtyp="bfloat16")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("saved", "setting", "device", "hardware", "expected"),
    [
        ("float32", None, "cpu", True, torch.float32),
        ("bfloat16", None, "cpu", True, torch.bfloat16),
        ("bfloat16", None, "cpu", False, torch.float32),
        ("bfloat16", None, "cuda:0", False, torch.bfloat16),
        ("float16", None, "cpu", True, torch.float32),
        ("float16", None, "cuda", True, torch.float16),
        ("float32", "bfloat16", "cpu", False, torch.bfloat16),
        ("bfloat16", "float32", "cuda", True, torch.float32),
    ],
)
def test_dtype_by_setting_folder_and_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, saved: str, setting: Any, device: str, hardware: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: hardware)
    edit(folder / "config.json", dtype=saved)
    assert resolve_dtype(ModelSection(torch_dtype=setting), folder, device=device) == expected


@pytest.mark.parametrize(
    "config", [{"dtype": None}, {"dtype": None, "torch_dtype": "bfloat16"}, {"dtype": None, "text_config": {"dtype": "bfloat16"}}]
)
def test_saved_dtype_is_found_in_old_nested_and_silent_configs(folder: Path, config: dict[str, Any]) -> None:
    edit_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    edit(folder / "config.json", **config)
    assert dtypes.saved_dtype(folder) == torch.bfloat16


def test_dtype_of_the_loaded_weights(folder: Path) -> None:
    model = load_model(ModelSection(attn_impl="eager"), folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"int3.*bfloat16"):
        get_model_tokenizer(folder, torch_dtype="int3")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"not a model folder: it has no config\.json"),
    "cut config": (lambda f: (f / "config.json").write_text('{"a":'), r"config\.json: not readable as JSON"),
    "list config": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: holds a JSON list"),
    "cut weights": (_cut, r"model\.safetensors: [\d,]+ bytes, but its header announces"),
    "web page": (lambda f: (f / "model.safetensors").write_text("<html>404</html>"), r"model\.safetensors: not a safetensors file"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: not a safetensors file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no weights"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"as pickles \(pytorch_model\.bin\).*convert"),
    "missing shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        r"incomplete: 1 of 1 weight files are missing: model-1\.safetensors",
    ),
    "unknown": (
        lambda f: edit(f / "config.json", model_type="quux9"),
        r"'quux9', which transformers [\d.]+ does not know.*update transformers",
    ),
    "no type": (lambda f: edit(f / "config.json", model_type=None), r"no architecture \(model_type\)"),
    "no text model": (lambda f: edit(f / "config.json", model_type="t5"), r"generates no text with the architecture 't5'"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), r"is an adapter.*--adapters"),
    "shapes": (lambda f: edit(f / "config.json", hidden_size=64), r"lm_head\.weight: \[512, 32\] in the file, \[512, 64\] in the model"),
    "other weights": (lambda f: edit_weights(f, lambda w: {"x": torch.zeros(1)}), r"21 of 21 weights .* not in the folder"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("tokenizer*")], r"holds no tokenizer"),
    "cut tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"a'), r"tokenizer\.json: not readable as JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(folder: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, message = BAD[case]
    change(folder)
    with pytest.raises(ModelError, match=message) as caught:
        get_model_tokenizer(folder)
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("setting", ["nonsense", "org/kernel"])
def test_bad_attention(folder: Path, setting: str) -> None:
    with pytest.raises(ModelError, match="sdpa"):
        get_model_tokenizer(folder, attn_impl=setting)


def test_missing_and_unused_weights_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(folder, lambda weights: {("odd" if name == "lm_head.weight" else name): value for name, value in weights.items()})
    with caplog.at_level(logging.WARNING, "swift_core"):
        load_model(ModelSection(), folder, dtype=torch.float32)
    assert "start at random: lm_head.weight" in caplog.text
    assert "not used by LlamaForCausalLM: odd" in caplog.text


@pytest.mark.parametrize("model_type", ["strange", "llama"])
def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path, model_type: str) -> None:
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    edit(
        folder / "config.json",
        model_type=model_type,
        trust_remote_code=True,
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )
    edit(folder / "tokenizer_config.json", trust_remote_code=True, tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ModelError, match=r"own Python code.*--trust_remote_code true"):
        get_model_tokenizer(folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(marker)!r}, 'w')\n")
    if model_type == "llama":
        load_model(ModelSection(), folder, dtype=torch.float32)
    assert not marker.exists()


def test_kernel_named_by_a_config_is_not_fetched(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder / "config.json", _attn_implementation="org/kernel")
    model = load_model(ModelSection(), folder, dtype=torch.float32)
    assert model.config._attn_implementation == "sdpa"
    assert "'org/kernel'" in caplog.text


def test_pad_token_comes_from_the_vocabulary(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = len(load_tokenizer(folder, trust_remote_code=False))
    edit(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    assert tokenizer.pad_token_id is not None
    assert len(tokenizer) == before
    assert caplog.text == ""
    edit(folder / "tokenizer_config.json", eos_token=None)
    load_tokenizer(folder, trust_remote_code=False)
    assert "no eos token" in caplog.text


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [({"max_position_embeddings": 512}, 128, 512), ({}, 128, 128), ({}, 10**30, None)],
)
def test_max_model_length(config: dict[str, Any], tokenizer: int, expected: int | None) -> None:
    from transformers import PretrainedConfig

    made = make_tiny_tokenizer()
    made.model_max_length = tokenizer
    assert max_model_length(PretrainedConfig(**config), made) == expected


def test_no_model_and_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model is given"):
        resolve_model_folder(ModelSection())
    with pytest.raises(NotFoundError, match="does not exist"):
        get_model_tokenizer(tmp_path / "absent")


def test_tiny_model_depends_on_the_seed_only(tmp_path: Path, original: Path) -> None:
    state = torch.random.get_rng_state()
    same, other = make_tiny_model(tmp_path / "same"), make_tiny_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [load_file(path / "model.safetensors")["lm_head.weight"] for path in (original, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
