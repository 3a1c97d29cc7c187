"""The Hugging Face and ModelScope hubs against a server on this machine."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from swift_core.cli.hub import main
from swift_core.errors import HubError, NotFoundError, OfflineError
from swift_core.hub.resolve import resolve
from swift_core.testing.fake_hub import COMMIT, FakeHub, Fault, serve

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 1000, "tokenizer.json": b"{}"}
NAMES = sorted(FILES)

PREFIXES = [
    pytest.param(
        "hf", marks=pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="huggingface_hub is not installed")
    ),
    pytest.param("ms", marks=pytest.mark.skipif(not importlib.util.find_spec("modelscope"), reason="modelscope is not installed")),
]
both = pytest.mark.parametrize("prefix", PREFIXES)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN", "USE_HF"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "swift"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    # The libraries wait seconds between attempts; what is tested is that they attempt again.
    if importlib.util.find_spec("huggingface_hub"):
        monkeypatch.setattr("swift_core.hub.huggingface._WAITS", (0.0, 0.0))
        # Read from the environment at import, which another test may have caused.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serve() as server:
        server.repos = {("model", "org/m"): dict(FILES), ("dataset", "org/d"): {"train.jsonl": b'{"query": "q"}\n'}}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    def apply() -> None:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return apply


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@both
def test_model_is_fetched_once_and_found_offline(hub: FakeHub, prefix: str, no_sockets: Any) -> None:
    hub.repos["model", "org/m"] |= {"pytorch_model.bin": b"pickle", "model.Q4.gguf": b"copy", "onnx/model.onnx": b"copy"}
    folder = resolve(f"{prefix}::org/m")
    assert names(folder) == NAMES, "pickles and copies for other programs are left out"
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    sent = len([line for line in hub.log if "safetensors" in line])
    assert resolve(f"{prefix}::org/m") == folder
    assert len([line for line in hub.log if "safetensors" in line]) == sent, "the weights were sent again"
    no_sockets()
    assert resolve(f"{prefix}::org/m", offline=True) == folder


@both
def test_offline_without_a_copy_opens_no_connection(hub: FakeHub, prefix: str, no_sockets: Any) -> None:
    no_sockets()
    with pytest.raises(OfflineError, match=f"run `swift hub path {prefix}::org/d --kind dataset` once"):
        resolve(f"{prefix}::org/d", kind="dataset", offline=True)
    assert hub.log == []


@both
def test_revision_reaches_the_hub(hub: FakeHub, prefix: str) -> None:
    hub.revisions.add("v1.5")
    resolve(f"{prefix}::org/m@v1.5")
    assert any("v1.5" in line for line in hub.log)
    with pytest.raises(NotFoundError, match="v9"):
        resolve(f"{prefix}::org/m", revision="v9")


@both
def test_absent_repository_names_the_other_hub(hub: FakeHub, prefix: str) -> None:
    other = {"hf": "ms", "ms": "hf"}[prefix]
    with pytest.raises(NotFoundError, match=rf"no model 'org/absent'.*try {other}::org/absent"):
        resolve(f"{prefix}::org/absent")


@both
def test_token_opens_a_private_repository(hub: FakeHub, prefix: str) -> None:
    hub.token = "hub-secret"
    variable = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}[prefix]
    with pytest.raises(HubError, match=rf"401.*set {variable} or --hub_token"):
        resolve(f"{prefix}::org/m")
    assert names(resolve(f"{prefix}::org/m", token="hub-secret")) == NAMES


@both
def test_access_denied_says_where_to_ask(hub: FakeHub, prefix: str) -> None:
    hub.faults = [Fault("org/m", 403)]
    with pytest.raises(HubError, match=r"403.*access denied.*ask for access at http.*org/m"):
        resolve(f"{prefix}::org/m")


@pytest.mark.parametrize(
    ("prefix", "status"), [pytest.param("hf", 500), pytest.param("hf", 503), pytest.param("hf", 429), pytest.param("ms", 429)]
)
def test_hub_that_recovers(hub: FakeHub, prefix: str, status: int) -> None:
    if prefix == "ms":
        pytest.importorskip("modelscope")
    hub.faults = [Fault("org/m", status, times=1, headers={"Retry-After": "0"})]
    assert names(resolve(f"{prefix}::org/m")) == NAMES
    assert hub.faults[0].times == 0


@both
def test_hub_that_does_not_recover(hub: FakeHub, prefix: str) -> None:
    hub.faults = [Fault("org/m", 429, headers={"Retry-After": "0"})]
    with pytest.raises(HubError, match=r"429.*too many requests"):
        resolve(f"{prefix}::org/m")


@both
def test_hub_that_is_down_leaves_the_copy_usable(hub: FakeHub, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = resolve(f"{prefix}::org/m")
    hub.faults = [Fault("org/m", 429, headers={"Retry-After": "0"})]
    assert resolve(f"{prefix}::org/m") == folder
    assert "using the copy on this machine" in caplog.text


@both
def test_cut_download_is_resumed(hub: FakeHub, prefix: str) -> None:
    hub.faults = [Fault("model.safetensors", 0, times=1)]
    folder = resolve(f"{prefix}::org/m")
    assert hub.faults[0].times == 0
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@both
def test_cut_download_never_counts_as_complete(hub: FakeHub, prefix: str, no_sockets: Any) -> None:
    # A file that cannot be fetched at all: everything else is on the disk by then.
    hub.faults = [Fault("model.safetensors", 403)]
    with pytest.raises(HubError):
        resolve(f"{prefix}::org/m")
    with pytest.raises(OfflineError):
        resolve(f"{prefix}::org/m", offline=True)
    hub.faults = []
    assert names(resolve(f"{prefix}::org/m")) == NAMES


@both
def test_damaged_copy_is_not_used_offline(hub: FakeHub, prefix: str) -> None:
    folder = resolve(f"{prefix}::org/m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OfflineError):
        resolve(f"{prefix}::org/m", offline=True)


@both
def test_repository_of_pickles_is_refused(hub: FakeHub, prefix: str) -> None:
    hub.repos["model", "org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(NotFoundError, match="no safetensors weights"):
        resolve(f"{prefix}::org/old")
    assert not any("pytorch_model.bin" in line for line in hub.log)


def test_unreachable_hub_names_the_mirror_variable(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(HubError, match="HF_ENDPOINT"):
            resolve("hf::org/m")


@both
def test_command_prints_the_folder_only(hub: FakeHub, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path", f"{prefix}::org/d", "--kind", "dataset", "--revision", COMMIT]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert names(Path(printed.strip())) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["path", "--help"], 0), (["path", "x", "--nope"], 2), ([], 2), (["fetch"], 2)]
)
def test_command_line_mistakes(words: list[str], code: int) -> None:
    assert main(words) == code
